"""What is said about windows that cannot be: each mistake has a message of its own, with the user's line."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from headrace import (
    KeyedStream,
    SettingsError,
    Topology,
    TopologyError,
    agg,
    counting,
    every,
    hopping,
    session,
    sliding,
    tumbling,
    when,
)

Stream = KeyedStream[Any]


COUNT = {"n": agg.count()}


class Odd:
    """A window assigner with a part of it missing."""

    def __init__(self, **parts: Any) -> None:
        self.__dict__.update(parts)


async def slow(result: Any) -> bool:
    return True


Wrong = tuple[Callable[[Stream], Any], str, str]

WRONG: list[Wrong] = [
    (lambda s: tumbling("0s"), "the size of a tumbling window must be at least 1ms", 'tumbling("1m")'),
    (lambda s: hopping("0s", "1s"), "the size of a hopping window must be at least 1ms", 'hopping("1m", "10s")'),
    (lambda s: hopping("1s", "0s"), "the hop of a hopping window must be at least 1ms", 'hopping("1m", "10s")'),
    (lambda s: hopping("1s", "2s"), "windows of 1000 ms every 2000 ms would leave", "at most as long"),
    (lambda s: session("0s"), "the gap of a session must be at least 1ms", 'session("30m")'),
    (lambda s: sliding(timedelta(0)), "the size of a sliding window must be at least 1ms", 'sliding("1m")'),
    (lambda s: counting(0), "at least 1, not 0", "counting(100)"),
    (lambda s: counting("5"), "whole number of records, at least 1, not '5'", "counting(100)"),  # type: ignore[arg-type]
    (lambda s: counting(True), "whole number of records", "counting(100)"),
    (lambda s: every("0s"), "the interval of every() must be at least 1ms", 'every("10s")'),
    (lambda s: when("n > 5"), "when() needs a function, not str", ""),  # type: ignore[arg-type]
    (lambda s: when(slow), "async function", "plain function"),
    (lambda s: s.window("1m"), 'window was given "1m"', 'tumbling("1m")'),  # type: ignore[arg-type]
    (lambda s: s.window(timedelta(minutes=1)), "window was given datetime.timedelta(seconds=60)", "tumbling("),  # type: ignore[arg-type]
    (lambda s: s.window(60), "WindowAssigner, not int", ""),  # type: ignore[arg-type]
    (lambda s: s.window(tumbling), "WindowAssigner, not function", ""),  # type: ignore[arg-type]
    (lambda s: s.window(Odd), "not the class Odd", "Write Odd()"),  # type: ignore[arg-type]
    (lambda s: s.window(Odd(windows=list, shape=dict)), "needs a name", 'name = "my-windows"'),  # type: ignore[arg-type]
    (lambda s: s.window(Odd(windows=list, shape=lambda: {1j}, name="x")), "shape() of the window assigner 'x'", "dict"),  # type: ignore[arg-type]
    (lambda s: s.window(tumbling("1m"), lateness="-1s"), "must not be negative: '-1s'", 'lateness="0s"'),
    (lambda s: s.window(tumbling("1m"), lateness=timedelta(-1)), "must not be negative", 'lateness="0s"'),
    (lambda s: s.window(counting(5), lateness="1s"), "counting windows have no lateness", "out_of_orderness"),
    (lambda s: s.window(tumbling("1m")).aggregate(**COUNT, emit="never"), "not 'never'", 'every("10s")'),
    (lambda s: s.window(tumbling("1m")).aggregate(**COUNT, emit=every), "not function", 'every("10s")'),
    (lambda s: s.window(tumbling("1m")).aggregate(**COUNT, emit=timedelta(1)), "not timedelta", 'every("10s")'),
    (lambda s: s.window(tumbling("1m")).aggregate(**COUNT, emit=lambda result: True), "not function", "when(...)"),
    (lambda s: s.window(sliding("1m")).aggregate(**COUNT, emit="update"), "sliding windows emit", "hopping(...)"),
    (lambda s: s.window(counting(3)).aggregate(**COUNT, emit=every("1s")), "counting windows emit", "tumbling(...)"),
    (lambda s: s.window(session("1m")).aggregate(n=agg.fold(int, max)), "session windows", "merge="),
    (lambda s: s.window(sliding("1m")).aggregate(n=agg.fold(int, max)), "sliding windows", "merge="),
    (lambda s: s.window(counting(2)).aggregate(n=agg.fold(int, max)), "counting windows", "merge="),
]  # fmt: skip


@pytest.mark.parametrize(("wrong", "message", "remedy"), WRONG)
def test_impossible_windows_are_refused_at_the_users_line(
    wrong: Callable[[Stream], Any], message: str, remedy: str
) -> None:
    stream = Topology("t").stream("in", keyed_by="k")
    with pytest.raises(TopologyError) as failed:
        wrong(stream)
    assert message in failed.value.message
    assert remedy in failed.value.remedy
    assert f"({__file__}:{wrong.__code__.co_firstlineno})" in str(failed.value)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda s: tumbling("soon"),
        lambda s: sliding(5),
        lambda s: every("1 fortnight"),
        lambda s: s.window(tumbling("1m"), lateness="late"),
    ],
)
def test_so_is_what_is_no_duration(wrong: Callable[[Any], Any]) -> None:
    with pytest.raises(SettingsError, match="not a duration") as failed:
        wrong(Topology("t").stream("in", keyed_by="k"))
    assert f"({__file__}:{wrong.__code__.co_firstlineno})" in str(failed.value)


@pytest.mark.parametrize("name", ["key", "window_start", "window_end", "final"])
def test_an_aggregate_cannot_be_called_like_another_field(name: str) -> None:
    stream = Topology("t").stream("in", keyed_by="k")
    with pytest.raises(TopologyError, match=f"cannot be called '{name}'"):
        stream.window(tumbling("1m")).aggregate(**{name: agg.count()})


def test_steps_are_named_by_their_windows() -> None:
    class Shifts:
        name = "shifts"

        def windows(self, timestamp: int) -> list[tuple[int, int]]:
            return []

        def shape(self) -> dict[str, Any]:
            return {}

    topology = Topology("t")
    stream = topology.stream("in", keyed_by="k")
    for windows in (sliding("1m"), counting(7), Shifts()):
        stream.window(windows).aggregate(n=agg.count())
    names = [node.name for node in topology.graph().nodes[1:]]
    assert names == ["in-sliding-60000ms", "in-counting-7", "in-shifts"]
