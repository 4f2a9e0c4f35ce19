"""What operators do to workers: join, stop, kill, freeze and starve them."""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.checkpoint.checkpoints import Checkpoints
from headrace.checkpoint.store import open_objects
from headrace.clock import SystemClock
from tests.e2e.harness import Site, committed, wait_for, workers_of
from tests.e2e.small import (
    Start,
    ask,
    counted,
    counting,
    counts_of,
    found,
    holders,
    module,
    objects,
    put,
    rows,
    starting,
)
from tests.ports import free_port

HALF = 2_000
ALL = rows(2 * HALF, keys=200)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@pytest.fixture
def start(site: Site) -> Iterator[Start]:
    """Start a run that ends with the test."""
    with starting(site) as begin:
        yield begin


def finish(site: Site, name: str) -> str:
    """Close every window, and check the results of all records."""
    output = site.run("run", name, "--until-end", **found(site))
    assert counted(site) == counts_of(ALL)
    return output


def owners(site: Site) -> dict[str, tuple[str, ...]]:
    """Return the tasks that each member holds, for members that hold any."""
    return {member: units for member, units in holders(site, "counting").items() if units}


def spread(site: Site) -> list[int]:
    return sorted(len(units) for units in owners(site).values())


def records_in(told: str) -> int:
    return int(re.findall(r"stopped: ([\d,]+) records in", told)[0].replace(",", ""))


def epochs(site: Site) -> dict[str, int]:
    checkpoints = Checkpoints(open_objects(str(site.folder / "checkpoints"), {}), "counting")
    found = {task: checkpoints.newest(task) for task in checkpoints.tasks()}
    return {task: manifest.epoch for task, manifest in found.items() if manifest is not None}


def test_a_second_command_takes_over_half_without_replay(site: Site, start: Start) -> None:
    name = counting(site)
    put(site, ALL[:HALF], 4)
    first = start(name)
    wait_for(lambda: committed(site, "counting") == HALF)
    before = owners(site)
    assert spread(site) == [4]
    second = start(name)
    wait_for(lambda: spread(site) == [2, 2])
    (kept,) = (units for member, units in owners(site).items() if member in before)
    put(site, ALL[HALF:], 4)
    wait_for(lambda: committed(site, "counting") == 2 * HALF)
    assert {task for task, epoch in epochs(site).items() if epoch == 1} == set(kept)
    clock = SystemClock()
    told = clock.monotonic_ms()
    first.process.send_signal(signal.SIGTERM)
    assert first.end() == 0
    assert clock.monotonic_ms() - told < 5_000
    wait_for(lambda: spread(site) == [4])
    assert len(owners(site)) == 1
    second.process.send_signal(signal.SIGINT)
    assert second.end() == 0
    assert records_in(first.text) + records_in(second.text) == 2 * HALF
    assert records_in(first.text) > HALF < records_in(second.text) + HALF
    finish(site, name)


