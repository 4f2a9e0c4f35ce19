"""The strategies for Hypothesis: what they make has the properties that they promise, and nothing more."""

import subprocess
import sys
from itertools import permutations

import pytest
from hypothesis import find, given, settings
from hypothesis import strategies as st

from headrace import SettingsError, Topology, agg, tumbling
from headrace.testing import TopologyTestDriver
from headrace.testing.strategies import Event, batches, cuts, disordered, duplicated, late, records, send

few = settings(max_examples=60, deadline=None)
exhaustive = settings(max_examples=5000, derandomize=True, database=None)

values = st.fixed_dictionaries({"k": st.sampled_from("ab"), "at": st.integers(0, 100)})
streams = records(values, keys="k", timestamps="at", max_size=12)


def bag(events: list[Event]) -> list[int]:
    return sorted(map(id, events))


def behind(events: list[Event]) -> list[int]:
    """How far each event comes behind the highest timestamp before it."""
    found, highest = [], 0
    for event in events:
        found.append(max(0, highest - event.timestamp))
        highest = max(highest, event.timestamp)
    return found


@few
@given(streams)
def test_records_are_in_order_with_the_keys_and_times_of_their_values(events: list[Event]) -> None:
    assert behind(events) == [0] * len(events)
    assert all((event.key, event.timestamp) == (event.value["k"], event.value["at"]) for event in events)


@few
@given(records(st.none(), keys=st.sampled_from([b"x", b"y"]), timestamps=st.integers(5, 9), min_size=1, max_size=3))
def test_keys_and_times_can_be_drawn(events: list[Event]) -> None:
    assert behind(events) == [0] * len(events)
    assert 1 <= len(events) <= 3
    assert all(event.key in (b"x", b"y") and 5 <= event.timestamp <= 9 for event in events)


@few
@given(st.data(), streams, st.integers(0, 120))
def test_disorder_stays_within_its_bound(data: st.DataObject, events: list[Event], by_ms: int) -> None:
    made = data.draw(disordered(events, f"{by_ms}ms"))
    assert bag(made) == bag(events)
    assert max(behind(made), default=0) <= by_ms


def test_every_order_within_the_bound_is_made() -> None:
    events = [Event(None, timestamp=time) for time in (0, 3, 4, 10)]
    wanted = [list(order) for order in permutations(events) if max(behind(list(order))) <= 9]
    assert len(wanted) == 12
    for order in wanted:
        assert find(disordered(events, "9ms"), lambda made, order=order: made == order, settings=exhaustive) == order


def test_disorder_shrinks_to_the_one_pair_that_matters() -> None:
    events = [Event(None, timestamp=time) for time in range(8)]
    found = find(disordered(events, "5ms"), lambda made: made.index(events[4]) < made.index(events[3]))
    assert [event.timestamp for event in found] == [0, 1, 2, 4, 3, 5, 6, 7]


@few
@given(st.data(), streams, st.integers(1, 4))
def test_repeats_come_behind_their_first_time(data: st.DataObject, events: list[Event], most: int) -> None:
    made = data.draw(duplicated(events, most))
    firsts = list({id(event): event for event in made}.values())
    assert list(map(id, firsts)) == list(map(id, events))
    assert all(1 <= bag(made).count(id(event)) <= most for event in events)


def test_most_and_more_repeats_are_not_made() -> None:
    events = [Event("a")]
    assert find(duplicated(events, 3), lambda made: len(made) == 3, settings=exhaustive)
    with pytest.raises(ValueError, match="most cannot be 0"):
        duplicated(events, 0)


@few
@given(st.data(), streams, st.integers(0, 120), st.integers(0, 3))
def test_late_events_are_beyond_and_the_others_as_they_were(
    data: st.DataObject, events: list[Event], beyond_ms: int, most: int
) -> None:
    made = data.draw(late(events, beyond=f"{beyond_ms}ms", most=most))
    moved = {id(event) for event, lag in zip(made, behind(made), strict=True) if lag}
    assert all(lag == 0 or lag > beyond_ms for lag in behind(made))
    assert len(moved) <= most
    assert [id(e) for e in made if id(e) not in moved] == [id(e) for e in events if id(e) not in moved]
    assert bag(made) == bag(events)


def test_late_events_are_found_where_there_can_be_any() -> None:
    events = [Event(None, timestamp=time) for time in (0, 5, 20)]
    found = find(late(events, beyond="10ms"), lambda made: made != events, settings=exhaustive)
    assert [event.timestamp for event in found] in ([0, 20, 5], [5, 20, 0])
    with pytest.raises(SettingsError, match="beyond of late"):
        late(events, beyond="soon")


@few
@given(st.data(), st.integers(0, 20))
def test_cuts_take_every_record_once(data: st.DataObject, count: int) -> None:
    sizes = data.draw(cuts(count))
    assert sum(sizes) == count
    assert 0 not in sizes


def test_every_cut_is_made() -> None:
    found = set()
    for places in range(2**3):
        ends = [i + 1 for i in range(3) if places >> i & 1] + [4]
        wanted = [end - start for start, end in zip([0, *ends], ends, strict=False)]
        found.add(tuple(find(cuts(4), lambda sizes, wanted=wanted: sizes == wanted, settings=exhaustive)))
    assert len(found) == 8


def windows() -> Topology:
    topology = Topology("windows")
    counts = topology.stream("in", keyed_by="k", time="at", out_of_orderness="10ms").window(tumbling("20ms"))
    results = counts.aggregate(n=agg.count())
    results.to("out")
    results.late.to("late")
    return topology


def counted(driver: TopologyTestDriver) -> int:
    return sum(record.value["n"] for record in driver.read("out"))


@few
@given(batches(disordered(duplicated(streams), by="10ms")))
def test_composed_streams_are_counted_whole_however_they_are_cut(made: list[list[Event]]) -> None:
    driver = TopologyTestDriver(windows())
    for batch in made:
        send(driver, "in", batch)
    driver.end_input()
    assert driver.read("late") == []
    assert counted(driver) == sum(map(len, made))


@few
@given(late(disordered(streams, by="10ms"), beyond="30ms"))
def test_a_window_leaves_out_what_is_late_by_more_than_its_size(made: list[Event]) -> None:
    driver = TopologyTestDriver(windows())
    send(driver, "in", made)
    driver.end_input()
    expected = [event.value for event, lag in zip(made, behind(made), strict=True) if lag > 30]
    assert [record.value for record in driver.read("late")] == expected
    assert counted(driver) == len(made) - len(expected)


def test_an_event_can_be_sent_as_it_is() -> None:
    driver = TopologyTestDriver(windows())
    driver.send("in", *Event({"k": "a", "at": 5}, "a", 5))
    driver.end_input()
    assert counted(driver) == 1
    send(driver, "in", [])


def test_without_hypothesis_the_error_names_the_extra() -> None:
    code = (
        "import sys; sys.modules['hypothesis'] = None\n"
        "from headrace.testing import TopologyTestDriver\n"
        "try: import headrace.testing.strategies\n"
        "except ModuleNotFoundError as error: print(error, error.name)\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'headrace[testing]' hypothesis" in ran.stdout


def test_the_names_of_the_package_are_there_and_no_others() -> None:
    import headrace.testing as testing

    assert [name for name in testing.__all__ if getattr(testing, name) is None] == []
    assert testing.__all__ == sorted(testing.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        testing.nonsense  # noqa: B018
