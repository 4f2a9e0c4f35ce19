"""Workers come and go while input arrives; the results are exact, and every task is always somewhere."""

from __future__ import annotations

import subprocess
from pathlib import Path

from headrace.demo.payments import Payments
from tests.e2e.feeding import Feed
from tests.e2e.harness import Site, expected, results, wait_for
from tests.e2e.small import holders

PAYMENTS = Payments(count=40_000, customers=3_000, duration_ms=200_000, duplicate_share=0.02, late_share=0.01)
SETTINGS = {"HEADRACE_CHECKPOINT_INTERVAL": "300ms", "HEADRACE_STANDBY_COPIES": "1"}


def test_one_to_three_workers_and_back(tmp_path: Path) -> None:
    site = Site(tmp_path)
    running: list[subprocess.Popen[str]] = []
    told: list[str] = []

    def shared() -> bool:
        """Return whether the running workers, and nobody else, share the tasks."""
        held = {name.rpartition("-")[2]: units for name, units in holders(site, "card-spend").items()}
        counts = sorted(len(units) for units in held.values())
        return held.keys() == {str(p.pid) for p in running} and sum(counts) == 4 and counts[-1] - counts[0] <= 1

    try:
        with Feed(site, PAYMENTS, batch=100, pause_s=0.02, eager=True).going():
            for number in range(3):
                state = {"HEADRACE_STATE_DIR": str(tmp_path / f"state-{number}")}
                running.append(site.start("run", "topologies.card_spend", **SETTINGS, **state))
                wait_for(shared)
            while len(running) > 1:
                leaving = running.pop(0)
                leaving.terminate()
                told.append(leaving.communicate(timeout=60)[0])
                assert leaving.returncode == 0, told[-1]
                wait_for(shared)
        last = running.pop()
        last.terminate()
        told.append(last.communicate(timeout=60)[0])
        assert last.returncode == 0, told[-1]
    finally:
        for process in running:
            process.kill()
            process.communicate()
    assert not [text for text in told if "taken for dead" in text or "Traceback" in text]
    site.run("run", "topologies.card_spend", "--until-end")
    assert results(site.read("spend-per-minute")) == expected(site)
    ids = [dict(record.headers)["headrace-id"] for record in site.read("spend-per-minute")]
    assert len(ids) == len(set(ids)), "an orderly move repeats nothing"
