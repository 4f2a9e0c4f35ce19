"""What tasks wait for: how it shows, what it costs, and that it ends by itself."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from headrace.errors import RetriableError, SettingsError
from headrace.log.memory import MemoryLog
from headrace.record import RecordBatch, TopicPartition
from headrace.runtime.hosts.host import Host
from headrace.runtime.hosts.status import WorkerStatus, explain
from headrace.runtime.workers.pressure import STUCK_FAILURES, STUCK_MS, Facts, Wait, is_held, waits
from headrace.runtime.workers.worker import Worker
from headrace.settings import Settings
from tests.e2e.harness import wait_for
from tests.obstacles import file_in_place_of
from tests.runtime.test_waiting_worker import Gate, calling
from tests.runtime.workers import Clock, Place, committed, counting, rows


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path, partitions=1)
    yield made
    made.close()


@contextmanager
def stuck_jobs(place: Place) -> Iterator[None]:
    """Let no job begin: so it looks from outside if a checkpoint store never answers."""
    gate = threading.Event()
    blockers = [place.jobs.submit(gate.wait) for _ in range(2)]
    try:
        yield
    finally:
        gate.set()
        assert all(blocker.result(10) for blocker in blockers)


class RefusingLog(MemoryLog):
    """Takes nothing while it is told so."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.refuses = False
        self.takes_ms = 0
        self.clock = clock

    def append(self, partition: TopicPartition, batch: RecordBatch) -> int:
        if self.refuses:
            raise RetriableError("the log takes nothing")
        self.clock.ms += self.takes_ms
        return super().append(partition, batch)


def waiting(worker: Worker, place: Place, limit_ms: int = 0) -> tuple[Wait, ...]:
    (slot,) = worker.slots()
    return waits(
        slot.facts(Settings(checkpoint_interval_ms=100, unsaved_limit_ms=limit_ms), place.clock.monotonic_ms())
    )


def exposed(worker: Worker, name: str) -> list[str]:
    lines = worker._parts.metrics.exposition().decode().splitlines()
    return [line for line in lines if line.startswith(f"headrace_{name}")]


def blocked(worker: Worker, reason: str) -> str:
    found = [line for line in exposed(worker, "task_blocked") if f'reason="{reason}"' in line]
    return found[0].rpartition(" ")[2] if found else ""


def saved(worker: Worker) -> bool:
    return all(slot.unsaved_ms is None and slot.job is None for slot in worker.slots())


@pytest.mark.parametrize(
    ("facts", "found"),
    [
        (Facts(), ()),
        (Facts(refused=True), (Wait.LOG,)),
        (Facts(parked_ms=STUCK_MS - 1), ()),
        (Facts(parked_ms=STUCK_MS), (Wait.CALLS,)),
        (Facts(failures=STUCK_FAILURES - 1), ()),
        (Facts(failures=STUCK_FAILURES), (Wait.CHECKPOINT,)),
        (Facts(unsaved_ms=STUCK_MS - 1, interval_ms=10_000), ()),
        (Facts(unsaved_ms=STUCK_MS, interval_ms=10_000), (Wait.CHECKPOINT,)),
        (Facts(unsaved_ms=STUCK_MS, interval_ms=STUCK_MS), ()),
        (Facts(unsaved_ms=3 * STUCK_MS, interval_ms=STUCK_MS), (Wait.CHECKPOINT,)),
        (Facts(unsaved_ms=999, limit_ms=1000), ()),
        (Facts(unsaved_ms=1000, limit_ms=1000), (Wait.CHECKPOINT,)),
        (Facts(refused=True, failures=9), (Wait.LOG, Wait.CHECKPOINT)),
    ],
)
def test_what_a_task_waits_for(facts: Facts, found: tuple[Wait, ...]) -> None:
    assert waits(facts) == found


def test_a_task_is_held_only_by_a_limit() -> None:
    assert not is_held(Facts(unsaved_ms=10**9))
    assert not is_held(Facts(unsaved_ms=0, limit_ms=1))
    assert is_held(Facts(unsaved_ms=1, limit_ms=1))


