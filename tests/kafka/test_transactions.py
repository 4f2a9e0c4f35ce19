"""Outputs in transactions: who reads only what is committed sees each once, whatever dies, and whenever."""

from __future__ import annotations

import os
import signal
from collections import Counter
from contextlib import closing
from functools import partial

import pytest

from headrace.errors import FatalError, FencedError, InvalidError
from headrace.record import ID_HEADER, JoinedBytes, RecordBatch, TopicPartition
from headrace.testing.conformance.log_support import until
from tests.e2e import test_outbox as outbox
from tests.e2e.harness import kill_all, wait_for, workers_of
from tests.kafka import foreign
from tests.kafka.broker import REMEDY, JavaBroker, has_java
from tests.kafka.clean import alter
from tests.kafka.site import KafkaSite

OUT, NOTES = TopicPartition("out", 0), TopicPartition("notes", 0)
NAME = "headrace-test-task-0"
OPTIONS = ("--guarantee", "exactly-once", "--transactions")
LIVELY = {
    "HEADRACE_CHECKPOINT_INTERVAL": "100ms", "HEADRACE_BATCH_RECORDS": "40",
    "HEADRACE_SESSION_TIMEOUT": "2s", "HEADRACE_HEARTBEAT_INTERVAL": "500ms",
}  # fmt: skip
COUNT = 600


@pytest.fixture
def log(site):
    with closing(site.open()) as log:
        log.create_topic("out", 3)
        log.create_topic("notes", 2)
        yield log


def rows(*values: bytes) -> RecordBatch:
    return RecordBatch(list(range(len(values))), [b"k"] * len(values), JoinedBytes.of(list(values)))


def committed(site: KafkaSite, topic: str = "out") -> list[bytes | None]:
    """Return what a client of another make reads, partition by partition."""
    found = sorted(foreign.read(site.address, topic), key=lambda message: (message.partition(), message.offset()))
    return [message.value() for message in found]


def test_a_writer_commits_everything_as_one_and_the_next_one_learns_what_counts(site, log):
    writer = log.writer(NAME, NOTES)
    assert writer.note is None
    writer.write([(OUT, rows(b"1", b"2")), (TopicPartition("out", 2), rows(b"9")), (OUT, rows(b"3"))], b"first")
    writer.write([(OUT, rows(b"4"))], b"second")
    assert committed(site) == [b"1", b"2", b"3", b"4", b"9"]
    assert log.writer("headrace-test-task-1", TopicPartition("notes", 1)).note is None
    assert log.writer(NAME, NOTES).note == b"second"


def test_who_opened_the_name_before_is_refused(site, log):
    before, after = log.writer(NAME, NOTES), log.writer(NAME, NOTES)
    with pytest.raises(FencedError):
        before.write([(OUT, rows(b"old"))], b"old")
    after.write([(OUT, rows(b"new"))], b"new")
    with pytest.raises(FencedError):
        before.write([(OUT, rows(b"old"))], b"old")
    assert committed(site) == [b"new"]
    assert log.writer(NAME, NOTES).note == b"new"


def test_opening_a_name_ends_the_transaction_that_was_open(site, log):
    log.writer(NAME, NOTES).write([(OUT, rows(b"1"))], b"first")
    dead = foreign.producer(site.address, transactional_id=NAME)
    dead.init_transactions(30)
    dead.begin_transaction()
    dead.produce("out", b"half", b"k", 0)
    dead.produce("notes", b"half", b"k", 0)
    assert dead.flush(30) == 0
    log.append(OUT, rows(b"behind"))
    assert log.end_offset(OUT) == 2, "the open transaction holds up what lies behind it"
    writer = log.writer(NAME, NOTES)
    assert writer.note == b"first"
    until(lambda: log.end_offset(OUT) > 4)
    writer.write([(OUT, rows(b"2"))], b"second")
    assert committed(site) == [b"1", b"behind", b"2"]


def test_more_than_kafka_takes_at_once_stays_in_order(site, log):
    values = [b"%06d" % i + b"x" * 250 for i in range(12_000)]
    writer = log.writer(NAME, NOTES)
    writer.write([(OUT, rows(*values[:4_000])), (OUT, rows(*values[4_000:]))], b"large")
    writer.write([(OUT, rows(b"last"))], b"last")
    assert committed(site) == [*values, b"last"]


def test_a_record_that_is_too_large_is_refused_and_nothing_of_it_is_seen(site, log):
    writer = log.writer(NAME, NOTES)
    with pytest.raises(InvalidError):
        writer.write([(OUT, rows(b"small")), (OUT, rows(b"x" * 3_000_000))], b"large")
    with pytest.raises(InvalidError):
        writer.write([(OUT, rows(b"small")), (OUT, rows(os.urandom(1_500_000)))], b"large")
    assert log.writer(NAME, NOTES).note is None
    assert committed(site) == []


