"""The outbox alone: what leaves when, what a store keeps of it, and what a reader makes of it whoever sends."""

from __future__ import annotations

import shutil
from array import array
from pathlib import Path
from typing import Any, NamedTuple

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import CorruptError, FatalError
from headrace.operators.api import Batch
from headrace.record import JoinedBytes, Origin, Progress, RecordBatch, TopicPartition, control_batch
from headrace.runtime.tasks.edges import Append, Edge, left_by_outbox
from headrace.runtime.tasks.inputs import TaskInput
from headrace.runtime.tasks.outbox import ROWS, Outbox, decode_append, encode_append
from headrace.serde.primitives import Str
from headrace.state.api import Store, WriteBatch
from headrace.state.memory import MemoryStore, MemoryStores
from headrace.topology.graph import Repartition
from headrace.topology.plan import Input

GOLDEN = Path(__file__).parent / "golden" / "outbox-v1"
OUT = TopicPartition("out", 0)
OTHER = TopicPartition("out", 1)
SOURCE = "t/s/in-0/+outbox"


def made(*positions: int, at: TopicPartition = OUT, value: str = "v", **more: Any) -> Append:
    count = len(positions)
    values = JoinedBytes.of([f"{value}{p}".encode() for p in positions])
    batch = RecordBatch(list(range(count)), [b"k"] * count, values, origin=Origin(SOURCE, list(positions)), **more)
    return at, batch


def report(watermark: int, at: TopicPartition = OUT) -> Append:
    return at, control_batch(Progress(watermark, False, -1))


def flush(outbox: Outbox, store: Store) -> None:
    batch = WriteBatch()
    outbox.flush(batch)
    store.write(batch)


def rows(store: Store) -> list[list[int]]:
    return [list(decode_append(row)[1].origin.positions) for _, row in store.scan(ROWS)]  # type: ignore[union-attr]


def told(appends: list[Append]) -> list[Any]:
    """Return positions, or the watermark of what only tells progress."""
    return [
        batch.progress.watermark if batch.control else list(batch.origin.positions)  # type: ignore[union-attr]
        for _, batch in appends
    ]


def test_what_was_made_leaves_when_its_checkpoint_counts_and_is_forgotten_by_the_next() -> None:
    outbox, store = Outbox(0), MemoryStore()
    outbox.add(made(0, 1))
    assert (outbox.waiting, outbox.has_news, outbox.kept) == (True, True, False)
    flush(outbox, store)
    outbox.add(made(2))
    assert rows(store) == [[0, 1]]
    assert told(outbox.saved()) == [[0, 1]]
    assert rows(store) == [[0, 1]], "a checkpoint that does not know that it left may be fallen back to"
    flush(outbox, store)
    assert rows(store) == [[2]]
    assert told(outbox.saved()) == [[2]]
    assert (outbox.waiting, outbox.has_news, outbox.kept) == (False, True, True)
    flush(outbox, store)
    assert (rows(store), outbox.saved()) == ([], [])
    assert (outbox.waiting, outbox.has_news, outbox.kept) == (False, False, False)


def test_what_a_checkpoint_that_failed_contained_leaves_with_the_next() -> None:
    outbox, store = Outbox(0), MemoryStore()
    outbox.add(made(0))
    outbox.tell(report(5), changed=True)
    flush(outbox, store)
    outbox.add(made(1))
    flush(outbox, store)
    assert rows(store) == [[0], [1]]
    assert told(outbox.saved()) == [[0], [1]], "the report behind the first is of before the second"


def test_the_next_owner_sends_what_the_checkpoint_holds_and_forgets_it() -> None:
    outbox, store = Outbox(0), MemoryStore()
    for position in range(3):
        outbox.add(made(position))
        flush(outbox, store)
        if position < 2:
            outbox.saved()
    next_owner = Outbox(0)
    next_owner.restore(store)
    assert (next_owner.waiting, next_owner.kept) == (True, True)
    assert told(next_owner.saved()) == [[2]]
    next_owner.add(made(3))
    flush(next_owner, store)
    assert rows(store) == [[3]]


def test_progress_stays_behind_what_was_made_before_it() -> None:
    outbox, store = Outbox(0), MemoryStore()
    assert told(outbox.tell(report(1), changed=False)) == [1], "nothing was done: it is that of the last checkpoint"
    assert outbox.tell(report(2), changed=True) == []
    assert outbox.tell(report(3), changed=True) == [], "the one before is out of date"
    outbox.add(made(0))
    assert outbox.tell(report(4, OTHER), changed=True) == []
    flush(outbox, store)
    assert outbox.tell(report(5), changed=False) == [], "the checkpoint that it speaks of does not count yet"
    assert outbox.tell(report(6), changed=True) == []
    released = outbox.saved()
    assert told(released) == [[0], 4, 5]
    assert [partition for partition, _ in released] == [OUT, OTHER, OUT]
    assert outbox.tell(report(7), changed=False) == [], "or it would overtake the report that waits"
    flush(outbox, store)
    assert told(outbox.saved()) == [7]
    assert told(outbox.tell(report(8), changed=False)) == [8]