def test_a_checkpoint_store_that_never_answers_shows_after_a_minute_and_work_goes_on(place: Place) -> None:
    worker = place.worker()
    place.put(0, rows(0, 15))
    place.run(worker, until=lambda: committed(place) == 15 and saved(worker))
    with stuck_jobs(place):
        place.put(0, rows(15, 51))
        place.run(worker, until=lambda: worker.totals.records_in["in"] == 51)
        assert waiting(worker, place) == ()
        begun_ms = place.clock.ms
        place.clock.ms += STUCK_MS - 1000
        place.run(worker, until=lambda: waiting(worker, place))
        assert place.clock.ms - begun_ms < STUCK_MS + 1000
        assert waiting(worker, place) == (Wait.CHECKPOINT,)
        place.run(worker, until=lambda: blocked(worker, "checkpoint") == "1.0")
        snapshots = [path for path in (place.folder / "state").rglob("*-snapshot") if path.is_dir()]
        assert len(snapshots) == 1
        assert committed(place) == 15
    place.run(worker, until=lambda: committed(place) == 51 and not waiting(worker, place))
    place.run(worker, until=lambda: blocked(worker, "checkpoint") == "0.0")
    # The input has been idle for so long that the clock closed the last window.
    assert place.counted() == {**dict.fromkeys(range(0, 50, 10), 10), 50: 1}
    worker.close()


def test_an_idle_task_is_not_taken_for_stuck(place: Place) -> None:
    worker = place.worker()
    place.put(0, rows(0, 15))
    place.run(worker, until=lambda: committed(place) == 15 and saved(worker))
    place.clock.ms += 100 * STUCK_MS
    place.put(0, rows(15, 35))
    place.run(worker, until=lambda: committed(place) == 35 or waiting(worker, place))
    assert committed(place) == 35
    worker.close()


def test_checkpoints_that_fail_show_and_heal_by_themselves(place: Place) -> None:
    worker = place.worker()
    place.put(0, rows(0, 15))
    place.run(worker, until=lambda: committed(place) == 15 and saved(worker))
    with file_in_place_of(place.folder / "checkpoints"):
        place.put(0, rows(15, 35))
        place.run(worker, until=lambda: waiting(worker, place))
        assert waiting(worker, place) == (Wait.CHECKPOINT,)
        (slot,) = worker.slots()
        assert slot.failures == STUCK_FAILURES
        place.run(worker, until=lambda: blocked(worker, "checkpoint") == "1.0")
        assert float(exposed(worker, "unsaved_seconds{")[0].rpartition(" ")[2]) > 1
    place.run(worker, until=lambda: committed(place) == 35 and not waiting(worker, place))
    worker.close()


def test_a_limit_holds_a_task_until_a_checkpoint_has_what_it_did(place: Place) -> None:
    worker = place.worker(unsaved_limit_ms=5_000, batch_records=1)
    place.put(0, rows(0, 15))
    place.run(worker, until=lambda: committed(place) == 15 and saved(worker))
    with file_in_place_of(place.folder / "checkpoints"):
        place.put(0, rows(15, 16))
        place.run(worker, until=lambda: waiting(worker, place, 5_000))
        (slot,) = worker.slots()
        place.run(worker, until=lambda: place.clock.ms - slot.unsaved_ms > 5_000)
        place.put(0, rows(16, 35))
        begun_ms = place.clock.ms
        place.run(worker, until=lambda: place.clock.ms > begun_ms + 2_000)
        assert worker.totals.records_in["in"] == 16
    place.run(worker, until=lambda: committed(place) == 35)
    assert worker.totals.records_in["in"] == 35
    worker.close()


def test_a_call_that_does_not_end_shows_after_a_minute(place: Place) -> None:
    gate = Gate(3)
    worker = place.worker(topology=calling(gate))
    place.put(0, rows(0, 5))
    place.run(worker, until=lambda: gate.begun[4])
    assert waiting(worker, place) == ()
    place.clock.ms += STUCK_MS
    assert waiting(worker, place) == (Wait.CALLS,)
    gate.open()
    place.run(worker, until=lambda: committed(place) == 5 and not waiting(worker, place))
    worker.close()


def test_a_log_that_refuses_outputs_holds_at_most_one_step_and_shows(tmp_path: Path) -> None:
    place = Place(tmp_path, partitions=1)
    log = place.log = RefusingLog(place.clock)
    for name in ("in", "out"):
        log.create_topic(name, 1)
    worker = place.worker(batch_records=20)
    for first in range(0, 100, 20):
        place.put(0, rows(first, first + 20))
    place.run(worker, until=lambda: len(worker.slots()) == 1 and worker.slots()[0].task is not None)
    log.refuses = True
    place.run(worker, until=lambda: waiting(worker, place))
    assert waiting(worker, place) == (Wait.LOG,)
    (slot,) = worker.slots()
    place.run(worker, until=lambda: blocked(worker, "log") == "1.0")
    read, unsent = worker.totals.records_in["in"], len(slot.unsent)
    begun_ms = place.clock.ms
    place.run(worker, until=lambda: place.clock.ms > begun_ms + 5_000)
    assert (worker.totals.records_in["in"], len(slot.unsent)) == (read, unsent)
    assert float(exposed(worker, "blocked_seconds_total")[0].rpartition(" ")[2]) >= 4
    log.refuses = False
    place.run(worker, until=lambda: committed(place) == 100)
    assert waiting(worker, place) == ()
    assert place.counted() == dict.fromkeys(range(0, 90, 10), 10)
    worker.close()
    place.close()


