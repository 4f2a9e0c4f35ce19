"""The topics that a topology writes to: made before anything runs."""

from __future__ import annotations

from headrace.log.api import Log, TopicConfig
from headrace.topology.plan import Plan

_KEPT = TopicConfig(retention_ms=None)
"""Dead letters stay until somebody has looked at them."""

INTERNAL = TopicConfig(retention_ms=None, segment_bytes=16 * 1024 * 1024)
"""Internal records are released when checkpoints no longer need them, and not by age."""


def create_topics(planned: Plan, log: Log) -> None:
    """Create the topics that a plan writes to and that are not there yet.

    Raises:
        InvalidError: an internal topic has another number of partitions than the plan wants.
    """
    topics = log.topics()
    for name, count in planned.internal_topics().items():
        log.create_topic(name, count, INTERNAL)
    widest = max(topics[name].partitions for name in planned.source_topics())
    for sink in planned.sinks():
        if sink.topic not in topics:
            log.create_topic(sink.topic, sink.partitions or widest)
    letters = planned.dead_letter_topic()
    if letters is not None and letters not in topics:
        log.create_topic(letters, widest, _KEPT)
