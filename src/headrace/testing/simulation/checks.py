"""What must hold at every moment of a simulated run. It watches every change of the log, the group and the objects."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgpack

from headrace.checkpoint.manifest import Manifest, decode, manifest_number
from headrace.checkpoint.store import new_checksum
from headrace.errors import CorruptError
from headrace.log.api import Committed, Lease
from headrace.log.groups import NOBODY, GroupState
from headrace.record import RecordBatch, TopicPartition
from headrace.state.keys import store_prefix
from headrace.state.memory import decode_snapshot
from headrace.testing.simulation.objects import SharedObjects
from headrace.testing.simulation.scenario import Scenario

_META = store_prefix(0) + b"task"

Row = tuple[bytes | None, bytes | None, int, Any]
"""Key, value, timestamp and headers of a record."""


class Checks:
    """Watches one run.

    Args:
        scenario: What runs.
        objects: The checkpoint store.
        violated: Is told the name of the check and what is wrong.
    """

    def __init__(self, scenario: Scenario, objects: SharedObjects, violated: Callable[[str, str], None]) -> None:
        self.checkpoints = 0
        """How many manifests were written."""
        self.edges: dict[str, dict[int, Row]] = {}
        """All that was ever appended by deterministic edges, by source and position."""
        self.copies = 0
        """How many copies of other tasks' state were ready."""
        self.rotten: set[str] = set()
        """The objects of checkpoints that were damaged or lost."""
        self._went_back: set[str] = set()
        self._copied: frozenset[object] = frozenset()
        self._weak = scenario.weak
        self._objects = objects
        self._violated = violated
        self._holders: dict[tuple[str, int], int] = {}
        self._epochs: dict[str, int] = {}
        self._writers: dict[tuple[str, int], str] = {}
        self._live: dict[str, list[Manifest]] = {}
        """The last manifests of each task, oldest first; without those that an overtaken owner wrote."""

    def newest(self, task: str) -> Manifest | None:
        """Return the manifest of a task that counts."""
        live = self._live.get(task)
        return live[-1] if live else None

    def rows_of(self, manifest: Manifest) -> dict[bytes, bytes]:
        """Return the rows of a checkpoint that say something.

        The task's own row speaks of positions; rows without a value are notes of when to look at a key, which may stay
        when there is nothing to look for any more.
        """
        rows: dict[bytes, bytes] = {}
        for ref in manifest.files:
            if not ref.name.startswith("00-") and ref.object not in self.rotten:
                data = self._objects.rows.get(ref.object)
                rows.update({} if data is None else decode_snapshot(data, ref.object))
        return {key: value for key, value in rows.items() if value}

    # --- damage

    def damaged(self, task: str, path: str) -> None:
        """Learn that an object of the newest checkpoint of a task was damaged: it may go back to the one before."""
        self.rotten.add(path)
        self._went_back.add(task)

    def passed_over(self, task: str, number: int) -> None:
        """Learn that the manifest of a checkpoint was damaged: whoever comes next goes on from the one before."""
        self._went_back.add(task)
        self._live[task] = [manifest for manifest in self._live.get(task, []) if manifest.number != number]

    # --- the log and the group

    def appended(self, partition: TopicPartition, batch: RecordBatch, by: str) -> None:
        """Compare what comes again with what came before under the same id."""
        origin = batch.origin
        if batch.control or origin is None or origin.source.split("/")[1] in self._weak:
            return
        edge = f"{partition.topic}|{origin.source}"
        known = self.edges.setdefault(edge, {})
        headers = batch.headers or [()] * len(batch)
        for position, key, value, timestamp, head in zip(
            origin.positions, batch.keys, batch.values.split(), batch.timestamps, headers, strict=True
        ):
            row = (key, value, timestamp, head)
            before = known.setdefault(position, row)
            if before != row:
                self._violated(
                    "repeats are the same",
                    f"{by} wrote {origin.source}/{position} to {partition} again with other content: "
                    f"{_told(before)} was there, {_told(row)} came",
                )

    def leased(self, state: GroupState) -> None:
        """Look whether each unit has one owner per epoch, and epochs grow."""
        self.copies += len(state.copies - self._copied)
        self._copied = state.copies
        for unit, lease in state.leases.items():
            if lease.holder != NOBODY:
                holder = self._holders.setdefault((unit, lease.epoch), lease.holder)
                if holder != lease.holder:
                    self._violated(
                        "one owner per epoch",
                        f"members {holder} and {lease.holder} both hold {unit} under epoch {lease.epoch}",
                    )
            if lease.epoch < self._epochs.get(unit, 0):
                self._violated("epochs grow", f"the epoch of {unit} went from {self._epochs[unit]} to {lease.epoch}")
            self._epochs[unit] = lease.epoch

    def committed(self, lease: Lease, offsets: Mapping[TopicPartition, Committed], by: str) -> None:
        """Look whether no offset was committed beyond the newest checkpoint."""
        newest = self.newest(lease.unit)
        positions = {} if newest is None else newest.positions
        for partition, committed in offsets.items():
            if committed.offset > positions.get(str(partition), 0):
                self._violated(
                    "offsets follow checkpoints",
                    f"{by} committed offset {committed.offset} of {partition} for {lease.unit}, whose newest "
                    f"checkpoint stands at {positions.get(str(partition), 0)}",
                )

    # --- the checkpoints

    def created(self, path: str, data: bytes, by: str) -> None:
        """Look at a new manifest."""
        if manifest_number(path) is None or "/manifests/" not in path:
            return
        try:
            manifest = decode(data, path)
        except CorruptError as error:
            self._violated("manifests are whole", f"{by} wrote {path}: {error}")
            return
        self.checkpoints += 1
        live = self._live.setdefault(manifest.task, [])
        before = live[-1] if live else None
        if before is not None and manifest.number < before.number:
            return  # an overtaken owner's, which counts for nothing
        owner = self._writers.setdefault((manifest.task, manifest.epoch), by)
        if owner != by:
            self._violated(
                "one owner per epoch",
                f"{owner} and {by} both wrote manifests of {manifest.task} under epoch {manifest.epoch}",
            )
        if before is not None:
            self._compare(before, manifest, by)
        live.append(manifest)
        claimed = before is not None and before.epoch < manifest.epoch
        if not claimed or self.rotten.isdisjoint(ref.object for ref in manifest.files):
            self._look_at_files(manifest, by)
        del live[:-2]

    def deleted(self, path: str) -> None:
        """Look whether nothing that counts names what is gone."""
        for live in self._live.values():
            for manifest in live:
                if any(ref.object == path for ref in manifest.files):
                    self._violated(
                        "checkpoints are whole",
                        f"{path} was deleted, which checkpoint {manifest.number} of {manifest.task} names",
                    )
        number = manifest_number(path) if "/manifests/" in path else None
        if number is not None:
            task = path.split("/")[1]
            live = self._live.get(task, [])
            if live and number == live[-1].number:
                self._violated("checkpoints stay", f"the newest checkpoint of {task}, {number}, was deleted")
            self._live[task] = [manifest for manifest in live if manifest.number != number]

    def missed(self, path: str, by: str) -> None:
        """Look whether what is not there is none of the files that a worker needs which owns the task."""
        for task, live in self._live.items():
            newest = live[-1] if live else None
            if newest is None or path in self.rotten or self._writers.get((task, newest.epoch)) != by:
                continue
            if any(ref.object == path for ref in newest.files):
                self._violated("restores find their files", f"{by} claimed {task}, but {path} is gone")

    def _compare(self, before: Manifest, manifest: Manifest, by: str) -> None:
        told = f"checkpoint {manifest.number} of {manifest.task} by {by}"
        if manifest.number == before.number:
            self._violated("each number once", f"{told} was written twice")
        if manifest.epoch < before.epoch:
            self._violated("epochs grow", f"{told} has epoch {manifest.epoch} after {before.epoch}")
        for partition, position in before.positions.items():
            if manifest.task in self._went_back:
                continue
            if manifest.positions.get(partition, 0) < position:
                self._violated(
                    "positions grow",
                    f"{told} goes back in {partition} from {position} to {manifest.positions.get(partition, 0)}",
                )

    def _look_at_files(self, manifest: Manifest, by: str) -> None:
        told = f"checkpoint {manifest.number} of {manifest.task} by {by}"
        found = None
        for ref in manifest.files:
            data = self._objects.rows.get(ref.object)
            if data is None:
                self._violated("checkpoints are whole", f"{told} names {ref.object}, which is not there")
            elif len(data) != ref.size or checksum(data) != ref.checksum:
                self._violated("checkpoints are whole", f"{told} names {ref.object}, which has other bytes")
            elif ref.name.startswith("00-"):
                found = decode_snapshot(data, ref.object).get(_META)
        if not manifest.files:
            return
        if found is None:
            self._violated("state and positions agree", f"{told} holds no row of the task")
            return
        inputs = {partition: kept[0] for partition, kept in msgpack.unpackb(found)["inputs"].items()}
        if inputs != manifest.positions:
            self._violated(
                "state and positions agree",
                f"{told} says positions {manifest.positions}, the state in it {inputs}",
            )


def _told(row: Row) -> str:
    return f"({row[0]!r}, {row[1]!r}, {row[2]})"


def checksum(data: bytes) -> str:
    """Return the checksum by which manifests know files."""
    digest = new_checksum()
    digest.update(data)
    return digest.hexdigest()
