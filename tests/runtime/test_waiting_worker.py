"""A worker with tasks that wait: for asynchronous calls, and to make calls again."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from headrace import Topology, agg, retry, tumbling
from headrace.errors import RecordError
from headrace.record import TopicPartition
from headrace.runtime.workers.bounds import Bounds
from headrace.runtime.workers.parts import Blame
from tests.runtime.workers import Place, rows

Row = dict[str, int]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.close()


class Gate:
    """A service that does not answer some calls before it is opened."""

    def __init__(self, *held: int) -> None:
        self.begun: Counter[int] = Counter()
        self.cancelled: list[int] = []
        self._held = set(held)
        self._waiting: list[asyncio.Future[None]] = []

    async def __call__(self, row: Row) -> Row:
        self.begun[row["at"]] += 1
        if row["at"] in self._held:
            answered = asyncio.get_running_loop().create_future()
            self._waiting.append(answered)
            try:
                await answered
            except asyncio.CancelledError:
                self.cancelled.append(row["at"])
                raise
        return row

    def open(self) -> None:
        self._held = set()
        for answered in self._waiting:
            answered.get_loop().call_soon_threadsafe(lambda a=answered: a.done() or a.set_result(None))


def calling(gate: Gate) -> Topology:
    topology = Topology("counting")
    stream = topology.stream("in", keyed_by=lambda row: "k", time="at")
    stream.map_async(gate, order="input", name="ask").to("out")
    return topology


def written(place: Place) -> list[tuple[int, bytes]]:
    """Return what was written, with ids."""
    reader = place.log.reader(TopicPartition("out", 0), 0)
    found = []
    while (batch := reader.read(1000)) is not None:
        records = [(record.value, dict(record.headers)["headrace-id"]) for record in batch.records("out", 0)]
        found += [(msgspec.msgpack.decode(value)["at"], name) for value, name in records]
    return found


def seen(place: Place) -> list[int]:
    return [at for at, _ in written(place)]


def committed(place: Place) -> dict[int, int]:
    return {partition.partition: c.offset for partition, c in place.log.group("counting").committed().items()}


def parked(worker: Any) -> list[bool]:
    return [slot.parked for slot in sorted(worker.slots(), key=lambda slot: slot.id)]


def test_a_task_that_waits_holds_up_no_other_and_its_position_passes_no_call_that_has_not_ended(place: Place) -> None:
    gate = Gate(3)
    worker = place.worker(topology=calling(gate))
    place.put(0, rows(0, 5))
    place.run(worker, until=lambda: gate.begun[3])
    place.put(0, rows(5, 8))
    place.put(1, rows(100, 120))
    place.run(worker, until=lambda: committed(place).get(1) == 20)
    assert parked(worker) == [True, False]
    assert seen(place) == list(range(100, 120))
    assert committed(place).get(0, 0) == 0
    assert gate.begun[5] == 0, "it takes no other batch"
    gate.open()
    place.run(worker, until=lambda: committed(place).get(0) == 8)
    assert [at for at in seen(place) if at < 100] == list(range(8))
    assert set(gate.begun.values()) == {1}
    worker.drain()
    place.run(worker, until=lambda: worker.done)


def test_calls_under_way_in_a_crash_are_made_again_and_none_is_lost(place: Place) -> None:
    gate = Gate(7)
    first = place.worker("a", calling(gate))
    place.put(0, rows(0, 5))
    place.run(first, until=lambda: committed(place).get(0) == 5)
    place.put(0, rows(5, 10))
    place.run(first, until=lambda: gate.begun[7] and gate.begun[9])
    first.close()
    place.run(until=lambda: gate.cancelled == [7])
    assert seen(place) == list(range(5))
    gate.open()
    second = place.worker("b", calling(gate))
    place.run(second, until=lambda: committed(place)[0] == 10)
    assert seen(place) == list(range(10))
    assert {at: gate.begun[at] for at in range(10)} == {**dict.fromkeys(range(5), 1), **dict.fromkeys(range(5, 10), 2)}
    second.close()


def test_a_crash_after_the_calls_repeats_results_with_their_ids(place: Place) -> None:
    gate = Gate()
    first = place.worker("a", calling(gate), checkpoint_interval_ms=1_000_000)
    place.put(0, rows(0, 5))
    place.run(first, until=lambda: len(seen(place)) == 5)
    first.close()
    second = place.worker("b", calling(gate))
    place.run(second, until=lambda: committed(place).get(0) == 5)
    found = written(place)
    assert found[:5] == found[5:]
    second.close()


def test_draining_waits_for_calls_under_way_and_hands_over_behind_them(place: Place) -> None:
    gate = Gate(3)
    first = place.worker("a", calling(gate))
    place.put(0, rows(0, 5))
    place.run(first, until=lambda: gate.begun[4])
    first.drain()
    begun_ms = place.clock.ms
    place.run(first, until=lambda: place.clock.ms > begun_ms + 500)
    assert not first.done
    assert parked(first) == [True]
    gate.open()
    place.run(first, until=lambda: first.done)
    assert committed(place)[0] == 5
    second = place.worker("b", calling(gate))
    place.put(0, rows(5, 6))
    place.run(second, until=lambda: committed(place)[0] == 6)
    assert seen(place) == list(range(6))
    assert set(gate.begun.values()) == {1}
    second.close()


def test_a_drain_does_not_wait_for_ever(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    gate = Gate(3)
    worker = place.worker(topology=calling(gate), drain_timeout_ms=2_000)
    place.put(0, rows(0, 5))
    place.run(worker, until=lambda: gate.begun[4])
    worker.drain()
    begun_ms = place.clock.ms
    place.run(worker, until=lambda: worker.done)
    assert 1_000 <= place.clock.ms - begun_ms < 2_000
    assert "task in-0 leaves without a last checkpoint" in caplog.text
    place.run(until=lambda: gate.cancelled == [3])
    gate.open()
    after = place.worker("b", calling(gate))
    place.run(after, until=lambda: committed(place).get(0) == 5)
    assert seen(place) == list(range(5))
    after.close()


def test_a_call_that_fails_is_its_tasks_fault(place: Place) -> None:
    async def fails(row: Row) -> Row:
        if row["at"] == 3:
            raise ValueError
        return row

    topology = Topology("counting")
    topology.stream("in", keyed_by=lambda row: "k", time="at").map_async(fails, name="ask").to("out")
    worker = place.worker(topology=topology)
    place.put(0, rows(0, 5))
    with pytest.raises(RecordError, match="step 'ask' failed on the record at partition in/0, offset 3"):
        place.run(worker, until=lambda: False)
    assert worker.abandon() is Blame.TASK
    worker.drain()
    place.run(worker, until=lambda: worker.done)


def test_a_run_ends_only_after_the_calls_for_what_its_end_makes_and_a_crash_makes_them_again(place: Place) -> None:
    gate = Gate(20)
    topology = Topology("counting")
    counts = topology.stream("in", keyed_by=lambda row: "k", time="at").window(tumbling("10ms"))
    results = counts.aggregate(n=agg.count()).map(lambda r: {"at": r["window_start"], "n": r["n"]})
    results.map_async(gate, order="input").to("out")
    bounds = Bounds({TopicPartition("in", 0): 25, TopicPartition("in", 1): 0})
    first = place.worker("a", topology, bounds)
    place.put(0, rows(0, 25))
    place.run(first, until=lambda: gate.begun[20])
    begun_ms = place.clock.ms
    place.run(first, until=lambda: place.clock.ms > begun_ms + 500)
    assert not first.done
    assert seen(place) == [0, 10]
    first.close()
    gate.open()
    second = place.worker("b", topology, bounds)
    place.run(second, until=lambda: second.done)
    assert seen(place) == [0, 10, 20]
    assert gate.begun == {0: 1, 10: 1, 20: 2}


class Flaky:
    """Fails so many times on one row."""

    def __init__(self, at: int, times: int) -> None:
        self.calls: list[int] = []
        self._at = at
        self._left = times

    def __call__(self, row: Row) -> Row:
        self.calls.append(row["at"])
        if row["at"] == self._at and self._left:
            self._left -= 1
            raise ConnectionError
        return row


def test_a_task_that_will_try_again_holds_up_no_other_and_nobody_sleeps(place: Place) -> None:
    flaky = Flaky(3, 2)
    topology = Topology("counting")
    stream = topology.stream("in", keyed_by=lambda row: "k", time="at")
    stream.map(flaky, name="ask", on_error=retry(3, backoff="1s")).to("out")
    worker = place.worker(topology=topology)
    place.put(0, rows(0, 5))
    place.run(worker, until=lambda: flaky.calls == [0, 1, 2, 3])
    begun_ms = place.clock.ms
    place.put(1, rows(100, 120))
    place.run(worker, until=lambda: committed(place).get(1) == 20)
    assert flaky.calls.count(3) == 1
    place.run(worker, until=lambda: committed(place).get(0) == 5)
    assert place.clock.ms - begun_ms >= 3_000
    assert [at for at in seen(place) if at < 100] == list(range(5))
    assert [at for at in flaky.calls if at < 100] == [0, 1, 2, 3, 3, 3, 4]
    shown = worker._parts.metrics.exposition().decode()
    assert 'headrace_retries_total{step="ask",topology="counting"} 2.0' in shown
    worker.close()


def test_closing_the_calls_ends_their_thread_though_some_are_under_way(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate(3)
    worker = place.worker(topology=calling(gate))
    place.put(0, rows(0, 5))
    place.run(worker, until=lambda: gate.begun[3])
    with caplog.at_level(logging.WARNING):
        place.calls.close()
    assert gate.cancelled == [3]
    assert not caplog.records
    worker.close()
