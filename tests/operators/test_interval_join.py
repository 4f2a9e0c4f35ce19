"""Joins of two streams within an interval, against nested loops."""

import random
from collections.abc import Callable
from pathlib import Path

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace import KeyedStream, Topology, TopologyError, agg, tumbling
from headrace.operators.stored import StoredValues
from headrace.operators.timelines import Timeline, timeline_codec
from headrace.serde.msgpack import Msgpack
from headrace.testing.driver import TopologyTestDriver
from tests.operators import join_runs
from tests.operators.join_runs import DISORDER, Event, model, nested_loop, numbers, numbers_of, orderly, pairs, run
from tests.runtime.streams import outputs, pieces

GOLDEN = Path(__file__).parent / "golden"
HOWS = ["inner", "left", "right", "outer"]
BEFORE, AFTER = 1_500, 400

few = settings(max_examples=60, deadline=None)
each_how = pytest.mark.parametrize("how", HOWS)
lateness = st.sampled_from([0, 300, 2_000])
widths = st.sampled_from([(BEFORE, AFTER), (0, 0), (0, 3_000), (50, 50)])


def _finish(left: KeyedStream[Event], right: KeyedStream[Event], how: str, before: int, after: int, late: int) -> None:
    joined = left.join(right, numbers, within=(f"{before}ms", f"{after}ms"), how=how, lateness=f"{late}ms")  # type: ignore[call-overload]
    joined.to("out")
    joined.late.to("late")
    joined.late_right.to("later")


def branched(how: str, before: int = BEFORE, after: int = AFTER, late: int = 0) -> Topology:
    topology = Topology("branched")
    stream = topology.stream("in", keyed_by="k", time="at", out_of_orderness=f"{DISORDER}ms")
    sides = stream.branch(left=lambda e: e["s"] == 0, right=lambda e: e["s"] == 1)
    _finish(sides["left"], sides["right"], how, before, after, late)
    return topology


def itself(how: str, before: int = BEFORE, after: int = AFTER, late: int = 0) -> Topology:
    topology = Topology("itself")
    stream = topology.stream("in", keyed_by="k", time="at", out_of_orderness=f"{DISORDER}ms")
    _finish(stream, stream, how, before, after, late)
    return topology


def overlapping(how: str, before: int = BEFORE, after: int = AFTER, late: int = 0) -> Topology:
    """Some records enter on both sides, some on one."""
    topology = Topology("overlapping")
    stream = topology.stream("in", keyed_by="k", time="at", out_of_orderness=f"{DISORDER}ms")
    _finish(stream.filter(lambda e: e["n"] % 3 > 0), stream.filter(lambda e: e["n"] % 3 < 2), how, before, after, late)
    return topology


SIDES: dict[Callable[..., Topology], Callable[[Event], list[int]]] = {
    branched: lambda event: [event["s"]],
    itself: lambda event: [0, 1],
    overlapping: lambda event: [side for side, enters in enumerate((event["n"] % 3 > 0, event["n"] % 3 < 2)) if enters],
}
each_shape = pytest.mark.parametrize("make", list(SIDES))


@each_shape
@each_how
@few
@given(made=join_runs.events, sizes=join_runs.cuts, late=lateness, width=widths)
def test_results_and_their_order_are_what_a_plain_model_says(
    make: Callable[..., Topology], how: str, made: list[Event], sizes: list[int], late: int, width: tuple[int, int]
) -> None:
    expected = model(made, how, *width, late, SIDES[make])
    found = run(make(how, *width, late), made, sizes)
    assert pairs(found) == expected.out
    assert numbers_of(found, "late") == expected.late[0]
    assert numbers_of(found, "later") == expected.late[1]


@each_shape
@each_how
@few
@given(made=join_runs.events, sizes=join_runs.cuts)
def test_without_late_records_it_is_a_nested_loop(
    make: Callable[..., Topology], how: str, made: list[Event], sizes: list[int]
) -> None:
    made = orderly(made)
    left = [event for event in made if 0 in SIDES[make](event)]
    right = [event for event in made if 1 in SIDES[make](event)]
    found = run(make(how), made, sizes)
    assert sorted(pairs(found), key=repr) == nested_loop(left, right, how, BEFORE, AFTER)


