"""Exactly once where no replay repeats itself, and topics that grow under state: with real processes and real kills."""

from functools import partial

from headrace.demo.payments import Payments
from headrace.record import TopicPartition
from tests.e2e import test_outbox as outbox
from tests.e2e.harness import kill_all, results, wait_for
from tests.e2e.test_rescale import put, windows
from tests.kafka.test_card_spend import committed

LIVELY = {
    "HEADRACE_CHECKPOINT_INTERVAL": "100ms", "HEADRACE_BATCH_RECORDS": "100",
    "HEADRACE_SESSION_TIMEOUT": "2s", "HEADRACE_HEARTBEAT_INTERVAL": "500ms",
}  # fmt: skip


def test_every_record_counts_once_though_its_answer_is_another_each_time(site):
    outbox.fill(site, 0, 1_500)
    process = site.start(*outbox.COMMAND, **LIVELY)
    try:
        for goal in (300, 800):
            wait_for(partial(outbox.reached, site, goal, process))
            assert process.poll() is None, process.communicate()[0]
            kill_all(process)
            process = site.start(*outbox.COMMAND, **LIVELY)
    finally:
        kill_all(process)
    site.run(*outbox.COMMAND, "--until-end", **LIVELY)
    outbox.check(site, 1_500)


def test_state_moves_to_where_kafka_puts_its_keys(site):
    rows = [row for batch in Payments(count=6_000, customers=300, duplicate_share=0.1).batches() for row in batch]
    log = site.open()
    log.create_topic("payments", 3)
    put(site, rows[:3_000], 3)
    process = site.start("run", "topologies.card_spend", **LIVELY)
    try:
        wait_for(lambda: committed(log, "card-spend") >= 1_500)
    finally:
        kill_all(process)
    site.run("topics", "payments", "--grow-to", "5")
    assert log.end_offset(TopicPartition("payments", 4)) == 0
    log.close()
    put(site, rows[3_000:], 5)
    refused = site.start("run", "topologies.card_spend", "--until-end", **LIVELY)
    output, _ = refused.communicate(timeout=60)
    assert refused.returncode == 2, output
    said = site.run("rescale", "topologies.card_spend", "--yes", **LIVELY)
    assert "5 tasks have their state where their keys are" in said
    site.run("run", "topologies.card_spend", "--until-end", "--workers", "2", **LIVELY)
    assert results(site.read("spend-per-minute")) == windows(rows)
