"""The topics that a topology writes to: made before anything runs. And what may become of topics while it is away."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from headrace.checkpoint.manifest import Manifest
from headrace.errors import InvalidError, SettingsError
from headrace.log.api import Layout, Log, TopicConfig, TopicInfo, TransactionalLog
from headrace.topology.plan import Plan, SubTopology

_log = logging.getLogger("headrace")

_KEPT = TopicConfig(retention_ms=None)
"""Dead letters stay until somebody has looked at them."""

INTERNAL = TopicConfig(retention_ms=None, segment_bytes=16 * 1024 * 1024)
"""Internal records are released when checkpoints no longer need them, and not by age."""

_NOTES = TopicConfig(retention_ms=None, retention_bytes=8 * 1024 * 1024, segment_bytes=1024 * 1024)
"""Only the last note of each partition is ever read."""

_DAY_MS = 24 * 3600 * 1000
_BEGIN_ANEW = "begin anew with other checkpoints and another group (--group)"


def create_topics(planned: Plan, log: Log, group: str) -> None:
    """Create the topics that a plan writes to and that are not there yet.

    Args:
        planned: What will run.
        log: Where.
        group: The group of the workers; that of the topology's name if empty.

    Raises:
        InvalidError: an internal topic has another number of partitions than the plan wants, or forgets records.
        SettingsError: the plan needs transactions, and the log has none.
    """
    topics = log.topics()
    for name, count in planned.internal_topics().items():
        _check_keeps(log.create_topic(name, count, INTERNAL))
    widest = max(topics[name].partitions for name in planned.source_topics())
    for sink in planned.sinks():
        if sink.topic not in topics:
            log.create_topic(sink.topic, sink.partitions or widest)
    letters = planned.dead_letter_topic()
    if letters is not None and letters not in topics:
        log.create_topic(letters, widest, _KEPT)
    if planned.transactions:
        _create_notes(planned, log, group or planned.graph.name)


def notes_topic(group: str, sub: SubTopology) -> str:
    """Return the topic in which the partition of each task of a sub-topology has the notes of its transactions."""
    return f"{group}-{sub.name}-transactions"


def _create_notes(planned: Plan, log: Log, group: str) -> None:
    if not isinstance(log, TransactionalLog):
        raise SettingsError(
            f"the log {log.url} has no transactions, only Kafka has",
            remedy="Leave out --transactions (HEADRACE_TRANSACTIONS): with --guarantee exactly-once every output keeps "
            "its id, so that readers can drop repeats",
        )
    topics = log.topics()
    for sub in planned.subtopologies:
        name = notes_topic(group, sub)
        if planned.transacted(sub) and name not in topics:
            log.create_topic(name, sub.partitions, _NOTES)
        elif planned.transacted(sub) and topics[name].partitions < sub.partitions:
            log.grow_topic(name, sub.partitions)


def _check_keeps(topic: TopicInfo) -> None:
    config = topic.config
    if config.compact or config.retention_ms is not None or config.retention_bytes is not None:
        raise InvalidError(
            f"internal topic {topic.name} deletes records by itself, and tasks may not have read them yet",
            remedy="Set cleanup.policy=delete, retention.ms=-1 and retention.bytes=-1 for it; records go when no "
            "checkpoint needs them any more",
        )


def warn_of_retention(planned: Plan, log: Log, *, anew: bool) -> None:
    """Say once which topics lose old records as soon as they come, because retention goes by the records' own time.

    Args:
        planned: What will run.
        log: Where.
        anew: Whether it reads its sources from the beginning.
    """
    topics = log.topics()
    names = {sink.topic for sink in planned.sinks()} | set(planned.source_topics() if anew else ())
    found = sorted(name for name in names if name in topics and topics[name].by_event_time)
    if not found:
        return
    days = min(topics[name].config.retention_ms or 0 for name in found) / _DAY_MS
    _log.warning(
        "retention of %s goes by the records' own time: what is older than %.3g days goes within minutes after it was "
        "written, such as the results of a replay. Set retention.ms=-1 and a limit in bytes for such topics, or "
        "message.timestamp.type=LogAppendTime where nobody reads their event time", ", ".join(found), days,
    )  # fmt: skip


def used_topics(planned: Plan) -> list[str]:
    """Return the topics that a plan reads and writes, those that it reads first."""
    letters = planned.dead_letter_topic()
    written = [sink.topic for sink in planned.sinks()] + ([] if letters is None else [letters])
    return list(dict.fromkeys([*planned.source_topics(), *planned.internal_topics(), *written]))


def ids_of(topics: set[str], layouts: Mapping[str, Layout]) -> dict[str, str]:
    """Return the ids of topics for a checkpoint, as far as the log knows them."""
    return {name: layouts[name].topic_id for name in sorted(topics) if name in layouts and layouts[name].topic_id}


def check_topics(manifest: Manifest, planned: Plan, layouts: Mapping[str, Layout]) -> None:
    """Refuse a checkpoint whose positions are those of topics that are gone, whatever has their names now.

    Args:
        manifest: The checkpoint. What it does not say is not checked: versions before did not.
        planned: What will run.
        layouts: What the topics are now that it reads.

    Raises:
        InvalidError: a topic was deleted, and perhaps made again.
    """
    kept = manifest.info.get("topics")
    internal = planned.internal_topics()
    for name in dict.fromkeys([*planned.source_topics(), *internal]):
        before = kept.get(name) if isinstance(kept, dict) else None
        now = layouts.get(name)
        if not before or (now is not None and now.topic_id in ("", before)):
            continue
        again = " and made again" if now is not None else ""
        told = f"topic {name} was deleted{again} since the last checkpoint of task {manifest.task}"
        if name in internal:
            raise InvalidError(
                f"internal {told}: the records in it that no checkpoint contains are lost",
                remedy=f"Nothing can bring them back: {_BEGIN_ANEW}",
            )
        raise InvalidError(
            f"{told}: what was not read of it is lost, and its offsets mean other records now",
            remedy=f"If the topic is the right one now, {_BEGIN_ANEW}",
        )
