"""Transactions alone: what a reader of what is committed sees, whoever sends, however often, and whatever fails."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgpack
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from headrace import Topology, run
from headrace.clock import SystemClock
from headrace.errors import FatalError, FencedError, RetriableError, SettingsError
from headrace.log.memory import MemoryLog
from headrace.record import JoinedBytes, RecordBatch, TopicPartition
from headrace.runtime.tasks.outbox import Outbox
from headrace.runtime.workers.transacting import depart, encode_note, first_left
from headrace.settings import Settings
from headrace.state.api import WriteBatch
from headrace.state.memory import MemoryStore
from headrace.topology.describe import describe_text
from headrace.topology.plan import AT_LEAST_ONCE, EXACTLY_ONCE, plan

OUT, INTERNAL, NOTES = TopicPartition("out", 0), TopicPartition("internal", 0), TopicPartition("notes", 0)


class Cluster:
    """What Kafka promises of one name: who opened it last may commit, and everything of it counts or nothing."""

    def __init__(self) -> None:
        self.epoch = 0
        self.note: bytes | None = None
        self.read: list[str] = []
        """What readers of what is committed have got."""
        self.fate = "good"
        """Of the next transaction: good; lost; or unknown, if it counts and nobody learns of it."""

    def writer(self, name: str, notes: TopicPartition) -> ClusterWriter:
        self.epoch += 1
        return ClusterWriter(self)


class ClusterWriter:
    """A writer of it."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster, self._epoch, self.note = cluster, cluster.epoch, cluster.note

    def write(self, appends: Sequence[tuple[TopicPartition, RecordBatch]], note: bytes) -> None:
        cluster = self._cluster
        if self._epoch != cluster.epoch:
            raise FencedError("somebody opened it again")
        fate, cluster.fate = cluster.fate, "good"
        if fate != "lost":
            cluster.read += [(value or b"").decode() for _, batch in appends for value in batch.values.split()]
            self.note = cluster.note = note
        if fate != "good":
            raise RetriableError("no answer")


class Owner:
    """One who has the task, or who does not know yet that he no longer has it."""

    def __init__(self, cluster: Cluster, checkpoint: Checkpoint, life: str) -> None:
        self.store, self.made = MemoryStore(dict(checkpoint.image)), list(checkpoint.made)
        self.outbox = Outbox(0, frozenset({"out"}), life)
        self.outbox.restore(self.store, checkpoint.number)
        assert self.outbox.saved() == []
        self._cluster = cluster
        self._writer: Any = None

    def make(self, values: list[str]) -> None:
        batch = RecordBatch([0] * len(values), [None] * len(values), JoinedBytes.of([v.encode() for v in values]))
        self.outbox.add((OUT, batch))
        self.made += values

    def flush(self) -> None:
        batch = WriteBatch()
        self.outbox.flush(batch)
        self.store.write(batch)

    def depart(self) -> None:
        rows = tuple(self.outbox.departing)
        try:
            self._writer = depart(self._cluster, "name", NOTES, self._writer, self.outbox.life, rows)
        except RetriableError:
            self._writer = None
        else:
            self.outbox.departed(len(rows))


class Checkpoint(NamedTuple):
    """What counts."""

    number: int
    image: dict[bytes, bytes]
    made: list[str]


class Course:
    """A task and its owners one after the other."""

    def __init__(self) -> None:
        self.cluster = Cluster()
        self.number = self.line = 0
        self.owners: list[Owner] = []
        self.anew()

    @property
    def owner(self) -> Owner:
        return self.owners[-1]

    def anew(self) -> None:
        """Begin with other checkpoints, when nobody runs."""
        self.line += 1
        self.checkpoints, self.owners = [Checkpoint(0, {}, [])], []
        self.take_over()

    def take_over(self) -> None:
        """Let another restore the checkpoint; those before him may go on to send what they have."""
        claimed = self.checkpoints[-1] = self.checkpoints[-1]._replace(number=self.checkpoints[-1].number + 1)
        self.owners.append(Owner(self.cluster, claimed, f"{self.line}.{claimed.number}"))

    def fall_back(self) -> None:
        """Let another restore the checkpoint before the last, if that may not be."""
        if len(self.checkpoints) > 1:
            damaged = self.checkpoints.pop()
            self.checkpoints[-1] = self.checkpoints[-1]._replace(number=damaged.number)
            self.take_over()

    def make(self, count: int) -> None:
        """Make records; each is another, so that no replay makes the same ones."""
        self.number += 1
        self.owner.make([f"{self.line}-{self.number}-{n}" for n in range(count)])

    def checkpoint(self, outcome: int) -> None:
        """Checkpoint if nothing is on its way; it may fail, or count without that anybody learns of it."""
        if self.owner.outbox.departing:
            return
        self.owner.flush()
        if outcome:
            number, image = self.checkpoints[-1].number + 1, dict(self.owner.store.scan(b""))
            self.checkpoints.append(Checkpoint(number, image, list(self.owner.made)))
        if outcome == 2:
            assert self.owner.outbox.saved() == []

    def depart(self, owner: int, fate: str) -> None:
        """Let one of the owners send; who is refused is dropped, and restores the checkpoint if the task is his."""
        sender, self.cluster.fate = self.owners[-1 - owner % len(self.owners)], fate
        try:
            sender.depart()
        except FencedError:
            if sender is self.owner:
                self.take_over()
            self.owners.remove(sender)

    def end(self) -> None:
        for _ in range(4):
            for _ in range(3):
                self.depart(0, "good")
            self.checkpoint(2)


