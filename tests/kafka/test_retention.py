"""Records that brokers delete before a task came to them, and topics that would lose what is written to them."""

from __future__ import annotations

from contextlib import closing

import pytest

from headrace.record import TopicPartition
from tests.e2e.small import found, module, rows, starting
from tests.kafka.clean import alter, shorten
from tests.kafka.test_card_spend import committed
from tests.kafka.test_topics_change import put

SLOW = """
import os
import time
from headrace import Topology

def held(record):
    while record["i"] >= 100 and os.path.exists({gate!r}):
        time.sleep(0.01)
    return record["i"]

topology = Topology("job")
topology.stream("in").map(held).to("out")
"""

FILLER = [{"k": "k", "at": 1, "i": 110, "fill": "x" * 40_000}] * 200
"""More than a worker fetches ahead."""


@pytest.fixture
def log(site):
    with closing(site.open()) as log:
        yield log


def run(site, *arguments, code=0):
    process = site.start("run", "job", "--until-end", *arguments, **found(site))
    output, _ = process.communicate(timeout=100)
    assert process.returncode == code, output
    return output


def test_records_that_go_while_a_worker_is_away_or_slow(site, log):
    gate = site.folder / "gate"
    gate.touch()
    module(site, SLOW.format(gate=str(gate)), "job")
    put(log, rows(100))
    with starting(site) as start:
        worker = start("job", HEADRACE_BATCH_RECORDS="10")
        worker.until(lambda: committed(log, "job") == 100)
        put(log, FILLER)
        put(log, rows(50, start=200))
        end = log.end_offset(TopicPartition("in", 0))
        shorten(site.address, "in", 0, end - 40)
        gate.unlink()
        assert worker.end() == 1
        assert f"keeps only what begins at {end - 40}" in worker.text
        assert "partition in/0" in worker.text
        assert "--lost-records skip" in worker.text
    assert f"keeps only what begins at {end - 40}" in run(site, code=1)
    assert "leaves out" in run(site, "--lost-records", "skip")
    seen = [record.value for record in site.read("out")]
    assert seen[:100] == list(range(100))
    assert seen[-40:] == list(range(210, 250))
    assert 200 not in seen


def test_records_that_go_under_a_worker_that_may_leave_them_out(site, log):
    gate = site.folder / "gate"
    gate.touch()
    module(site, SLOW.format(gate=str(gate)), "job")
    put(log, rows(100))
    with starting(site) as start:
        worker = start("job", "--lost-records", "skip", HEADRACE_BATCH_RECORDS="10")
        worker.until(lambda: committed(log, "job") == 100)
        put(log, FILLER)
        put(log, rows(50, start=200))
        end = log.end_offset(TopicPartition("in", 0))
        shorten(site.address, "in", 0, end - 40)
        gate.unlink()
        worker.until(lambda: committed(log, "job") == end)
        assert "leaves out" in worker.text
        assert f"goes on at offset {end - 40}" in worker.text
    seen = [record.value for record in site.read("out")]
    assert seen[-40:] == list(range(210, 250))


def test_outputs_that_would_vanish_are_told_of(site, log):
    """A topic that the worker makes keeps everything; of one that does not, a worker says so once."""
    module(site, SLOW.format(gate=str(site.folder / "none")), "job")
    put(log, rows(10))
    assert "retention" not in run(site)
    assert log.topics()["out"].config.retention_ms is None
    alter(site.address, "out", "retention.ms", 604_800_000)
    told = run(site)
    assert told.count("retention of out goes by the records' own time: what is older than 7 days") == 1
    assert "retention.ms=-1" in told
    alter(site.address, "in", "retention.ms", 604_800_000)
    assert "retention of in, out goes" in run(site, "--group", "anew")


def test_times_that_a_topic_refuses(site, log):
    module(site, SLOW.format(gate=str(site.folder / "none")), "job")
    put(log, rows(10))
    log.create_topic("out", 1)
    alter(site.address, "out", "message.timestamp.before.max.ms", 3_600_000)
    told = run(site, code=1)
    assert "the time of records for out/0" in told
    assert "1970-01-01T00:00:00" in told
    assert "message.timestamp.before.max.ms" in told
    alter(site.address, "out", "cleanup.policy", "delete")
    run(site)
    assert [record.value for record in site.read("out")] == list(range(10))
