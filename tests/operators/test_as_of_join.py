"""As-of joins of streams, and joins of a stream with a table, against plain models."""

import random
from collections.abc import Callable
from pathlib import Path

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace import Topology, agg, tumbling
from headrace.dsl.table import Table
from headrace.operators.stored import StoredValues
from headrace.operators.waiting import Waiting, waiting_codec
from headrace.serde.msgpack import Msgpack
from headrace.testing.driver import TopologyTestDriver
from tests.operators import join_runs
from tests.operators.join_runs import DISORDER, Event, Pair, numbers, orderly, pairs, run, with_watermarks
from tests.runtime.streams import outputs, pieces

GOLDEN = Path(__file__).parent / "golden"
WITHIN = 1_200

few = settings(max_examples=60, deadline=None)
each_how = pytest.mark.parametrize("how", ["inner", "left"])


def ended(event: Event) -> Event | None:
    """Make some right records say that there is nothing any more."""
    return None if event["n"] % 4 == 0 else event


def branched(how: str, within: int | None = None) -> Topology:
    topology = Topology("branched")
    stream = topology.stream("in", keyed_by="k", time="at", out_of_orderness=f"{DISORDER}ms")
    sides = stream.branch(left=lambda e: e["s"] == 0, right=lambda e: e["s"] == 1)
    within_ms = None if within is None else f"{within}ms"
    sides["left"].as_of(sides["right"].map(ended), numbers, within=within_ms, how=how).to("out")  # type: ignore[call-overload]
    return topology


def aged(how: str) -> Topology:
    return branched(how, WITHIN)


def itself(how: str) -> Topology:
    topology = Topology("itself")
    stream = topology.stream("in", keyed_by="k", time="at", out_of_orderness=f"{DISORDER}ms")
    stream.as_of(stream, numbers, how=how).to("out")  # type: ignore[call-overload]
    return topology


def tabled(how: str, match: str | None = None) -> Topology:
    topology = Topology("tabled")
    stream = topology.stream("in", keyed_by="k", time="at", out_of_orderness=f"{DISORDER}ms")
    sides = stream.branch(left=lambda e: e["s"] == 0, right=lambda e: e["s"] == 1)
    table: Table[Event] = Table(sides["right"].map(ended))
    sides["left"].join(table, numbers, how=how, match=match).to("out")  # type: ignore[call-overload]
    return topology


def latest(how: str) -> Topology:
    return tabled(how, "latest")


SHAPES: list[Callable[[str], Topology]] = [branched, aged, itself, tabled, latest]
each_shape = pytest.mark.parametrize("make", SHAPES)


def model(made: list[Event], make: Callable[[str], Topology], how: str) -> list[Pair]:
    """Return the results in order, by looking at all versions for each record."""
    left: list[tuple[int, int, Event]] = []
    right: list[tuple[int, int, str, Event | None]] = []
    for arrival, (event, watermark) in enumerate(with_watermarks(made)):
        time = max(event["at"], watermark)
        if make is itself or event["s"] == 0:
            left.append((time, arrival, event))
        if make is tabled:
            time = max([time, *[t for t, _, key, _ in right if key == event["k"]]])
        if make is itself:
            right.append((time, arrival, event["k"], event))
        elif event["s"] == 1:
            right.append((time, arrival, event["k"], ended(event)))
    found: list[Pair] = []
    for time, _, event in sorted(left, key=lambda item: item[:2]):
        versions = [(t, a, value) for t, a, key, value in right if key == event["k"] and t <= time]
        value = max(versions, key=lambda version: version[:2])[2] if versions else None
        if make is aged and versions and max(t for t, _, _ in versions) + WITHIN < time:
            value = None
        if value is not None or how == "left":
            found.append((time, event["n"], value and value["n"]))
    return found


def model_of_latest(made: list[Event], how: str) -> list[Pair]:
    rows: dict[str, Event | None] = {}
    found: list[Pair] = []
    for event in made:
        if event["s"] == 1:
            rows[event["k"]] = ended(event)
        elif (row := rows.get(event["k"])) is not None or how == "left":
            found.append((event["at"], event["n"], row and row["n"]))
    return found


@each_shape
@each_how
@few
@given(made=join_runs.events, sizes=join_runs.cuts)
def test_results_and_their_order_are_what_a_plain_model_says(
    make: Callable[[str], Topology], how: str, made: list[Event], sizes: list[int]
) -> None:
    expected = model_of_latest(made, how) if make is latest else model(made, make, how)
    assert pairs(run(make(how), made, sizes)) == expected


