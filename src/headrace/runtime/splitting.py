"""What several tasks kept, as other tasks are to have it: state by the partitions that its keys have now. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgpack

from headrace.errors import InvalidError, TopologyError
from headrace.operators.layouts import ByKey, Layout, Numbers, Place, Waiting, Whole, layouts
from headrace.record import TopicPartition
from headrace.runtime.tasks.edges import DEFAULT_HASH, Hash
from headrace.runtime.tasks.meta import META_KEY, WITHOUT_OUTBOX
from headrace.runtime.tasks.outbox import KEPT
from headrace.state.api import Store, WriteBatch
from headrace.state.keys import TIME_WIDTH, decode_time, encode_time, store_prefix
from headrace.topology.change import Widths
from headrace.topology.graph import Step
from headrace.topology.plan import Plan, SubTopology, TaskId

Metas = Mapping[int, Mapping[str, Any]]
"""What each task kept beside its rows, by partition; see ``runtime.tasks.meta``."""

Single = tuple[str, bytes]
"""A part of a step, and a row in it that is about the whole task."""

_PREFIX_BYTES = 2
_BATCH_ROWS = 4096


class Splitting:
    """How the rows of a sub-topology's tasks are moved.

    Args:
        plan: The plan that the rows are moved for.
        sub: The sub-topology in it.
        widths: For each step, how many partitions its keys had and have.
        metas: What the tasks kept.
        grown: The topics that have more partitions now; of the internal ones, every record was read.
        starts: Where each input partition begins that no task has read yet.
        hash_key: By whose remainder the log puts keys into partitions.

    Raises:
        TopologyError: a step keeps what cannot be split by key.
    """

    def __init__(
        self,
        plan: Plan,
        sub: SubTopology,
        widths: Mapping[str, Widths],
        metas: Metas,
        grown: Collection[str],
        starts: Mapping[TopicPartition, int],
        hash_key: Hash = DEFAULT_HASH,
    ) -> None:
        self._plan = plan
        self._sub = sub
        self._widths = widths
        self._metas = metas
        self._grown = grown
        self._starts = starts
        self._hash_key = hash_key
        self._layouts: dict[str, Mapping[str, Layout]] = {}
        for node in sub.nodes:
            if isinstance(node, Step) and node.spec.stateful:
                found = layouts(node.spec)
                if found is None and self._moves(node.name):
                    raise TopologyError(
                        f"the state of step {node.name!r} ({node.spec.kind}) cannot be split by key ({node.location})",
                        remedy=f"Let it begin empty instead: headrace run --allow-reset {node.name}",
                    )
                self._layouts[node.name] = found or {}
        names = dict.fromkeys(name for meta in metas.values() for name in meta.get("stores", {}))
        self._numbers = {name: number for number, name in enumerate(names, 1)}
        self._over: dict[tuple[int, str, Place], int] = {}

    def rows(self, task: int, rows: Iterable[tuple[bytes, bytes]]) -> Iterator[tuple[int, bytes, bytes]]:
        """Yield the rows of a task, each with the partition that it goes to.

        Rows of steps that are gone, and those that ``singles`` merges, are left out.

        Args:
            task: The partition of the task that has them.
            rows: All its rows, in order.

        Raises:
            InvalidError: a row is not where its key belongs.
        """
        names = {store_prefix(number): name for name, number in self._metas[task].get("stores", {}).items()}
        for key, value in rows:
            name = names.get(key[:_PREFIX_BYTES])
            if name is None:
                if key.startswith(KEPT):
                    yield task, key, value  # it was sent, and its own task may send it again
                continue
            step, _, part = name.partition("/")
            row, prefix = key[_PREFIX_BYTES:], store_prefix(self._numbers[name])
            layout = self._layouts.get(step, {}).get(part) if self._moves(step) else Whole()
            if isinstance(layout, ByKey):
                if not self._is_over(task, step, row, layout.over_before):
                    yield self._goal(task, step, layout.record_key(row)), prefix + row, value
            elif isinstance(layout, Waiting):
                if not self._is_over(task, step, row, layout.over_before):
                    numbered = row[: 2 * TIME_WIDTH] + self._spaced(row[2 * TIME_WIDTH :], task)
                    yield self._goal(task, step, layout.record_key(value)), prefix + numbered, value
            elif isinstance(layout, Whole) and step in self._layouts:
                yield task, prefix + row, value

    def single_keys(self, task: int) -> dict[Single, bytes]:
        """Return the keys of the rows of a task that are about all of it, and that ``singles`` merges."""
        stores = self._metas[task].get("stores", {})
        return {
            single: store_prefix(stores[single[0]]) + single[1] for single in self._singles() if single[0] in stores
        }

    def singles(self, rows: Mapping[int, Mapping[Single, bytes]]) -> list[tuple[bytes, bytes]]:
        """Return the rows that every task has, made of those that ``single_keys`` names.

        Args:
            rows: Their values, by the partition of the task.
        """
        made = []
        for single, layout in self._singles().items():
            name, row = single
            found = [rows[task].get(single) for task in self._metas if name in self._metas[task].get("stores", {})]
            values = [value for value in found if value is not None]
            merge = layout.merges[row]
            # Who has none has not begun, which is before every time.
            if values and (merge is max or len(values) == len(found)):
                value = merge(values)
                if row == layout.spaced:
                    value = encode_time((decode_time(value) + 1) * (max(self._metas) + 1))
                made.append((store_prefix(self._numbers[name]) + row, value))
        for task, kept in rows.items():
            for (name, row), value in kept.items():
                step, _, part = name.partition("/")
                self._over[task, step, Place(part, row)] = decode_time(value)
        return made

    def meta(self, partition: int) -> dict[str, Any]:
        """Return what the task of ``partition`` has to know beside its rows.

        It goes on where the task of that name was, in its inputs and outputs. As it gets keys of all tasks, event time
        is where the slowest of them has it.
        """
        own = self._metas.get(partition, {})
        metas = list(self._metas.values())
        least = _least([meta.get("times", {}) for meta in metas])
        inputs = own.get("inputs", {}) | {
            str(p): found for p in self._sub.owns(partition) if (found := self._input(p, own)) is not None
        }
        return {
            "format": own.get("format", WITHOUT_OUTBOX),
            "task": str(TaskId(self._sub.name, partition)),
            "stores": self._numbers,
            "times": own.get("times", {}) | {step: time for step, time in least.items() if self._moves(step)},
            "end": -1,
            "closing": None,
            "shapes": merged_shapes([meta["shapes"] for meta in metas]),
            "sequences": own.get("sequences", {}),
            "inputs": inputs,
        }

    def _moves(self, step: str) -> bool:
        widths = self._widths.get(step)
        return widths is not None and widths.before != widths.now

    def _singles(self) -> dict[Single, Numbers]:
        return {
            (f"{step}/{part}", row): layout
            for step, parts in self._layouts.items()
            for part, layout in parts.items()
            if isinstance(layout, Numbers) and self._moves(step) and f"{step}/{part}" in self._numbers
            for row in layout.merges
        }

    def _is_over(self, task: int, step: str, row: bytes, place: Place | None) -> bool:
        return place is not None and decode_time(row, TIME_WIDTH) < self._over.get((task, step, place), 0)

    def _spaced(self, number: bytes, task: int) -> bytes:
        return encode_time(decode_time(number) * (max(self._metas) + 1) + task)

    def _goal(self, task: int, step: str, key: bytes) -> int:
        hashed = self._hash_key(key)
        widths = self._widths[step]
        if hashed % widths.before != task:
            raise InvalidError(
                f"step {step!r} of task {TaskId(self._sub.name, task)} keeps state of a key that belongs to partition "
                f"{hashed % widths.before} of {widths.before}: records were put into partitions in another way",
                remedy="Stop the topology before its topics grow. Now, the step can only begin empty: "
                f"headrace run --allow-reset {step}",
            )
        return hashed % widths.now

    def _input(self, partition: TopicPartition, own: Mapping[str, Any]) -> list[Any] | None:
        """Return where an input of a topic that grew is: its own position, the least time, and all that was seen."""
        if partition.topic not in self._grown:
            return None
        kept = [
            item
            for meta in self._metas.values()
            for name, item in meta.get("inputs", {}).items()
            if name.rpartition("/")[0] == partition.topic
        ]
        if not kept:
            return None
        mine = own.get("inputs", {}).get(str(partition))
        seen: dict[str, int] = {}
        for _, _, highest in kept:
            seen |= {source: max(number, seen.get(source, -1)) for source, number in highest.items()}
        return [self._starts[partition] if mine is None else mine[0], _least_time([time for _, time, _ in kept]), seen]


def split(splitting: Splitting, stores: Mapping[int, Store], goals: Mapping[int, Store]) -> None:
    """Put the rows of the tasks of before into the empty stores of the tasks of now.

    Args:
        splitting: Says what goes where.
        stores: Of the tasks of before, by partition.
        goals: Of the tasks of now.

    Raises:
        InvalidError: a row is not where its key belongs.
        RetriableError: the disk is full.
    """
    singles: dict[int, dict[Single, bytes]] = {}
    for task, store in stores.items():
        found = {name: store.get(key) for name, key in splitting.single_keys(task).items()}
        singles[task] = {name: value for name, value in found.items() if value is not None}
    everywhere = splitting.singles(singles)
    batches = {goal: WriteBatch.of(everywhere) for goal in goals}
    for task, store in stores.items():
        for goal, key, value in splitting.rows(task, store.scan(b"")):
            batches[goal].put(key, value)
            if len(batches[goal].keys) >= _BATCH_ROWS:
                goals[goal].write(batches[goal])
                batches[goal] = WriteBatch()
    for goal, batch in batches.items():
        batch.put(META_KEY, msgpack.packb(splitting.meta(goal)))
        goals[goal].write(batch)


def merged_shapes(shapes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the shapes of steps whose rows come from several tasks: what may be stored in any of them.

    Example:
        >>> merged_shapes([{"p": {"version": 2, "type": "int"}}, {"p": {"version": 2, "since": 1, "type": "int"}}])
        {'p': {'version': 2, 'type': 'int', 'since': 1}}
    """
    merged: dict[str, Any] = {}
    for one in shapes:
        merged = {**one, **{name: _both(shape, one[name]) if name in one else shape for name, shape in merged.items()}}
    return merged


