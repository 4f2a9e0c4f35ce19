"""Topologies on a real broker, with real processes and real kills: the results are what SQL says."""

from __future__ import annotations

import os
import random
import signal
import subprocess
from contextlib import closing
from functools import partial

import pytest

from headrace.demo.payments import Payments
from headrace.log.api import Log
from tests.e2e.harness import expected, fill, kill_all, results, wait_for, workers_of
from tests.kafka.site import KafkaSite

PAYMENTS = Payments(count=10_000, customers=1_000, duplicate_share=0.02, late_share=0.01)


def test_results_are_what_sql_says(site: KafkaSite) -> None:
    fill(site, PAYMENTS, 4)
    site.run("run", "topologies.card_spend", "--until-end", "--workers", "2")
    assert results(site.read("spend-per-minute")) == expected(site)


def test_a_killed_worker_behind_a_repartition(site: KafkaSite) -> None:
    """What it had written to the internal topic comes again, and counts once."""
    fill(site, PAYMENTS, 4, keyed=False)
    slow = {
        "HEADRACE_CHECKPOINT_INTERVAL": "100ms", "HEADRACE_BATCH_RECORDS": "100",
        "HEADRACE_SESSION_TIMEOUT": "2s", "HEADRACE_HEARTBEAT_INTERVAL": "500ms",
    }  # fmt: skip
    rng = random.Random(4)
    process = site.start("run", "tests.e2e.repartitioned", "--workers", "2", **slow)
    try:
        with closing(site.open()) as log:
            for _ in range(2):
                goal = committed(log, "repartitioned") + rng.randrange(1000, 4000)
                wait_for(partial(reached, log, "repartitioned", goal, process))
                if process.poll() is not None:
                    pytest.fail(process.communicate()[0])
                os.kill(rng.choice(wait_for(partial(workers_of, process))), signal.SIGKILL)
    finally:
        kill_all(process)
    site.run("run", "tests.e2e.repartitioned", "--until-end", "--workers", "2", **slow)
    found = results(site.read("spend-per-minute"))
    assert sum(count for count, _ in found.values()) == PAYMENTS.count


def committed(log: Log, group: str) -> int:
    """Return how many records the tasks of a topology have read, by their last checkpoints."""
    return sum(position.offset for position in log.group(group).committed().values())


def reached(log: Log, group: str, goal: int, process: subprocess.Popen[str]) -> bool:
    """Return whether that many records were read, or the command has ended."""
    return committed(log, group) >= goal or process.poll() is not None
