"""Topologies come through simulated worlds, and the simulation does what it says."""

from __future__ import annotations

import dataclasses
import random
import subprocess
import sys
from typing import Any

import pytest

from headrace import Topology, agg
from headrace.checkpoint.checkpoints import Checkpoints
from headrace.errors import NotFoundError, RetriableError
from headrace.testing import Faults, Simulation, SimulationResult, Simulator, assert_simulates, simulate
from headrace.testing.simulation.faults import OPERATIONS
from tests.simulation import many
from tests.simulation.breakages import sequences_forgotten
from tests.simulation.topologies import BY_NAME, CASES, Case, events, simulator_of

SEEDS = 4


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_topology_comes_through(case: Case) -> None:
    simulator = simulator_of(case, Simulation())
    for seed in range(SEEDS):
        result = simulator.run(seed)
        assert result.ok, f"seed {seed}: {result.violations[0]}"


def test_the_same_seed_does_the_same_whatever_the_hashes() -> None:
    code = (
        "from headrace.testing import Simulator\n"
        "from tests.simulation.topologies import BY_NAME\n"
        "for name in ('windows', 'processing'):\n"
        "    simulator = Simulator(BY_NAME[name].make, BY_NAME[name].inputs)\n"
        "    print([simulator.run(seed).digest for seed in range(1)])\n"
    )
    told = [
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True, text=True, check=True,
        ).stdout
        for seed in ("1", "2")
    ]  # fmt: skip
    assert told[0] == told[1]
    assert len(told[0].splitlines()) == 2


def test_seeds_differ() -> None:
    simulator = simulator_of(BY_NAME["stateless"])
    first, second, again = simulator.run(1), simulator.run(2), simulator.run(1)
    assert first.digest == again.digest
    assert first.trace == again.trace
    assert first.digest != second.digest


