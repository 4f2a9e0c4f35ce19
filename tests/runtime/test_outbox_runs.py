"""Exactly-once over whole topologies that no replay repeats: whatever is lost when, what is written is one story."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace import Topology, agg, tumbling
from headrace.errors import TopologyError
from headrace.runtime.tasks.meta import FORMAT, META_KEY, WITHOUT_OUTBOX
from headrace.testing.driver import TopologyTestDriver
from headrace.topology.plan import AT_LEAST_ONCE, EXACTLY_ONCE
from tests.operators.compositions import (
    LOCAL,
    MOVING,
    Outputs,
    Recipe,
    Scenario,
    contents,
    outputs_of,
    recipes,
    result_of,
    scenarios,
    topology_of,
    unique,
)
from tests.runtime.unsure import LETTERS, MAKERS, check_driver, events, unsure

few = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)  # fmt: skip

ONCE: dict[str, Any] = {"guarantee": EXACTLY_ONCE}
COUNT = 40

crashes = st.lists(st.tuples(st.integers(1, 40), st.sampled_from([99, 0, 1, 2, 3])), min_size=1, max_size=4)


def run(kind: str, seed: int, crashes: list[tuple[int, int]], every: int, **options: Any) -> TopologyTestDriver:
    """Send records in portions, let time pass between some, and lose tasks: all of them, or the one of a number."""
    rng = random.Random(seed)
    driver = TopologyTestDriver(unsure(kind, seed), **options)
    driver.checkpoint_every(steps=every)
    for steps, number in crashes:
        driver.crash_after(*driver.tasks[number : number + 1], steps=steps)
    for first in range(0, COUNT, 8):
        if kind == "met":
            driver.send("tags", {"tag": rng.choice("abc")}, key=rng.choice("klmn"))
        driver.send_many("in", events(8, first))
        driver.advance_time(f"{rng.choice([1, 3, 5])}s")
    driver.advance_time("10s")
    driver.end_input()
    return driver


@few
@given(
    st.sampled_from(sorted(MAKERS)), st.integers(0, 10**6), crashes, st.integers(0, 5), st.integers(1, 3),
    st.integers(1, 2), st.integers(1, 2), st.sampled_from([0, 64 * 1024**2]),
)  # fmt: skip
def test_sinks_and_state_downstream_tell_one_story(
    kind: str, seed: int, crashes: list[tuple[int, int]], every: int, batch: int, partitions: int, internal: int,
    cache: int,
) -> None:  # fmt: skip
    driver = run(
        kind, seed, crashes, every, batch_records=batch, partitions=partitions, repartition_partitions=internal,
        cache_bytes=cache, **ONCE,
    )  # fmt: skip
    check_driver(kind, events(COUNT), driver)


def contradictions(kind: str, guarantee: str) -> int:
    """Return in how many of some runs with crashes what was written is not one story."""
    found = 0
    for seed in range(16):
        crashes = [(3 + seed % 5, 0), (15 + seed, 0), (31, 99)]
        driver = run(kind, seed, crashes, seed % 5, batch_records=1 + seed % 2, guarantee=guarantee)
        try:
            check_driver(kind, events(COUNT), driver)
        except AssertionError:
            found += 1
    return found


@pytest.mark.parametrize("kind", sorted(MAKERS))
def test_at_least_once_tells_several(kind: str) -> None:
    """Guard the test above: there is something that an outbox prevents."""
    assert contradictions(kind, AT_LEAST_ONCE)
    assert contradictions(kind, EXACTLY_ONCE) == 0


def test_no_time_is_told_that_another_course_would_be_late_for() -> None:
    """What leaves nothing moves time all the same; it is told when it is certain that nothing was left."""
    asked: Counter[int] = Counter()

    async def ask(event: dict[str, Any]) -> dict[str, Any]:
        asked[event["id"]] += 1
        return {**event, "kept": asked[event["id"]] > 1}

    topology = Topology("changing-its-mind")
    kept = topology.stream("in", keyed_by="k", time="at").map_async(ask).filter(lambda event: event["kept"])
    kept.key_by("k").window(tumbling("10ms")).aggregate(n=agg.count()).to("out")
    for steps in range(1, 6):
        asked.clear()
        driver = TopologyTestDriver(topology, batch_records=50, **ONCE)
        driver.crash_after("in-0", steps=steps)
        driver.send_many("in", events(COUNT))
        driver.end_input()
        assert not driver.late
        assert sum(record.value["n"] for record in driver.read("out")) == sum(n > 1 for n in asked.values())


def disturbed(recipe: Recipe, scenario: Scenario, crashes: list[tuple[int, int]], every: int, **more: Any) -> Outputs:
    driver = TopologyTestDriver(topology_of(recipe), **ONCE, **more)
    driver.checkpoint_every(steps=every)
    for steps, number in crashes:
        driver.crash_after(*driver.tasks[number : number + 1], steps=steps)
    scenario.run(driver, recipe)
    return outputs_of(driver)


@few
@given(
    recipes(list(LOCAL), policies=("skip", "dead-letter")), scenarios(), st.integers(1, 4), crashes, st.integers(0, 4)
)  # fmt: skip
def test_any_topology_of_one_source_makes_the_same_records_once(
    recipe: Recipe, scenario: Scenario, batch: int, crashes: list[tuple[int, int]], every: int
) -> None:
    """All of it, dead letters too; where several steps act as time passes, in another order perhaps."""
    expected = result_of(recipe, scenario, batch_records=batch, **ONCE)
    found = disturbed(recipe, scenario, crashes, every, batch_records=batch)
    for topic, rows in found.items():
        once = unique(rows).values()
        assert any(scenario.pauses) or contents(once) == contents(unique(expected[topic]).values()), topic


@few
@given(
    st.integers(1, 2).flatmap(lambda sources: recipes([*LOCAL, *MOVING], sources=sources)), scenarios(),
    st.integers(1, 3), st.integers(1, 2), st.integers(0, 2), crashes, st.integers(0, 4),
)  # fmt: skip
def test_over_several_sources_and_tasks_an_id_has_one_content(
    recipe: Recipe, scenario: Scenario, batch: int, partitions: int, internal: int, crashes: list[tuple[int, int]],
    every: int,
) -> None:  # fmt: skip
    options = {"batch_records": batch, "partitions": partitions, "repartition_partitions": internal}
    try:
        found = disturbed(recipe, scenario, crashes, every, **options)
    except TopologyError as refused:
        assert "circle" in str(refused)  # noqa: PT017  # what cannot run is refused before it does
        return
    for rows in found.values():
        unique(rows)


def test_without_an_outbox_nothing_is_different() -> None:
    """What is deterministic leaves at once, whatever is promised."""
    topology = Topology("plain")
    stream = topology.stream("in", keyed_by="k", time="at")
    stream.key_by("id", key=int).window(tumbling("10ms")).aggregate(n=agg.count()).to("out")
    written = []
    for guarantee in (AT_LEAST_ONCE, EXACTLY_ONCE):
        driver = TopologyTestDriver(topology, guarantee=guarantee, batch_records=3)
        driver.send_many("in", events(30))
        assert not driver.plan.outbox
        written.append([(r.key, r.value, r.headers) for r in driver.read("out")])
    assert written[0] == written[1]


def test_a_clean_restart_sends_nothing_again() -> None:
    driver = TopologyTestDriver(unsure("tried"), **ONCE)
    driver.send_many("in", events(12))
    driver.restart()
    driver.end_input()
    made = driver.read("made")
    assert len({record.headers for record in made}) == len(made)
    assert len(made) + len(driver.read(LETTERS)) == 12


def test_a_version_that_knows_no_outbox_refuses_a_store_with_one() -> None:
    """It would forget what waits there; a store without is as it always was."""
    driver = TopologyTestDriver(unsure("asked"), **ONCE)

    def written() -> int:
        meta = driver._stores["in-0"].get(META_KEY)
        assert meta is not None
        return int(msgpack.unpackb(meta)["format"])

    driver.send_many("in", events(3))
    assert written() == FORMAT
    driver.checkpoint("in-0")
    assert written() == WITHOUT_OUTBOX
