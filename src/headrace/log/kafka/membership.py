"""One worker's membership of a Kafka group: the shell around the decisions of ``leading``.

A task in the client's thread joins, keeps the membership alive and joins again when the group changes, all beside the
tasks of the worker, which a rebalance does not stop. It says that the member lives only as long as the worker says so
(``heartbeat`` or ``poll``), so that a process that hangs loses its units.

That it has a copy of a unit is for the leader, too. It costs a rebalance, which stops nobody, only if the unit is
about to come here, and several copies go into one. Of all other copies it speaks when it joins again anyway.

A static member (one with an instance id) may be away for less than the session timeout, and gets back what it had. The
broker then repeats what it told the process before, without a rebalance; as that one may still be at work somewhere,
what it held comes under new epochs: one rebalance, which stops nobody. Of two processes with one instance id the older
ends with an error; to join again it would have to drive the other one out, and so on for ever.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment, ConsumerProtocolMemberMetadata
from aiokafka.errors import (
    GroupCoordinatorNotAvailableError,
    IllegalGenerationError,
    KafkaError,
    MemberIdRequired,
    NotCoordinatorForGroupError,
    RebalanceInProgressError,
    UnknownMemberIdError,
    for_code,
)
from aiokafka.protocol.commit import OffsetCommitRequest
from aiokafka.protocol.group import HeartbeatRequest, JoinGroupRequest, LeaveGroupRequest, SyncGroupRequest

from headrace.clock import Clock
from headrace.errors import FencedError, HeadraceError, RetriableError, SettingsError
from headrace.log.api import Assign, Assignment, Committed, Lease
from headrace.log.groups import waited
from headrace.log.kafka.commits import committed, noted
from headrace.log.kafka.connection import ANSWER_S, JOIN_S, Connection, check_code
from headrace.log.kafka.coordinator import coordinator
from headrace.log.kafka.leading import Claim, Grant, begins_anew, grants
from headrace.record import TopicPartition

_log = logging.getLogger("headrace")

PROTOCOL = "headrace"
_KIND = "consumer"
_GROUP_CONNECTION = "group"
_BEAT_S = 0.1
"""Heartbeats are sent no more often."""
_TOGETHER_S = 0.3
"""How long news wait for others to go with them into one rebalance."""
_FENCED_INSTANCE = 82
_LONGEST_REBALANCE_MS = 30_000
_COMMIT_S = 20
_LEAVE_S = 5
_GOODBYE_S = 2
"""How long one answer to that may take: a broker that is gone without a word must not have all of the time."""


class _InstanceTakenError(Exception):
    """Another process has joined under the instance id of this one."""


class _Has(NamedTuple):
    """What a member holds; replaced as a whole, as another thread reads it."""

    grant: Grant
    released: frozenset[str]
    """What was released and not told to the leader yet."""
    copied: frozenset[str] = frozenset()
    """Of what it has a copy that it should have."""


class KafkaMembership:
    """See ``log.api.Membership``."""

    def __init__(
        self, group: str, connection: Connection, clock: Clock, member_id: str,
        units: Mapping[str, Sequence[TopicPartition]], assign: Assign, session_timeout_ms: int,
        handoff_timeout_ms: int = 0, standby_copies: int = 0,
    ) -> None:  # fmt: skip
        self.member_id = member_id
        self._group = group
        self._connection = connection
        self._clock = clock
        self._units = units
        self._assign = assign
        self._timeout_ms = session_timeout_ms
        self._handoff_timeout_ms = handoff_timeout_ms
        self._standby_copies = standby_copies
        self._waited: dict[str, int] = {}
        """Since when what is to go waits for its next holder."""
        self._joined_ms = clock.now_ms()
        self._instance_id = connection.options.instance_id or None
        # What follows belongs to the client's thread, but for reading.
        self._instance = ""
        """Kafka's id of this member."""
        self._generation = -1
        """Kafka's, which grows with every rebalance."""
        self._has = _Has(Grant(member_id, 0, {}, (), {}, ()), frozenset())
        self._rejoin_due: float | None = None
        self._fenced = self._left = self._retired = False
        self._doubts = False
        """Whether the broker does not know this member any more, which may have two reasons if it is static."""
        self._failure: HeadraceError | None = None
        self._node: int | None = None
        self._heard_ms = 0
        """When this member last said something that the broker then answered well, by a clock that never goes back."""
        self._beat = asyncio.Event()
        self._beaten = 0.0
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to join."""
        self._task = self._connection.loop.create_task(self._run())
        self._connection.at_end(self._stop)

    def heartbeat(self) -> None:
        """Say that this member lives."""
        self._connection.soon(self._beat.set)

    def poll(self) -> Assignment:
        """Return what this member should run, as of the last rebalance."""
        self._check()
        self._connection.soon(self._beat.set)
        has = self._has
        now_ms = self._clock.monotonic_ms()
        self._waited = waited(self._waited, set(has.grant.outgoing) - has.released, now_ms)
        overdue = {unit for unit, since_ms in self._waited.items() if now_ms - since_ms >= self._handoff_timeout_ms}
        return has.grant.assignment(has.released, overdue, confirmed=now_ms - self._heard_ms < self._timeout_ms)

    def release(self, unit: str) -> None:
        """Give up a unit; the group learns of it in a rebalance. Idempotent."""
        if not self._left:
            self._connection.call(self._release(unit))

    def retire(self) -> None:
        """Get nothing more, so that the others make ready for what this member holds; idempotent.

        That holds for a static member as well: what it has goes to others before it is gone.
        """
        if not self._left:
            self._connection.soon(self._retire)

    def copied(self, unit: str) -> None:
        """Say that this member has a copy of what the last checkpoint of a unit consists of; idempotent."""
        if not self._left:
            self._connection.soon(self._copied, unit)

    def commit(self, lease: Lease, offsets: Mapping[TopicPartition, Committed]) -> None:
        """Record positions for lag and tools."""
        self._check()
        if offsets:
            self._connection.call(self._commit(lease, offsets))
        else:
            self._check_lease(lease)

    def leave(self) -> None:
        """Release everything and leave; idempotent. A static member that holds something may come back for it."""
        if self._left:
            return
        self._left = True
        self._connection.call(self._leave())

    # --- in the client's thread

    async def _release(self, unit: str) -> None:
        has = self._has
        if unit in has.grant.leases and unit not in has.released:
            released = has.released | {unit}
            self._has = has._replace(released=released)
            self._rejoin_soon(at_once=set(has.grant.outgoing) <= released)

    def _retire(self) -> None:
        if not self._retired:
            self._retired = True
            self._rejoin_soon(at_once=True)

    def _copied(self, unit: str) -> None:
        has = self._has
        if unit in has.grant.copies and unit not in has.copied:
            copied = has.copied | {unit}
            self._has = has._replace(copied=copied)
            if unit in has.grant.incoming:
                self._rejoin_soon(at_once=set(has.grant.incoming) <= copied)

    def _rejoin_soon(self, *, at_once: bool) -> None:
        now = self._connection.loop.time()
        self._rejoin_due = now if at_once else self._rejoin_due or now + _TOGETHER_S
        self._beat.set()

    async def _leave(self) -> None:
        await self._stop()
        gone = self._fenced or self._failure is not None or not self._instance
        holds = self._has.grant.leases.keys() - self._has.released
        comes_back = self._instance_id is not None and holds and not self._retired
        if not gone and not comes_back:
            try:
                await self._connection.attempts(self._say_goodbye, _LEAVE_S)
            except KafkaError as error:
                raise self._connection.translated(error, f"leaving group {self._group}") from error

    async def _say_goodbye(self) -> None:
        try:
            code = (await self._ask(LeaveGroupRequest(self._group, self._instance), _GOODBYE_S)).error_code
            if for_code(code) is not UnknownMemberIdError:
                self._check_code(code)
        except KafkaError:
            self._node = None  # another broker may look after the group now
            raise

    async def _stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        rejoin = True
        while not self._fenced:
            try:
                if rejoin:
                    await self._join()
                    rejoin = False
                rejoin = await self._live()
            except (RebalanceInProgressError, IllegalGenerationError, MemberIdRequired):
                rejoin = True
            except UnknownMemberIdError as error:
                rejoin = self._lost(error)
            except _InstanceTakenError:
                self._failure = SettingsError(
                    f"another process has joined group {self._group} with HEADRACE_KAFKA_INSTANCE_ID="
                    f"{self._instance_id}, which drives this one out",
                    remedy="Give each headrace run an instance id of its own",
                )
                return
            except (NotCoordinatorForGroupError, GroupCoordinatorNotAvailableError):
                await self._again()
            except KafkaError as error:
                if not error.retriable:
                    self._failure = self._connection.translated(error, f"group {self._group}")
                    return
                await self._again()
            except HeadraceError as error:
                self._failure = error
                return

    def _lost(self, error: KafkaError) -> bool:
        """Take note that the broker does not know this member; return whether to join again all the same."""
        if self._generation < 0:  # never was a member: the id that was lent has expired
            self._instance = ""
        elif self._instance_id is not None and not self._doubts:
            self._doubts = True  # joining tells whether its time was over or another has its instance id
        else:
            _log.debug("no longer a member of group %s: %s", self._group, error)
            self._fenced = True
        return True

    async def _again(self) -> None:
        self._node = None
        # Whoever cannot reach the group keeps what it has: it can neither read nor write meanwhile, and the group will
        # say if it has removed the member. An outage for all is no reason to begin anew.
        await self._connection.pause(0.3)

    async def _live(self) -> bool:
        """Keep the membership; return whether to join again."""
        loop = self._connection.loop
        while True:
            due = self._rejoin_due
            wait = self._timeout_ms / 1000 if due is None else max(due - loop.time(), 0)
            if not await self._told(wait) and due is None:
                continue  # the worker is silent, and so is its member
            if self._rejoin_due is not None and loop.time() >= self._rejoin_due:
                return True
            self._beat.clear()
            if loop.time() - self._beaten >= _BEAT_S:
                self._beaten = loop.time()
                said_ms = self._clock.monotonic_ms()
                code = (await self._ask(HeartbeatRequest(self._group, self._generation, self._instance))).error_code
                self._check_code(code)
                self._heard_ms = said_ms

    async def _told(self, timeout_s: float) -> bool:
        """Wait for the worker to say that it lives, or has released something; return whether it did."""
        if not self._beat.is_set():
            waiting = self._connection.loop.create_task(self._beat.wait())
            try:
                await asyncio.wait([waiting], timeout=timeout_s)
            finally:
                waiting.cancel()
        return self._beat.is_set()

    async def _join(self) -> None:
        told, retires = self._has, self._retired
        grant = told.grant
        held = {unit: epoch for unit, epoch in grant.leases.items() if unit not in told.released}
        claim = Claim(
            self.member_id, self._joined_ms, [] if retires else list(self._units), held, grant.known, grant.generation,
            grant.instances, sorted(told.copied), self._standby_copies,
        )  # fmt: skip
        topics = sorted({partition.topic for partitions in self._units.values() for partition in partitions})
        metadata = ConsumerProtocolMemberMetadata(0, topics, claim.encode()).encode()
        self._rejoin_due = None
        response = await self._ask(
            JoinGroupRequest(
                self._group, self._timeout_ms, min(self._timeout_ms, _LONGEST_REBALANCE_MS), self._instance,
                self._instance_id, _KIND, [(PROTOCOL, metadata)],
            )
        )  # fmt: skip
        if for_code(response.error_code) is MemberIdRequired:
            self._instance = response.member_id
        self._check_code(response.error_code)
        self._instance, self._generation, self._doubts = response.member_id, response.generation_id, False
        answers = await self._lead(response.members) if response.leader_id == response.member_id else []
        said_ms = self._clock.monotonic_ms()
        sync = await self._ask(
            SyncGroupRequest(self._group, self._generation, self._instance, self._instance_id, answers)
        )
        self._check_code(sync.error_code)
        self._heard_ms = said_ms
        got = Grant.decode(ConsumerProtocolMemberAssignment.decode(sync.member_assignment).user_data)
        # What happened while the group settled is news to the leader; what was released is still ours as it sees it.
        now = self._has
        if any(got.known[unit].instance != self._instance for unit in got.leases):
            got = replace(got, leases={}, revoked=(), outgoing=(), incoming=(), copies=())
            self._rejoin_soon(at_once=True)  # this was for the process before, which may still be at work
        released = (now.released - told.released) & got.leases.keys()
        copied = now.copied.intersection(got.copies)
        self._has = _Has(got, frozenset(released), copied)
        if released or self._retired != retires or (copied - told.copied).intersection(got.incoming):
            self._rejoin_soon(at_once=True)
        if got.fenced:
            self._fenced = True

    async def _lead(self, members: Sequence[Any]) -> list[tuple[str, bytes]]:
        claims, names = {}, {}
        for instance, static, metadata in members:
            claim = Claim.decode(ConsumerProtocolMemberMetadata.decode(metadata).user_data)
            names[instance] = claim.member_id
            # A static member is the same as the process before it, whatever that was called.
            claims[instance] = replace(claim, member_id=static or claim.member_id)
        begin = await self._begin() if begins_anew(claims) else 0
        told = grants(claims, self._assign, begin)
        answers = []
        for instance, grant in told.items():
            by_topic: dict[str, set[int]] = {}
            for unit in grant.leases:
                for topic, number in self._units.get(unit, ()):
                    by_topic.setdefault(topic, set()).add(number)
            shown = [(topic, sorted(numbers)) for topic, numbers in sorted(by_topic.items())]
            said = replace(grant, member_id=names[instance]).encode()
            answers.append((instance, ConsumerProtocolMemberAssignment(0, shown, said).encode()))
        return answers

    async def _begin(self) -> int:
        """Return a number that the epochs of all earlier lives of the group are below or equal to."""
        reached = await committed(self._connection, self._group)
        return max([self._clock.now_ms(), *(note.epoch for note in reached.values())])

    async def _commit(self, lease: Lease, offsets: Mapping[TopicPartition, Committed]) -> None:
        topics: dict[str, list[tuple[int, int, str]]] = {}
        for (topic, number), position in offsets.items():
            topics.setdefault(topic, []).append((number, position.offset, noted(position.metadata, lease.epoch)))
        deadline = self._connection.loop.time() + _COMMIT_S
        while True:
            self._check()
            self._check_lease(lease)
            request = OffsetCommitRequest(self._group, self._generation, self._instance, -1, list(topics.items()))
            try:
                response = await self._ask(request)
                for _, partitions in response.topics:
                    for _, code in partitions:
                        self._check_code(code)
            except (RebalanceInProgressError, IllegalGenerationError, UnknownMemberIdError):
                self._beat.set()  # the group settles, or has done so or removed the member: a heartbeat shows which
            except KafkaError as error:
                if not error.retriable:
                    raise
                self._node = None
            else:
                return
            if self._connection.loop.time() > deadline:
                raise RetriableError(f"offsets of group {self._group} could not be committed while it settles")
            await self._connection.pause()

    async def _ask(self, request: Any, most_s: float = ANSWER_S) -> Any:
        if self._node is None:
            self._node = await coordinator(self._connection, self._group)
        # Joining takes as long as the others take, and must not keep other requests waiting.
        joins = isinstance(request, JoinGroupRequest | SyncGroupRequest)
        way = f"{_GROUP_CONNECTION}-{'join' if joins else 'beat'}-{id(self)}"
        # Whoever asks again over another connection is still heard before the session is over.
        beat_s = min(most_s, max(1.0, self._timeout_ms / 3000))
        return await self._connection.send(self._node, request, group=way, timeout_s=JOIN_S if joins else beat_s)

    def _check_code(self, code: int) -> None:
        if code == _FENCED_INSTANCE:
            raise _InstanceTakenError
        check_code(code, needs=f"Read on group {self._group!r}, and on the topics whose offsets it commits")

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._fenced or self._left:
            raise FencedError(
                f"member {self.member_id} is no longer in group {self._group}",
                remedy="Drop all tasks and join again; raise the session timeout if the member was only slow",
            )

    def _check_lease(self, lease: Lease) -> None:
        has = self._has
        if lease.unit in has.released or has.grant.leases.get(lease.unit) != lease.epoch:
            raise FencedError(
                f"unit {lease.unit} of group {self._group} is no longer held under epoch {lease.epoch}",
                remedy="Drop the task; its new owner continues from its last checkpoint",
            )
