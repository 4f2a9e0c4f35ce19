"""Topologies and inputs for the property tests."""

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from headrace import KeyedStream, Topology, agg, hopping, session, tumbling
from headrace.testing.driver import TopologyTestDriver

DISORDER = 20
"""Out-of-orderness of every source, in ms; times lie so close that some records are later than that."""

Event = dict[str, Any]
Output = tuple[str, int, int, Any, Any, bytes]

AGGREGATES = {
    "n": agg.count(), "total": agg.sum("n"), "low": agg.min("n"), "high": agg.max("n"), "mean": agg.mean("n"),
    "first": agg.first("id"), "last": agg.last("id"), "all": agg.collect("n"),
    "product": agg.reduce(lambda a, b: a * b % 97, "n"),
}  # fmt: skip

events = st.lists(
    st.builds(
        lambda k, id_, n, at: {"k": k, "id": id_, "n": n, "at": at},
        st.sampled_from("abc"),
        st.integers(0, 3),
        st.integers(1, 9),
        st.integers(0, 150),
    ),
    max_size=30,
)
"""Records in any order, most of them late by some measure."""


def orderly(made: list[Event]) -> list[Event]:
    """Put records into an order in which none is later than the allowed disorder, but few are in order."""
    return [event for _, event in sorted(enumerate(made), key=lambda pair: pair[1]["at"] // DISORDER)]


cuts = st.lists(st.integers(1, 12), max_size=12)
"""Sizes of batches; what is left over comes in one."""


def pieces(made: list[Event], sizes: list[int]) -> list[list[Event]]:
    cut, rest = [], made
    for size in sizes:
        cut.append(rest[:size])
        rest = rest[size:]
    return [piece for piece in [*cut, rest] if piece]


def _keyed(topology: Topology) -> KeyedStream[Event]:
    return topology.stream("in", keyed_by="k", time="at", out_of_orderness=f"{DISORDER}ms")


def stateless() -> Topology:
    topology = Topology("stateless")
    stream = topology.stream("in", keyed_by="k", time="at")
    sizes = stream.branch(big=lambda e: e["n"] > 6, middle=lambda e: e["n"] > 3)
    doubled = stream.filter(lambda e: e["n"] % 2 == 0).map(lambda e: {**e, "n": e["n"] * 2})
    several = stream.flat_map(lambda e: [{**e, "part": i} for i in range(e["n"] % 3)])
    sizes["big"].merge(doubled, several, sizes["middle"]).merge(stream).to("out")
    return topology


def tumbling_windows() -> Topology:
    topology = Topology("tumbling")
    results = _keyed(topology).window(tumbling("30ms"), lateness="10ms").aggregate(**AGGREGATES)
    results.to("out")
    results.late.to("late")
    return topology


def hopping_windows() -> Topology:
    topology = Topology("hopping")
    results = _keyed(topology).window(hopping("50ms", "20ms"), lateness="5ms").aggregate(**AGGREGATES)
    results.to("out")
    results.late.to("late")
    return topology


def session_windows() -> Topology:
    topology = Topology("sessions")
    results = _keyed(topology).window(session("15ms"), lateness="5ms").aggregate(**AGGREGATES)
    results.to("out")
    results.late.to("late")
    return topology


def deduplicated() -> Topology:
    topology = Topology("dedupe")
    _keyed(topology).deduplicate("id", within="25ms").to("out")
    return topology


def merged_then_deduplicated() -> Topology:
    topology = Topology("merge-dedupe")
    stream = _keyed(topology)
    merged = stream.filter(lambda e: e["n"] > 4).merge(stream.map(lambda e: {**e, "id": e["id"] // 2}))
    merged.key_by("k").deduplicate("id", within="25ms").to("out")
    return topology


def cascaded_windows() -> Topology:
    topology = Topology("cascade")
    first = _keyed(topology).window(tumbling("10ms"), lateness="15ms").aggregate(total=agg.sum("n"))
    second = first.window(hopping("40ms", "20ms"), lateness="5ms").aggregate(totals=agg.collect("total"))
    second.to("out")
    again = first.late.window(tumbling("30ms"), lateness="20ms").aggregate(n=agg.count())
    again.to("late")
    again.late.to("later")
    return topology


def repartitioned() -> Topology:
    topology = Topology("repartition")
    stream = topology.stream("in", time="at", out_of_orderness=f"{DISORDER}ms")
    by_id = stream.filter(lambda e: e["n"] != 5).key_by("id", key=int)
    by_id.window(tumbling("30ms")).aggregate(n=agg.count(), total=agg.sum("n")).to("out")
    return topology


def deduplicated_then_repartitioned() -> Topology:
    topology = Topology("dedupe-repartition")
    once = _keyed(topology).deduplicate("id", within="25ms")
    once.key_by("id", key=int).window(session("15ms")).aggregate(n=agg.count(), total=agg.sum("n")).to("out")
    return topology


ONE_TASK: list[Callable[[], Topology]] = [
    stateless, tumbling_windows, hopping_windows, session_windows, deduplicated, cascaded_windows,
]  # fmt: skip
"""One sub-topology each: exact for any records in any order."""

REPARTITIONED: list[Callable[[], Topology]] = [
    repartitioned, merged_then_deduplicated, deduplicated_then_repartitioned,
]  # fmt: skip
"""With an internal topic: exact as long as no record is later than the allowed disorder."""


def outputs(driver: TopologyTestDriver) -> list[Output]:
    """Return all that was written since the last time, with the ids that stand for positions."""
    found = []
    for topic in ("out", "late", "later"):
        if topic in driver.outputs:
            for record in driver.read(topic):
                header = dict(record.headers)["headrace-id"]
                found.append((topic, record.partition, record.timestamp, record.key, record.value, header))
    return found


def result_of(topology: Topology, made: list[Event], sizes: list[int] | None = None, **options: Any) -> list[Output]:
    """Run to the end, one record at a time unless told, and return everything that was written."""
    driver = TopologyTestDriver(topology, **options)
    for piece in pieces(made, [1] * len(made) if sizes is None else sizes):
        driver.send_many("in", piece)
    driver.end_input()
    return outputs(driver)


def windowed_then_repartitioned() -> Topology:
    topology = Topology("window-repartition")
    counts = _keyed(topology).window(tumbling("30ms"), lateness="10ms").aggregate(n=agg.count(), total=agg.sum("n"))
    by_size = counts.key_by(lambda r: r["n"] % 2, key=int, name="by-size")
    by_size.window(tumbling("60ms")).aggregate(n=agg.sum("n"), total=agg.sum("total")).to("out")
    return topology


REPARTITIONED.append(windowed_then_repartitioned)