BLOCKING = """
import os
from pathlib import Path

from headrace import Topology, agg, tumbling
from headrace.clock import SystemClock

topology = Topology("counting")


def wait(value):
    while value["i"] == 100 and not Path(os.environ["GATE"]).exists():
        Path(os.environ["GATE"] + ".waiting").touch()
        SystemClock().sleep_ms(10)


(
    topology.stream("in", keyed_by="k", time="at")
    .tap(wait)
    .window(tumbling("10ms"))
    .aggregate(n=agg.count())
    .to("out")
)
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_user_code_that_blocks(site: Site, start: Start, workers: int) -> None:
    name = module(site, BLOCKING)
    put(site, ALL, 4)
    port = free_port()
    gate = site.folder / "gate"
    running = start(name, "--workers", str(workers), "--metrics-port", str(port), GATE=str(gate))
    wait_for(lambda: (site.folder / "gate.waiting").exists() and sum(spread(site)) == 4)
    other = start(name, GATE=str(gate)) if workers == 1 else None
    wait_for(lambda: len(holders(site, "counting")) == 2)
    members = holders(site, "counting").keys()
    clock = SystemClock()
    end_ms = clock.monotonic_ms() + 2_000
    while clock.monotonic_ms() < end_ms:
        assert holders(site, "counting").keys() == members
        assert ask(port, "/live")[0] == 200
        assert "headrace_worker_up" in ask(port, "/metrics")[1]
        clock.sleep_ms(100)
    gate.touch()
    wait_for(lambda: committed(site, "counting") == len(ALL))
    for telling in (running, other):
        if telling is not None:
            telling.process.send_signal(signal.SIGTERM)
    assert running.end() == 0
    assert "taken for dead" not in running.text
    finish(site, name)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_second_ctrl_c_ends_at_once(site: Site, start: Start, workers: str) -> None:
    name = module(site, BLOCKING)
    put(site, ALL, 4)
    gate = site.folder / "gate"
    running = start(name, "--workers", workers, GATE=str(gate))
    wait_for((site.folder / "gate.waiting").exists)
    clock = SystemClock()
    begun_ms = clock.monotonic_ms()
    while running.process.poll() is None:
        # As fast as people do it.
        os.killpg(running.process.pid, signal.SIGINT)
        clock.sleep_ms(150)
    assert running.end() == 130, running.text
    assert "Traceback" not in running.text
    assert clock.monotonic_ms() - begun_ms < 6_000
    gate.touch()
    site.run("run", name, "--until-end", GATE=str(gate), **found(site))
    assert counted(site) == counts_of(ALL)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_draining_that_takes_too_long(site: Site, start: Start, workers: str) -> None:
    name = module(site, BLOCKING)
    put(site, ALL, 4)
    gate = site.folder / "gate"
    running = start(name, "--workers", workers, GATE=str(gate), HEADRACE_DRAIN_TIMEOUT="300ms")
    wait_for((site.folder / "gate.waiting").exists)
    running.process.send_signal(signal.SIGTERM)
    assert running.end(5) == 1
    assert "draining took longer than 300 ms" in running.text
    assert "Nothing is lost" in running.text
    gate.touch()
    site.run("run", name, "--until-end", GATE=str(gate), **found(site))
    assert counted(site) == counts_of(ALL)


def test_signals_while_workers_start(site: Site, start: Start) -> None:
    name = counting(site)
    put(site, ALL, 4)
    running = start(name, "--workers", "2")
    wait_for(lambda: workers_of(running.process))
    os.killpg(running.process.pid, signal.SIGINT)
    assert running.end() == 0, running.text
    assert "Traceback" not in running.text
    again = start(name, "--workers", "2")
    wait_for(lambda: len(workers_of(again.process)) == 2)
    again.process.send_signal(signal.SIGTERM)
    assert again.end() == 0, again.text
    finish(site, name)


def test_killed_workers_and_supervisors(site: Site, start: Start) -> None:
    name = counting(site)
    put(site, ALL[:HALF], 4)
    running = start(name, "--workers", "2")
    pids = wait_for(lambda: len(found := workers_of(running.process)) == 2 and spread(site) == [2, 2] and found)
    os.kill(pids[0], signal.SIGKILL)
    wait_for(lambda: len(set(workers_of(running.process)) - {pids[0]}) == 2)
    put(site, ALL[HALF:], 4)
    wait_for(lambda: committed(site, "counting") == 2 * HALF and spread(site) == [2, 2])
    pids = workers_of(running.process)
    running.process.kill()
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
    assert holders(site, "counting") == {}
    assert "started again" in running.text
    output = finish(site, name)
    assert "finished: 0 records in" in output


def test_a_frozen_worker_is_fenced(site: Site, start: Start) -> None:
    name = counting(site)
    put(site, ALL[:HALF], 4)
    frozen, other = start(name), start(name)
    wait_for(lambda: committed(site, "counting") == HALF and spread(site) == [2, 2])
    # Frozen while it has nothing to write: in the middle of a write it would hold the lock of a file.
    frozen.process.send_signal(signal.SIGSTOP)
    put(site, ALL[HALF:], 4)
    wait_for(lambda: committed(site, "counting") == 2 * HALF and spread(site) == [4])
    frozen.process.send_signal(signal.SIGCONT)
    frozen.wait_for("taken for dead")
    wait_for(lambda: spread(site) == [2, 2])
    for telling in (frozen, other):
        telling.process.send_signal(signal.SIGTERM)
    assert (frozen.end(), other.end()) == (0, 0), frozen.text + other.text
    finish(site, name)


IDLE = """
from headrace import Topology, agg, tumbling

topology = Topology("counting")
(
    topology.stream("in", time="at", idle_after="200ms")
    .key_by("k")
    .window(tumbling("10ms"))
    .aggregate(n=agg.count())
    .to("out")
)
"""


def test_an_idle_partition_does_not_hold_windows_back(site: Site, start: Start) -> None:
    only = [row for row in ALL if row["k"] in {"k1", "k3"}]
    put(site, only, 4)
    running = start(module(site, IDLE), "--workers", "2")
    wanted = counts_of(only)
    wait_for(lambda: len(site.read("out")) >= len(wanted))
    running.process.send_signal(signal.SIGTERM)
    assert running.end() == 0
    assert counted(site) == wanted


def stopped_half_way(site: Site, start: Start) -> str:
    name = counting(site)
    put(site, ALL[:HALF], 4)
    running = start(name)
    wait_for(lambda: committed(site, "counting") == HALF)
    running.process.send_signal(signal.SIGTERM)
    assert running.end() == 0
    assert records_in(running.text) == HALF
    put(site, ALL[HALF:], 4)
    return name


def test_state_comes_back_from_checkpoints_and_a_damaged_one_from_the_one_before(site: Site, start: Start) -> None:
    name = stopped_half_way(site, start)
    shutil.rmtree(site.folder / "state")
    newest = objects(site, "counting/in-0/manifests/*.json")[-1]
    newest.write_bytes(newest.read_bytes().replace(b"positions", b"positiens"))
    output = finish(site, name)
    assert f"{newest.name} is damaged and was passed over" in output
    # Only that task does again what lies between its last two checkpoints.
    assert HALF <= int(re.findall(r"finished: ([\d,]+) records in", output)[0].replace(",", "")) < HALF * 5 // 4 + 50


def test_sigterm_during_a_restore(site: Site, start: Start) -> None:
    name = stopped_half_way(site, start)
    shutil.rmtree(site.folder / "state")
    hidden = {}
    for path in objects(site, "counting/*/files/*"):
        hidden[path] = path.read_bytes()
        path.unlink()
        os.mkfifo(path)
    port = free_port()
    running = start(name, "--metrics-port", str(port))
    wait_for(lambda: sum(spread(site)) == 4 and "restoring" in running.text)
    assert ask(port, "/ready")[0] == 503
    assert ask(port, "/live")[0] == 200
    running.process.send_signal(signal.SIGTERM)
    wait_for(lambda: holders(site, "counting") == {})
    for path, data in hidden.items():
        path.rename(path.with_suffix(".fifo"))
        path.write_bytes(data)
    for path in hidden:
        # Whoever waits in open() for the other end goes on.
        os.close(os.open(path.with_suffix(".fifo"), os.O_RDWR | os.O_NONBLOCK))
        path.with_suffix(".fifo").unlink()
    assert running.end() == 0, running.text
    finish(site, name)