def test_a_log_that_is_slow_shows_in_the_time_that_it_takes(tmp_path: Path) -> None:
    place = Place(tmp_path, partitions=1)
    log = place.log = RefusingLog(place.clock)
    for name in ("in", "out"):
        log.create_topic(name, 1)
    worker = place.worker(checkpoint_interval_ms=1_000_000)
    place.put(0, rows(0, 35))
    log.takes_ms = 3_000
    place.run(worker, until=place.counted)
    assert float(exposed(worker, "blocked_seconds_total")[0].rpartition(" ")[2]) >= 3
    worker.close()
    place.close()


@contextmanager
def hosted(place: Place, worker: Worker) -> Iterator[Host]:
    host = Host(worker, place.clock, Settings(heartbeat_interval_ms=20), lambda _: None, lambda _: None)
    thread = threading.Thread(target=host.run)
    thread.start()
    try:
        yield host
    finally:
        host.stop()
        thread.join(10)
        assert not thread.is_alive()


def ready(place: Place, host: Host) -> bool:
    """Let time pass, and return whether it is ready."""
    place.clock.ms += 50
    return host.ready()


def test_a_worker_is_ready_again_by_itself_and_says_what_it_waits_for(place: Place) -> None:
    with hosted(place, place.worker()) as host:
        wait_for(lambda: ready(place, host), 10)
        place.put(0, rows(0, 15))
        wait_for(lambda: ready(place, host) and committed(place) == 15, 10)
        with file_in_place_of(place.folder / "checkpoints"):
            place.put(0, rows(15, 35))
            wait_for(lambda: not ready(place, host), 10)
            assert explain([host.observed()])["waiting"] == {"checkpoint": ["in-0"]}
            assert host.live()
        wait_for(lambda: ready(place, host), 10)
        assert committed(place) == 35


def test_a_turn_that_lasts_for_a_minute_is_not_ready_but_lives(place: Place) -> None:
    gate, reached = threading.Event(), threading.Event()

    def step(row: dict[str, int]) -> bool:
        if row["at"] == 5:
            reached.set()
            assert gate.wait(10)
        return True

    with hosted(place, place.worker(topology=counting(step))) as host:
        wait_for(lambda: ready(place, host), 10)
        place.put(0, rows(0, 15))
        wait_for(lambda: ready(place, host) and reached.is_set(), 10)
        place.clock.ms += STUCK_MS
        assert not host.ready()
        assert host.live()
        assert explain([host.observed()])["waiting"] == {"turn": ["in-0"]}
        gate.set()
        wait_for(lambda: ready(place, host), 10)


def test_ready_says_which_tasks_wait_for_what() -> None:
    first = WorkerStatus("running", 2, waiting=(("checkpoint", ("in-0", "in-1")), ("log", ("in-1",))))
    second = WorkerStatus("running", 1, waiting=(("checkpoint", ("in-2",)),))
    assert explain([first, second]) == {
        "states": ["running", "running"],
        "tasks": 3,
        "waiting": {"checkpoint": ["in-0", "in-1", "in-2"], "log": ["in-1"]},
    }


def test_restores_that_failed_are_not_taken_for_checkpoints_that_do(place: Place) -> None:
    place.checkpoints.tasks()
    obstacle = place.folder / "checkpoints" / "counting"
    obstacle.write_text("a file stands here")
    worker = place.worker()
    place.run(worker, until=lambda: worker.slots() and worker.slots()[0].failures > STUCK_FAILURES)
    obstacle.unlink()
    place.run(worker, until=lambda: worker.slots()[0].task is not None)
    assert waiting(worker, place) == ()
    worker.close()


def test_settings_that_make_no_sense() -> None:
    with pytest.raises(SettingsError, match="lost_records must be stop or skip: 'ask'"):
        Settings(lost_records="ask")
    with pytest.raises(SettingsError, match="unsaved_limit must be at least two times checkpoint_interval"):
        Settings(unsaved_limit_ms=19_999)
    assert Settings(unsaved_limit_ms=20_000, lost_records="skip").unsaved_limit_ms == 20_000
