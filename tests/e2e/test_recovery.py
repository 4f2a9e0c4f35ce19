"""What comes back after crashes, damage and loss, and what a checkpoint store that cannot be used does to a run."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from headrace.log.api import TopicConfig
from headrace.record import TopicPartition
from tests.e2e.harness import Site, committed, wait_for, workers_of
from tests.e2e.small import (
    Start,
    Telling,
    ask,
    counted,
    counting,
    counts_of,
    found,
    objects,
    put,
    rows,
    starting,
)
from tests.obstacles import file_in_place_of
from tests.ports import free_port

HALF = 1_000
ALL = rows(2 * HALF, keys=200)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@pytest.fixture
def start(site: Site) -> Iterator[Start]:
    """Start a run that ends with the test."""
    with starting(site) as begin:
        yield begin


def metric(port: int, name: str) -> float:
    shown = ask(port, "/metrics")[1].splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in shown if line.startswith(f"headrace_{name}{{"))


def has_committed(site: Site, count: int) -> bool:
    return committed(site, "counting") == count


def killed_half_way(site: Site, start: Start, name: str) -> None:
    running = start(name)
    for part in (ALL[: HALF // 2], ALL[HALF // 2 : HALF]):  # in two checkpoints at least
        expected = committed(site, "counting") + len(part)
        put(site, part, 2)
        wait_for(partial(has_committed, site, expected))
    os.killpg(running.process.pid, signal.SIGKILL)
    running.end()
    put(site, ALL[HALF:], 2)


@pytest.mark.parametrize("disk", ["same", "empty"])
def test_a_killed_worker_fetches_only_what_its_disk_does_not_have(site: Site, start: Start, disk: str) -> None:
    name = counting(site)
    killed_half_way(site, start, name)
    if disk == "empty":
        (site.folder / "state").rename(site.folder / "elsewhere")
    port = free_port()
    again = start(name, "--metrics-port", str(port))
    wait_for(lambda: committed(site, "counting") == 2 * HALF)
    fetched, reused = metric(port, "restore_fetched_bytes_total"), metric(port, "restore_reused_bytes_total")
    assert fetched + reused > 0
    assert (fetched == 0) == (disk == "same")
    assert (reused == 0) == (disk == "empty")
    again.process.send_signal(signal.SIGTERM)
    assert again.end() == 0
    site.run("run", name, "--until-end", **found(site))
    assert counted(site) == counts_of(ALL)


def test_a_damaged_file_goes_back_one_checkpoint_and_is_named(site: Site, start: Start) -> None:
    name = counting(site)
    killed_half_way(site, start, name)
    (site.folder / "state").rename(site.folder / "elsewhere")
    newest, before = [
        {ref["object"] for ref in json.loads(path.read_text())["manifest"]["files"]}
        for path in objects(site, "counting/in-0/manifests/*.json")[:-3:-1]
    ]
    spoilt = min(newest - before)
    path = site.folder / "checkpoints" / spoilt
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    output = site.run("run", name, "--until-end", **found(site))
    assert f"has a damaged object: {spoilt}; the task goes back to the checkpoint before it" in output
    assert counted(site) == counts_of(ALL)


def test_records_that_retention_deleted_stop_a_run_unless_they_may_be_skipped(site: Site, start: Start) -> None:
    name = counting(site)
    log = site.open()
    log.create_topic("in", 2, TopicConfig(segment_bytes=4096))
    log.close()
    killed_half_way(site, start, name)
    log = site.open()
    partition = TopicPartition("in", 0)
    position = log.group("counting").committed()[partition].offset
    log.trim(partition, log.end_offset(partition))
    lost = log.start_offset(partition) - position
    log.close()
    assert lost > 0
    stopped = site.start("run", name, "--until-end", **found(site))
    output, _ = stopped.communicate(timeout=60)
    assert stopped.returncode == 1
    told = " ".join(output.split())
    assert f"but the log keeps only what begins at {position + lost}: {lost} records are gone by retention" in told
    assert "--lost-records skip" in told
    output = site.run("run", name, "--until-end", "--lost-records", "skip", **found(site))
    assert f"leaves out {lost} records of partition in/0" in output
    assert sum(counted(site).values()) == len(ALL) - lost


def rss_mb(running: Telling) -> float:
    """Return the memory of the worker that takes most."""
    pids = workers_of(running.process) or [running.process.pid]
    told = [Path(f"/proc/{pid}/status").read_text() for pid in pids]
    return max(int(re.findall(r"VmRSS:\s+(\d+) kB", text)[0]) / 1024 for text in told)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_an_unusable_checkpoint_store_turns_ready_off_for_as_long_as_that_lasts(
    site: Site, start: Start, workers: str
) -> None:
    name = counting(site)
    many = rows(20_000, keys=200)
    put(site, many[:HALF], 2)
    port = free_port()
    running = start(
        name, "--metrics-port", str(port), "--workers", workers, HEADRACE_CACHE="1MB", HEADRACE_BATCH_RECORDS="500"
    )
    wait_for(lambda: committed(site, "counting") == HALF and ask(port, "/ready")[0] == 200)
    before_mb = rss_mb(running)
    with file_in_place_of(site.folder / "checkpoints"):
        put(site, many[HALF:], 2, batch=500)
        wait_for(lambda: ask(port, "/ready")[0] == 503)
        told = json.loads(ask(port, "/ready")[1])
        assert not told["ok"]
        assert set(told["waiting"]) == {"checkpoint"}
        assert ask(port, "/live")[0] == 200
        wait_for(lambda: metric(port, "lag_records") == 0)
        wait_for(lambda: metric(port, "task_blocked") > 0)
        assert metric(port, "checkpoint_failures_total") >= 3
        assert rss_mb(running) < before_mb + 40
        assert "waiting for checkpoints" in running.text
    wait_for(lambda: ask(port, "/ready")[0] == 200)
    wait_for(lambda: committed(site, "counting") == len(many))
    assert json.loads(ask(port, "/ready")[1])["waiting"] == {}
    running.process.send_signal(signal.SIGTERM)
    assert running.end() == 0, running.text
    site.run("run", name, "--until-end", **found(site))
    assert counted(site) == counts_of(many)


def test_sigterm_while_the_checkpoint_store_is_unusable(site: Site, start: Start) -> None:
    name = counting(site)
    put(site, ALL[:HALF], 2)
    running = start(name, HEADRACE_DRAIN_TIMEOUT="1s")
    wait_for(lambda: committed(site, "counting") == HALF)
    with file_in_place_of(site.folder / "checkpoints"):
        put(site, ALL[HALF:], 2)
        running.wait_for("will be tried again")
        running.process.send_signal(signal.SIGTERM)
        assert running.end(10) == 1
        assert "draining took longer than 1000 ms" in running.text
        assert "Nothing is lost" in running.text
    site.run("run", name, "--until-end", **found(site))
    assert counted(site) == counts_of(ALL)