@pytest.mark.parametrize("batch_records", [1, 2, 3, 7, 4096])
@few
@given(made=join_runs.events, how=st.sampled_from(HOWS), late=lateness)
def test_batches_change_nothing(batch_records: int, made: list[Event], how: str, late: int) -> None:
    whole = run(branched(how, late=late), made, [])
    assert run(branched(how, late=late), made, [], batch_records=batch_records) == whole


@few
@given(
    made=join_runs.events,
    sizes=join_runs.cuts,
    faults=join_runs.faults,
    how=st.sampled_from(HOWS),
    make=st.sampled_from(list(SIDES)),
    cache_bytes=st.sampled_from([0, 1_000, 2**20]),
)
def test_neither_crashes_nor_the_size_of_the_cache_change_anything(
    made: list[Event],
    sizes: list[int],
    faults: list[tuple[int, str]],
    how: str,
    make: Callable[..., Topology],
    cache_bytes: int,
) -> None:
    undisturbed = run(make(how), made, [])
    assert run(make(how), made, sizes, cache_bytes=cache_bytes) == undisturbed
    disturbed = run(make(how), made, sizes, faults, cache_bytes=cache_bytes)
    assert join_runs.by_id(disturbed) == join_runs.by_id(undisturbed)


def two_topics(how: str, late: int = 0) -> Topology:
    topology = Topology("two")
    left = topology.stream("left", keyed_by="k", time="at", out_of_orderness=f"{DISORDER}ms")
    right = topology.stream("right", keyed_by="k", time="at", out_of_orderness=f"{DISORDER}ms")
    _finish(left, right, how, BEFORE, AFTER, late)
    return topology


@each_how
@few
@given(made=join_runs.events, sizes=join_runs.cuts, partitions=st.integers(1, 2))
def test_two_topics_give_the_same_however_they_are_read(
    how: str, made: list[Event], sizes: list[int], partitions: int
) -> None:
    made = orderly(made)
    sides = [[event for event in made if event["s"] == side] for side in (0, 1)]
    driver = TopologyTestDriver(two_topics(how), partitions=partitions, batch_records=3, cache_bytes=1_000)
    parts = [pieces(side, sizes) for side in sides]
    for place in range(max(map(len, parts))):
        for topic, own in zip(("left", "right"), parts, strict=True):
            if place < len(own):
                driver.send_many(topic, own[place])
    driver.end_input()
    assert sorted(pairs(outputs(driver)), key=repr) == nested_loop(sides[0], sides[1], how, BEFORE, AFTER)


def rekeyed(how: str) -> Topology:
    topology = Topology("rekeyed")
    stream = topology.stream("in", time="at", out_of_orderness=f"{DISORDER}ms")
    sides = stream.branch(left=lambda e: e["s"] == 0, right=lambda e: e["s"] == 1)
    _finish(sides["left"].key_by("k", name="l"), sides["right"].key_by("k", name="r"), how, BEFORE, AFTER, 0)
    return topology


@each_how
@settings(max_examples=20, deadline=None)
@given(made=join_runs.events, sizes=join_runs.cuts, faults=join_runs.faults)
def test_so_do_sides_that_went_through_internal_topics_whatever_is_lost(
    how: str, made: list[Event], sizes: list[int], faults: list[tuple[int, str]]
) -> None:
    made = orderly(made)
    left, right = ([event for event in made if event["s"] == side] for side in (0, 1))
    expected = nested_loop(left, right, how, BEFORE, AFTER)
    found = run(rekeyed(how), made, sizes, partitions=2, repartition_partitions=2)
    assert sorted(pairs(found), key=repr) == expected
    disturbed = run(rekeyed(how), made, sizes, faults, partitions=2, repartition_partitions=2, cache_bytes=1_000)
    assert sorted(set(pairs(disturbed)), key=repr) == expected


