"""A broker that dies and comes back: nothing is lost, and nothing is in the wrong order."""

from __future__ import annotations

import os
import threading
from contextlib import closing

import pytest

from headrace.clock import SystemClock
from headrace.log.api import Committed
from headrace.log.kafka import reader as reader_module
from headrace.log.kafka.log import KafkaLog
from headrace.record import TopicPartition
from headrace.testing.conformance.log_support import assign_evenly, make_batch, read_all, until, values_of
from tests.e2e.harness import wait_for
from tests.kafka.broker import REMEDY, JavaBroker, has_java
from tests.kafka.proxy import Proxy

PART = TopicPartition("numbers", 0)


@pytest.fixture(scope="module")
def broker(tmp_path_factory):
    """Yield a broker that the tests may kill."""
    if not has_java():
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(f"there is no broker to restart. {REMEDY}")
    broker = JavaBroker(tmp_path_factory.mktemp("restart"))
    broker.start()
    yield broker
    broker.kill()


def test_a_broker_that_comes_back(broker, monkeypatch):
    monkeypatch.setattr(reader_module, "_SILENT_S", 1)
    log = KafkaLog(f"kafka://{broker.address}", clock=SystemClock())
    log.create_topic("numbers", 1)
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


def test_a_broker_that_comes_back_elsewhere(broker, caplog):
    """Where the client began leads to it; what the client knows does not. As with brokers that were all replaced."""
    part = TopicPartition("elsewhere", 0)
    first = Proxy(broker.port)
    with closing(first), closing(KafkaLog(f"kafka://127.0.0.1:{first.port}", clock=SystemClock())) as log:
        log.create_topic("elsewhere", 1)
        reader = log.reader(part, 0)
        member = log.group("moved").join("m", {"a": [part]}, assign_evenly, session_timeout_ms=30_000)
        lease = wait_for(lambda: member.poll().leases)["a"]
        log.append(part, make_batch([b"before"]))
        assert values_of([wait_for(lambda: reader.read(10))]) == [b"before"]
        broker.kill()
        broker.move()
        log.send(part, make_batch([b"between"]))
        broker.start()
        first.lead_to(broker.port)
        log.flush()
        log.send(part, make_batch([b"after"]))
        assert values_of([wait_for(lambda: reader.read(1)) for _ in range(2)]) == [b"between", b"after"]
        member.commit(lease, {part: Committed(3, "")})
        assert member.poll().leases == {"a": lease}
        assert log.group("moved").committed() == {part: Committed(3, "")}
        member.leave()
    assert caplog.text.count("leads to others") == 1