def test_a_flush_alone_holds_progress_up() -> None:
    outbox, store = Outbox(0), MemoryStore()
    flush(outbox, store)
    assert outbox.tell(report(1), changed=False) == []
    assert told(outbox.saved()) == [1]


def test_it_asks_for_a_checkpoint_before_it_is_full() -> None:
    outbox, store = Outbox(1_000_000), MemoryStore()
    big = "x" * 400_000
    outbox.add(made(0, value=big))
    assert (outbox.filling, outbox.full) == (False, False)
    outbox.add(made(1, value=big))
    assert (outbox.filling, outbox.full) == (True, False)
    flush(outbox, store)
    assert (outbox.filling, outbox.full) == (False, False)
    outbox.add(made(2, value=big))
    assert outbox.full
    assert outbox.waiting_bytes > 1_200_000
    assert outbox.waiting_records == 3
    outbox.saved()
    assert (outbox.filling, outbox.full, outbox.waiting_records) == (False, False, 1)


def test_an_edge_numbers_what_waits_apart_and_in_one_sequence() -> None:
    edge = Edge(topology="t", step="s", task="in-0", inputs=2, topic="out", partitions=1, value=Str(), outbox=True)
    found = []
    for topic in ("a", "b"):
        edge.add(edge.process(Batch([0], [0], [None], ["x"])))
        ((_, batch),) = edge.pack(topic, Progress(0, False, -1))
        found.append(batch.origin)
    assert [(origin.source, list(origin.positions)) for origin in found if origin] == [(SOURCE, [0]), (SOURCE, [1])]
    assert left_by_outbox(SOURCE)
    assert not left_by_outbox("t/s/in-0/outbox")


batches = st.integers(0, 4).flatmap(
    lambda n: st.builds(
        RecordBatch,
        st.lists(st.integers(0, 2**50), min_size=n, max_size=n),
        st.lists(st.none() | st.binary(max_size=4), min_size=n, max_size=n),
        st.lists(st.none() | st.binary(max_size=9), min_size=n, max_size=n).map(JoinedBytes.of),
        st.none() | st.lists(st.lists(st.tuples(st.text(max_size=3), st.binary(max_size=3)), max_size=2).map(tuple),
                             min_size=n, max_size=n),
        st.none() | st.builds(Origin, st.text(max_size=5), st.just(array("q", range(7, 7 + n)))),
        st.none() | st.builds(Progress, st.integers(-1, 2**50), st.booleans(), st.integers(-1, 2**40)),
    )
)  # fmt: skip


def columns(append: Append) -> Any:
    partition, batch = append
    origin = batch.origin and (batch.origin.source, list(batch.origin.positions))
    return (
        partition,
        list(batch.timestamps),
        list(batch.keys),
        batch.values.split(),
        batch.headers,
        origin,
        batch.progress,
    )


@given(batches)
def test_rows_hold_everything(batch: RecordBatch) -> None:
    append = TopicPartition("out", 3), batch
    assert columns(decode_append(encode_append(append))) == columns(append)


def golden_rows() -> list[Append]:
    full = made(5, 6, progress=Progress(77, True, 9))
    full[1].headers = [(("h", b"1"), ("h", b"2")), ()]
    full[1].keys = [None, b"k"]
    full[1].values = JoinedBytes.of([None, b"value"])
    return [full, made(7, at=OTHER)]


def write_golden(directory: Path) -> None:
    """Write what the fixture holds; run once for each new version of the format."""
    store = MemoryStores().open(directory / "store")
    outbox = Outbox(0)
    for append in golden_rows():
        outbox.add(append)
    flush(outbox, store)
    store.snapshot(directory / "snapshot")


def test_this_version_writes_the_golden_rows_and_reads_them(tmp_path: Path) -> None:
    write_golden(tmp_path)
    written = {path.name: path.read_bytes() for path in (tmp_path / "snapshot").iterdir()}
    assert written == {path.name: path.read_bytes() for path in GOLDEN.iterdir()}
    shutil.copytree(GOLDEN, tmp_path / "copy")
    outbox = Outbox(0)
    outbox.restore(MemoryStores().open(tmp_path / "copy"))
    assert [columns(append) for append in outbox.saved()] == [columns(append) for append in golden_rows()]


@pytest.mark.parametrize("row", [b"", b"\xc1", msgpack.packb(3), msgpack.packb([1, "out"])])
def test_rows_that_make_no_sense_are_refused(row: bytes) -> None:
    with pytest.raises(CorruptError, match="the outbox"):
        decode_append(row)


def test_columns_that_differ_in_length_and_newer_rows_are_refused() -> None:
    columns = msgpack.unpackb(encode_append(made(0, 1)))
    with pytest.raises(CorruptError, match="differ in length"):
        decode_append(msgpack.packb([*columns[:4], [b"k"], *columns[5:]]))
    with pytest.raises(FatalError, match="format 2, this version knows 1"):
        decode_append(msgpack.packb([2, *columns[1:]]))