def _both(shape: Any, other: Any) -> Any:
    """Return what covers two shapes that the same step, or part of one, had."""
    if not isinstance(shape, dict) or not isinstance(other, dict):
        return shape
    if "version" not in shape or "version" not in other:
        return {**other, **{name: _both(part, other.get(name, part)) for name, part in shape.items()}}
    newer, older = (shape, other) if shape["version"] >= other["version"] else (other, shape)
    since = min(int(one.get("since") or one["version"]) for one in (shape, other))
    same = newer["version"] == older["version"]
    written = [kind for one in (newer, older)[: 1 + same] for kind in one.get("written", [one.get("type")])]
    kinds = [kind for place, kind in enumerate(written) if kind not in written[:place]]
    merged = newer | ({"since": since} if since < newer["version"] else {})
    return merged | ({"written": kinds} if len(kinds) > 1 else {})


def _least(times: Iterable[Mapping[str, int]]) -> dict[str, int]:
    least: dict[str, int] = {}
    for one in times:
        least |= {name: min(time, least.get(name, time)) for name, time in one.items()}
    return least


def _least_time(times: Sequence[Any]) -> list[Any]:
    """Return the event time of an input that is no further than any of several; see ``runtime.tasks.watermarks``."""
    watermark = min(time[0] for time in times)
    if len(times[0]) == 1:
        return [watermark]
    progress: dict[str, list[Any]] = {}
    for _, writers in times:
        for name, (mark, idle, end) in writers.items():
            known = progress.get(name, [mark, idle, end])
            progress[name] = [min(mark, known[0]), idle and known[1], min(end, known[2])]
    return [watermark, progress]
