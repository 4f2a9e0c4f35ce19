"""A broker that dies and comes back: nothing is lost, and nothing is in the wrong order."""

from __future__ import annotations

import os
import threading

import pytest

from headrace.clock import SystemClock
from headrace.log.kafka.log import KafkaLog
from headrace.record import TopicPartition
from headrace.testing.conformance.log_support import assign_evenly, make_batch, read_all, until, values_of
from tests.kafka.broker import REMEDY, JavaBroker, has_java

PART = TopicPartition("payments", 0)


@pytest.fixture
def broker(tmp_path):
    """Yield a broker that the test may kill."""
    if not has_java():
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(f"there is no broker to restart. {REMEDY}")
    broker = JavaBroker(tmp_path)
    broker.start()
    yield broker
    broker.kill()


def test_a_broker_that_comes_back(broker):
    log = KafkaLog(f"kafka://{broker.address}", clock=SystemClock())
    log.create_topic("payments", 1)
    reader = log.reader(PART, 0)
    units = {"a": [PART]}
    member = log.group("g").join("m", units, assign_evenly, session_timeout_ms=30_000)
    until(lambda: member.poll().leases)
    lease = member.poll().leases["a"]
    for i in range(50):
        log.send(PART, make_batch([b"%d" % i]))
    log.flush()
    until(lambda: reader.end_offset() == 50)
    assert values_of(read_all(reader)) == [b"%d" % i for i in range(50)]
    broker.kill()
    until(lambda: reader.end_offset() > reader.position)  # nobody knows whether it is at the end
    for i in range(50, 100):
        log.send(PART, make_batch([b"%d" % i]))
    flushed = threading.Thread(target=log.flush)
    flushed.start()
    broker.start()
    flushed.join(60)
    assert not flushed.is_alive()
    until(lambda: reader.end_offset() == 100, 30)
    assert values_of(read_all(reader)) == [b"%d" % i for i in range(50, 100)]
    assert member.poll().leases == {"a": lease}
    member.leave()
    reader.close()
    log.close()
