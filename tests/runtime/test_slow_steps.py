"""A step that does not come back: what is said of it, and when its worker gives itself up."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from headrace.clock import SystemClock
from headrace.errors import FatalError, HeadraceError
from headrace.log.memory import MemoryLog
from headrace.record import RecordBatch, TopicPartition
from headrace.runtime.hosts.host import Host
from headrace.runtime.hosts.status import explain
from headrace.runtime.workers.worker import Worker
from headrace.settings import Settings
from tests.e2e.harness import wait_for
from tests.runtime.workers import Place, counting, rows

BEAT = {"heartbeat_interval_ms": 20, "session_timeout_ms": 300}


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path, clock=SystemClock())
    yield made
    made.close()


class Gate:
    """User code that waits at one record."""

    def __init__(self, at: int) -> None:
        self._at = at
        self.open = threading.Event()

    def waits_in_user_code(self, row: dict[str, int]) -> bool:
        if row["at"] == self._at:
            assert self.open.wait(30)
        return True


@contextmanager
def hosted(worker: Worker, gate: Gate, on_stuck: Callable[[HeadraceError], None], **settings: int) -> Iterator[Host]:
    host = Host(worker, SystemClock(), Settings(**BEAT, **settings), lambda _: None, lambda _: None, on_stuck=on_stuck)  # type: ignore[arg-type]
    thread = threading.Thread(target=host.run)
    thread.start()
    try:
        yield host
    finally:
        gate.open.set()
        host.stop()
        thread.join(30)
        assert not thread.is_alive()


def test_it_is_reported_once_with_its_place_in_the_code(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    gate, stuck = Gate(7), []
    worker = place.worker("a", counting(gate.waits_in_user_code), **BEAT)
    metrics = worker._parts.metrics
    caplog.set_level(logging.WARNING, "headrace")
    with hosted(worker, gate, stuck.append, slow_step_ms=100, step_timeout_ms=0) as host:
        wait_for(host.ready)
        place.put(0, rows(0, 5))
        wait_for(lambda: worker.totals.records_in["in"] == 5)
        place.put(0, rows(5, 15))
        wait_for(lambda: caplog.messages)
        said = caplog.messages[0]
        assert said.startswith("step 'check' of task in-0, at in/0 offsets 5 to 14, has taken 0.")
        first, *frames = [line for line in said.splitlines() if line.lstrip().startswith("File ")]
        assert "executor.py" in first
        assert any("in waits_in_user_code" in frame for frame in frames)
        assert not host.ready()
        assert explain([host.observed()])["waiting"] == {"turn": ["in-0"]}
        wait_for(lambda: b'headrace_slow_steps_total{task="in-0",topology="counting"} 1.0' in metrics.exposition())
        assert b'headrace_slow_step_seconds{task="in-0",topology="counting"} 0.0' not in metrics.exposition()
        gate.open.set()
        wait_for(lambda: len(caplog.messages) > 1)
        assert caplog.messages[1].startswith("step 'check' of task in-0, at in/0 offsets 5 to 14, came back after ")
        assert b'headrace_slow_step_seconds{task="in-0",topology="counting"} 0.0' in metrics.exposition()
        wait_for(lambda: host.ready() and worker.totals.records_in["in"] == 15)
    assert len(caplog.messages) == 2
    assert stuck == []


def test_one_that_stays_there_loses_its_tasks(place: Place) -> None:
    gate, stuck = Gate(7), []
    worker = place.worker("a", counting(gate.waits_in_user_code), **BEAT)
    with hosted(worker, gate, stuck.append, slow_step_ms=0, step_timeout_ms=400) as host:
        wait_for(host.ready)
        place.put(0, rows(0, 15))
        other = place.worker("b", counting(), **BEAT)

        def took_over() -> bool:
            other.turn()
            return {str(slot.id) for slot in other.slots()} == {"in-0", "in-1"}

        wait_for(took_over)
        assert not host.live()
        other.close()
    (error,) = stuck
    assert isinstance(error, FatalError)
    assert str(error).startswith("step 'check' of task in-0, at in/0 offsets ")
    assert "HEADRACE_STEP_TIMEOUT" in str(error)
    assert "in waits_in_user_code" in error.__notes__[0]


class SlowLog(MemoryLog):
    """Takes a record when it likes to."""

    gate = Gate(0)

    def send(self, partition: TopicPartition, batch: RecordBatch) -> None:
        self.gate.waits_in_user_code({"at": 0})
        super().send(partition, batch)


def test_a_log_that_takes_its_time_shows_as_well(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    place.log = SlowLog(place.clock)
    place.log.create_topic("in", 1)
    place.log.create_topic("out", 1)
    worker = place.worker("a", counting(), **BEAT)
    caplog.set_level(logging.WARNING, "headrace")
    with hosted(worker, SlowLog.gate, lambda _: None, slow_step_ms=100, step_timeout_ms=0):
        place.put(0, rows(0, 15))
        wait_for(lambda: caplog.messages)
        assert caplog.messages[0].startswith("task in-0 has taken ")
        assert "in _append" in caplog.messages[0]
