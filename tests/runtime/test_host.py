"""The loop around a worker: its status, its heartbeat, its end and its deadline."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from headrace.clock import SystemClock
from headrace.errors import HeadraceError, RecordError
from headrace.runtime.hosts.host import Host
from headrace.runtime.hosts.status import WorkerStatus
from headrace.runtime.workers.worker import Worker
from headrace.settings import Settings
from tests.e2e.harness import wait_for
from tests.runtime.workers import Place, counting, rows


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path, clock=SystemClock())
    yield made
    made.close()


class Hosted:
    """A host in a thread of its own."""

    def __init__(self, worker: Worker, drain_timeout_ms: int = 10_000) -> None:
        settings = Settings(heartbeat_interval_ms=20, session_timeout_ms=1000, drain_timeout_ms=drain_timeout_ms)
        self.statuses: list[WorkerStatus] = []
        self.overdue: list[HeadraceError | None] = []
        self.error: BaseException | None = None
        self.host = Host(worker, SystemClock(), settings, self.statuses.append, self.overdue.append)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.host.run()
        except BaseException as error:  # noqa: BLE001
            self.error = error

    def end(self) -> None:
        self.host.stop()
        self._thread.join(10)
        assert not self._thread.is_alive()


def waiting(gate: threading.Event) -> tuple[threading.Event, Callable[[dict[str, int]], bool]]:
    reached = threading.Event()

    def step(row: dict[str, int]) -> bool:
        if row["at"] == 5:
            reached.set()
            assert gate.wait(10)
        if row["at"] == 7:
            raise ValueError
        return True

    return reached, step


def test_ready_while_it_runs_and_not_when_told_to_stop(place: Place) -> None:
    gate = threading.Event()
    reached, step = waiting(gate)
    hosted = Hosted(place.worker(topology=counting(step)))
    assert not hosted.host.ready()
    wait_for(hosted.host.ready, 10)
    place.put(0, rows(0, 6))
    assert reached.wait(10)
    assert hosted.host.ready()
    assert hosted.host.live()
    hosted.host.stop()
    assert not hosted.host.ready()
    gate.set()
    hosted.end()
    assert hosted.error is None
    assert hosted.overdue == []
    states = list(dict.fromkeys(status.state for status in hosted.statuses))
    assert states[0] == "running"
    assert states[-1] == "finished"
    assert dict(hosted.statuses[-1].records_in) == {"in": 6}


def test_user_code_that_blocks_costs_no_membership(place: Place) -> None:
    gate = threading.Event()
    reached, step = waiting(gate)
    hosted = Hosted(place.worker("a", counting(step), session_timeout_ms=200, heartbeat_interval_ms=20))
    wait_for(hosted.host.ready, 10)
    place.put(0, rows(0, 6))
    assert reached.wait(10)
    group = place.log.group("counting")
    other = group.join("b", {}, lambda *_: {}, session_timeout_ms=200)
    end_ms = place.clock.monotonic_ms() + 600
    while place.clock.monotonic_ms() < end_ms:
        other.heartbeat()
        other.poll()
        assert [member.member_id for member in group.members()] == ["a", "b"]
        place.clock.sleep_ms(10)
    other.leave()
    gate.set()
    hosted.end()
    assert hosted.error is None


def test_an_error_ends_it_after_draining(place: Place) -> None:
    gate = threading.Event()
    gate.set()
    _, step = waiting(gate)
    hosted = Hosted(place.worker(topology=counting(step)))
    place.put(1, rows(500, 550))
    wait_for(lambda: place.log.group("counting").committed(), 10)
    place.put(0, rows(0, 9))
    wait_for(lambda: hosted.error, 10)
    hosted.end()
    assert isinstance(hosted.error, RecordError)
    assert "in/0, offset 7" in str(hosted.error)
    assert place.log.group("counting").members() == []


def test_draining_that_takes_too_long_is_told(place: Place) -> None:
    gate = threading.Event()
    reached, step = waiting(gate)
    hosted = Hosted(place.worker(topology=counting(step)), drain_timeout_ms=50)
    place.put(0, rows(0, 6))
    assert reached.wait(10)
    hosted.host.stop()
    wait_for(lambda: hosted.overdue, 10)
    assert hosted.overdue == [None]
    gate.set()
    hosted.end()


def test_what_made_it_drain_is_not_lost_when_draining_takes_too_long(place: Place) -> None:
    gate = threading.Event()
    gate.set()
    _, step = waiting(gate)
    worker = place.worker(topology=counting(step), checkpoint_interval_ms=1_000_000)
    hosted = Hosted(worker, drain_timeout_ms=50)
    place.put(1, rows(500, 550))
    wait_for(lambda: worker.totals.records_in["in"] == 50, 10)
    store = place.folder / "checkpoints"
    store.rename(place.folder / "hidden")
    store.write_text("a file stands here")
    place.put(0, rows(0, 9))
    wait_for(lambda: hosted.overdue, 10)
    assert isinstance(hosted.overdue[0], RecordError)
    store.unlink()
    (place.folder / "hidden").rename(store)
    hosted.end()
    assert isinstance(hosted.error, RecordError)