KINDS = sorted(
    {f"{kind} {fault}" for kind, own in OPERATIONS.items() for fault in own}
    | {"pause", "silence", "drain", "power", "crash", "damage", "spoil", "rot"}
    | {"create crash-before", "create crash-after"}
)
FIELD = {
    "pause": "pauses", "silence": "silences", "drain": "drains", "power": "power", "crash": "crashes", "damage": "disk",
    "spoil": "disk", "rot": "rot",
    "append": "log", "flush": "log", "group": "group", "commit": "group", "write": "disk", "snapshot": "disk",
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_fault_strikes(kind: str) -> None:
    field = "crashes" if "crash" in kind else FIELD.get(kind.split(maxsplit=1)[0], "checkpoints")
    faults = dataclasses.replace(Faults.none(), **{field: 8.0, "crashes": 2.0 if kind == "damage" else 0.0})
    faults = dataclasses.replace(faults, **{field: 8.0})
    case = BY_NAME["stateless"]
    simulator = Simulator(case.make, {"in": events(random.Random(1), 40, 5)}, simulation=Simulation(faults=faults))
    for seed in range(40):
        result = simulator.run(seed)
        assert result.ok, result.violations
        if result.statistics.faults[kind]:
            return
    pytest.fail("it never struck")


def test_power_takes_what_was_not_flushed_and_late_requests_arrive() -> None:
    case = BY_NAME["stateless"]
    simulator = Simulator(case.make, case.inputs, simulation=Simulation(faults=Faults(power=5, checkpoints=5)))
    results = [simulator.run(seed) for seed in range(8)]
    assert all(result.ok for result in results)
    assert sum(result.statistics.lost for result in results) > 0
    assert any("a late request arrives" in line for result in results for line in result.trace)


def test_a_worker_that_stands_still_for_too_long_is_replaced_and_does_no_harm() -> None:
    case = BY_NAME["sessions"]
    simulation = Simulation(faults=dataclasses.replace(Faults.none(), pauses=8), workers=2)
    simulator = Simulator(case.make, case.inputs, simulation=simulation)
    results = [simulator.run(seed) for seed in range(8)]
    assert all(result.ok for result in results)
    assert any("/files/0000000002" in line for result in results for line in result.trace), "no epoch ever grew"


def test_nothing_strikes_that_is_left_out() -> None:
    simulator = simulator_of(BY_NAME["stateless"])
    struck = next(result for result in map(simulator.run, range(20)) if len(result.faults) > 3)
    some = struck.faults[:1]
    only = simulator_of(BY_NAME["stateless"], Simulation(only=some)).run(struck.seed)
    assert set(only.faults) <= set(some)
    assert simulator_of(BY_NAME["stateless"], Simulation(only=())).run(struck.seed).faults == ()


def test_a_failure_is_made_small_and_can_be_seen_again(monkeypatch: pytest.MonkeyPatch) -> None:
    case = BY_NAME["stateless"]
    simulator = Simulator(case.make, case.inputs, simulation=Simulation(more_schedules=0))
    simulator.prepare(0)
    sequences_forgotten(monkeypatch)
    failed = next(result for result in map(simulator.run, range(20)) if not result.ok and len(result.faults) > 5)
    shrunk = simulator.shrink(failed, 80)
    assert len(shrunk.result.faults) <= 2
    assert shrunk.attempt.records < 40
    again = simulator.run(failed.seed, shrunk.attempt)
    assert again.violations[0].check == failed.violations[0].check
    assert again.trace == shrunk.result.trace


def test_the_message_of_a_failure_says_how_to_see_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    sequences_forgotten(monkeypatch)
    case = BY_NAME["stateless"]
    told = r"(?s)seed \d+ violates .*The fewest faults.*To see it again:\n  Simulator"
    with pytest.raises(AssertionError, match=told):
        assert_simulates(case.make, case.inputs, seeds=20, simulation=Simulation(more_schedules=0))


def test_no_progress_is_a_violation_that_says_what_every_worker_waits_for(monkeypatch: pytest.MonkeyPatch) -> None:
    case = BY_NAME["impatient"]
    simulator = Simulator(case.make, case.inputs, simulation=Simulation(faults=Faults.none()))
    simulator.prepare(0)

    def never(*arguments: Any, **more: Any) -> None:
        raise RetriableError("not today")

    monkeypatch.setattr(Checkpoints, "save", never)
    violation = simulator.run(0).violations[0]
    assert violation.check in ("progress", "draining ends")
    if violation.check == "progress":
        assert "in-0: " in violation.message


def test_tasks_go_back_past_damage_in_the_checkpoint_store() -> None:
    simulator = simulator_of(BY_NAME["running"], Simulation(faults=Faults(rot=4, power=0)))
    results = [simulator.run(seed) for seed in range(8)]
    assert all(result.ok for result in results), [result.violations for result in results]
    told = [line for result in results for line in result.trace if "in the checkpoint store" in line]
    assert any("/files/" in line for line in told)
    assert any("/manifests/" in line for line in told)


def test_copies_of_state_are_made_and_spoiled_and_do_no_harm() -> None:
    faults = Faults(disk=4, crashes=2)
    simulator = simulator_of(BY_NAME["sessions"], Simulation(faults=faults, settings={"standby_copies": 2}))
    results = [simulator.run(seed) for seed in range(8)]
    assert all(result.ok for result in results), [result.violations for result in results]
    assert sum(result.statistics.copies for result in results) > 10
    assert any("of the copies of" in line for result in results for line in result.trace)


def test_power_is_lost_between_two_repartitions() -> None:
    """Internal records never outlive those that they were made of, which would come again in another order."""
    case = BY_NAME["running"]
    simulator = Simulator(case.make, case.inputs, simulation=Simulation(faults=Faults(power=3)))
    results = [simulator.run(seed) for seed in range(8)]
    assert all(result.ok for result in results), [result.violations for result in results]
    assert sum(result.statistics.lost for result in results) > 10


def test_exactly_once_by_the_outbox() -> None:
    for name in ("processing", "interval-join", "windows"):
        simulator = simulator_of(BY_NAME[name], Simulation(settings={"guarantee": "exactly-once"}))
        for seed in range(2):
            result = simulator.run(seed)
            assert result.ok, f"{name}, seed {seed}: {result.violations[0]}"


def test_what_depends_on_order_is_told_and_not_compared() -> None:
    simulator = simulator_of(BY_NAME["running"], Simulation(faults=Faults.none()))
    result = simulator.run(0)
    assert result.ok
    assert result.order_dependent == ("by-parity-aggregate-to-out",)


def test_a_check_of_ones_own() -> None:
    def check(result: SimulationResult) -> None:
        assert len(result.outputs["out"]) > 1000, "too few"

    case = BY_NAME["stateless"]
    result = simulate(case.make, case.inputs, seed=3, check=check)
    assert [violation.check for violation in result.violations] == ["your own check"]
    assert "too few" in result.violations[0].message


def test_a_topology_that_fails_by_itself_is_told_so() -> None:
    topology = Topology("failing")
    topology.stream("in", keyed_by="k").map(lambda row: row["nothing"]).to("out")
    result = simulate(topology, {"in": [{"k": "a"}]}, seed=0)
    assert "even without any fault" in result.violations[0].message


def test_an_input_that_the_topology_does_not_read() -> None:
    with pytest.raises(NotFoundError, match="does not read 'others'"):
        simulate(BY_NAME["stateless"].make(), {"others": []}, seed=0)


def test_state_that_a_function_keeps_itself_is_found() -> None:
    """A replay makes something else of it."""
    seen: list[str] = []

    def number(row: dict[str, Any]) -> dict[str, Any]:
        seen.append(row["id"])
        return {"id": row["id"], "n": len(seen)}

    topology = Topology("numbering")
    topology.stream("in", keyed_by="k", time="at").map(number).to("out")
    rows = {"in": events(random.Random(0), 40, 4)}
    simulator = Simulator(topology, rows, simulation=Simulation(more_schedules=0))
    found = (violation.check for seed in range(20) for violation in simulator.run(seed).violations)
    assert next(found) in ("repeats are the same", "outputs are those of an undisturbed run")


def test_statistics_add_up() -> None:
    topology = Topology("counting")
    topology.stream("in", keyed_by="k", time="at").aggregate(n=agg.count()).to("out")
    total = assert_simulates(topology, {"in": events(random.Random(0), 30, 4)}, seeds=4)
    assert total.records == 120
    assert total.checkpoints > 0
    assert total.virtual_ms > 10_000


@pytest.mark.parametrize(("topology", "seed"), [("timed", 149)])
def test_seeds_that_found_something(topology: str, seed: int) -> None:
    result = many.simulator(topology).run(seed)
    assert result.ok, result.violations[0]