# --- whoever sends, and however often


class Owner(NamedTuple):
    """One who has the task, or who does not know yet that he no longer has it."""

    outbox: Outbox
    store: MemoryStore
    unsent: list[Append]
    edge: Edge
    made: list[str]
    """What the task has made, from the first record on, as its state knows it."""


class Checkpoint(NamedTuple):
    """What counts."""

    number: int
    image: dict[bytes, bytes]
    sequences: dict[str, int]
    made: list[str]


class Course:
    """A task, its owners one after the other, its checkpoints, and the partition that all of them write to."""

    def __init__(self) -> None:
        self.log: list[RecordBatch] = []
        self.checkpoints: list[Checkpoint] = [Checkpoint(0, {}, {}, [])]
        self.owners: list[Owner] = []
        self.number = 0
        self.take_over()

    @property
    def owner(self) -> Owner:
        return self.owners[-1]

    def take_over(self) -> None:
        """Let another restore the checkpoint; those before him may go on to send what they have."""
        checkpoint = self.checkpoints[-1]
        store = MemoryStore(dict(checkpoint.image))
        outbox = Outbox(0)
        outbox.restore(store)
        edge = Edge(topology="t", step="s", task="in-0", inputs=1, topic="out", partitions=1, value=Str(), outbox=True)
        edge.restore(checkpoint.sequences, checkpoint.number)
        self.owners.append(Owner(outbox, store, [*outbox.saved()], edge, list(checkpoint.made)))

    def fall_back(self) -> None:
        """Let another restore the checkpoint before the last, if that may not be."""
        if len(self.checkpoints) > 1:
            damaged = self.checkpoints.pop()
            self.checkpoints[-1] = self.checkpoints[-1]._replace(number=damaged.number + 1)
            self.take_over()

    def make(self, count: int) -> None:
        """Make records; each is another, so that no replay makes the same ones."""
        self.number += 1
        values = [f"{self.number}-{n}" for n in range(count)]
        edge = self.owner.edge
        edge.add(edge.process(Batch(range(count), range(count), [b"k"] * count, values)))
        (append,) = edge.pack("in", Progress(0, False, -1))
        self.owner.outbox.add(append)
        self.owner.made.extend(values)

    def checkpoint(self, outcome: int) -> None:
        """Checkpoint if nothing is unsent; it may fail, or count without that anybody learns of it."""
        if self.owner.unsent:
            return
        flush(self.owner.outbox, self.owner.store)
        if outcome:
            number = self.checkpoints[-1].number + 1
            image, sequences = dict(self.owner.store.scan(b"")), dict(self.owner.edge.sequences)
            self.checkpoints.append(Checkpoint(number, image, sequences, list(self.owner.made)))
        if outcome == 2:
            self.owner.unsent.extend(self.owner.outbox.saved())

    def send(self, owner: int, count: int) -> None:
        unsent = self.owners[-1 - owner % len(self.owners)].unsent
        self.log += [batch for _, batch in unsent[:count]]
        del unsent[:count]

    def end(self) -> None:
        for _ in range(3):
            self.send(0, len(self.owner.unsent))
            self.checkpoint(2)


def reader() -> TaskInput:
    topic = Input("t-s-repartition", "s", 1, ("in-0",), deterministic=False)
    node = Repartition(name="s", inputs=(), selector=None, key=Str(), value=Str())
    return TaskInput.of(topic, node, 0, None)


whatever = (
    st.tuples(st.just("make"), st.integers(1, 3))
    | st.tuples(st.just("checkpoint"), st.integers(0, 2))
    | st.tuples(st.just("take_over"))
    | st.tuples(st.just("send"), st.integers(0, 3), st.integers(1, 3))
)
many = settings(max_examples=300, deadline=None)


def taken(actions: list[tuple[Any, ...]]) -> tuple[Course, list[str]]:
    """Let things take their course, and return what a reader took."""
    course = Course()
    for action, *arguments in actions:
        getattr(course, action)(*arguments)
    course.end()
    contents: dict[int, bytes | None] = {}
    item, found = reader(), []
    for batch in course.log:
        assert batch.origin is not None
        for position, value in zip(batch.origin.positions, batch.values.split(), strict=True):
            assert contents.setdefault(position, value) == value, "one position, two contents"
        fresh = item.without_repeats(batch)
        found += [] if fresh is None else [(value or b"").decode() for value in fresh.values.split()]
    assert rows(course.owner.store) == []
    return course, found


@many
@given(st.lists(whatever, max_size=40))
def test_a_reader_gets_every_record_once_whoever_sends(actions: list[tuple[Any, ...]]) -> None:
    course, found = taken(actions)
    assert found == course.owner.made


@many
@given(st.lists(whatever | st.tuples(st.just("fall_back")), max_size=40))
def test_nothing_is_lost_when_a_checkpoint_is_damaged(actions: list[tuple[Any, ...]]) -> None:
    course, found = taken(actions)
    assert set(found) >= set(course.owner.made)
    assert len(set(found)) == len(found)