whatever = (
    st.tuples(st.just("make"), st.integers(1, 3))
    | st.tuples(st.just("checkpoint"), st.integers(0, 2))
    | st.tuples(st.just("take_over"))
    | st.tuples(st.just("depart"), st.integers(0, 3), st.sampled_from(["good", "lost", "unknown"]))
)
left: list[tuple[Any, ...]] = [("make", 1), ("checkpoint", 2), ("depart", 0, "good")]
many = settings(max_examples=400, deadline=None)


def taken(actions: list[tuple[Any, ...]]) -> Course:
    course = Course()
    for action, *arguments in actions:
        getattr(course, action)(*arguments)
    course.end()
    assert not course.owner.outbox.waiting
    return course


@many
@given(st.lists(whatever, max_size=40))
def test_a_reader_gets_every_record_once_and_in_order_whoever_sends(actions: list[tuple[Any, ...]]) -> None:
    course = taken(actions)
    assert course.cluster.read == course.owner.made


@many
@given(st.lists(whatever | st.tuples(st.just("fall_back")), max_size=40))
@example([*left, *left, ("fall_back",), ("make", 1)])
def test_nothing_is_lost_when_a_checkpoint_is_damaged(actions: list[tuple[Any, ...]]) -> None:
    course = taken(actions)
    assert set(course.cluster.read) >= set(course.owner.made)
    assert len(set(course.cluster.read)) == len(course.cluster.read)


@many
@given(st.lists(whatever | st.tuples(st.just("anew")), max_size=40))
@example([*left, *left, ("anew",), ("make", 1)])
def test_who_begins_anew_writes_everything_again(actions: list[tuple[Any, ...]]) -> None:
    course = taken(actions)
    assert [value for value in course.cluster.read if value.startswith(f"{course.line}-")] == course.owner.made


def test_a_transaction_that_grows_too_large_is_divided() -> None:
    cluster = Cluster()
    owner = Owner(cluster, Checkpoint(1, {}, []), "life")
    for n in range(5):
        owner.make([f"{n}" * 3_000_000])
    owner.flush()
    owner.outbox.saved()
    cluster.fate = "unknown"
    owner.depart()
    assert [len(value) for value in cluster.read] == [3_000_000] * 3, "what is out stays out"
    owner.depart()
    assert [value[0] for value in cluster.read] == list("01234")


def test_rows_for_internal_topics_leave_beside_the_transactions() -> None:
    owner = Owner(Cluster(), Checkpoint(1, {}, []), "life")
    owner.make(["a"])
    internal = RecordBatch([0], [None], JoinedBytes.of([b"b"]))
    owner.outbox.add((INTERNAL, internal))
    owner.flush()
    assert owner.outbox.saved() == [(INTERNAL, internal)]
    assert [partition for _, (partition, _) in owner.outbox.departing] == [OUT]
    assert owner.outbox.waiting
    assert owner.outbox.has_news
    owner.depart()
    assert not owner.outbox.waiting
    assert owner.outbox.kept, "until the next checkpoint forgets them"
    owner.flush()
    assert not owner.outbox.kept


def test_this_version_writes_the_golden_note_and_reads_it() -> None:
    golden = b"\x93\x01\xa71.2.345\xce\x08\x00\x00\x07"
    assert encode_note("1.2.345", (2 << 26) + 7) == golden
    assert first_left(golden, "1.2.345") == (2 << 26) + 7
    assert first_left(golden, "1.2.346") == first_left(None, "1.2.345") == 0
    with pytest.raises(FatalError, match="format 2, this version knows 1"):
        first_left(msgpack.packb([2, "1.2.345", 7, "more"]), "1.2.345")
    for bad in (b"", b"\xc1", msgpack.packb([1]), msgpack.packb(7)):
        with pytest.raises(FatalError, match="makes no sense"):
            first_left(bad, "1.2.345")


def shouting() -> Topology:
    topology = Topology("shouting")
    topology.stream("words", value=str).map(str.upper).to("loud-words")
    return topology


def test_the_plan_says_what_leaves_in_transactions() -> None:
    planned = plan(shouting().graph(), {"words": 2}, guarantee=EXACTLY_ONCE, transactions=True)
    (sub,) = planned.subtopologies
    assert planned.transacted(sub) == {"loud-words"}
    assert "transactional\n" in describe_text(planned)
    assert plan(shouting().graph(), {"words": 2}, guarantee=EXACTLY_ONCE).transacted(sub) == frozenset()
    with pytest.raises(SettingsError, match="no transactions with at-least-once"):
        plan(shouting().graph(), {"words": 2}, guarantee=AT_LEAST_ONCE, transactions=True)


def test_transactions_need_the_guarantee_and_a_log_that_has_them() -> None:
    with pytest.raises(SettingsError, match="no transactions with at-least-once"):
        Settings(transactions=True)
    log = MemoryLog(SystemClock())
    log.create_topic("words", 1)
    more = {"checkpoints": "memory://", "until_end": True, "metrics_port": 0}
    with pytest.raises(SettingsError, match="has no transactions, only Kafka has"):
        run(shouting(), log=log, guarantee=EXACTLY_ONCE, transactions=True, **more)
