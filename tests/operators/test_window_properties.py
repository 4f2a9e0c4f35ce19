"""Every kind of window and every way to emit: against plain models, other cuts, other caches, crashes, other orders."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace import Topology, agg, counting, every, hopping, session, sliding, tumbling, when
from headrace.testing.driver import TopologyTestDriver
from tests.operators import window_models as models

DISORDER = 20
Event = dict[str, Any]
Output = tuple[str, int, Any, Any, bytes]

AGGREGATES = {
    "n": agg.count(), "total": agg.sum("n"), "mean": agg.mean("n"), "first": agg.first("id"), "all": agg.collect("n"),
}  # fmt: skip


@dataclass(frozen=True)
class Uneven:
    """Windows of growing length, a gap in time, and now and then two that end together."""

    name: str = "uneven"

    def windows(self, timestamp: int) -> list[tuple[int, int]]:
        cuts = [-7, 10, 40, 45, 90, 120, 400]
        spans = [(a, b) for a, b in pairwise(cuts) if a != 45] + [(20, 40), (85, 120)]
        return [(start, end) for start, end in reversed(spans) if start <= timestamp < end]

    def shape(self) -> dict[str, Any]:
        return {"version": 1}


def hops(size: int, hop: int) -> models.WindowsOf:
    def windows_of(at: int) -> list[tuple[int, int]]:
        return [(s, s + size) for s in range(-size * hop, at + 1, hop) if s <= at < s + size]

    return windows_of


def large(result: dict[str, Any]) -> bool:
    return result["total"] >= 12 and result["n"] % 2 == 0


@dataclass(frozen=True)
class Case:
    """A topology and what it should give."""

    windows: Any
    lateness: int
    emit: Any
    model: Callable[[list[Event]], models.Found]

    def topology(self) -> Topology:
        topology = Topology("t")
        stream = topology.stream("in", keyed_by="k", time="at", out_of_orderness=f"{DISORDER}ms")
        windowed = stream.window(self.windows, lateness=f"{self.lateness}ms")
        results = windowed.aggregate(**AGGREGATES, emit=self.emit, name="w")
        results.to("out")
        results.late.to("late")
        return topology


def emitting(state: Callable[[], Any], **options: Any) -> Callable[[list[Event]], models.Found]:
    return lambda events: models.Emitting(state(), DISORDER, **options).run(events)


def cases() -> dict[str, Case]:
    found: dict[str, Case] = {}
    times = {
        "tumbling": (tumbling("30ms"), hops(30, 30), 10),
        "hopping": (hopping("50ms", "20ms"), hops(50, 20), 5),
        "custom": (Uneven(), Uneven().windows, 8),
    }
    emits: dict[str, tuple[Any, dict[str, Any]]] = {
        "update": ("update", {}),
        "every": (every("15ms"), {"every": 15}),
        "when": (when(large), {"predicate": large}),
    }
    for kind, (windows, windows_of, late) in times.items():
        found[f"{kind}-close"] = Case(
            windows, late, "close",
            lambda e, of=windows_of, late=late: models.closing(e, of, disorder=DISORDER, lateness=late),
        )  # fmt: skip
        for name, (emit, options) in emits.items():
            model = emitting(lambda of=windows_of, late=late: models.TimeWindows(of, late), **options)
            found[f"{kind}-{name}"] = Case(windows, late, emit, model)
    for name, (emit, options) in emits.items():
        model = emitting(lambda: models.Sessions(15, 5), **options)
        found[f"session-{name}"] = Case(session("15ms"), 5, emit, model)
    found["sliding"] = Case(
        sliding("25ms"), 6, "close", lambda e: models.sliding(e, 25, disorder=DISORDER, lateness=6)
    )  # fmt: skip
    for size in (1, 3):
        found[f"counting-{size}"] = Case(
            counting(size), 0, "close", lambda e, n=size: models.counting(e, n, disorder=DISORDER)
        )  # fmt: skip
    return found


CASES = cases()
each = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
few = settings(max_examples=30, deadline=None)

events = st.lists(
    st.builds(
        lambda k, id_, n, at: {"k": k, "id": id_, "n": n, "at": at},
        st.sampled_from("abc"),
        st.integers(0, 99),
        st.integers(1, 9),
        st.integers(0, 150),
    ),
    max_size=30,
)
cuts = st.sampled_from([1, 2, 3, 7, 4096])


def outputs(driver: TopologyTestDriver) -> list[Output]:
    return [
        (topic, record.timestamp, record.key, record.value, dict(record.headers)["headrace-id"])
        for topic in ("out", "late")
        for record in driver.read(topic)
    ]


def run(case: Case, made: list[Event], **options: Any) -> list[Output]:
    driver = TopologyTestDriver(case.topology(), **options)
    driver.send_many("in", made)
    driver.end_input()
    return outputs(driver)


def unordered(result: dict[str, Any]) -> dict[str, Any]:
    """Drop what a session does not promise: its order of combining values of one time."""
    return {**result, "all": sorted(result["all"]), "first": None}


def plain(found: list[tuple[int, dict[str, Any]]], case: Case) -> list[tuple[int, dict[str, Any]]]:
    is_session = "session" in getattr(case.windows, "label", "")
    return [(at, unordered(result)) for at, result in found] if is_session else found


@each
@settings(max_examples=80, deadline=None)
@given(made=events, batch_records=cuts)
def test_windows_give_what_a_plain_model_says(case: Case, made: list[Event], batch_records: int) -> None:
    expected, late = case.model(made)
    found = run(case, made, batch_records=batch_records)
    results = [(timestamp, value) for topic, timestamp, _, value, _ in found if topic == "out"]
    assert plain(results, case) == plain(expected, case)
    assert [value for topic, _, _, value, _ in found if topic == "late"] == late
    assert all(key == value["key"] for topic, _, key, value, _ in found if topic == "out")


@each
@few
@given(made=events, batch_records=cuts, cache_bytes=st.sampled_from([0, 600, 1 << 20]))
def test_neither_cuts_nor_caches_change_results_or_their_ids(
    case: Case, made: list[Event], batch_records: int, cache_bytes: int
) -> None:
    assert run(case, made, batch_records=batch_records, cache_bytes=cache_bytes) == run(case, made, batch_records=1)


def by_id(found: list[Output]) -> dict[tuple[str, bytes], Output]:
    unique: dict[tuple[str, bytes], Output] = {}
    for output in found:
        assert unique.setdefault((output[0], output[-1]), output) == output
    return unique


faults = st.lists(
    st.tuples(st.integers(0, 6), st.sampled_from(["checkpoint", "crash", "restart"])), min_size=1, max_size=5
)


@each
@few
@given(made=events, sizes=st.lists(st.integers(1, 9), max_size=5), faults=faults)
def test_a_crash_anywhere_changes_nothing(
    case: Case, made: list[Event], sizes: list[int], faults: list[tuple[int, str]]
) -> None:
    driver = TopologyTestDriver(case.topology(), cache_bytes=800)
    parts, rest = [], made
    for size in sizes:
        parts.append(rest[:size])
        rest = rest[size:]
    for place, part in enumerate([*parts, rest]):
        driver.send_many("in", part)
        for at, fault in faults:
            if at == place:
                getattr(driver, fault)()
    driver.end_input()
    for at, fault in faults:
        if at > len(parts):
            getattr(driver, fault)()
    assert by_id(outputs(driver)) == by_id(run(case, made))


closing = [name for name, case in CASES.items() if case.emit == "close"]


@pytest.mark.parametrize("name", closing)
@few
@given(made=events, data=st.data())
def test_the_order_of_arrival_within_the_allowed_disorder_changes_nothing(
    name: str, made: list[Event], data: st.DataObject
) -> None:
    made = [{**event, "at": event["at"] + i} for i, event in enumerate(made)]
    ordered = sorted(made, key=lambda event: (event["at"], event["k"], event["id"], event["n"]))
    shifts = data.draw(st.lists(st.integers(0, DISORDER), min_size=len(made), max_size=len(made)))
    arrival = sorted(range(len(ordered)), key=lambda i: (ordered[i]["at"] + shifts[i], i))
    mixed = [ordered[i] for i in arrival]
    results = [[(o[1], unordered(o[3])) for o in run(CASES[name], log)] for log in (ordered, mixed)]
    if name.startswith("counting"):  # which of two records of one time is counted first is their order of arrival
        results = [[(at, result["key"], result["n"]) for at, result in found] for found in results]
    assert results[0] == results[1]


def follower(case: Case, passing: Callable[[Event], bool]) -> Topology:
    """Put a step that acts as time passes behind another one, and a filter that drops records before both."""
    topology = Topology("t")
    stream = topology.stream("in", keyed_by="k", time="at", out_of_orderness=f"{DISORDER}ms").filter(passing)
    windowed = stream.window(case.windows, lateness=f"{case.lateness}ms")
    results = windowed.aggregate(**AGGREGATES, emit=case.emit, name="w")
    counts = results.window(tumbling("1ms")).aggregate(n=agg.count(), emit=every("2ms"), name="follower")
    counts.to("out")
    counts.late.to("late")
    return topology


@each
@few
@given(made=events, batch_records=cuts, least=st.sampled_from([0, 50]))
def test_nothing_that_follows_takes_a_result_for_late(
    case: Case, made: list[Event], batch_records: int, least: int
) -> None:
    def found(**options: Any) -> list[Output]:
        driver = TopologyTestDriver(follower(case, lambda event: event["id"] >= least), **options)
        driver.send_many("in", made)
        driver.end_input()
        assert driver.late["follower"] == 0
        return outputs(driver)

    assert found(batch_records=batch_records) == found(batch_records=1)
    if least == 0:
        finals = sum(value["n"] for _, _, _, value, _ in found() if value["final"])
        assert finals == sum(topic == "out" for topic, *_ in run(case, made))
