"""``headrace simulate``."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import until

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
MAKING = (
    UNTYPED
    + """
def simulation_input(random):
    return {"visits": [{"page": f"/{random.randrange(3)}", "at": n * 100} for n in range(30)]}
"""
)
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

BEGINNING = MAKING.replace(
    "topology = ",
    """
from pathlib import Path

def begin(row):
    Path("begun").touch()
    return row

topology = """,
).replace(".to(", ".map(begin).to(")


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


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--input", "visits"], "TOPIC=FILE"),
        (["--input", "visits=nothing"], "there is no file"),
        (["--input", "visits=bad"], "line 3 of bad is not JSON"),
        (["--input", "visits=empty"], "there are no values in empty"),
        (["--input", "visits=good", "--input", "visits=bad"], "values for topic 'visits' twice"),
        (["--input", "visits=good", "--only", "crash@1,thunder"], "'thunder' is no name of a fault"),
    ],
)
def test_what_makes_no_sense(headrace, given: list[str], told: str) -> None:
    Path("good").write_text('{"page": "/", "at": 1}\n')
    Path("bad").write_text('{"page": "/", "at": 1}\n\n{"page"\n')
    Path("empty").write_text("\n")
    ran = headrace("simulate", module(UNTYPED), *given)
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
    assert "variables that live outside state" in ran.out


def test_several_processes_share_the_seeds(headrace) -> None:
    ran = headrace("simulate", module(COUNTING), "--seeds", 40, "--jobs", 2, "--records", 10)
    assert ran.code == 0, ran.err
    assert "400" in ran.out


def _children(process: int) -> list[int]:
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(status.read_text().rpartition(")")[2].split()[1]) == process:
                found.append(int(status.parent.name))
    return found


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_ctrl_c_ends_it_in_order(start, jobs: str) -> None:
    process = start("simulate", module(BEGINNING), "--seeds", "100000", "--jobs", jobs)
    until(Path("begun").exists)
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 128 + signal.SIGINT
    told = process.stderr.read().decode()
    assert "of 100,000 seeds; none of them failed" in told
    assert "Traceback" not in told


def test_processes_end_with_the_one_that_started_them(start) -> None:
    process = start("simulate", module(BEGINNING), "--seeds", "100000", "--jobs", "2")
    until(Path("begun").exists)
    children = _children(process.pid)
    assert len(children) >= 2
    process.kill()
    process.wait(20)
    until(lambda: not any(Path(f"/proc/{child}/cmdline").exists() for child in children))


def test_it_says_that_nothing_came_out_and_what_helps(headrace) -> None:
    nothing = MAKING.replace('time="at")', 'time="at").filter(lambda row: False)')
    ran = headrace("simulate", module(nothing), "--seeds", 2)
    assert ran.code == 0, ran.err
    told = " ".join(ran.err.split())
    assert "nothing came out" in told
    assert "--input TOPIC=FILE" in told
    assert "simulation_input(random) in simulated_visits" in told
