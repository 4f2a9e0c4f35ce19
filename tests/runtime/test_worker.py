"""A worker turn by turn: leases, restores, checkpoints, and what becomes of what fails."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.errors import NotFoundError, RecordError, SettingsError
from headrace.record import TopicPartition
from headrace.runtime.workers.bounds import Bounds
from headrace.runtime.workers.lifecycle import Phase
from headrace.runtime.workers.parts import Blame
from headrace.runtime.workers.worker import Worker
from tests.e2e.harness import wait_for
from tests.runtime.workers import Place, committed, counting, rows


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.close()


def running(worker: Worker, tasks: int) -> bool:
    phases = [slot.phase for slot in worker.slots()]
    return phases == [Phase.RUNNING] * tasks


def drain(place: Place, *workers: Worker) -> None:
    for worker in workers:
        worker.drain()
    place.run(*workers, until=lambda: all(worker.done for worker in workers))


def test_tasks_are_restored_fed_saved_and_handed_over(place: Place) -> None:
    place.put(0, rows(0, 95))
    first = place.worker("a")
    place.run(first, until=lambda: committed(place) == 95)
    second = place.worker("b")
    place.run(first, second, until=lambda: running(first, 1) and running(second, 1))
    place.put(0, rows(95, 131))
    place.put(1, rows(500, 531))
    place.run(first, second, until=lambda: committed(place) == 162)
    drain(place, first)
    place.run(second, until=lambda: running(second, 2))
    drain(place, second)
    assert first.totals.records_in["in"] + second.totals.records_in["in"] == 162
    assert place.counted() == dict.fromkeys([*range(0, 130, 10), *range(500, 530, 10)], 10)
    assert place.log.group("counting").members() == []


def test_a_worker_that_was_taken_for_dead_drops_everything_and_joins_again(place: Place) -> None:
    place.put(0, rows(0, 95))
    worker = place.worker("a")
    place.run(worker, until=lambda: committed(place) == 95)
    lost = worker.slots()
    place.log.group("counting").join("a", {}, lambda *_: {}, session_timeout_ms=1000).leave()
    place.run(worker, until=lambda: running(worker, 2) and worker.slots()[0] not in lost)
    assert all(slot.phase is Phase.GONE for slot in lost)
    place.put(0, rows(95, 131))
    place.run(worker, until=lambda: committed(place) == 131)
    assert place.counted() == dict.fromkeys(range(0, 130, 10), 10)
    drain(place, worker)


def test_a_task_that_goes_to_another_while_its_state_is_restored_is_dropped(place: Place) -> None:
    """The worker may learn of it as it commits where the last owner had come to, before it asks the group."""
    place.put(0, rows(0, 95))
    first = place.worker("a")
    place.run(first, until=lambda: committed(place) == 95)
    drain(place, first)
    second = place.worker("b")
    second.turn()
    restored = second.slots()
    wait_for(lambda: all(slot.job is not None and slot.job.done() for slot in restored))
    place.log.group("counting").join("b", {}, lambda *_: {}, session_timeout_ms=1000).leave()
    second.turn()
    assert [slot for slot in second.slots() if slot.manifest is not None and slot.manifest.positions] == []
    place.run(second, until=lambda: running(second, 2) and second.slots()[0] not in restored)
    place.put(0, rows(95, 131))
    place.run(second, until=lambda: committed(place) == 131)
    assert place.counted() == dict.fromkeys(range(0, 130, 10), 10)
    drain(place, second)


def failing(row: dict[str, int]) -> bool:
    if row["at"] == 50:
        raise ValueError
    return True


def fails(place: Place, worker: Worker) -> None:
    with pytest.raises(RecordError, match="step 'check' failed on the record at partition in/0, offset 50"):
        place.run(worker, until=lambda: False)


def test_a_failed_task_is_dropped_and_the_others_are_saved(place: Place) -> None:
    worker = place.worker(topology=counting(failing), checkpoint_interval_ms=1_000_000)
    place.put(1, rows(500, 551))
    place.run(worker, until=lambda: worker.totals.records_in["in"] == 51)
    assert committed(place) == 0
    place.put(0, rows(0, 60))
    fails(place, worker)
    assert worker.abandon() is Blame.TASK
    assert worker.abandon() is Blame.WORKER
    drain(place, worker)
    assert committed(place) == 51


def test_what_fails_in_a_task_of_another_worker_is_nobodys_fault(place: Place) -> None:
    worker = place.worker(topology=counting(failing))
    place.run(worker, until=lambda: running(worker, 2))
    place.put(0, rows(0, 60))
    place.log.group("counting").join("a", {}, lambda *_: {}, session_timeout_ms=1000).leave()
    with pytest.raises(RecordError):
        worker.turn()
    assert worker.abandon() is Blame.NOBODY
    worker.close()


def test_a_restore_is_tried_again(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    place.put(0, rows(0, 95))
    place.checkpoints.tasks()
    (place.folder / "checkpoints" / "counting").write_text("a file stands here")
    worker = place.worker()
    place.run(worker, until=lambda: place.clock.ms > 1_003_000)
    told = [record for record in caplog.records if "goes back to its last checkpoint" in record.message]
    assert 2 < len(told) < 12, "it must not ask all the time"
    assert [slot.phase for slot in worker.slots()] == [Phase.RESTORING] * 2
    (place.folder / "checkpoints" / "counting").unlink()
    place.run(worker, until=lambda: committed(place) == 95)
    drain(place, worker)


def test_a_checkpoint_is_tried_again_while_draining(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    worker = place.worker(checkpoint_interval_ms=1_000_000)
    place.put(0, rows(0, 95))
    place.run(worker, until=lambda: worker.totals.records_in["in"] == 95)
    store = place.folder / "checkpoints"
    store.rename(place.folder / "hidden")
    store.write_text("a file stands here")
    worker.drain()
    place.run(worker, until=lambda: "its checkpoint failed and will be tried again" in caplog.text)
    begun_ms = place.clock.ms
    place.run(worker, until=lambda: place.clock.ms > begun_ms + 3_000)
    assert 1 < caplog.text.count("will be tried again") < 6, "it must not ask all the time"
    store.unlink()
    (place.folder / "hidden").rename(store)
    place.run(worker, until=lambda: worker.done)
    assert committed(place) == 95


def test_the_last_checkpoint_does_not_wait_as_long_as_those_before_it_that_failed(place: Place) -> None:
    worker = place.worker()
    place.put(0, rows(0, 95))
    place.run(worker, until=lambda: worker.totals.records_in["in"] == 95)
    store = place.folder / "checkpoints"
    store.rename(place.folder / "hidden")
    store.write_text("a file stands here")
    place.put(0, rows(95, 100))
    place.run(worker, until=lambda: max(slot.failures for slot in worker.slots()) > 5)
    store.unlink()
    (place.folder / "hidden").rename(store)
    worker.drain()
    begun_ms = place.clock.ms
    place.run(worker, until=lambda: worker.done)
    assert place.clock.ms - begun_ms < 2_000
    assert committed(place) == 100


def test_what_waits_for_a_restore_is_released_at_once(place: Place) -> None:
    first = place.worker("a")
    first.turn()
    assert [slot.phase for slot in first.slots()] == [Phase.RESTORING] * 2
    first.drain()
    assert first.slots() == []
    first.turn()
    assert first.done
    place.put(0, rows(0, 95))
    second = place.worker("b")
    place.run(second, until=lambda: committed(place) == 95)
    drain(place, second)


@pytest.mark.parametrize("partition", [0, 1])
def test_a_state_directory_that_cannot_be_used(place: Place, partition: int) -> None:
    (place.folder / "state" / "counting").mkdir(parents=True)
    (place.folder / "state" / "counting" / f"in-{partition}").write_text("a file stands here")
    worker = place.worker()
    with pytest.raises(SettingsError, match="HEADRACE_STATE_DIR"):
        place.run(worker, until=lambda: False)
    assert worker.abandon() is Blame.TASK
    worker.close()


def test_the_age_of_a_checkpoint_grows_while_checkpoints_fail(place: Place) -> None:
    place.put(0, rows(0, 95))
    worker = place.worker()
    place.run(worker, until=lambda: committed(place) == 95)
    slot = next(slot for slot in worker.slots() if slot.id.partition == 0)
    place.run(worker, until=lambda: slot.job is None)
    saved = slot.saved_ms
    (place.folder / "checkpoints").rename(place.folder / "hidden")
    (place.folder / "checkpoints").write_text("a file stands here")
    place.put(0, rows(95, 131))
    begun = slot.checkpointed_ms
    place.run(worker, until=lambda: slot.failures)
    assert slot.checkpointed_ms > begun
    assert slot.saved_ms == saved
    worker.close()


def test_a_task_that_comes_back_has_metrics_again(place: Place) -> None:
    first = place.worker("a")
    place.run(first, until=lambda: running(first, 2))
    second = place.worker("b")
    place.run(first, second, until=lambda: running(first, 1) and running(second, 1))
    drain(place, second)
    place.run(first, until=lambda: running(first, 2))
    place.put(0, rows(0, 5))
    place.put(1, rows(0, 5))
    place.run(first, until=lambda: committed(place) == 10)
    shown = first._parts.metrics.exposition().decode()
    for partition in "01":
        assert f'headrace_records_in_total{{partition="{partition}",task="in-{partition}",topic="in",' in shown
    drain(place, first)


def test_a_bounded_run_ends_by_itself(place: Place) -> None:
    place.put(0, rows(0, 95))
    bounds = Bounds({TopicPartition("in", 0): 95, TopicPartition("in", 1): 0})
    first, second = place.worker("a", bounds=bounds), place.worker("b", bounds=bounds)
    place.run(first, second, until=lambda: first.done and second.done)
    assert place.counted() == {**dict.fromkeys(range(0, 90, 10), 10), 90: 5}


def test_a_topic_that_is_made_again_is_not_the_one_that_was_read(place: Place) -> None:
    place.put(0, rows(0, 95))
    reading = place.worker("a")
    place.run(reading, until=lambda: reading.totals.records_in["in"] == 95)
    place.log.delete_topic("in")
    place.log.create_topic("in", 2)
    with pytest.raises(NotFoundError, match="topic in was deleted while it was in use"):
        place.run(reading, until=lambda: reading.done)
    reading.close()