def test_what_combine_fails_on_is_left_out_alone() -> None:
    def picky(left: Event, right: Event | None) -> int:
        return int(1 / (left["n"] - 1)) + left["n"] + (100 if right else 0)

    topology = Topology("picky")
    stream = topology.stream("in", keyed_by="k", time="at")
    sides = stream.branch(left=lambda e: e["s"] == 0, right=lambda e: e["s"] == 1)
    joined = sides["left"].join(sides["right"], picky, within="1s", how="left", on_error="skip")
    joined.to("out")
    driver = TopologyTestDriver(topology)
    driver.send_many("in", [{"k": "a", "s": 0, "at": n * 10_000, "n": n} for n in range(4)])
    driver.send("in", {"k": "a", "s": 1, "at": 30_000, "n": 4})
    driver.end_input()
    assert [record.value for record in driver.read("out")] == [-1, 3, 103]
    assert driver.skipped == {"in-join-in-combine": 1}


QUERY = """
SELECT greatest(l.t, r.t), l.n, r.n FROM events AS l {how} JOIN events AS r
ON l.k = r.k AND l.s = 0 AND r.s = 1 AND r.t BETWEEN l.t - {before} AND l.t + {after}
WHERE coalesce(l.s = 0, true) AND coalesce(r.s = 1, true)
"""


@pytest.mark.parametrize("how", ["inner", "outer"])
def test_it_is_what_sql_says(how: str) -> None:
    chance = random.Random(7)
    made, at = [], 0
    for n in range(4_000):
        at += chance.randint(0, 40)
        late = chance.choice([0, 0, 10, 500, 1_000])
        made.append({"k": f"k{chance.randint(0, 30)}", "s": chance.randint(0, 1), "at": max(0, at - late), "n": n})
    found = run(branched(how), made, [chance.randint(1, 300) for _ in range(20)], cache_bytes=50_000)
    with duckdb.connect() as database:
        database.execute("CREATE TABLE events (k TEXT, s INT, t BIGINT, n INT)")
        columns = [[event[name] for event in made] for name in ("k", "s", "at", "n")]
        database.execute("INSERT INTO events SELECT unnest(?), unnest(?), unnest(?), unnest(?)", columns)
        query = QUERY.format(how="FULL" if how == "outer" else "INNER", before=BEFORE, after=AFTER)
        expected = database.execute(query).fetchall()
    times = {event["n"]: event["at"] for event in made}
    expected = [(times[a if b is None else b] if a is None or b is None else t, a, b) for t, a, b in expected]
    assert sorted(pairs(found), key=repr) == sorted(expected, key=repr)
    assert len(expected) > 2_000


def test_an_unmatched_record_leaves_when_the_watermark_passes_the_last_time_of_a_partner() -> None:
    driver = TopologyTestDriver(branched("left"))
    driver.send("in", {"k": "a", "s": 0, "at": 5_000, "n": 0})
    driver.send("in", {"k": "b", "s": 1, "at": 5_000 + AFTER + DISORDER, "n": 1})
    assert driver.read("out") == []
    driver.send("in", {"k": "b", "s": 1, "at": 5_001 + AFTER + DISORDER, "n": 2})
    (found,) = driver.read("out")
    assert (found.key, found.timestamp, found.value) == ("a", 5_000, {"left": 0, "right": None})


def test_an_idle_input_lets_unmatched_records_leave_too() -> None:
    driver = TopologyTestDriver(branched("outer"))
    driver.send("in", {"k": "a", "s": 1, "at": 5_000, "n": 0})
    driver.advance_time("30s")
    driver.advance_time(f"{BEFORE + DISORDER}ms")
    assert driver.read("out") == []
    driver.advance_time("1ms")
    assert [record.value for record in driver.read("out")] == [{"left": None, "right": 0}]


def test_late_records_are_counted_by_side() -> None:
    driver = TopologyTestDriver(branched("inner"))
    driver.send("in", {"k": "a", "s": 0, "at": 90_000, "n": 0})
    driver.send("in", {"k": "a", "s": 0, "at": 90_000 - DISORDER - AFTER - 1, "n": 1})
    driver.send("in", {"k": "a", "s": 1, "at": 90_000 - DISORDER - BEFORE - 1, "n": 2})
    assert [record.value["n"] for record in driver.read("late")] == [1]
    assert [record.value["n"] for record in driver.read("later")] == [2]
    assert driver.late == {"in-join-in": 2}


