"""Workers are killed at random moments; nothing is missing and nothing is counted twice."""

from __future__ import annotations

import os
import random
import signal
import subprocess
from functools import partial
from pathlib import Path

import pytest

from headrace.demo.payments import Payments
from tests.e2e.harness import Site, committed, expected, fill, kill_all, results, wait_for, workers_of

PAYMENTS = Payments(count=80_000, customers=5_000, duplicate_share=0.02, late_share=0.01)
SLOW = {"HEADRACE_CHECKPOINT_INTERVAL": "100ms", "HEADRACE_BATCH_RECORDS": "200"}
"""Small steps and many checkpoints, so that a kill hits something."""


@pytest.mark.parametrize("topology", ["topologies.card_spend", "tests.e2e.repartitioned"])
def test_killed_workers(tmp_path: Path, topology: str) -> None:
    site = Site(tmp_path)
    keyed = topology == "topologies.card_spend"
    fill(site, PAYMENTS, 4, keyed=keyed)
    group = "card-spend" if keyed else "repartitioned"
    rng = random.Random(4)
    kills = 0
    process = site.start("run", topology, "--workers", "2", **SLOW)
    try:
        while committed(site, group) < PAYMENTS.count:
            goal = min(committed(site, group) + rng.randrange(1, 12_000), PAYMENTS.count)
            wait_for(partial(reached, site, group, goal, process))
            if process.poll() is not None:
                pytest.fail(process.communicate()[0])
            if rng.random() < 0.3:
                kill_all(process)
                process = site.start("run", topology, "--workers", "2", **SLOW)
            else:
                os.kill(rng.choice(wait_for(partial(workers_of, process))), signal.SIGKILL)
            kills += 1
    finally:
        kill_all(process)
    assert kills > 1
    site.run("run", topology, "--until-end", "--workers", "2")
    wanted = expected(site) if keyed else expected_repartitioned(site)
    assert results(site.read("spend-per-minute")) == wanted


def reached(site: Site, group: str, goal: int, process: subprocess.Popen[str]) -> bool:
    """Return whether that many records were read, or the command has ended."""
    return committed(site, group) >= goal or process.poll() is not None


def expected_repartitioned(site: Site) -> dict[tuple[str, int], tuple[int, float]]:
    """Every payment once: nothing is late there."""
    rows: dict[tuple[str, int], tuple[int, float]] = {}
    for record in site.read("payments"):
        value = record.value
        key = (value["customer_id"], value["at"] - value["at"] % 60_000)
        count, total = rows.get(key, (0, 0.0))
        rows[key] = (count + 1, total + value["total"])
    return {key: (count, round(total, 2)) for key, (count, total) in rows.items()}
