"""Which replica of a partition is read: the leader's, or the one that the leader names for a reader's rack (KIP-392).

A leader that is told the rack of a reader names a replica in it, and sends no records. As soon as that one cannot be
read, the partition is read from its leader, who is not told the rack for a while: it may not know yet what is wrong.
"""

from __future__ import annotations

from headrace.record import TopicPartition

_AGAIN_S = 300.0
"""How long a replica is read before the leader is asked again: there may be a better one."""
_LEADER_S = 10.0
"""How long the leader is read where its replica in the rack failed."""


class Replicas:
    """Decides where partitions are read; belongs to the client's thread. Times in seconds.

    Args:
        rack: Where the readers are; empty to read from leaders only.

    Example:
        >>> replicas, partition = Replicas("az1"), TopicPartition("payments", 0)
        >>> replicas.named(partition, 2, now=0)
        >>> replicas.where(partition, leader=1, now=1), replicas.where(partition, leader=1, now=301)
        ((2, 'az1'), (1, 'az1'))
    """

    def __init__(self, rack: str) -> None:
        self._rack = rack
        self._named: dict[TopicPartition, tuple[int, float]] = {}
        """The replica to read, and until when."""
        self._leader_until: dict[TopicPartition, float] = {}

    def where(self, partition: TopicPartition, leader: int, now: float) -> tuple[int, str]:
        """Return the broker to ask, and the rack to tell it."""
        if now < self._leader_until.get(partition, now):
            return leader, ""
        node, until = self._named.get(partition, (leader, now))
        return (node if now < until else leader), self._rack

    def named(self, partition: TopicPartition, node: int, now: float) -> None:
        """Take note of the replica that a leader named."""
        if self._rack:
            self._named[partition] = (node, now + _AGAIN_S)

    def failed(self, partition: TopicPartition, node: int, now: float) -> None:
        """Take note that a replica cannot be read; nothing changes if it is not the one that was named."""
        if self._named.get(partition, (None, now))[0] == node:
            del self._named[partition]
            self._leader_until[partition] = now + _LEADER_S
