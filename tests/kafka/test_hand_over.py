"""Workers on several machines share a topology: one comes, another goes, and nothing is done twice."""

from __future__ import annotations

import signal
from functools import partial

from headrace.demo.payments import Payments
from headrace.log.api import Log
from tests.e2e.harness import expected, fill, kill_all, results, wait_for
from tests.kafka.clean import wipe
from tests.kafka.site import KafkaSite
from tests.kafka.test_card_spend import committed

PAYMENTS = Payments(count=20_000, customers=1_000, duplicate_share=0.02, late_share=0.01)
SLOW = {"HEADRACE_CHECKPOINT_INTERVAL": "300ms", "HEADRACE_BATCH_RECORDS": "20"}


def holders(log: Log) -> list[int]:
    """Return how many tasks each worker has."""
    return sorted(len(member.units) for member in log.group("card-spend").members())


def test_one_comes_and_the_other_goes(tmp_path, kafka):
    wipe(kafka)
    site = KafkaSite(tmp_path, kafka)
    fill(site, PAYMENTS, 4)
    there = {"HEADRACE_STATE_DIR": str(tmp_path / "elsewhere")}  # as on another machine
    first = site.start("run", "topologies.card_spend", **SLOW)
    second = None
    log = site.open()
    try:
        wait_for(lambda: holders(log) == [4] and committed(log, "card-spend") > 1000)
        second = site.start("run", "topologies.card_spend", **SLOW, **there)
        wait_for(lambda: holders(log) == [2, 2])
        before = committed(log, "card-spend")
        wait_for(partial(further, log, before + 2000))
        first.send_signal(signal.SIGTERM)
        output, _ = first.communicate(timeout=40)
        assert first.returncode == 0, output
        wait_for(lambda: holders(log) == [4])
        second.send_signal(signal.SIGTERM)
        output, _ = second.communicate(timeout=40)
        assert second.returncode == 0, output
    finally:
        log.close()
        kill_all(first)
        if second is not None:
            kill_all(second)
    site.run("run", "topologies.card_spend", "--until-end")
    records = site.read("spend-per-minute")
    assert results(records) == expected(site)
    assert len(records) == len(results(records)), "an orderly hand-over repeats nothing"


def further(log: Log, goal: int) -> bool:
    return committed(log, "card-spend") >= min(goal, PAYMENTS.count)
