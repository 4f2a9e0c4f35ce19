"""Virtual time and the threads in it."""

from __future__ import annotations

import pytest

from headrace.testing.simulation.baton import Baton, Crashed
from headrace.testing.simulation.draws import Draws


def test_things_happen_in_the_order_of_their_time() -> None:
    baton, seen = Baton(), []
    baton.after(30, lambda: seen.append((baton.now, "c")))
    baton.after(10, lambda: seen.append((baton.now, "a")))
    baton.after(10, lambda: seen.append((baton.now, "b")), tie=0.9)
    baton.run(lambda: len(seen) == 3)
    baton.close()
    assert seen == [(10, "a"), (10, "b"), (30, "c")]


def test_what_pauses_lets_others_go_on() -> None:
    baton, seen = Baton(), []

    def slow(name: str) -> None:
        for step in range(3):
            seen.append((baton.now, name, step))
            baton.pause(10)

    baton.after(0, lambda: slow("a"))
    baton.after(5, lambda: slow("b"))
    baton.run(lambda: len(seen) == 6 and baton.now >= 35)
    baton.close()
    assert seen == [(0, "a", 0), (5, "b", 0), (10, "a", 1), (15, "b", 1), (20, "a", 2), (25, "b", 2)]


def test_who_is_killed_unwinds_where_it_pauses() -> None:
    baton, seen = Baton(), []
    owner = object()

    def doomed() -> None:
        try:
            baton.pause(1000)
            seen.append("went on")
        except Crashed:
            seen.append("unwound")
            raise

    baton.after(0, doomed, owner=owner)
    baton.after(10, lambda: baton.kill(owner))
    baton.after(20, lambda: seen.append("after"))
    baton.run(lambda: "after" in seen)
    baton.close()
    assert seen == ["unwound", "after"]


def test_an_error_ends_the_run() -> None:
    baton = Baton()
    baton.after(0, lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        baton.run(lambda: False)
    baton.close()


def test_nothing_left_to_happen_is_an_error() -> None:
    baton = Baton()
    with pytest.raises(RuntimeError, match="nothing is left"):
        baton.run(lambda: False)
    baton.close()


def test_draws_depend_on_their_names_alone() -> None:
    draws = Draws(7)
    numbers = [draws.unit(f"a/{n}") for n in range(1000)]
    assert 450 < sum(number < 0.5 for number in numbers) < 550
    assert draws.unit("a/3") == numbers[3]
    assert Draws(8).unit("a/3") != numbers[3]
    assert {draws.whole(f"b/{n}", 1, 3) for n in range(100)} == {1, 2, 3}
    assert {draws.one(f"c/{n}", "xyz") for n in range(100)} == {"x", "y", "z"}
