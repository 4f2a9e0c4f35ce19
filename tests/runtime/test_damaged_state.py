"""A worker whose tasks find their state damaged, or their records gone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from headrace import Topology, agg
from headrace.errors import CorruptError, FatalError, NotFoundError
from headrace.record import TopicPartition
from headrace.runtime.workers.positions import Fit
from headrace.runtime.workers.positions import Place as Position
from headrace.runtime.workers.setbacks import FORGOTTEN_MS
from headrace.runtime.workers.worker import Worker
from tests.runtime.workers import Place, committed, rows

IN = TopicPartition("in", 0)
KEYS = 500


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path, partitions=1)
    yield made
    made.close()


def metric(worker: Worker, name: str) -> float:
    lines = worker._parts.metrics.exposition().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"headrace_{name}{{"))


def running_totals() -> Topology:
    """Return a topology that reads the total of a key from the store whenever the cache does not have it."""
    topology = Topology("counting")
    stream = topology.stream("in", keyed_by=lambda row: "k", time="at").key_by(lambda row: str(row["at"] % KEYS))
    stream.aggregate(n=agg.count()).changes().to("out")
    return topology


def totals(place: Place) -> dict[str, int]:
    reader = place.log.reader(TopicPartition("out", 0), 0)
    found: dict[str, int] = {}
    while (batch := reader.read(1000)) is not None:
        for record in batch.records("out", 0):
            value = msgspec.msgpack.decode(record.value)
            found[value["key"]] = max(found.get(value["key"], 0), value["n"])
    return found


def feed(place: Place, worker: Worker, first: int, end: int) -> None:
    place.put(0, rows(first, end))
    place.run(worker, until=lambda: committed(place) == end)


def spoil(place: Place, folder: str) -> int:
    """Change bytes in the middle of the tables below a directory; return how many tables there were."""
    found = sorted((place.folder / folder).rglob("*.sst"))
    for path in found:
        with path.open("r+b") as file:
            file.seek(path.stat().st_size // 3)
            file.write(b"\xff" * 8)
    return len(found)


def test_a_warm_restart_after_a_crash_fetches_nothing_and_a_cold_one_everything(place: Place) -> None:
    first = place.worker("a", cache_bytes=0)
    feed(place, first, 0, 95)
    gate = threading.Event()
    blockers = [place.jobs.submit(gate.wait) for _ in range(2)]
    place.put(0, rows(95, 110))
    place.run(first, until=lambda: first.totals.records_in["in"] == 110)
    first.close()  # writes what no checkpoint has, so that the store's files are not those of the checkpoint any more
    gate.set()
    assert all(blocker.result(10) for blocker in blockers)
    place.put(0, rows(110, 131))
    second = place.worker("b")
    place.run(second, until=lambda: committed(place) == 131)
    assert metric(second, "restore_fetched_bytes_total") == 0
    assert metric(second, "restore_reused_bytes_total") > 0
    second.close()
    for path in (place.folder / "state").rglob("db"):
        path.rename(path.with_name("gone"))
    for path in sorted((place.folder / "state").rglob("*.kept")):  # of the worker before as well, until that is deleted
        path.rename(path.with_name(path.name + ".away"))
    third = place.worker("c")
    feed(place, third, 131, 151)
    assert metric(third, "restore_reused_bytes_total") == 0
    assert metric(third, "restore_fetched_bytes_total") == metric(third, "restore_bytes") > 0
    assert metric(third, "restore_left_bytes") == 0
    assert place.counted() == dict.fromkeys(range(0, 150, 10), 10)
    third.close()


def test_a_table_that_the_disk_changed_is_fetched_again(place: Place) -> None:
    first = place.worker("a")
    feed(place, first, 0, 95)
    first.close()
    assert spoil(place, "state")
    second = place.worker("b")
    feed(place, second, 95, 131)
    assert metric(second, "restore_fetched_bytes_total") > 0
    assert metric(second, "restore_reused_bytes_total") > 0
    assert metric(second, "restore_discards_total") == 0
    assert place.counted() == dict.fromkeys(range(0, 130, 10), 10)
    second.close()


def save_nonsense(place: Place, count: int) -> None:
    """Commit checkpoints whose files are whole, but no store."""
    snapshot = place.folder / "nonsense"
    snapshot.mkdir()
    newest = place.checkpoints.newest("in-0")
    for number in range(count):
        assert newest is not None
        (snapshot / "CURRENT").write_text(f"MANIFEST-00000{number}\n")
        newest = place.checkpoints.save(newest, snapshot, newest.positions, newest.info, 9)


def test_a_store_that_does_not_open_goes_back_to_the_checkpoint_before(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    first = place.worker("a")
    feed(place, first, 0, 95)
    first.close()
    save_nonsense(place, 1)
    second = place.worker("b")
    feed(place, second, 95, 131)
    assert "the state of task in-0 is damaged, it is discarded and fetched anew" in caplog.text
    assert "the checkpoint before" in caplog.text
    assert metric(second, "restore_fallbacks_total") >= 1
    assert place.counted() == dict.fromkeys(range(0, 130, 10), 10)
    second.close()


def test_two_checkpoints_that_do_not_open_end_the_worker(place: Place) -> None:
    first = place.worker("a")
    feed(place, first, 0, 95)
    first.close()
    save_nonsense(place, 2)
    second = place.worker("b")
    with pytest.raises(CorruptError, match="in-0"):
        place.run(second, until=lambda: False)
    second.close()


def test_a_disk_that_goes_bad_while_the_task_runs(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    worker = place.worker("a", running_totals(), cache_bytes=0)
    place.put(0, rows(0, KEYS))
    place.run(worker, until=lambda: len(totals(place)) == KEYS and saved(worker))
    assert spoil(place, "state")
    for first in (KEYS, 2 * KEYS):
        place.put(0, rows(first, first + KEYS))
    place.run(worker, until=lambda: set(totals(place).values()) == {3} and saved(worker))
    assert "is damaged, it is discarded and fetched anew from its last checkpoint" in caplog.text
    assert metric(worker, "restore_discards_total") == 1
    place.clock.ms += FORGOTTEN_MS
    place.run(worker, until=lambda: saved(worker))
    assert spoil(place, "state")
    place.put(0, rows(3 * KEYS, 4 * KEYS))
    place.run(worker, until=lambda: set(totals(place).values()) == {4})
    worker.close()


def saved(worker: Worker) -> bool:
    return all(slot.task is not None and not slot.task.changed and slot.job is None for slot in worker.slots())


@pytest.mark.parametrize("lost_records", ["stop", "skip"])
def test_records_that_are_gone_before_a_restart(
    place: Place, lost_records: str, caplog: pytest.LogCaptureFixture
) -> None:
    first = place.worker("a")
    feed(place, first, 0, 20)
    first.close()
    place.put(0, rows(20, 35))
    place.put(0, rows(35, 51))
    place.log.trim(IN, 35)
    second = place.worker("b", lost_records=lost_records)
    if lost_records == "stop":
        with pytest.raises(FatalError, match=r"15 records are gone by retention.*--lost-records skip"):
            place.run(second, until=lambda: False)
    else:
        place.run(second, until=lambda: committed(place) == 51)
        assert metric(second, "records_lost_total") == 15
        assert "leaves out 15 records of partition in/0" in caplog.text
        assert place.counted() == {0: 10, 10: 10, 30: 5, 40: 10}
    second.close()


@pytest.mark.parametrize("lost_records", ["stop", "skip"])
def test_records_that_go_while_a_slow_task_runs(place: Place, lost_records: str) -> None:
    worker = place.worker("a", lost_records=lost_records, batch_records=5, checkpoint_interval_ms=10_000)
    for first in range(0, 60, 5):
        place.put(0, rows(first, first + 5))
    place.run(worker, until=lambda: worker.totals.records_in["in"] >= 5)
    position = next(iter(worker.slots()[0].readers.values())).position
    place.log.trim(IN, 50)
    if lost_records == "stop":
        with pytest.raises(FatalError, match=f"{50 - position} records are gone by retention"):
            place.run(worker, until=lambda: False)
    else:
        place.run(worker, until=lambda: committed(place) == 60)
        assert metric(worker, "records_lost_total") == 50 - position
    worker.close()


def test_a_topic_that_is_gone_is_told_as_such(place: Place) -> None:
    worker = place.worker("a", lost_records="skip")
    feed(place, worker, 0, 20)
    place.log.delete_topic("in")
    with pytest.raises(NotFoundError, match="topic in was deleted"):
        place.run(worker, until=lambda: False)
    worker.close()


def test_a_log_that_lost_its_end_is_refused(place: Place) -> None:
    first = place.worker("a")
    feed(place, first, 0, 20)
    first.close()
    place.log.delete_topic("in")
    place.log.create_topic("in", 1)
    second = place.worker("b", lost_records="skip")
    with pytest.raises(FatalError, match="up to offset 20, but the log ends at 0"):
        place.run(second, until=lambda: False)
    second.close()


def test_positions_fit_or_not() -> None:
    assert Position(IN, 5, 0, 5).fit is Fit.WITHIN
    assert Position(IN, 5, 5, 9).fit is Fit.WITHIN
    assert Position(IN, 4, 5, 9).fit is Fit.GONE
    assert Position(IN, 6, 0, 5).fit is Fit.BEYOND
