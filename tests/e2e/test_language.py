"""The whole language over the command line: on a real log, with one worker and with two, left alone and killed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
from functools import partial
from pathlib import Path

import pytest

from tests.e2e import language
from tests.e2e.harness import Site, kill_all, wait_for, workers_of

PARTITIONS = {"articles": 6}
"""More than there are tasks; every other topic has four."""
MAKE = {"visits": language.clicks_and_articles, "orders": language.orders_and_tables}
CHECK = {"visits": language.check_visits, "orders": language.check_orders}
COUNT = {"visits": 6_000, "orders": 4_000}
"""Clicks, or orders, of which each has about three records in other topics."""
READ = {"visits": ("clicks",), "orders": ("orders", "payments", "customers", "products", "suppliers", "stock")}
SMALL = {"HEADRACE_CHECKPOINT_INTERVAL": "100ms", "HEADRACE_BATCH_RECORDS": "10"}
"""Small steps and many checkpoints, so that a kill hits something."""


@pytest.mark.parametrize(("topology", "workers"), [("visits", "1"), ("visits", "2"), ("orders", "1"), ("orders", "2")])
def test_undisturbed(tmp_path: Path, topology: str, workers: str) -> None:
    site = Site(tmp_path)
    topics = MAKE[topology](1, COUNT[topology])
    language.fill(site, topics, PARTITIONS)
    site.run("run", f"tests.e2e.{topology}", "--until-end", "--workers", workers)
    CHECK[topology](site, topics)


@pytest.mark.parametrize("topology", ["visits", "orders"])
def test_killed_and_stopped(tmp_path: Path, topology: str) -> None:
    site = Site(tmp_path)
    topics = MAKE[topology](2, COUNT[topology])
    language.fill(site, topics, PARTITIONS)
    disturbances = disturb(site, topology, topics, random.Random(2), COUNT[topology] // 4)
    assert disturbances >= 2
    CHECK[topology](site, topics)


def disturb(site: Site, topology: str, topics: language.Topics, rng: random.Random, most: int) -> int:
    """Run to the end with two workers, of which one or all are killed or stopped again and again; return how often."""
    total = sum(len(topics[topic]) for topic in READ[topology])
    disturbances = killed = 0
    command = ("run", f"tests.e2e.{topology}", "--workers", "2")
    process = site.start(*command, **SMALL)
    try:
        while (done := read_of(site, topology)) < total:
            goal = min(done + rng.randrange(1, most), total)
            wait_for(partial(reached, site, topology, goal, process))
            if process.poll() is not None:
                pytest.fail(process.communicate()[0])
            how = rng.choice(["kill", "kill", "kill all", "stop"])
            if how == "kill" and killed < 4:  # a supervisor gives up when six workers die within a minute
                killed += 1
                os.kill(rng.choice(wait_for(partial(workers_of, process))), signal.SIGKILL)
            elif how != "stop":
                kill_all(process)
                killed = 0
                process = site.start(*command, **SMALL)
            else:
                process.send_signal(signal.SIGTERM)
                output, _ = process.communicate(timeout=60)
                assert process.returncode == 0, output
                killed = 0
                process = site.start(*command, **SMALL)
            disturbances += 1
    finally:
        kill_all(process)
    site.run("run", f"tests.e2e.{topology}", "--until-end", "--workers", "2")
    return disturbances


def read_of(site: Site, topology: str) -> int:
    """Return how many records of its topics have been read, by the last checkpoints."""
    log = site.open()
    try:
        committed = log.group(topology).committed()
        return sum(at.offset for partition, at in committed.items() if partition.topic in READ[topology])
    finally:
        log.close()


def reached(site: Site, topology: str, goal: int, process: subprocess.Popen[str]) -> bool:
    return read_of(site, topology) >= goal or process.poll() is not None
