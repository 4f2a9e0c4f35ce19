"""Workers that owe exactly-once: what leaves when, and what is left behind by those that stop, die or fail."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from headrace import Topology, agg
from headrace.checkpoint.manifest import Manifest
from headrace.errors import RetriableError
from headrace.record import RecordBatch, TopicPartition
from headrace.runtime.workers.bounds import Bounds
from headrace.runtime.workers.worker import Worker
from headrace.topology.plan import AT_LEAST_ONCE, EXACTLY_ONCE
from tests.runtime.workers import Place, rows

Row = dict[str, Any]

ONCE = {"guarantee": EXACTLY_ONCE}


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.close()


class Service:
    """Answers another thing each time."""

    def __init__(self, size: int = 0) -> None:
        self.calls: Counter[int] = Counter()
        self._rng = random.Random(1)
        self._filling = "x" * size

    async def __call__(self, row: Row) -> Row:
        self.calls[row["at"]] += 1
        return {**row, "tag": self._rng.choice("abc"), "nonce": self._rng.random(), "filling": self._filling}


def asking(service: Service) -> Topology:
    topology = Topology("counting")
    stream = topology.stream("in", keyed_by=lambda row: "k", time="at")
    stream.map_async(service, order="input", name="ask").to("out")
    return topology


def counting_answers(service: Service) -> Topology:
    """Count answers by tag, behind an internal topic."""
    topology = Topology("counting")
    stream = topology.stream("in", keyed_by=lambda row: "k", time="at")
    asked = stream.map_async(service, order="input", name="ask")
    asked.key_by("tag", name="by-tag").aggregate(n=agg.count(), ids=agg.collect("at"), name="count").changes().to("out")
    return topology


def batches(place: Place, topic: str = "out") -> Iterator[RecordBatch]:
    for partition in range(place.log.topics()[topic].partitions):
        reader = place.log.reader(TopicPartition(topic, partition), 0)
        while (batch := reader.read(1000)) is not None:
            yield batch


def written(place: Place, topic: str = "out") -> dict[str, list[Row]]:
    """Return what was written, by id."""
    found: dict[str, list[Row]] = {}
    for batch in batches(place, topic):
        assert batch.origin is not None
        for position, value in zip(batch.origin.positions, [] if batch.control else batch.values.split(), strict=False):
            found.setdefault(f"{batch.origin.source}/{position}", []).append(msgspec.msgpack.decode(value or b""))
    return found


def seen(place: Place) -> list[int]:
    """Return the times of what was written once; repeats must be alike."""
    found = written(place)
    assert all(row == copies[0] for copies in found.values() for row in copies)
    return sorted(copies[0]["at"] for copies in found.values())


def newest(place: Place, task: str = "in-0") -> Manifest:
    manifest = place.checkpoints.newest(task, [])
    assert manifest is not None
    return manifest


def outboxes(worker: Worker) -> list[bool]:
    return [slot.task.outbox.kept for slot in worker.slots() if slot.task is not None]


def test_what_is_made_leaves_with_its_checkpoint_and_then_there_is_silence(place: Place) -> None:
    worker = place.worker(topology=asking(Service()), checkpoint_interval_ms=5_000, **ONCE)
    place.run(worker, until=lambda: len(worker.slots()) == 2 and all(slot.task for slot in worker.slots()))
    place.put(0, rows(0, 5))
    place.run(worker, until=lambda: any(slot.task and slot.task.outbox.waiting for slot in worker.slots()))

    def shown() -> str:
        return worker._parts.metrics.exposition().decode()

    place.run(worker, until=lambda: 'headrace_outbox_records{task="in-0",topology="counting"} 5.0' in shown())
    assert seen(place) == []
    place.run(worker, until=lambda: seen(place))
    assert seen(place) == [0, 1, 2, 3, 4]
    place.run(worker, until=lambda: not any(outboxes(worker)) and not any(slot.job for slot in worker.slots()))
    before, begun_ms = newest(place).number, place.clock.ms
    place.run(worker, until=lambda: place.clock.ms > begun_ms + 30_000)
    assert newest(place).number == before, "nothing is left to be recorded"
    assert 'headrace_outbox_records{task="in-0",topology="counting"} 0.0' in shown()
    assert 'headrace_records_out_total{step="in-to-out",topology="counting"} 5.0' in shown()
    worker.close()


def test_an_outbox_that_fills_asks_for_a_checkpoint_and_holds_up_the_task(place: Place) -> None:
    worker = place.worker(
        topology=asking(Service(size=20_000)), checkpoint_interval_ms=3_600_000, cache_bytes=0, batch_records=1, **ONCE
    )  # fmt: skip
    place.put(0, rows(0, 60))
    most = 0

    def done() -> bool:
        nonlocal most
        most = max([most, *(slot.task.outbox.waiting_bytes for slot in worker.slots() if slot.task)])
        return len(seen(place)) >= 45

    place.run(worker, until=done)
    assert 128 * 1024 < most < 256 * 1024 + 25_000
    worker.close()


def bounds_of(place: Place) -> Bounds:
    ends = [TopicPartition("in", n) for n in range(2)]
    return Bounds({partition: place.log.end_offset(partition) for partition in ends})


def final_counts(place: Place) -> dict[str, list[int]]:
    found: dict[str, set[int]] = {}
    for copies in written(place).values():
        assert all(row == copies[0] for row in copies)
        found.setdefault(copies[0]["key"], set()).add(copies[0]["n"])
    return {tag: sorted(ns) for tag, ns in found.items()}


def check_counts(place: Place, count: int) -> None:
    found = final_counts(place)
    assert all(ns == list(range(1, len(ns) + 1)) for ns in found.values())
    assert sum(map(len, found.values())) == count


def test_a_bounded_run_ends_with_everything_sent_and_nothing_left(place: Place) -> None:
    service = Service()
    place.put(0, rows(0, 40))
    place.put(1, rows(100, 130))
    worker = place.worker(topology=counting_answers(service), bounds=bounds_of(place), batch_records=7, **ONCE)
    place.run(worker, until=lambda: worker.done)
    check_counts(place, 70)
    assert set(service.calls.values()) == {1}
    again = place.worker("b", counting_answers(service), bounds_of(place), **ONCE)
    place.run(again, until=lambda: again.done)
    check_counts(place, 70)
    assert all(len(copies) == 1 for copies in written(place).values()), "nothing was left in an outbox"


def test_a_worker_that_drains_leaves_nothing_behind(place: Place) -> None:
    place.put(0, rows(0, 40))
    worker = place.worker(topology=asking(Service()), checkpoint_interval_ms=3_600_000, **ONCE)
    place.run(worker, until=lambda: any(slot.task and slot.task.outbox.waiting for slot in worker.slots()))
    assert seen(place) == []
    worker.drain()
    place.run(worker, until=lambda: worker.done)
    assert seen(place) == list(range(40))
    second = place.worker("b", asking(Service()), bounds_of(place), **ONCE)
    place.run(second, until=lambda: second.done)
    assert [len(copies) for copies in written(place).values()] == [1] * 40


def test_what_a_dead_worker_could_not_send_the_next_sends(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    append, left = place.log.append, [2]

    def refuse(partition: TopicPartition, batch: RecordBatch) -> int:
        if partition.topic == "out":
            if left[0] <= 0:
                raise RetriableError("the log is full")
            left[0] -= 1
        return append(partition, batch)

    monkeypatch.setattr(place.log, "append", refuse)
    place.put(0, rows(0, 20))
    service = Service()
    first = place.worker(topology=asking(service), batch_records=3, **ONCE)
    place.run(first, until=lambda: any(slot.unsent for slot in first.slots()))
    place.put(0, rows(20, 30))
    assert 0 < len(seen(place)) < 20
    saved = newest(place).positions["in/0"]
    zombie = next(slot for slot in first.slots() if slot.unsent)
    late = list(zombie.unsent)
    first.close()
    left[0] = 10**9
    second = place.worker("b", asking(service), bounds_of(place), batch_records=3, **ONCE)
    place.run(second, until=lambda: second.done)
    assert seen(place) == list(range(30))
    assert {service.calls[at] for at in range(saved)} == {1}
    for one in late:  # what the first still had under way
        append(*one)
    assert seen(place) == list(range(30))


def test_a_checkpoint_that_fails_lets_nothing_leave(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.put(0, rows(0, 20))
    worker = place.worker(topology=asking(Service()), **ONCE)
    place.run(worker, until=lambda: all(slot.task for slot in worker.slots()) and worker.slots())
    save = type(worker._parts.checkpoints).save
    failures = []

    def fail(*arguments: Any, **more: Any) -> Any:
        if len(failures) < 3:
            failures.append(1)
            assert seen(place) == []
            raise RetriableError("the store is away")
        return save(*arguments, **more)

    monkeypatch.setattr(type(worker._parts.checkpoints), "save", fail)
    place.run(worker, until=lambda: seen(place))
    assert (len(failures), seen(place)) == (3, list(range(20)))
    worker.close()


def die_after(place: Place, worker: Worker, service: Service, calls: int) -> None:
    """Let a worker live until it has made so many calls, or has nothing to do, and then lose it."""
    goal, end_ms = service.calls.total() + calls, place.clock.ms + 3_000
    place.run(worker, until=lambda: service.calls.total() >= goal or place.clock.ms > end_ms)
    worker.close()


def test_it_counts_once_through_any_number_of_deaths(place: Place) -> None:
    service, rng = Service(), random.Random(3)
    topology = counting_answers(service)
    place.put(0, rows(0, 150))
    place.put(1, rows(300, 400))
    for life in range(12):
        worker = place.worker(f"w{life}", topology, batch_records=5, checkpoint_interval_ms=60, **ONCE)
        die_after(place, worker, service, rng.randrange(1, 40))
    assert service.calls.most_common(1)[0][1] > 1, "something was done again"
    last = place.worker("last", topology, bounds_of(place), **ONCE)
    place.run(last, until=lambda: last.done)
    check_counts(place, 250)


@pytest.mark.parametrize("begins", [AT_LEAST_ONCE, EXACTLY_ONCE])
def test_another_guarantee_loses_nothing(place: Place, begins: str) -> None:
    """What the other wrote is read as it was promised: repeats may count, but no record is taken for one."""
    service = Service()
    topology = counting_answers(service)
    other = {AT_LEAST_ONCE: EXACTLY_ONCE, EXACTLY_ONCE: AT_LEAST_ONCE}
    place.put(0, rows(0, 30))
    guarantee = begins
    for life in range(6):
        worker = place.worker(f"w{life}", topology, batch_records=2, checkpoint_interval_ms=80, guarantee=guarantee)
        die_after(place, worker, service, 8 + 3 * life)
        guarantee = other[guarantee]
        place.put(0, rows(30 + life * 10, 40 + life * 10))
    last = place.worker("last", topology, bounds_of(place), guarantee=guarantee)
    place.run(last, until=lambda: last.done)
    found = [copies[0] for copies in written(place).values()]
    assert {at for row in found for at in row["ids"]} == set(range(90))
    assert sum(max(ns) for ns in final_counts(place).values()) >= 90
