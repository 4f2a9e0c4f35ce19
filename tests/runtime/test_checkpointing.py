"""The order in which a checkpoint becomes one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.errors import FencedError
from headrace.log.api import Lease
from headrace.record import TopicPartition
from headrace.runtime.workers.bounds import is_finished
from headrace.runtime.workers.checkpointing import Pending, begin, complete
from headrace.runtime.workers.slot import Slot
from headrace.runtime.workers.worker import Worker
from tests.runtime.workers import Place, rows

IN = TopicPartition("in", 0)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path, partitions=1)
    yield made
    made.close()


def fed(place: Place) -> tuple[Worker, Slot]:
    """Return a task that has read something which no checkpoint holds."""
    worker = place.worker(checkpoint_interval_ms=1_000_000)
    place.put(0, rows(0, 95))
    place.run(worker, until=lambda: worker.totals.records_in["in"] == 95)
    (slot,) = worker.slots()
    return worker, slot


def finish(place: Place, worker: Worker, slot: Slot, pending: Pending, lease: Lease | None = None, **more) -> None:
    assert slot.manifest is not None
    complete(
        pending, previous=slot.manifest, log=place.log, checkpoints=place.checkpoints,
        membership=worker.membership, lease=lease or slot.lease, **{"internal": frozenset(), "now_ms": 9, **more},
    )  # fmt: skip


def test_the_manifest_counts_and_then_the_group_learns_of_it(place: Place) -> None:
    worker, slot = fed(place)
    assert slot.task is not None
    assert slot.store is not None
    snapshot = place.folder / "snapshot"
    pending = begin(slot.task, slot.store, snapshot)
    assert not slot.task.changed
    assert pending.positions == {IN: 95}
    assert place.log.group("counting").committed() == {}
    finish(place, worker, slot, pending)
    newest = place.checkpoints.newest("in-0")
    assert newest is not None
    assert newest.positions == {"in/0": 95}
    committed = place.log.group("counting").committed()[IN]
    assert committed.offset == 95
    assert not is_finished(committed, 0)
    assert not snapshot.exists()
    worker.close()


def test_what_comes_after_it_began_is_not_in_it(place: Place) -> None:
    worker, slot = fed(place)
    assert slot.task is not None
    assert slot.store is not None
    pending = begin(slot.task, slot.store, place.folder / "snapshot")
    place.put(0, rows(95, 131))
    place.run(worker, until=lambda: worker.totals.records_in["in"] == 131)
    finish(place, worker, slot, pending)
    worker.close()
    assert place.log.group("counting").committed()[IN].offset == 95
    again = place.worker("b")
    place.run(again, until=lambda: again.totals.records_in["in"] == 131 - 95)
    assert place.counted() == dict.fromkeys(range(0, 130, 10), 10)
    again.close()


def test_a_leftover_snapshot_is_replaced(place: Place) -> None:
    worker, slot = fed(place)
    assert slot.task is not None
    assert slot.store is not None
    snapshot = place.folder / "snapshot"
    snapshot.mkdir()
    (snapshot / "leftover").touch()
    finish(place, worker, slot, begin(slot.task, slot.store, snapshot))
    newest = place.checkpoints.newest("in-0")
    assert newest is not None
    assert "leftover" not in {ref.name for ref in newest.files}
    worker.close()


def test_a_zombie_commits_nothing(place: Place) -> None:
    worker, slot = fed(place)
    assert slot.task is not None
    assert slot.store is not None
    pending = begin(slot.task, slot.store, place.folder / "snapshot")
    other = place.checkpoints.claim("in-0", slot.lease.epoch + 1, slot.manifest, 9)
    with pytest.raises(FencedError):
        finish(place, worker, slot, pending)
    assert place.checkpoints.newest("in-0") == other
    assert place.log.group("counting").committed() == {}
    assert not pending.snapshot.exists()
    worker.close()


def test_a_commit_under_an_old_lease_is_refused(place: Place) -> None:
    worker, slot = fed(place)
    assert slot.task is not None
    assert slot.store is not None
    pending = begin(slot.task, slot.store, place.folder / "snapshot")
    with pytest.raises(FencedError):
        finish(place, worker, slot, pending, lease=slot.lease._replace(epoch=slot.lease.epoch + 1))
    assert place.log.group("counting").committed() == {}
    worker.close()


def test_only_internal_records_that_no_checkpoint_needs_are_released(place: Place) -> None:
    worker, slot = fed(place)
    assert slot.task is not None
    assert slot.store is not None
    finish(place, worker, slot, begin(slot.task, slot.store, place.folder / "s1"), internal=frozenset({"in"}))
    assert place.log.start_offset(IN) == 0
    slot.manifest = place.checkpoints.newest("in-0")
    place.put(0, rows(95, 131))
    place.run(worker, until=lambda: worker.totals.records_in["in"] == 131)
    finish(place, worker, slot, begin(slot.task, slot.store, place.folder / "s2"))
    assert place.log.start_offset(IN) == 0, "a topic of the user's"
    finish(place, worker, slot, begin(slot.task, slot.store, place.folder / "s3"), internal=frozenset({"in"}))
    assert place.log.start_offset(IN) == 95
    worker.close()
