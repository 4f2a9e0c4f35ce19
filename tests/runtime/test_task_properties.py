"""What must hold for every input: real tasks against plain models, other cuts, other caches, and crashes."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace import Topology, agg, session, tumbling
from headrace.testing.driver import TopologyTestDriver
from tests.runtime import naive, streams
from tests.runtime.streams import DISORDER, Event, Output, outputs, pieces, result_of

few = settings(max_examples=40, deadline=None)

one_task = pytest.mark.parametrize("make", streams.ONE_TASK)
repartitioned = pytest.mark.parametrize("make", streams.REPARTITIONED)
Make = Callable[[], Topology]


@one_task
@few
@given(made=streams.events, sizes=streams.cuts)
def test_results_and_positions_do_not_depend_on_how_the_input_is_cut(
    make: Make, made: list[Event], sizes: list[int]
) -> None:
    assert result_of(make(), made, sizes) == result_of(make(), made)


@repartitioned
@few
@given(made=streams.events, sizes=streams.cuts)
def test_nor_behind_a_repartition(make: Make, made: list[Event], sizes: list[int]) -> None:
    made = streams.orderly(made)
    assert result_of(make(), made, sizes, repartition_partitions=2) == result_of(make(), made, repartition_partitions=2)


@one_task
@few
@given(made=streams.events, sizes=streams.cuts, cache_bytes=st.sampled_from([0, 500, 3000]))
def test_the_size_of_the_cache_changes_nothing(
    make: Make, made: list[Event], sizes: list[int], cache_bytes: int
) -> None:
    assert result_of(make(), made, sizes, cache_bytes=cache_bytes) == result_of(make(), made, sizes)


def by_id(found: list[Output]) -> dict[tuple[str, bytes], Any]:
    """Return outputs by topic and id; what comes twice with one id must be the same both times."""
    unique: dict[tuple[str, bytes], Any] = {}
    for output in found:
        place = (output[0], output[-1])
        assert unique.setdefault(place, output) == output
    return unique


class Faults:
    """A run in which tasks are checkpointed, handed over and lost between any two batches."""

    def __init__(self, topology: Topology, **options: Any) -> None:
        self.driver = TopologyTestDriver(topology, **options)

    def run(self, made: list[Event], sizes: list[int], faults: list[tuple[int, str, int]]) -> list[Output]:
        driver = self.driver
        parts = pieces(made, sizes)
        for place, part in enumerate(parts):
            driver.send_many("in", part)
            self.apply([f for f in faults if f[0] == place])
        driver.end_input()
        self.apply([f for f in faults if f[0] >= len(parts)])
        return outputs(driver)

    def apply(self, faults: list[tuple[int, str, int]]) -> None:
        for _, fault, number in faults:
            tasks = self.driver.tasks
            chosen = [] if number == 0 else [tasks[number % len(tasks)]]
            getattr(self.driver, fault)(*chosen)


faults = st.lists(
    st.tuples(st.integers(0, 8), st.sampled_from(["checkpoint", "crash", "crash", "restart"]), st.integers(0, 4)),
    min_size=1,
    max_size=6,
)


@one_task
@few
@given(made=streams.events, sizes=streams.cuts, faults=faults, partitions=st.integers(1, 2))
def test_crashes_and_hand_offs_repeat_outputs_with_their_ids_and_change_none(
    make: Make, made: list[Event], sizes: list[int], faults: list[tuple[int, str, int]], partitions: int
) -> None:
    undisturbed = by_id(result_of(make(), made, partitions=partitions))
    disturbed = Faults(make(), partitions=partitions, cache_bytes=1000).run(made, sizes, faults)
    assert by_id(disturbed) == undisturbed


@repartitioned
@few
@given(made=streams.events, sizes=streams.cuts, faults=faults)
def test_every_record_counts_once_behind_a_repartition_too(
    make: Make, made: list[Event], sizes: list[int], faults: list[tuple[int, str, int]]
) -> None:
    made = streams.orderly(made)
    undisturbed = by_id(result_of(make(), made, repartition_partitions=2))
    disturbed = Faults(make(), repartition_partitions=2, cache_bytes=1000).run(made, sizes, faults)
    assert by_id(disturbed) == undisturbed


@few
@given(made=streams.events, sizes=streams.cuts, places=st.lists(st.integers(0, 12), max_size=4))
def test_a_hand_off_anywhere_repeats_nothing(made: list[Event], sizes: list[int], places: list[int]) -> None:
    for make in [*streams.ONE_TASK, *streams.REPARTITIONED]:
        ordered = streams.orderly(made)
        handed = Faults(make()).run(ordered, sizes, [(place, "restart", 0) for place in places])
        assert handed == result_of(make(), ordered)


def expected_result(key: Any, start: int, end: int, members: list[Event]) -> dict[str, Any]:
    in_time = sorted(members, key=lambda event: event["at"])
    numbers = [event["n"] for event in members]
    product = numbers[0]
    for number in numbers[1:]:
        product = product * number % 97
    latest = max(event["at"] for event in members)
    return {
        "key": key, "window_start": start, "window_end": end, "n": len(members), "total": sum(numbers),
        "low": min(numbers), "high": max(numbers), "mean": sum(numbers) / len(numbers),
        "first": in_time[0]["id"], "last": [e["id"] for e in members if e["at"] == latest][-1],
        "all": [event["n"] for event in in_time], "product": product,
    }  # fmt: skip


def values(found: list[Output], topic: str) -> list[Any]:
    return [output[4] for output in found if output[0] == topic]


def in_order(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(results, key=lambda result: (result["window_end"], result["key"]))


@pytest.mark.parametrize(
    ("make", "size", "every", "lateness"),
    [(streams.tumbling_windows, 30, 30, 10), (streams.hopping_windows, 50, 20, 5)],
)
@settings(max_examples=100, deadline=None)
@given(made=streams.events, sizes=streams.cuts)
def test_windows_are_what_a_plain_model_says(
    make: Make, size: int, every: int, lateness: int, made: list[Event], sizes: list[int]
) -> None:
    windows, late = naive.windowed(made, size=size, every=every, disorder=DISORDER, lateness=lateness)
    expected = [expected_result(key, end - size, end, members) for (key, end), members in windows.items()]
    found = result_of(make(), made, sizes)
    assert values(found, "out") == in_order(expected)
    assert values(found, "late") == late
    assert [output[2] for output in found if output[0] == "out"] == [r["window_end"] - 1 for r in in_order(expected)]


def without_product(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Drop what a session does not promise: its order of combining."""
    return [{name: value for name, value in result.items() if name not in ("product", "last")} for result in results]