@each_shape
@few
@given(made=join_runs.events)
def test_batches_change_nothing(make: Callable[[str], Topology], made: list[Event]) -> None:
    whole = run(make("left"), made, [])
    for batch_records in (1, 2, 3, 7):
        assert run(make("left"), made, [], batch_records=batch_records) == whole


@each_shape
@few
@given(
    made=join_runs.events,
    sizes=join_runs.cuts,
    faults=join_runs.faults,
    cache_bytes=st.sampled_from([0, 1_000, 2**20]),
)
def test_neither_crashes_nor_the_size_of_the_cache_change_anything(
    make: Callable[[str], Topology],
    made: list[Event],
    sizes: list[int],
    faults: list[tuple[int, str]],
    cache_bytes: int,
) -> None:
    undisturbed = run(make("left"), made, [])
    assert run(make("left"), made, sizes, cache_bytes=cache_bytes) == undisturbed
    disturbed = run(make("left"), made, sizes, faults, cache_bytes=cache_bytes)
    assert join_runs.by_id(disturbed) == join_runs.by_id(undisturbed)


@each_how
@few
@given(made=join_runs.events, sizes=join_runs.cuts, partitions=st.integers(1, 2))
def test_two_topics_give_the_same_however_they_are_read(
    how: str, made: list[Event], sizes: list[int], partitions: int
) -> None:
    made = orderly(made)
    topology = Topology("two")
    left = topology.stream("left", keyed_by="k", time="at", out_of_orderness=f"{DISORDER}ms")
    right = topology.stream("right", keyed_by="k", time="at", out_of_orderness=f"{DISORDER}ms")
    left.as_of(right.map(ended), numbers, how=how).to("out")  # type: ignore[call-overload]
    driver = TopologyTestDriver(topology, partitions=partitions, batch_records=3, cache_bytes=1_000)
    sides = [[event for event in made if event["s"] == side] for side in (0, 1)]
    parts = [pieces(side, sizes) for side in sides]
    for place in range(max(map(len, parts))):
        for topic, own in zip(("left", "right"), parts, strict=True):
            if place < len(own):
                driver.send_many(topic, own[place])
    driver.end_input()
    assert sorted(pairs(outputs(driver)), key=repr) == sorted(model(made, branched, how), key=repr)


QUERY = """
SELECT l.t, l.n, r.n FROM events AS l
ASOF LEFT JOIN (SELECT * FROM events WHERE s = 1) AS r ON l.k = r.k AND l.t >= r.t
WHERE l.s = 0
"""


def test_it_is_what_sql_says() -> None:
    chance = random.Random(11)
    made: list[Event] = []
    at = 0
    for n in range(4_000):
        at += chance.randint(1, 40)
        made.append({"k": f"k{chance.randint(0, 30)}", "s": chance.randint(0, 1), "at": at, "n": n * 4 + 1})
    made.sort(key=lambda event: (event["at"] + chance.randint(0, DISORDER), event["n"]))
    found = run(branched("left"), made, [chance.randint(1, 300) for _ in range(20)], cache_bytes=50_000)
    with duckdb.connect() as database:
        database.execute("CREATE TABLE events (k TEXT, s INT, t BIGINT, n INT)")
        columns = [[event[name] for event in made] for name in ("k", "s", "at", "n")]
        database.execute("INSERT INTO events SELECT unnest(?), unnest(?), unnest(?), unnest(?)", columns)
        expected = database.execute(QUERY).fetchall()
    assert sorted(pairs(found), key=repr) == sorted(expected, key=repr)
    assert sum(right is not None for _, _, right in expected) > 1_500


def test_a_record_waits_until_the_watermark_has_passed_its_time() -> None:
    driver = TopologyTestDriver(branched("left"))
    driver.send("in", {"k": "a", "s": 0, "at": 5_000, "n": 1})
    driver.send("in", {"k": "b", "s": 0, "at": 5_000 + DISORDER, "n": 2})
    driver.send("in", {"k": "a", "s": 1, "at": 5_000, "n": 3})
    assert driver.read("out") == []
    driver.send("in", {"k": "b", "s": 0, "at": 5_001 + DISORDER, "n": 4})
    assert [(r.key, r.timestamp, r.value) for r in driver.read("out")] == [("a", 5_000, {"left": 1, "right": 3})]
    driver.advance_time("30s")
    driver.advance_time(f"{DISORDER}ms")
    assert [r.value["left"] for r in driver.read("out")] == [2]
    driver.advance_time("2ms")
    assert [r.value["left"] for r in driver.read("out")] == [4]


