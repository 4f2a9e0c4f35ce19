"""Looks at what checkpoints keep before a topology runs, and refuses to lose any of it in silence."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path

from headrace.checkpoint.checkpoints import Checkpoints
from headrace.checkpoint.manifest import Manifest
from headrace.checkpoint.upload import in_threads
from headrace.errors import InvalidError, NotFoundError, TopologyError
from headrace.log.api import Group, Log
from headrace.log.reading import count_records
from headrace.record import TopicPartition
from headrace.runtime.workers.topics import check_topics, used_topics
from headrace.topology.change import Change, Kept, Verdict, abandoned, compare, read, to_reset
from headrace.topology.plan import Plan

_log = logging.getLogger("headrace")


def kept_in(manifest: Manifest) -> Kept:
    """Return what a checkpoint says of the state in it."""
    return Kept(manifest.task, read(manifest.info.get("shape")), manifest.positions)


def find_change(plan: Plan, checkpoints: Checkpoints, log: Log | None) -> Change:
    """Compare ``plan`` with the newest checkpoints. Blocks, and changes nothing.

    Args:
        plan: What would run.
        checkpoints: Those of the topology.
        log: Where its records are; None if there is no log yet.

    Raises:
        InvalidError: the checkpoints belong to another log, or to topics that were deleted.
        RetriableError: the checkpoint store cannot be reached.
    """
    manifests = newest(checkpoints)
    if log is not None:
        layouts = log.layout(used_topics(plan))
        for manifest in manifests:
            check_log(manifest, log)
            check_topics(manifest, plan, layouts)
    kept = [kept_in(manifest) for manifest in manifests]
    unread = {} if log is None else {topic: _unread(log, at) for topic, at in abandoned(plan, kept).items()}
    return compare(plan, kept, unread)


def check_log(manifest: Manifest, log: Log) -> None:
    """Refuse a checkpoint whose positions are those of another log.

    Raises:
        InvalidError: it is one.
    """
    written_for = manifest.info.get("log")
    if written_for and log.identity and written_for != log.identity:
        raise InvalidError(
            f"the checkpoint of task {manifest.task} belongs to another log than this one",
            remedy="Use the log that belongs to these checkpoints, or other checkpoints (--checkpoints)",
        )


def newest(checkpoints: Checkpoints) -> list[Manifest]:
    """Return the newest checkpoint of every task; a task whose manifests are all damaged is left out.

    Raises:
        RetriableError: the checkpoint store cannot be reached.
    """
    return [manifest for manifest in in_threads(checkpoints.newest, checkpoints.tasks()) if manifest is not None]


def check_change(change: Change, allowed: Collection[str], module: str = "MODULE") -> None:
    """Refuse a deploy that would lose something that it may not lose.

    Args:
        change: What ``find_change`` returned.
        allowed: The names of the steps whose state may be lost.
        module: The topology's module, for the commands in messages.

    Raises:
        TopologyError: names what would be lost, with its lines, and what to do.
    """
    losses = change.losses(allowed)
    if losses:
        listed = "".join(f"\n  - {loss.told}{f' ({loss.location})' if loss.location else ''}" for loss in losses)
        what = "would lose what its checkpoints keep"
        if all(loss.rescalable for loss in losses):
            what = "has state that is not where its keys are"
        raise TopologyError(
            f"topology {change.topology!r} {what}:{listed}\n{remedy(change, allowed, module)}. "
            f"`headrace plan {module}` shows the whole"
        )


def remedy(change: Change, allowed: Collection[str], module: str = "MODULE") -> str:
    """Say what can be done about what a deploy would lose, in one sentence after the other.

    Args:
        change: What ``find_change`` returned.
        allowed: The names of the steps whose state may be lost.
        module: The topology's module, for the commands.
    """
    found, names = change.losses(allowed), list(dict.fromkeys(loss.name for loss in change.losses()))
    stuck = list(dict.fromkeys(loss.name for loss in found if not loss.allowable))
    if stuck:
        return f"Take the change back; what it would lose at {', '.join(stuck)} cannot be given up by its name"
    told = []
    if any(loss.rescalable for loss in found):
        told.append(f"Move state to the partitions that its keys have now with `headrace rescale {module}`")
    if any(not loss.rescalable for loss in found):
        told.append("Take the change back to keep it")
    told.append(f"Where it may be lost, run once with --allow-reset {','.join(names)} (HEADRACE_ALLOW_RESET)")
    if wrong := sorted({*allowed}.difference(names)):
        told.append(f"--allow-reset names {', '.join(wrong)} now, where nothing would be lost")
    return ". ".join(told)


def resets(plan: Plan, manifest: Manifest, stored: Mapping[str, object], allowed: Collection[str]) -> frozenset[str]:
    """Return the steps whose state a task that was restored has to forget.

    Args:
        plan: What runs.
        manifest: The checkpoint that was restored.
        stored: The shapes that the task's store itself keeps, for checkpoints that do not say.
        allowed: The names of the steps that may be reset.

    Raises:
        TopologyError: the state is split by another number of partitions than the plan has, and may not be reset.
    """
    kept = kept_in(manifest)
    if kept.shape is None:
        steps = {name: {"kind": "", "shape": shape} for name, shape in stored.items()}
        kept = Kept(kept.task, {"steps": steps, "inputs": []}, kept.positions)
    moved = [
        step
        for step in compare(plan, [kept]).steps
        if step.verdict is Verdict.RESCALE and step.step in kept.steps and step.step not in allowed
    ]
    if moved:
        raise TopologyError(
            f"step {moved[0].step!r} of task {kept.task} cannot go on: {moved[0].detail} ({moved[0].location})",
            remedy="Move state to the partitions that its keys have now with `headrace rescale`",
        )
    return to_reset(plan, kept, allowed)


def retire(
    change: Change, allowed: Collection[str], checkpoints: Checkpoints, log: Log, group: Group, now_ms: int
) -> None:
    """Give up what sub-topologies that are gone have kept, if it may be lost, so that nobody is asked again.

    Should they come back, they begin empty. The checkpoint before the last is still there. Nothing happens while the
    group has members: they may run another version of the topology.

    Args:
        change: What ``find_change`` returned.
        allowed: The names of the steps whose state may be lost.
        checkpoints: Those of the topology.
        log: Has internal topics that nobody reads any more; they are deleted.
        group: The topology's.
        now_ms: The time.

    Raises:
        RetriableError: the checkpoint store cannot be reached.
    """
    if change.losses(allowed) or not change.losses() or group.members():
        return
    gone = {tasks.subtopology for tasks in change.tasks if tasks.verdict is Verdict.GONE}
    with tempfile.TemporaryDirectory(prefix="headrace-") as empty:
        for manifest in newest(checkpoints):
            if manifest.positions and kept_in(manifest).subtopology in gone:
                checkpoints.save(manifest, Path(empty), {}, {}, now_ms)
                _log.warning("task %s is gone with what it kept, as allowed", manifest.task)
    left = [topic.topic for topic in change.topics if topic.internal and topic.now is None]
    for name in left:
        if name in log.topics():
            log.delete_topic(name)


def _unread(log: Log, positions: Mapping[str, int]) -> int:
    """Count the records, not the reports of progress, that come after ``positions``."""
    return sum(_unread_of(log, partition_of(name), position) for name, position in positions.items())


def _unread_of(log: Log, partition: TopicPartition, position: int) -> int:
    try:
        return count_records(log, partition, max(position, log.start_offset(partition)))
    except NotFoundError:
        return 0  # the topic was deleted since


def partition_of(name: str) -> TopicPartition:
    """Return the partition that ``topic/partition`` means.

    Example:
        >>> partition_of("payments/3")
        TopicPartition(topic='payments', partition=3)
    """
    topic, _, number = name.rpartition("/")
    return TopicPartition(topic, int(number))