@settings(max_examples=150, deadline=None)
@given(made=streams.events, sizes=streams.cuts)
def test_sessions_are_what_a_plain_model_says(made: list[Event], sizes: list[int]) -> None:
    found_sessions, late = naive.sessions(made, gap=15, disorder=DISORDER, lateness=5)
    expected = [expected_result(*item) for item in found_sessions]
    found = result_of(streams.session_windows(), made, sizes)
    assert values(found, "late") == late
    unpack = sorted(without_product(values(found, "out")), key=repr)
    assert unpack == sorted(without_product(in_order(expected)), key=repr)


@few
@given(made=streams.events)
def test_sessions_without_late_records_are_cut_where_the_gaps_are(made: list[Event]) -> None:
    ordered = streams.orderly(made)
    expected = [(key, start, end, len(m)) for key, start, end, m in naive.sessions_of_sorted(ordered, gap=15)]
    found = [
        (r["key"], r["window_start"], r["window_end"], r["n"])
        for r in values(result_of(streams.session_windows(), ordered), "out")
    ]
    assert sorted(found) == sorted(expected)


@settings(max_examples=150, deadline=None)
@given(made=streams.events, sizes=streams.cuts)
def test_deduplication_is_what_a_plain_model_says(made: list[Event], sizes: list[int]) -> None:
    found = result_of(streams.deduplicated(), made, sizes)
    assert values(found, "out") == naive.deduplicated(made, within=25, disorder=DISORDER)


@few
@given(made=streams.events, sizes=streams.cuts)
def test_late_records_of_one_window_are_judged_by_the_watermark_that_leaves_it(
    made: list[Event], sizes: list[int]
) -> None:
    counts: dict[tuple[str, int], int] = {}
    later = []
    for event, watermark in naive.with_watermarks(made, DISORDER):
        if naive.windows_of(event["at"], 10, 10)[0] + 15 > watermark:
            continue
        (end,) = naive.windows_of(event["at"], 30, 30)
        if end + 20 > max(-1, watermark - 15):
            counts[event["k"], end] = counts.get((event["k"], end), 0) + 1
        else:
            later.append(event)
    found = result_of(streams.cascaded_windows(), made, sizes)
    assert {(r["key"], r["window_end"]): r["n"] for r in values(found, "late")} == counts
    assert values(found, "later") == later


def merged_windows() -> Topology:
    topology = Topology("merged-windows")
    stream = topology.stream("in", keyed_by="k", time="at", out_of_orderness=f"{DISORDER}ms")
    slow = stream.window(tumbling("20ms"), lateness="25ms").aggregate(n=agg.count())
    quick = stream.window(session("10ms")).aggregate(n=agg.count())
    slow.merge(quick.filter(lambda r: True)).to("out")
    return topology


@few
@given(made=streams.events, sizes=streams.cuts)
def test_results_of_several_windows_merge_in_the_order_in_which_they_close(made: list[Event], sizes: list[int]) -> None:
    assert result_of(merged_windows(), made, sizes) == result_of(merged_windows(), made)
