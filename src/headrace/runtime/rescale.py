"""Moves state to the partitions that its keys have now, while nothing runs.

1. Everything is read that was written under the old partitioning, by the tasks that it was written for, and these are
   drained: what internal topics hold is gone through, and no window is closed for that.
2. Internal topics get the partitions that they shall have.
3. The rows of every task are split by key, and each task of now gets its share as a checkpoint of its own. Tasks that
   are new come first. As long as the last of the others has its old checkpoint, `headrace run` refuses; and the old
   checkpoints stay until all are written. So what a crash leaves is done again from where it began.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from headrace.checkpoint.checkpoints import Checkpoints
from headrace.checkpoint.manifest import Manifest
from headrace.clock import Clock
from headrace.errors import InvalidError, RetriableError
from headrace.log.api import Committed, Group, Lease, Log, Membership
from headrace.log.reading import count_records, read_to
from headrace.record import TopicPartition
from headrace.runtime.hosts.host import Host
from headrace.runtime.splitting import Splitting, split
from headrace.runtime.tasks.meta import META_KEY, read_meta
from headrace.runtime.workers.assignment import assign
from headrace.runtime.workers.bounds import Bounds
from headrace.runtime.workers.changing import check_change, check_log, kept_in, newest, partition_of
from headrace.runtime.workers.lifecycle import Phase
from headrace.runtime.workers.topics import check_topics, create_topics, ids_of, used_topics
from headrace.runtime.workers.worker import Worker
from headrace.settings import Settings
from headrace.state.api import Store, StoreFactory
from headrace.topology.change import Kept, Widths, compare, described, widths
from headrace.topology.graph import Graph, Source
from headrace.topology.plan import Plan, SubTopology, TaskId, plan, source_topics

_BATCH_ROWS = 4096
_POLL_MS = 50
_MEMBER = "rescale"


@dataclass(frozen=True, slots=True)
class Site:
    """What state is moved with."""

    graph: Graph
    log: Log
    checkpoints: Checkpoints
    group: Group
    stores: StoreFactory
    clock: Clock
    settings: Settings
    open_worker: Callable[[Plan, Bounds], AbstractContextManager[Worker]]
    """Makes a worker that reads up to bounds."""
    say: Callable[[str], None]
    """Told what is being done."""

    @property
    def home(self) -> Path:
        """Return a directory that may be lost at any time."""
        return Path(self.settings.state_dir) / self.group.name / "rescale"


@dataclass(frozen=True, slots=True)
class Moves:
    """What is to be moved."""

    old: Plan
    new: Plan
    steps: Mapping[str, Mapping[str, Widths]]
    """By sub-topology and step, for the sub-topologies in which keys have other partitions now."""
    grown: Mapping[str, Widths]
    """Topics whose keys have other partitions now."""
    internal: Mapping[str, Widths]
    """Those of them that only this topology writes."""
    kept: Sequence[Kept] = field(default=(), repr=False)

    @property
    def none(self) -> bool:
        """Return whether there is nothing to do."""
        return not self.steps and not self.internal


def find_moves(site: Site) -> Moves:
    """Find out which state is where its keys are not any more. Changes nothing.

    Raises:
        TopologyError: the topology was changed otherwise, too, in a way that loses state.
        InvalidError: a checkpoint does not say what it was made for, or belongs to another log.
    """
    manifests = [manifest for manifest in newest(site.checkpoints) if manifest.positions]
    kept = [_checked(site, manifest) for manifest in manifests]
    topics = {name: info.partitions for name, info in site.log.topics().items()}
    sources = {name: topics[name] for name in source_topics(site.graph)}
    wanted = site.settings.repartition_partitions
    new = plan(site.graph, sources, wanted, topics, site.settings.guarantee, site.settings.transactions)
    by_sub = {sub.name: widths(new, sub, kept) for sub in new.subtopologies}
    steps = {name: found for name, found in by_sub.items() if any(w.before != w.now for w in found.values())}
    before: dict[str, int] = {}
    for one in kept:
        for item in one.inputs if one.subtopology in steps and one.steps else ():
            before[item["topic"]] = min(item["partitions"], before.get(item["topic"], item["partitions"]))
    here = {
        item.topic: Widths(before.get(item.topic, item.partitions), item.partitions)
        for sub in new.subtopologies
        if sub.name in steps
        for item in sub.inputs
        if not item.broadcast
    }
    internal = {
        name: here.get(name, Widths(topics[name], now)) for name, now in new.internal_topics().items() if name in topics
    }
    internal = {name: width for name, width in internal.items() if width.before != width.now}
    grown = {name: width for name, width in here.items() if width.before != width.now} | internal
    for name, width in grown.items():
        if width.now < width.before:
            raise InvalidError(
                f"topic {name!r} had {width.before} partitions and would have {width.now}: it can only grow",
                remedy=f"Give --partitions {width.before} or more",
            )
    counts = {name: grown[name].before if name in grown else count for name, count in sources.items()}
    existing = topics | {name: width.before for name, width in internal.items()}
    old = plan(site.graph, counts, 0, existing, site.settings.guarantee, site.settings.transactions)
    layouts = site.log.layout(used_topics(old))
    for manifest in manifests:
        check_topics(manifest, old, layouts)
    return Moves(old, new, steps, grown, internal, tuple(kept))


def carry_out(site: Site, moves: Moves) -> int:
    """Move the state, and return how many tasks got a checkpoint.

    Raises:
        InvalidError: it cannot be moved as things are; the message says why, and what to do.
        FencedError: a worker has begun to run the topology.
    """
    _refuse_members(site)
    if not _is_half_done(site, moves):
        check_change(compare(moves.old, moves.kept), frozenset())
        bounds = Bounds(_bounds(site, moves), closes=False)
        site.say("reading what was written for the tasks of before")
        create_topics(moves.old, site.log, site.group.name)
        read_up_to(site, moves.old, bounds)
    _check_read(site, moves)
    for name, width in moves.internal.items():
        site.log.grow_topic(name, width.now)
    # Steps that are new may have state by now.
    kept = [kept_in(manifest) for manifest in newest(site.checkpoints)]
    written = 0
    for sub in moves.new.subtopologies:
        if all(width.before == width.now for width in widths(moves.new, sub, kept).values()):
            continue
        site.say(f"moving the state of sub-topology {sub.name}")
        written += _move(site, moves, sub)
    return written


def _checked(site: Site, manifest: Manifest) -> Kept:
    check_log(manifest, site.log)
    kept = kept_in(manifest)
    if kept.shape is None:
        raise InvalidError(
            f"the checkpoint of task {manifest.task} does not say for how many partitions it was made",
            remedy="Run the topology with this version of headrace before its topics grow",
        )
    return kept


def _refuse_members(site: Site) -> None:
    """Wait until members that are dead have gone.

    Raises:
        InvalidError: somebody runs the topology.
    """
    # Who can run nothing gets nothing, and so takes nothing away from anybody.
    membership = site.group.join(_MEMBER, {}, assign, session_timeout_ms=site.settings.session_timeout_ms)
    try:
        until_ms, told = site.clock.monotonic_ms() + site.settings.session_timeout_ms, False
        while True:
            membership.heartbeat()
            membership.poll()
            others = [member.member_id for member in site.group.members() if member.member_id != _MEMBER]
            if not others:
                return
            if not told:
                site.say(f"waiting for {len(others)} of the group to leave, in case nobody is behind them any more")
                told = True
            if site.clock.monotonic_ms() > until_ms:
                raise InvalidError(
                    f"group {site.group.name!r} has members, which run the topology: {', '.join(others)}",
                    remedy="Stop them with SIGTERM first, so that they drain",
                )
            site.clock.sleep_ms(_POLL_MS)
    finally:
        membership.leave()


# --- what is to be read first


def _is_half_done(site: Site, moves: Moves) -> bool:
    """Return whether a crash ended an earlier attempt behind its first step."""
    topics = site.log.topics()
    if any(topics[name].partitions != width.before for name, width in moves.internal.items()):
        return True
    for one in moves.kept:
        known = {item["topic"]: item["partitions"] for item in one.inputs}
        if one.subtopology in moves.steps and any(
            known.get(topic, width.before) != width.before for topic, width in moves.grown.items()
        ):
            return True
    return False


def _bounds(site: Site, moves: Moves) -> dict[TopicPartition, int]:
    """Return up to where each source is to be read by the tasks of before.

    Raises:
        InvalidError: a partition has records behind that which belong to another one.
    """
    positions = {partition_of(name): offset for one in moves.kept for name, offset in one.positions.items()}
    ends: dict[TopicPartition, int] = {}
    for sub in moves.old.subtopologies:
        for item in sub.inputs:
            if isinstance(moves.old.graph.by_name[item.node], Source):
                for number in range(item.partitions):
                    partition = TopicPartition(item.topic, number)
                    end = site.log.end_offset(partition)
                    width = moves.grown.get(item.topic)
                    if width is not None:
                        start = positions.get(partition, site.log.start_offset(partition))
                        end = _bound(site.log, partition, start, end, width)
                    ends[partition] = end
    return ends


def _bound(log: Log, partition: TopicPartition, start: int, end: int, width: Widths) -> int:
    """Return the offset of the first record that was written for the partitions of now, or the end."""
    reader = log.reader(partition, start)
    bound, strays = end, 0
    try:
        for batch in read_to(reader, end, _BATCH_ROWS):
            for offset, key in zip(batch.offsets, batch.keys, strict=True):
                if key is None or batch.control:
                    continue
                code = log.hash_key(key)
                if bound == end and code % width.before != partition.partition:
                    bound = offset
                strays += offset >= bound and code % width.now != partition.partition
    finally:
        reader.close()
    if strays:
        raise InvalidError(
            f"partition {partition} has {strays} record{'s' * (strays != 1)} from offset {bound} on that belong to "
            f"other partitions, behind the first that was written for {width.now} partitions",
            remedy="Producers must all go over to the new number of partitions at one time, and put keys where "
            "`headrace produce` puts them",
        )
    return bound


def read_up_to(site: Site, planned: Plan, bounds: Bounds) -> None:
    """Let the tasks of a plan read up to bounds, and all that internal topics hold, and drain them.

    Raises:
        HeadraceError: a task failed.
    """
    with site.open_worker(planned, bounds) as worker:
        tasks = planned.tasks()

        def look(_: object) -> None:
            if len(worker.slots()) == len(tasks) and all(_has_read(site.log, worker, bounds)):
                host.stop()

        host = Host(worker, site.clock, site.settings, look, lambda failure: None)
        host.run()


def _has_read(log: Log, worker: Worker, bounds: Bounds) -> Iterator[bool]:
    for slot in worker.slots():
        task = slot.task
        if task is None or slot.phase is not Phase.RUNNING or slot.unsent or slot.parked or task.closing:
            yield False
            return
        yield not task.outbox.waiting
        for partition, reader in slot.readers.items():
            left = bounds.left(partition, reader.position)
            yield (reader.position >= log.end_offset(partition)) if left is None else not left


def _check_read(site: Site, moves: Moves) -> None:
    """Refuse to give an internal topic more partitions that still holds records.

    Raises:
        InvalidError: it does.
    """
    for manifest in newest(site.checkpoints):
        for name, position in manifest.positions.items():
            partition = partition_of(name)
            width = moves.internal.get(partition.topic)
            if width is not None and partition.partition < width.before and site.log.end_offset(partition) > position:
                left = count_records(site.log, partition, position)
                if left:
                    raise InvalidError(
                        f"internal partition {partition} holds {left} records that no checkpoint contains",
                        remedy="Run headrace rescale once more; if this stays, run the topology and stop it again",
                    )


# --- moving


def _move(site: Site, moves: Moves, sub: SubTopology) -> int:
    """Write the checkpoints of all tasks of ``sub``, and return how many there are."""
    bases = _bases(site, moves, sub)
    shutil.rmtree(site.home, ignore_errors=True)
    site.home.mkdir(parents=True)
    try:
        with ExitStack() as stack:
            stores = {p: stack.enter_context(_opened(site, base, site.home / f"old-{p}")) for p, base in bases.items()}
            metas = {p: read_meta(s.get(META_KEY), TaskId(sub.name, p)) for p, s in stores.items()}
            starts = {p: site.log.start_offset(p) for task in sub.tasks() for p in sub.owns(task.partition)}
            steps = widths(moves.new, sub, map(kept_in, bases.values()))
            splitting = Splitting(moves.new, sub, steps, metas, frozenset(moves.grown), starts, site.log.hash_key)
            snapshots = _split(site, splitting, sub, stores)
        return _save(site, moves, sub, splitting, snapshots, frozenset(bases))
    finally:
        shutil.rmtree(site.home, ignore_errors=True)


def _bases(site: Site, moves: Moves, sub: SubTopology) -> dict[int, Manifest]:
    """Return the newest checkpoint of each task that was made for the partitions of before."""
    found: dict[int, Manifest] = {}
    for task in site.checkpoints.tasks():
        for manifest in reversed(site.checkpoints.manifests(task)):
            kept = kept_in(manifest)
            if kept.subtopology != sub.name or not kept.positions:
                continue
            known = {item["topic"]: item["partitions"] for item in kept.inputs}
            if all(known.get(topic, width.before) == width.before for topic, width in moves.grown.items()):
                found[int(task.rpartition("-")[2])] = manifest
                break
    return found


@contextmanager
def _opened(site: Site, manifest: Manifest, directory: Path) -> Iterator[Store]:
    site.checkpoints.restore(manifest, directory)
    store = site.stores.open(directory)
    try:
        yield store
    finally:
        store.close()


def _split(site: Site, splitting: Splitting, sub: SubTopology, stores: Mapping[int, Store]) -> dict[int, Path]:
    """Make the stores of all tasks, and return snapshots of them."""
    partitions = range(sub.partitions)
    snapshots = {p: site.home / f"snapshot-{p}" for p in partitions}
    with ExitStack() as stack:
        goals = {p: stack.enter_context(closing(site.stores.open(site.home / f"new-{p}"))) for p in partitions}
        split(splitting, stores, goals)
        for p, goal in goals.items():
            goal.snapshot(snapshots[p])
    return snapshots


def _save(
    site: Site, moves: Moves, sub: SubTopology, splitting: Splitting, snapshots: Mapping[int, Path], old: frozenset[int]
) -> int:
    saved: list[Manifest] = []
    with _holding(site, sub) as (membership, leases):
        for p in sorted(snapshots, key=lambda p: (p in old, p)):
            membership.heartbeat()
            task = str(TaskId(sub.name, p))
            meta = splitting.meta(p)
            positions = {name: kept[0] for name, kept in meta["inputs"].items()}
            shape = described(moves.new, sub, meta["shapes"])
            read = {partition_of(name).topic for name in positions}
            topics = ids_of(read, site.log.layout(read))
            info = {"finished": -1, "log": site.log.identity, "shape": shape, "topics": topics}
            base = site.checkpoints.newest(task)
            claimed = site.checkpoints.claim(task, leases[task].epoch, base, site.clock.now_ms())
            saved.append(site.checkpoints.save(claimed, snapshots[p], positions, info, site.clock.now_ms()))
            owned = [partition for partition in sub.owns(p) if str(partition) in positions]
            membership.commit(leases[task], {partition: Committed(positions[str(partition)]) for partition in owned})
        for manifest in saved:
            # Nobody may fall back to what was made for other partitions.
            site.checkpoints.prune(manifest, keep=1)
    return len(saved)


@contextmanager
def _holding(site: Site, sub: SubTopology) -> Iterator[tuple[Membership, Mapping[str, Lease]]]:
    """Hold all tasks of a sub-topology, so that nobody else runs them."""
    units = {str(task): sub.owns(task.partition) for task in sub.tasks()}
    membership = site.group.join(_MEMBER, units, assign, session_timeout_ms=site.settings.session_timeout_ms)
    try:
        until_ms = site.clock.monotonic_ms() + site.settings.session_timeout_ms
        while not units.keys() <= (leases := membership.poll().leases).keys():
            if site.clock.monotonic_ms() > until_ms:
                raise RetriableError("a worker has begun to run the topology", remedy="Stop it, and try again")
            membership.heartbeat()
            site.clock.sleep_ms(_POLL_MS)
        yield membership, leases
    finally:
        membership.leave()
