"""Consumer groups of Kafka, and what was committed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment
from aiokafka.protocol.admin import DescribeGroupsRequest, ListGroupsRequest

from headrace.clock import Clock
from headrace.errors import CorruptError
from headrace.log.api import Assign, Committed, GroupMember, Membership
from headrace.log.kafka.commits import committed
from headrace.log.kafka.connection import Connection, check_code
from headrace.log.kafka.coordinator import coordinator
from headrace.log.kafka.leading import Grant
from headrace.log.kafka.membership import PROTOCOL, KafkaMembership
from headrace.record import TopicPartition

_SETTLING_S = 15
"""Longer than the usual session timeout, which a member that died may hold up the others for."""


class KafkaGroup:
    """A consumer group; see ``log.api.Group``."""

    def __init__(self, name: str, connection: Connection, clock: Clock) -> None:
        self.name = name
        self._connection = connection
        self._clock = clock

    def join(
        self, member_id: str, units: Mapping[str, Sequence[TopicPartition]], assign: Assign, *,
        session_timeout_ms: int, handoff_timeout_ms: int = 0, standby_copies: int = 0,
    ) -> Membership:  # fmt: skip
        """Become a member; what it gets shows in ``poll`` once the group has settled."""
        member = KafkaMembership(
            self.name, self._connection, self._clock, member_id, units, assign, session_timeout_ms,
            handoff_timeout_ms, standby_copies,
        )  # fmt: skip
        self._connection.call(member.start())
        return member

    def members(self) -> list[GroupMember]:
        """Return the members and what they hold, sorted by id; of other programs, the partitions that they read.

        While members come and go, nothing can be said of any: the answer waits until they have settled.
        """
        return self._connection.call(_members(self._connection, self.name))

    def committed(self) -> dict[TopicPartition, Committed]:
        """Return what was committed last for each partition."""
        return self._connection.call(_committed(self._connection, self.name))


async def group_names(connection: Connection) -> list[str]:
    """Return the groups that have members or committed offsets, sorted."""
    names = set()
    for broker in connection.client.cluster.brokers():
        response = await connection.send(broker.nodeId, ListGroupsRequest())
        check_code(response.error_code, needs="Describe on the cluster")
        names |= {name for name, kind in response.groups if kind in ("consumer", "")}
    found = []
    for name in sorted(names):
        described = await _describe(connection, name)
        if described[5] or await committed(connection, name):
            found.append(name)
    return found


async def _describe(connection: Connection, name: str) -> Any:
    async def attempt() -> Any:
        response = await connection.send(await coordinator(connection, name), DescribeGroupsRequest([name]))
        check_code(response.groups[0][0], needs=f"Describe on group {name!r}")
        return response.groups[0]

    return await connection.attempts(attempt)


async def _settled(connection: Connection, name: str) -> Any:
    deadline = connection.loop.time() + _SETTLING_S
    while True:
        described = await _describe(connection, name)
        if not described[2].endswith("Rebalance") or connection.loop.time() > deadline:
            return described
        await connection.pause()


async def _members(connection: Connection, name: str) -> list[GroupMember]:
    described = await _settled(connection, name)
    members = []
    for member_id, client_id, _, _, assigned in described[5]:
        if described[4] != PROTOCOL or not assigned:
            parts = ConsumerProtocolMemberAssignment.decode(assigned).partitions() if assigned else []
            members.append(GroupMember(client_id or member_id, tuple(f"{p.topic}/{p.partition}" for p in parts)))
            continue
        try:
            grant = Grant.decode(ConsumerProtocolMemberAssignment.decode(assigned).user_data)
        except CorruptError:
            members.append(GroupMember(member_id, ()))
        else:
            members.append(GroupMember(grant.member_id, tuple(sorted(grant.leases))))
    return sorted(members)


async def _committed(connection: Connection, name: str) -> dict[TopicPartition, Committed]:
    found = await committed(connection, name)
    return {partition: note.committed for partition, note in sorted(found.items())}