def test_a_late_record_gets_the_watermark_for_its_time_and_is_not_late_behind() -> None:
    topology = Topology("t")
    stream = topology.stream("in", keyed_by="k", time="at")
    right = stream.filter(lambda e: e["s"] == 1)
    joined = stream.filter(lambda e: e["s"] == 0).as_of(right, numbers)
    joined.to("out")
    counts = joined.window(tumbling("1s")).aggregate(n=agg.count())
    counts.late.to("late")
    driver = TopologyTestDriver(topology)
    driver.send("in", {"k": "a", "s": 1, "at": 1_000, "n": 1})
    driver.send("in", {"k": "a", "s": 1, "at": 9_000, "n": 2})
    driver.send("in", {"k": "a", "s": 0, "at": 1_500, "n": 3})
    driver.end_input()
    assert [(r.timestamp, r.value) for r in driver.read("out")] == [(9_000, {"left": 3, "right": 2})]
    assert driver.late == {}


def test_the_oldest_that_may_be_taken_is_kept_until_nobody_can_ask() -> None:
    driver = TopologyTestDriver(aged("left"))
    driver.send("in", {"k": "a", "s": 1, "at": 1_000, "n": 1})
    driver.send("in", {"k": "b", "s": 0, "at": 1_000 + WITHIN + DISORDER, "n": 2})
    driver.send("in", {"k": "a", "s": 1, "at": 1_002 + WITHIN, "n": 5})
    driver.send("in", {"k": "a", "s": 0, "at": 1_000 + WITHIN, "n": 3})
    driver.send("in", {"k": "a", "s": 0, "at": 1_001 + WITHIN, "n": 4})
    driver.end_input()
    assert [(r.value["left"], r.value["right"]) for r in driver.read("out")] == [(3, 1), (4, None), (2, None)]


def test_a_version_stays_as_long_as_the_next_one_is_ahead_of_the_watermark() -> None:
    driver = TopologyTestDriver(branched("left"))
    driver.send("in", {"k": "a", "s": 1, "at": 1_000, "n": 1})
    driver.send("in", {"k": "b", "s": 0, "at": 2_000 + DISORDER, "n": 2})
    driver.send("in", {"k": "a", "s": 1, "at": 2_001, "n": 3})
    driver.send("in", {"k": "a", "s": 0, "at": 2_000, "n": 5})
    driver.send("in", {"k": "a", "s": 0, "at": 2_001, "n": 6})
    driver.end_input()
    assert [(r.value["left"], r.value["right"]) for r in driver.read("out")] == [(5, 1), (6, 3), (2, None)]


def test_headers_of_the_left_record_are_kept() -> None:
    driver = TopologyTestDriver(branched("left"), cache_bytes=0)
    driver.send("in", {"k": "a", "s": 0, "at": 1_000, "n": 1})
    partition = next(iter(driver._sent.values()))
    partition.headers[-1] = (("trace", b"1"),)
    driver.crash()
    driver.end_input()
    (found,) = [r for r in driver.read("out") if ("trace", b"1") in r.headers]
    assert found.value == {"left": 1, "right": None}


def store_rows(driver: TopologyTestDriver) -> int:
    driver.checkpoint()
    return sum(map(len, driver._checkpoints.values()))


@pytest.mark.parametrize("make", [aged, tabled])
def test_versions_that_nobody_can_ask_for_leave_the_store(make: Callable[[str], Topology]) -> None:
    driver = TopologyTestDriver(make("left"))
    for n in range(300):
        event = {"k": f"k{n}", "s": 1, "at": n * 1_000, "n": n}
        driver.send("in", event)
        driver.send("in", {**event, "n": 4})  # nothing any more
        driver.send("in", {**event, "s": 0})
    assert store_rows(driver) < 40


def test_one_version_of_each_key_is_kept() -> None:
    driver = TopologyTestDriver(branched("left"))
    driver.send_many("in", [{"k": f"k{n % 3}", "s": 1, "at": n * 100, "n": n * 4 + 1} for n in range(900)])
    driver.send_many("in", [{"k": "other", "s": 1, "at": 200_000 + n, "n": 1} for n in range(2)])
    driver.checkpoint()
    (image,) = driver._checkpoints.values()
    assert sum(map(len, image.values())) < 1_000


def test_rows_of_version_1_are_written_and_read() -> None:
    codec = waiting_codec(StoredValues(Msgpack(), "step"))
    rows = [
        Waiting(0, 0, b"k", {"n": 1}, ()),
        Waiting(0, 0, b"", None, (("trace", b"\0\1"), ("trace", b""))),
    ]
    written = b"\n".join(row.hex().encode() for row in codec.encode_many(rows)) + b"\n"
    assert written == (GOLDEN / "waiting-v1.hex").read_bytes()
    assert codec.decode_many([bytes.fromhex(line.decode()) for line in written.split()]) == rows