def test_what_the_topic_does_not_take_is_said(site, log):
    alter(site.address, "out", "cleanup.policy", "compact")
    keyless = RecordBatch([1, 2], [b"k", None], JoinedBytes.of([b"a", b"b"]))
    with pytest.raises(FatalError, match="out/0: 1 of them have no key, and topic out keeps"):
        log.writer(NAME, NOTES).write([(OUT, keyless)], b"first")
    alter(site.address, "out", "message.timestamp.before.max.ms", 1000)
    with pytest.raises(FatalError, match="refuse the time of records for out/0: they are of 1970"):
        log.writer(NAME, NOTES).write([(OUT, rows(b"old"))], b"second")
    assert committed(site) == []


def test_the_last_note_is_found_behind_many_transactions_that_were_given_up(site, log):
    log.writer(NAME, NOTES).write([(OUT, rows(b"1"))], b"first")
    foreign.transact(site.address, "notes", [[foreign.Row(b"k", b"no", partition=0)]] * 50, commit=False)
    assert log.writer(NAME, NOTES).note == b"first"


# --- with real processes


def check(site: KafkaSite, count: int = COUNT) -> None:
    """Check that a foreign client sees every id once, and that each question has one answer that counts once."""
    for topic in ("answers", "times"):
        found = ids(site, topic)
        assert len(found) == count
        assert set(found.values()) == {1}, f"{topic} has repeats"
    assert outbox.check(site, count) == 0


def ids(site: KafkaSite, topic: str) -> Counter[bytes]:
    return Counter(dict(message.headers())[ID_HEADER] for message in foreign.read(site.address, topic))


def start(site: KafkaSite, peril: str | None = None, *more: str, **environment: str):
    struck = {} if peril is None else {"PERIL": peril}
    return site.start("run", "tests.kafka.perilous", *OPTIONS, *more, **LIVELY, **struck, **environment)


def test_a_worker_that_dies_anywhere_in_a_transaction(site):
    for turn, place in enumerate(("before", "within", "behind")):
        outbox.fill(site, turn * 300, 300)
        process = start(site, f"KILL-{place}-2")
        try:
            assert process.wait(60) == -signal.SIGKILL, process.communicate()[0]
        finally:
            kill_all(process)
    outbox.fill(site, 900, 300)
    site.run("run", "tests.kafka.perilous", *OPTIONS, "--until-end", **LIVELY)
    check(site, 1_200)


def test_a_worker_that_goes_on_when_another_has_its_tasks(site):
    outbox.fill(site, 0, COUNT)
    frozen = start(site, "STOP-within-2")
    try:
        wait_for(partial(is_stopped, frozen.pid))
        elsewhere = {"HEADRACE_STATE_DIR": str(site.folder / "elsewhere")}
        site.run("run", "tests.kafka.perilous", *OPTIONS, "--until-end", **LIVELY, **elsewhere)
        check(site)
        frozen.send_signal(signal.SIGCONT)
        outbox.fill(site, COUNT, 100)
        wait_for(lambda: len(ids(site, "times")) >= COUNT + 100 or frozen.poll() is not None, 60)
        frozen.send_signal(signal.SIGTERM)
        output, _ = frozen.communicate(timeout=60)
        assert frozen.returncode == 0, output
    finally:
        kill_all(frozen)
    check(site, COUNT + 100)


def is_stopped(pid: int) -> bool:
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] == "T"


@pytest.fixture
def own_broker(tmp_path):
    """Yield a broker that the test may kill."""
    if not has_java():
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(f"there is no broker to restart. {REMEDY}")
    broker = JavaBroker(tmp_path)
    broker.start()
    yield broker
    broker.kill()


def test_workers_and_the_broker_die(own_broker, tmp_path):
    site = KafkaSite(tmp_path, own_broker.address)
    outbox.fill(site, 0, 3_000)
    process = start(site, None, "--workers", "2")
    try:
        wait_for(partial(outbox.reached, site, 400, process))
        os.kill(wait_for(partial(workers_of, process))[0], signal.SIGKILL)
        wait_for(partial(outbox.reached, site, 900, process))
        own_broker.kill()
        own_broker.start()
        wait_for(partial(outbox.reached, site, 1_600, process), 90)
        assert process.poll() is None, process.communicate()[0]
    finally:
        kill_all(process)
    site.run("run", "tests.kafka.perilous", *OPTIONS, "--workers", "2", "--until-end", **LIVELY)
    check(site, 3_000)
