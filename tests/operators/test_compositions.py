"""What must hold of any topology: random ones, over random inputs, with other batches, other caches, and crashes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from headrace.errors import TopologyError
from headrace.testing.driver import TopologyTestDriver
from tests.operators.compositions import (
    LOCAL,
    MOVING,
    Outputs,
    Recipe,
    Row,
    Scenario,
    Step,
    contents,
    outputs_of,
    recipes,
    result_of,
    scenarios,
    topology_of,
    unique,
    weaknesses,
)

some = settings(
    max_examples=200, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)  # fmt: skip
fewer = settings(some, max_examples=100)

POLICIES = ("skip", "dead-letter")
caches = st.sampled_from([0, 500, 3_000, 64 * 1024**2])


def in_order(rows: list[Row]) -> list[str]:
    return sorted(map(repr, rows))


def one_batch(*times: int) -> Scenario:
    return Scenario((tuple((0, "a", at) for at in times),))


@some
@given(recipes(list(LOCAL), policies=POLICIES), scenarios(), st.sampled_from([2, 3, 7, 4096]), caches)
@example(Recipe((Step("in_order"), Step("join", 0, 1))), one_batch(0, 21, 20), 4096, 0)
@example(Recipe((Step("window"), Step("join", 1, 2))), one_batch(0, 30, 20), 4096, 0)
@example(Recipe((Step("process", way=3), Step("table_join"), Step("table_join"))), one_batch(22, 73, 101), 4096, 0)
@example(Recipe((Step("process", way=3), Step("merge"), Step("merge"))), one_batch(32, 49, 90), 4096, 0)
@example(Recipe((Step("as_of"), Step("process", way=3), Step("window"))), one_batch(232, 263, 290, 295), 4096, 0)
@example(Recipe((Step("as_of"), Step("process", way=3, size=39), Step("merge"))), one_batch(57, 42, 41, 68), 2, 0)
def test_batches_and_caches_change_nothing(recipe: Recipe, scenario: Scenario, batch: int, cache: int) -> None:
    """What is deterministic stays so, position by position; what is not has the same records in another order.

    The order alone is what may differ with one source and no internal topic: of what several steps make, or of that
    and what comes at once.
    """
    expected = result_of(recipe, scenario, batch_records=1)
    found = result_of(recipe, scenario, batch_records=batch, cache_bytes=cache)
    for topic, weakness in weaknesses(recipe).items():
        if weakness is None:
            assert found[topic] == expected[topic]
        else:
            assert contents(found[topic]) == contents(expected[topic])


def disturbed(
    recipe: Recipe, scenario: Scenario, crashes: list[tuple[int, int]], every: int, **options: Any
) -> Outputs:
    """Return what is written if tasks are lost: all of them, or the one of a number, after so many steps."""
    driver = TopologyTestDriver(topology_of(recipe), **options)
    driver.checkpoint_every(steps=every)
    for steps, number in crashes:
        driver.crash_after(*driver.tasks[number : number + 1], steps=steps)
    scenario.run(driver, recipe)
    return outputs_of(driver)


def check_crashes(recipe: Recipe, scenario: Scenario, found: Outputs, **options: Any) -> None:
    """Check that repeats repeat, and that without pauses nothing else was made than without crashes.

    After a crash an idle input is waited for anew, so that what pauses close may be another time's.
    """
    expected = result_of(recipe, scenario, **options)
    places = {name: options[name] for name in ("partitions", "repartition_partitions") if name in options}
    for topic, weakness in weaknesses(recipe, **places).items():
        if weakness is None:
            once = list(unique(found[topic]).values())
            assert any(scenario.pauses) or in_order(once) == in_order(expected[topic])


crashes = st.lists(st.tuples(st.integers(1, 25), st.sampled_from([99, 0, 1, 2])), min_size=1, max_size=3)


@some
@given(
    recipes(list(LOCAL), policies=POLICIES), scenarios(), st.integers(1, 4), caches, crashes, st.integers(0, 4)
)  # fmt: skip
def test_crashes_repeat_what_was_made(
    recipe: Recipe, scenario: Scenario, batch: int, cache: int, crashes: list[tuple[int, int]], every: int
) -> None:
    found = disturbed(recipe, scenario, crashes, every, batch_records=batch, cache_bytes=cache)
    check_crashes(recipe, scenario, found, batch_records=batch)


@some
@given(recipes(list(LOCAL)), scenarios(pauses=False, orderly=True), st.sampled_from([1, 2, 3, 7, 4096]))
def test_nothing_that_is_made_of_records_in_time_is_late(recipe: Recipe, scenario: Scenario, batch: int) -> None:
    driver = TopologyTestDriver(topology_of(recipe), batch_records=batch)
    scenario.run(driver, recipe)
    assert not driver.late


@fewer
@given(
    st.integers(1, 2).flatmap(lambda sources: recipes([*LOCAL, *MOVING], sources=sources)),
    scenarios(), st.sampled_from([1, 2, 3, 7]), st.integers(1, 3), st.integers(0, 2), crashes, st.integers(0, 4),
)  # fmt: skip
def test_nor_do_they_over_several_sources_and_tasks(
    recipe: Recipe, scenario: Scenario, batch: int, partitions: int, internal: int, crashes: list[tuple[int, int]],
    every: int,
) -> None:  # fmt: skip
    options = {"batch_records": batch, "partitions": partitions, "repartition_partitions": internal}
    try:
        found = disturbed(recipe, scenario, crashes, every, **options)
    except TopologyError as refused:
        assert "circle" in str(refused)  # noqa: PT017  # what cannot run is refused before it does
        return
    check_crashes(recipe, scenario, found, **options)


@pytest.mark.parametrize("fails", [False, True])
def test_every_kind_of_step_makes_something(fails: bool) -> None:
    """Guard the tests above: they would hold of steps that make nothing too."""
    scenario = Scenario((tuple((i % 2, "abc"[i % 3], i * 5) for i in range(60)),))
    for kind in [*LOCAL, *MOVING]:
        found = result_of(Recipe((Step(kind),), fails=fails), scenario)
        assert found["out-1"], kind
