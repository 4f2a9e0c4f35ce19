"""Two workers of one group are killed and stopped again and again while input arrives: the results stay exact.

The full proof: ``HEADRACE_PROOF=200,50 python -m pytest tests/e2e/test_kills.py -s`` (kills, stops).
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from headrace.clock import SystemClock
from headrace.demo.payments import Payments
from tests.e2e.feeding import Feed
from tests.e2e.harness import Site, committed, expected, results
from tests.e2e.small import holders

KILLS, STOPS = map(int, os.environ.get("HEADRACE_PROOF", "8,2").split(","))
PER_STRIKE = 1_500
"""Payments for each kill or stop."""
PACE_MS = 4
"""Event time from one payment to the next."""
SETTINGS = {
    "HEADRACE_CHECKPOINT_INTERVAL": "100ms", "HEADRACE_BATCH_RECORDS": "200", "HEADRACE_STANDBY_COPIES": "1",
}  # fmt: skip
"""Small steps and many checkpoints, so that a kill hits something."""
MOMENTS = ("start", "restore", "checkpoint", "steady")


@dataclass
class Runner:
    """A worker that is started again whenever it is gone, each time with the same disk directory."""

    site: Site
    name: str
    process: subprocess.Popen[str] | None = None

    def start(self) -> subprocess.Popen[str]:
        state = {"HEADRACE_STATE_DIR": str(self.site.folder / self.name)}
        self.process = self.site.start("run", "topologies.card_spend", **SETTINGS, **state)
        return self.process

    def holds(self) -> bool:
        assert self.process is not None
        pid = f"-{self.process.pid}"
        return any(name.endswith(pid) and units for name, units in holders(self.site, "card-spend").items())

    def snapshots(self) -> bool:
        """Return whether a checkpoint is under way."""
        return any((self.site.folder / self.name / "card-spend").glob("*/*-snapshot"))

    def end(self, number: int) -> None:
        """Send a signal, and check how the process ends."""
        assert self.process is not None
        assert self.process.poll() is None, self.process.communicate()[0]
        self.process.send_signal(number)
        output, _ = self.process.communicate(timeout=60)
        assert self.process.returncode == (0 if number == signal.SIGTERM else -number), output
        assert "Traceback" not in output, output


def soon(condition: Callable[[], object], timeout_ms: int) -> bool:
    """Wait for a moment that may not come, and say whether it did."""
    clock = SystemClock()
    end = clock.monotonic_ms() + timeout_ms
    while not condition():
        if clock.monotonic_ms() > end:
            return False
        clock.sleep_ms(2)
    return True


def reach(moment: str, runner: Runner, site: Site, rng: random.Random) -> str:
    """Wait until it is the moment to strike, and return which moment that is."""
    if moment == "start":
        SystemClock().sleep_ms(rng.randrange(700))
        return moment
    assert soon(runner.holds, 30_000), "the worker gets no task"
    if moment == "restore":
        return moment
    if moment == "checkpoint" and soon(runner.snapshots, 3_000):
        return moment
    goal = committed(site, "card-spend") + rng.randrange(1, 1000)
    soon(lambda: committed(site, "card-spend") >= goal, 1_000)
    return "steady"


@pytest.mark.timeout(300 + 6 * (KILLS + STOPS))
def test_results_are_exact_through_kills_and_stops(tmp_path: Path) -> None:
    site, rng, hit = Site(tmp_path), random.Random(6), Counter[tuple[str, str]]()
    count = PER_STRIKE * (KILLS + STOPS)
    payments = Payments(
        count=count, customers=5_000, duration_ms=PACE_MS * count, duplicate_share=0.02, late_share=0.01
    )
    runners = [Runner(site, "one"), Runner(site, "two")]
    begun_ms = SystemClock().monotonic_ms()
    strikes = [signal.SIGKILL] * KILLS + [signal.SIGTERM] * STOPS
    rng.shuffle(strikes)
    try:
        with Feed(site, payments, batch=100, pause_s=0.01, eager=False).going() as feed:
            for runner in runners:
                runner.start()
            for turn, number in enumerate(strikes):
                feed.allow(PER_STRIKE)
                runner = rng.choice(runners)
                moment = reach(MOMENTS[turn % len(MOMENTS)], runner, site, rng)
                if number == signal.SIGTERM:
                    # Before that, the command has not learned yet what to do with it.
                    assert soon(runner.holds, 30_000)
                runner.end(number)
                hit[number.name, moment] += 1
                runner.start()
    finally:
        for runner in runners:
            if runner.process is not None and runner.process.poll() is None:
                runner.process.kill()
                runner.process.communicate()
    seconds = (SystemClock().monotonic_ms() - begun_ms) / 1000
    print(f"{sum(hit.values())} strikes in {seconds:.0f} s: {dict(hit)}")
    assert sum(hit.values()) == KILLS + STOPS
    before = committed(site, "card-spend")
    assert before > 0
    site.run("run", "topologies.card_spend", "--until-end", "--workers", "2")
    assert len(site.read("payments")) == count
    assert results(site.read("spend-per-minute")) == expected(site)
