"""What may become of topics under a worker, and what is said of it."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from headrace import Topology
from headrace.clock import SystemClock
from headrace.dsl.builder import Topology as Built
from headrace.errors import FatalError
from headrace.log.memory import MemoryLog
from headrace.runtime.hosts.host import Host
from headrace.runtime.hosts.watching import TopicWatch
from headrace.runtime.workers.topics import used_topics
from headrace.settings import Settings
from headrace.topology.plan import plan
from tests.runtime.workers import Place, counting


@pytest.fixture
def log() -> MemoryLog:
    log = MemoryLog(SystemClock())
    for name in ("in", "out"):
        log.create_topic(name, 2)
    return log


def plain() -> Built:
    topology = Topology("plain")
    topology.stream("in").to("out")
    return topology


def watch(log: MemoryLog, topology: Built, *, bounded: bool = False) -> TopicWatch:
    planned = plan(topology.graph(), {"in": 2})
    return TopicWatch(planned, log, log.layout(used_topics(planned)), bounded=bounded)


def test_what_stays_as_it_was_is_nothing_to_tell(log: MemoryLog) -> None:
    watching = watch(log, counting())
    log.create_topic("other", 1)
    watching.look()
    log.delete_topic("other")
    watching.look()


@pytest.mark.parametrize(("topic", "does"), [("in", "reads"), ("out", "writes")])
def test_a_topic_that_is_gone_is_looked_for_twice(log: MemoryLog, topic: str, does: str) -> None:
    watching = watch(log, counting())
    log.delete_topic(topic)
    watching.look()
    with pytest.raises(FatalError, match=rf"topic {topic}, which this topology {does}, was deleted while it ran"):
        watching.look()


def test_a_topic_that_is_made_again_is_another(log: MemoryLog) -> None:
    watching = watch(log, counting(), bounded=True)
    log.delete_topic("in")
    log.create_topic("in", 2)
    with pytest.raises(FatalError, match="was deleted and made again while it ran"):
        watching.look()


@pytest.mark.parametrize(("topology", "told"), [(counting(), "headrace rescale"), (plain(), "they read all of them")])
def test_an_input_that_grows(log: MemoryLog, topology: Built, told: str) -> None:
    watching = watch(log, topology)
    bounded = watch(log, topology, bounded=True)
    log.grow_topic("in", 3)
    with pytest.raises(FatalError, match=rf"topic in has 3 partitions now, and had 2.*{told}"):
        watching.look()
    bounded.look()  # what comes into the new ones lies behind its end


def test_an_output_that_grows_is_told_of_once(log: MemoryLog, caplog: pytest.LogCaptureFixture) -> None:
    watching = watch(log, counting())
    log.grow_topic("out", 3)
    with caplog.at_level(logging.WARNING, "headrace"):
        watching.look()
        watching.look()
    (told,) = [record.getMessage() for record in caplog.records]
    assert told.endswith("had 2 when this worker began: this topology writes to the first 2 until it is started again")


def test_a_worker_drains_when_its_topic_grows(tmp_path: Path) -> None:
    place = Place(tmp_path, clock=SystemClock())
    worker = place.worker()
    settings = Settings(heartbeat_interval_ms=20, session_timeout_ms=1000)
    host = Host(worker, SystemClock(), settings, lambda _: None, lambda _: None, watch(place.log, counting()))
    place.log.grow_topic("in", 3)
    with pytest.raises(FatalError, match="topic in has 3 partitions now"):
        host.run()
    assert worker.done
    place.close()
