"""Notices inputs whose keys should meet in one task, and do not: their producers place keys differently. Pure.

A topic alone may be placed in any way, as long as a key always goes to the same partition. Topics whose keys meet in
the state of a step must agree, and internal topics are placed by the log's hash. No log says how a topic was placed,
and nothing fails if two differ: what should meet lies in different tasks, and results are missing. So samples are
taken.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from headrace.errors import FatalError
from headrace.record import RecordBatch, TopicPartition
from headrace.topology.copartition import meeting
from headrace.topology.plan import Plan, SubTopology, TaskId

_SAMPLE = 32
"""So many keys of a batch are looked at, until it is clear how its topic was placed."""
_ODDS = 10**6
"""Keys that lie by chance where the hash has them do so less often than once in so many samples."""
_ELSEWHERE = 8
"""So many different keys elsewhere are no exceptions, such as a few large keys with a partition of their own."""

Hash = Callable[[bytes], int]


def placement_of(plan: Plan, sub: SubTopology, task: TaskId, hash_key: Hash) -> Placement:
    """Return what watches the inputs of a task."""
    inputs = {item.node: item for item in sub.inputs if not item.broadcast}
    groups = meeting(plan.graph, sub.nodes, list(inputs))
    internal = frozenset(plan.internal_topics())
    meet = [{inputs[name].topic: inputs[name].partitions for name in group} for group in groups]
    return Placement(str(task), meet, internal, hash_key)


class Placement:
    """How the keys of the inputs of one task were placed, as far as samples show.

    Args:
        task: Its id.
        groups: For each topic how many partitions it has, by those whose keys meet.
        internal: Those of them that are placed by the hash.
        hash_key: By whose remainder keys go to partitions.

    Example:
        >>> placement = Placement("orders-0", [{"orders": 4, "customers": 4}], frozenset(), lambda key: key[0])
        >>> placement.watches("orders")
        True
    """

    def __init__(
        self, task: str, groups: Sequence[Mapping[str, int]], internal: frozenset[str], hash_key: Hash
    ) -> None:
        self._task = task
        self._hash_key = hash_key
        self._group = {topic: group for group in groups for topic in group if len(group) > 1}
        self._widths = {topic: group[topic] for topic, group in self._group.items() if group[topic] > 1}
        self._fits: dict[str, set[bytes]] = {topic: set() for topic in self._widths}
        self._elsewhere: dict[str, dict[bytes, int]] = {topic: {} for topic in self._widths}
        """The first keys that lie elsewhere, and the offset of each."""
        self._by_hash = {topic: topic in internal for topic in self._widths}

    def watches(self, topic: str) -> bool:
        """Return whether it is not yet clear how a topic was placed, and matters."""
        return topic in self._widths and not self._by_hash[topic] and len(self._elsewhere[topic]) < _ELSEWHERE

    def look(self, partition: TopicPartition, batch: RecordBatch) -> None:
        """Take a sample of a batch.

        Raises:
            FatalError: another topic whose keys should meet these was placed otherwise.
        """
        topic, number = partition
        if batch.control or not self.watches(topic):
            return
        width, fits, elsewhere = self._widths[topic], self._fits[topic], self._elsewhere[topic]
        for offset, key in zip(batch.offsets[:_SAMPLE], batch.keys[:_SAMPLE], strict=True):
            if key is None:
                continue
            if self._hash_key(key) % width == number:
                fits.add(key)
            else:
                elsewhere.setdefault(key, offset)
        self._by_hash[topic] = not elsewhere and width ** len(fits) >= _ODDS
        if elsewhere:
            fits.clear()  # what fits among keys that do not is chance
        if self._by_hash[topic] or not self.watches(topic):
            self._compare(topic)

    def _compare(self, topic: str) -> None:
        group = [other for other in self._group[topic] if other in self._widths]
        by_hash = [other for other in group if self._by_hash[other]]
        others = [other for other in group if len(self._elsewhere[other]) >= _ELSEWHERE]
        if by_hash and others:
            offset = next(iter(self._elsewhere[others[0]].values()))
            raise FatalError(
                f"task {self._task} would miss what belongs together: keys of topic {others[0]} lie in other "
                f"partitions than the same keys of topic {by_hash[0]} would, as at offset {offset}",
                remedy="Let all producers place keys in one way (clients of librdkafka: "
                f"partitioner=murmur2_random), or send {others[0]} through an internal topic: key_by() for a stream, "
                ".repartition() for a table",
            )
