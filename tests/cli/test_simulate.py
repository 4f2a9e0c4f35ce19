"""``headrace simulate``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

COUNTING = """
from headrace import Topology, agg
import msgspec

class Visit(msgspec.Struct):
    page: str
    at: int
    seconds: float
    kind: str | None = None

topology = Topology("visits")
topology.stream("visits", value=Visit, keyed_by="page", time="at").aggregate(n=agg.count()).to("counts")
"""
UNTYPED = """
from headrace import Topology
topology = Topology("visits")
topology.stream("visits", keyed_by="page", time="at").to("copies")
"""
MAKING = UNTYPED + """
def simulation_input(random):
    return {"visits": [{"page": f"/{random.randrange(3)}", "at": n * 100} for n in range(30)]}
"""
FORGETFUL = """
from headrace import Topology
seen = []
def number(row):
    seen.append(row)
    return {"n": len(seen)}
topology = Topology("visits")
topology.stream("visits", keyed_by="page", time="at").map(number).to("copies")
def simulation_input(random):
    return {"visits": [{"page": f"/{random.randrange(3)}", "at": n * 100} for n in range(30)]}
"""


@pytest.fixture(autouse=True)
def _modules(tmp_path: Path) -> Iterator[None]:
    before = set(sys.modules)
    yield
    for name in ("simulated_visits",):
        if name not in before:
            sys.modules.pop(name, None)


def module(text: str) -> str:
    Path("simulated_visits.py").write_text(text)
    return "simulated_visits"


def test_values_are_made_from_types(headrace) -> None:
    ran = headrace("simulate", module(COUNTING), "--seeds", 3, "--records", 40)
    assert ran.code == 0, ran.err
    assert "simulation of visits" in ran.out
    assert "seeds that failed" in ran.out
    assert "120" in ran.out


def test_values_come_from_a_function_of_the_module(headrace) -> None:
    ran = headrace("simulate", module(MAKING), "--seeds", 2)
    assert ran.code == 0, ran.err
    assert "60" in ran.out


def test_values_come_from_a_file(headrace) -> None:
    lines = "".join(f'{{"page": "/{n % 3}", "at": {n * 100}}}\n' for n in range(25))
    Path("visits.ndjson").write_text(lines)
    ran = headrace("simulate", module(UNTYPED), "--seeds", 2, "--input", "visits=visits.ndjson")
    assert ran.code == 0, ran.err
    assert "50" in ran.out


def test_without_any_values_it_says_how_to_give_some(headrace) -> None:
    ran = headrace("simulate", module(UNTYPED))
    assert ran.code == 2
    assert "--input visits=FILE" in ran.err
    assert "simulation_input(random)" in ran.err


@pytest.mark.parametrize(("given", "told"), [("visits", "TOPIC=FILE"), ("visits=nothing", "there is no file")])
def test_an_input_that_makes_no_sense(headrace, given: str, told: str) -> None:
    ran = headrace("simulate", module(UNTYPED), "--input", given)
    assert ran.code == 2
    assert told in ran.err


def test_one_seed_shows_its_trace(headrace) -> None:
    ran = headrace("simulate", module(MAKING), "--seed", 5)
    assert ran.code == 0, ran.err
    assert "world runs to the end of the input" in ran.out


def test_a_failure_says_what_it_takes_and_how_to_see_it_again(headrace) -> None:
    ran = headrace("simulate", module(FORGETFUL), "--seeds", 20)
    assert ran.code == 1
    assert "The fewest faults with which it happens" in ran.out
    command = ran.out.splitlines()[-1].strip()
    assert command.startswith("headrace simulate simulated_visits --seed ")


def test_several_processes_share_the_seeds(headrace) -> None:
    ran = headrace("simulate", module(COUNTING), "--seeds", 40, "--jobs", 2, "--records", 10)
    assert ran.code == 0, ran.err
    assert "400" in ran.out