def test_windows_behind_an_outer_join_take_what_left_without_a_partner() -> None:
    topology = Topology("t")
    stream = topology.stream("in", keyed_by="k", time="at")
    sides = stream.branch(left=lambda e: e["s"] == 0, right=lambda e: e["s"] == 1)
    joined = sides["left"].join(sides["right"], numbers, within=("5s", "2s"), how="outer")
    counts = joined.window(tumbling("1s")).aggregate(n=agg.count())
    counts.to("out")
    counts.late.to("late")
    driver = TopologyTestDriver(topology)
    driver.send_many("in", [{"k": "a", "s": n % 2, "at": n * 300, "n": n} for n in range(0, 60, 3)])
    driver.send_many("in", [{"k": "b", "s": n % 2, "at": 18_000 + n * 9_000, "n": n} for n in range(20)])
    driver.end_input()
    assert driver.late == {}
    assert sum(record.value["n"] for record in driver.read("out") if record.key == "b") == 20


def test_old_slices_leave_the_store() -> None:
    driver = TopologyTestDriver(branched("outer"))
    for n in range(200):
        driver.send("in", {"k": f"k{n}", "s": n % 2, "at": n * 1_000, "n": n})
    driver.checkpoint()
    (image,) = driver._checkpoints.values()
    assert len(image) < 40


def test_values_that_would_come_back_as_others_are_refused() -> None:
    topology = Topology("t")
    stream = topology.stream("in", keyed_by="k", time="at")
    stream.map(lambda e: (e["n"],)).join(stream, lambda a, b: a, within="1s").to("out")
    driver = TopologyTestDriver(topology)
    with pytest.raises(TopologyError, match="'in-join-in' keeps tuple objects in its state"):
        driver.send("in", {"k": "a", "at": 1, "n": 1})


def test_rows_of_version_1_are_written_and_read() -> None:
    codec = timeline_codec(StoredValues(Msgpack(), "step"))
    rows = [
        Timeline([1_000, 1_000, 70_000], [{"n": 1}, None, "\xc1"], bytearray(b"\0\1\0")),
        Timeline([5], [b"\xc1"], bytearray(b"\1")),
    ]
    written = b"\n".join(row.hex().encode() for row in codec.encode_many(rows)) + b"\n"
    assert written == (GOLDEN / "timelines-v1.hex").read_bytes()
    assert codec.decode_many([bytes.fromhex(line.decode()) for line in written.split()]) == rows


@pytest.mark.parametrize("cut", [1, 7, 4096])
def test_a_stream_meets_its_own_windows_however_many_close_within_a_batch(cut: int) -> None:
    topology = Topology("own-windows")
    stream = topology.stream("in", keyed_by="k", time="at")
    counts = stream.window(tumbling("10s")).aggregate(n=agg.count())
    joined = stream.join(counts, lambda record, count: [record["at"], count["window_end"]], within=("0s", "10s"))
    joined.to("out")
    driver = TopologyTestDriver(topology, batch_records=cut)
    driver.send_many("in", [{"k": "a", "at": second * 1000} for second in range(300)])
    driver.end_input()
    assert len(driver.read("out")) == 300
    assert not driver.late


@pytest.mark.parametrize("cut", [1, 4096])
def test_results_that_come_later_than_others_are_not_late_beside_them(cut: int) -> None:
    topology = Topology("two-windows")
    stream = topology.stream("in", keyed_by="k", time="at")
    quick = stream.window(tumbling("10ms")).aggregate(n=agg.count())
    slow = stream.window(tumbling("10ms"), lateness="50ms").aggregate(n=agg.count(), name="slow")
    quick.join(slow, lambda a, b: [a["window_end"], b["window_end"]], within="0s").to("out")
    driver = TopologyTestDriver(topology, batch_records=cut)
    driver.send_many("in", [{"k": "a", "at": at} for at in range(0, 500, 5)])
    driver.end_input()
    assert [record.value for record in driver.read("out")] == [[end, end] for end in range(10, 510, 10)]
    assert not driver.late
