"""Which worker runs which task."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from headrace.runtime.workers.assignment import assign

members = st.lists(st.sampled_from("abcdef"), unique=True, max_size=6)
units = st.integers(0, 12).map(lambda n: [f"t-{i:02d}" for i in range(n)])
holders = st.dictionaries(st.integers(0, 14).map(lambda i: f"t-{i:02d}"), st.sampled_from("abcdefgh"), max_size=15)


@given(members, units, holders)
def test_every_unit_has_a_live_member_and_nobody_has_two_more_than_another(
    live: list[str], work: list[str], held: dict[str, str]
) -> None:
    result = assign(live, work, held)
    if not live:
        assert result == {}
        return
    assert list(result) == work
    assert set(result.values()) <= set(live)
    counts = Counter(dict.fromkeys(live, 0)) + Counter(result.values())
    numbers = [counts[member] for member in live]
    assert max(numbers) - min(numbers) <= 1


@given(members, units, holders)
def test_all_members_compute_the_same(live: list[str], work: list[str], held: dict[str, str]) -> None:
    shuffled = list(reversed(live))
    assert assign(shuffled, work, dict(reversed(held.items()))) == assign(live, work, held)


@given(members.filter(bool), units, holders)
def test_as_few_as_possible_move(live: list[str], work: list[str], held: dict[str, str]) -> None:
    result = assign(live, work, held)
    stays = sum(result[unit] == held.get(unit) for unit in work)
    least, spare = divmod(len(work), len(live))
    owned = sorted((sum(held.get(unit) == member for unit in work) for member in live), reverse=True)
    most = sum(min(have, least + (place < spare)) for place, have in enumerate(owned))
    assert stays == most


@given(members.filter(bool), units)
def test_a_second_look_moves_nothing(live: list[str], work: list[str]) -> None:
    first = assign(live, work, {})
    assert assign(live, work, first) == first


@given(members.filter(bool), units, holders, st.sets(st.integers(0, 11)))
def test_what_has_moved_changes_nothing_for_the_rest(
    live: list[str], work: list[str], held: dict[str, str], done: set[int]
) -> None:
    plan = assign(live, work, held)
    moved = {unit: plan[unit] for place, unit in enumerate(work) if place in done}
    assert assign(live, work, held | moved) == plan


def test_units_of_one_kind_spread_out() -> None:
    result = assign(["a", "b"], ["x-0", "x-1", "y-0", "y-1"], {})
    assert {result["x-0"], result["x-1"]} == {"a", "b"}
    assert {result["y-0"], result["y-1"]} == {"a", "b"}
