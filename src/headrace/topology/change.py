"""What a deploy does to the state that checkpoints keep. Pure.

Every checkpoint keeps, beside the state itself, what the state depends on (``described``). ``compare`` holds that
against a plan, and says of every step, task and topic what becomes of it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

from headrace.errors import TopologyError
from headrace.operators.stored import stored_shape
from headrace.serde.evolution import unreadable
from headrace.topology.copartition import keeps_keys
from headrace.topology.graph import Location, Repartition, Source, Step
from headrace.topology.plan import Input, Plan, SubTopology, topics_above
from headrace.topology.shapes import followed, migrates

VERSION = 1
"""Version of what ``described`` returns."""


class Verdict(StrEnum):
    """What becomes of a step, a topic or the tasks of a sub-topology."""

    KEEP = "KEEP"
    """It goes on where it was."""
    MIGRATE = "MIGRATE"
    """The same, and stored values are brought to a higher version as they are read."""
    NEW = "NEW"
    """It was not there before, and begins empty."""
    GONE = "GONE"
    """It was there before, and nothing is lost with it."""
    RESCALE = "RESCALE"
    """Its keys have other partitions now, and their state must be moved before it can go on."""
    RESET = "RESET"
    """What was kept would be lost."""
    UNKNOWN = "UNKNOWN"
    """The checkpoint does not say enough, and is looked at when the task is restored."""
    STATELESS = "-"
    """It keeps nothing."""


_LOSING = (Verdict.RESET, Verdict.RESCALE)


@dataclass(frozen=True, slots=True)
class Kept:
    """What the newest checkpoint of a task says."""

    task: str
    shape: Mapping[str, Any] | None
    """What ``described`` returned; None if the checkpoint is older than that."""
    positions: Mapping[str, int]
    """``topic/partition`` and the next offset to read."""

    @property
    def subtopology(self) -> str:
        """Return the name of the task's sub-topology."""
        return self.task.rpartition("-")[0]

    @property
    def steps(self) -> Mapping[str, Any]:
        """Return the steps that have state in it, by name."""
        steps: Mapping[str, Any] = {} if self.shape is None else self.shape["steps"]
        return steps

    @property
    def inputs(self) -> Sequence[Mapping[str, Any]]:
        """Return what the task read."""
        inputs: Sequence[Mapping[str, Any]] = [] if self.shape is None else self.shape["inputs"]
        return inputs


@dataclass(frozen=True, slots=True)
class StepChange:
    """What becomes of a step."""

    step: str
    kind: str
    subtopology: str
    verdict: Verdict
    detail: str
    location: str
    """The user's line; empty for a step that is gone."""


@dataclass(frozen=True, slots=True)
class TaskChange:
    """What becomes of the tasks of a sub-topology."""

    subtopology: str
    verdict: Verdict
    before: int
    now: int
    detail: str


@dataclass(frozen=True, slots=True)
class TopicChange:
    """What becomes of a topic that is read."""

    topic: str
    name: str
    """Of the source or the repartition."""
    internal: bool
    verdict: Verdict
    before: int | None
    """Partitions."""
    now: int | None
    detail: str
    allowable: bool = True
    """Whether what is lost can be given up by the name."""


@dataclass(frozen=True, slots=True)
class Loss:
    """Something that a deploy would lose."""

    name: str
    """Of the step, the source or the repartition."""
    told: str
    location: str
    rescalable: bool
    """True if the state could be moved instead."""
    allowable: bool


@dataclass(frozen=True, slots=True)
class Change:
    """What a deploy does."""

    topology: str
    first: bool
    """True if there are no checkpoints."""
    steps: tuple[StepChange, ...]
    tasks: tuple[TaskChange, ...]
    topics: tuple[TopicChange, ...]

    def losses(self, allowed: Collection[str] = ()) -> list[Loss]:
        """Return what would be lost, apart from what may be: ``allowed`` names steps."""
        lost = [
            Loss(s.step, _told(s), s.location, s.verdict is Verdict.RESCALE, True)
            for s in self.steps
            if s.verdict in _LOSING
        ]
        lost += [
            Loss(t.name, f"topic {t.topic!r}: {t.detail}", "", False, t.allowable)
            for t in self.topics
            if t.verdict is Verdict.RESET
        ]
        return [loss for loss in lost if not (loss.allowable and loss.name in allowed)]


class Widths(NamedTuple):
    """By how many partitions the keys of a step are split."""

    before: int
    now: int


def widths(plan: Plan, sub: SubTopology, kept: Iterable[Kept]) -> dict[str, Widths]:
    """Return by how many partitions the state of each step of ``sub`` is split, and its keys now."""
    known = list(kept)
    found: dict[str, Widths] = {}
    for node in sub.nodes:
        entries = _entries(plan, sub, node) if isinstance(node, Step) and node.spec.stateful else []
        topics = {entry.topic for entry in entries}
        before = [
            item["partitions"]
            for one in known
            if one.subtopology == sub.name and node.name in one.steps
            for item in one.inputs
            if item["topic"] in topics
        ]
        if before:
            found[node.name] = Widths(min(before), entries[0].partitions)
    return found


def _told(step: StepChange) -> str:
    name = f"step {step.step!r}"
    return step.detail if name in step.detail else f"{name}: {step.detail}"


def described(plan: Plan, sub: SubTopology, shapes: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the state of a task of ``sub`` depends on, as JSON, for its checkpoints.

    Args:
        plan: The plan.
        sub: The sub-topology.
        shapes: The shapes of its steps as the checkpoint keeps them.
    """
    kinds = {node.name: node.spec.kind for node in sub.nodes if isinstance(node, Step)}
    return {
        "version": VERSION,
        "steps": {name: {"kind": kinds[name], "shape": shape} for name, shape in shapes.items()},
        "inputs": [_described_input(plan, item) for item in sub.inputs],
        "outbox": sorted(node.name for node in sub.nodes if node.name in plan.outbox),
    }


def read(shape: Any) -> Mapping[str, Any] | None:
    """Return what ``described`` wrote, or None if it is not there or was written by a later version.

    Example:
        >>> read({"version": 99}), read(None)
        (None, None)
    """
    known = isinstance(shape, dict) and shape.get("version") == VERSION
    return shape if known else None


def compare(plan: Plan, kept: Iterable[Kept], unread: Mapping[str, int] | None = None) -> Change:
    """Say what becomes of what was kept when ``plan`` is deployed.

    Args:
        plan: What would run.
        kept: The newest checkpoint of every task; tasks without positions have not run yet.
        unread: How many records nobody has read in each topic that ``abandoned`` names.
    """
    known = [one for one in kept if one.positions]
    subs = {sub.name: sub for sub in plan.subtopologies}
    by_sub: dict[str, list[Kept]] = {name: [] for name in subs}
    for one in known:
        by_sub.setdefault(one.subtopology, []).append(one)
    steps: list[StepChange] = []
    for name, ones in by_sub.items():
        if name in subs:
            others = [one for one in known if one.subtopology != name]
            steps += [_step(plan, subs[name], n, ones, others) for n in subs[name].nodes if isinstance(n, Step)]
        steps += _gone(plan, subs.get(name), name, ones)
    hinted = tuple(_hinted(plan, step, steps, by_sub) for step in steps)
    tasks = tuple(_tasks(name, subs.get(name), ones) for name, ones in by_sub.items())
    return Change(plan.graph.name, not known, hinted, tasks, tuple(_topics(plan, known, unread or {})))


def to_reset(plan: Plan, kept: Kept, allowed: Collection[str]) -> frozenset[str]:
    """Return the steps whose state a task that is restored has to forget: what is lost, and may be.

    Args:
        plan: What runs.
        kept: What the task's checkpoint says.
        allowed: The names of the steps that may be reset.
    """
    lost = {step.step for step in compare(plan, [kept]).steps if step.verdict in _LOSING}
    return frozenset(lost.intersection(allowed, kept.steps))


def abandoned(plan: Plan, kept: Iterable[Kept]) -> dict[str, dict[str, int]]:
    """Return the internal topics whose unread records would be lost, each with the positions of those who read it.

    They are those that nobody reads any more, and those whose records are read as something else now.
    """
    found: dict[str, dict[str, int]] = {}
    for one in kept:
        for item in one.inputs:
            if item["internal"] and _why_unreadable(plan, item):
                positions = {p: n for p, n in one.positions.items() if _topic_of(p) == item["topic"]}
                found.setdefault(item["topic"], {}).update(positions)
    return found


# --- steps


def _step(plan: Plan, sub: SubTopology, node: Step, ones: Sequence[Kept], others: Sequence[Kept]) -> StepChange:
    def change(verdict: Verdict, detail: str = "") -> StepChange:
        return StepChange(node.name, node.spec.kind, sub.name, verdict, detail, _line(node.location))

    if not node.spec.stateful:
        return change(Verdict.STATELESS)
    own = [(one, one.steps[node.name]["shape"]) for one in ones if node.name in one.steps]
    if not own:
        homes = sorted({other.subtopology for other in others if node.name in other.steps})
        if homes:
            return change(Verdict.RESET, f"it would begin empty here: its state is that of sub-topology {homes[0]!r}")
        if any(one.shape is None for one in ones):
            return change(Verdict.UNKNOWN, "the checkpoint was written before shapes were kept")
        return change(Verdict.NEW)
    shape = node.spec.shape()
    faults = [fault for _, stored in own if (fault := _fault(node.name, stored, shape))]
    faults += _other_keys(plan, sub, node, [one for one, _ in own])
    if faults:
        return change(Verdict.RESET, "; ".join(dict.fromkeys(faults)))
    moved = _moved(plan, sub, node, [one for one, _ in own])
    if moved:
        return change(Verdict.RESCALE, moved)
    if any(migrates(stored, shape) for _, stored in own):
        return change(Verdict.MIGRATE, "stored values are brought to the new version as they are read")
    return change(Verdict.KEEP)


def _fault(name: str, stored: Mapping[str, Any], shape: Mapping[str, Any]) -> str:
    """Say why stored state cannot follow, and what would help; empty if it can."""
    try:
        followed(f"step {name!r}", stored, shape)
    except TopologyError as error:
        return f"{error.message}. {error.remedy}"
    return ""


def _entries(plan: Plan, sub: SubTopology, node: Step) -> list[Input]:
    """Return the inputs by whose keys a step keeps state."""
    if not keeps_keys(plan.graph, node):
        return []
    above = topics_above(plan.graph, sub, node)
    return [item for item in sub.inputs if item.topic in above and not item.broadcast]


def _other_keys(plan: Plan, sub: SubTopology, node: Step, ones: Sequence[Kept]) -> list[str]:
    """Say which inputs bring other keys now than those under which the state is kept."""
    faults = []
    for entry in _entries(plan, sub, node):
        now = _described_input(plan, entry)
        for before in (item for one in ones for item in one.inputs if item["name"] == entry.node):
            if before["key"] != now["key"]:
                faults.append(f"keys of {entry.node!r} were {before['key']} and are {now['key']}")
            elif before["by"] != now["by"] and before["by"] is not None and now["by"] is not None:
                faults.append(f"the key of {entry.node!r} was {before['by']!r} and is {now['by']!r}")
    return faults


def _moved(plan: Plan, sub: SubTopology, node: Step, ones: Sequence[Kept]) -> str:
    """Say which topic has more partitions than when the state was kept."""
    for entry in _entries(plan, sub, node):
        for before in (item for one in ones for item in one.inputs if item["topic"] == entry.topic):
            if before["partitions"] != entry.partitions:
                return (
                    f"topic {entry.topic!r} had {before['partitions']} partitions and has {entry.partitions}: "
                    "keys have another partition, where their state is not"
                )
    return ""


def _gone(plan: Plan, sub: SubTopology | None, name: str, ones: Sequence[Kept]) -> list[StepChange]:
    """Return the steps whose state nothing in the plan goes on with."""
    stateful = {n.name for n in plan.graph.nodes if isinstance(n, Step) and n.spec.stateful}
    here = {n.name for n in (() if sub is None else sub.nodes)}
    kinds = {step: kept["kind"] for one in ones for step, kept in one.steps.items() if step not in stateful}
    tasks = {step: sum(step in one.steps for one in ones) for step in kinds}
    return [
        StepChange(
            step, kind, name, Verdict.RESET,
            ("it keeps no state any more" if step in here else "it is not in the topology any more")
            + f", but {_count(tasks[step], 'task')} kept some",
            _line(plan.graph.by_name[step].location) if step in here else "",
        )
        for step, kind in kinds.items()
    ]  # fmt: skip


def _hinted(
    plan: Plan, change: StepChange, steps: Sequence[StepChange], by_sub: Mapping[str, Sequence[Kept]]
) -> StepChange:
    """Say of a step that is gone under which name it may have come back."""
    if change.verdict is not Verdict.RESET or change.location:
        return change
    new = [s for s in steps if s.verdict is Verdict.NEW and s.kind == change.kind]
    if len(new) != 1:
        return change
    node = plan.graph.by_name[new[0].step]
    assert isinstance(node, Step)
    shape = node.spec.shape()
    stored = [one.steps[change.step]["shape"] for one in by_sub[change.subtopology] if change.step in one.steps]
    hint = f"{new[0].step!r} ({new[0].location})"
    if any(_fault(node.name, one, shape) for one in stored):
        hint += " keeps other state and cannot go on with it"
    else:
        hint = f'if {hint} is the same step, give it name="{change.step}" to keep its state'
    return StepChange(change.step, change.kind, change.subtopology, change.verdict, f"{change.detail}; {hint}", "")


# --- tasks and topics


def _tasks(name: str, sub: SubTopology | None, ones: Sequence[Kept]) -> TaskChange:
    before, now = len(ones), 0 if sub is None else sub.partitions
    if not now:
        return TaskChange(name, Verdict.GONE, before, now, "their checkpoints stay where they are")
    if not before:
        return TaskChange(name, Verdict.NEW, before, now, "")
    widths = [item["partitions"] for one in ones for item in one.inputs if not item["broadcast"]]
    detail = f"{_count(now - max(widths), 'task')} more than before" if widths and now > max(widths) else ""
    return TaskChange(name, Verdict.KEEP, before, now, detail)


def _topics(plan: Plan, kept: Sequence[Kept], unread: Mapping[str, int]) -> list[TopicChange]:
    before = {item["topic"]: item for one in kept for item in one.inputs}
    readers: dict[str, set[str]] = {}
    for one in kept:
        for partition in one.positions:
            readers.setdefault(_topic_of(partition), set()).add(one.subtopology)
    reading = {(sub.name, item.topic) for sub in plan.subtopologies for item in sub.inputs}
    found = []
    for sub in plan.subtopologies:
        for item in sub.inputs:
            by = readers.get(item.topic, set())
            left = sorted(name for name in by if sub.name not in by and (name, item.topic) not in reading)
            found.append(_topic(plan, item, before.get(item.topic), bool(by), left, unread.get(item.topic, 0)))
    names = {change.topic for change in found}
    gone = [kept_item for topic, kept_item in before.items() if topic not in names]
    return found + [_gone_topic(kept_item, unread.get(kept_item["topic"], 0)) for kept_item in gone]


def _topic(
    plan: Plan, item: Input, before: Mapping[str, Any] | None, was_read: bool, left: Sequence[str], unread: int
) -> TopicChange:
    width = None if before is None else before["partitions"]

    def change(verdict: Verdict, detail: str = "", *, allowable: bool = True) -> TopicChange:
        internal = bool(item.upstream)
        return TopicChange(item.topic, item.node, internal, verdict, width, item.partitions, detail, allowable)

    if not was_read:
        return change(Verdict.NEW)
    if left and not item.broadcast:
        return change(
            Verdict.RESET, f"it would be read again from its start: sub-topology {left[0]!r} knows how far it was read"
        )
    if width is not None and item.partitions < width:
        detail = f"it had {width} partitions and has {item.partitions}: it is not the topic that was read"
        return change(Verdict.RESET, detail, allowable=False)
    why = None if before is None else _why_unreadable(plan, before)
    if why and unread:
        return change(Verdict.RESET, f"{why}, and {_count(unread, 'record')} in it cannot be read", allowable=False)
    return change(Verdict.KEEP, why or "")


def _gone_topic(item: Mapping[str, Any], unread: int) -> TopicChange:
    verdict, detail = Verdict.GONE, "it is not read any more"
    if unread:
        verdict, detail = Verdict.RESET, f"{detail}, and {_count(unread, 'record')} in it were not read yet"
    return TopicChange(item["topic"], item["name"], item["internal"], verdict, item["partitions"], None, detail)


def _why_unreadable(plan: Plan, before: Mapping[str, Any]) -> str:
    """Say why records that were written to an internal topic will not be read as they were meant; empty if they are."""
    now = next((i for sub in plan.subtopologies for i in sub.inputs if i.topic == before["topic"]), None)
    if now is None:
        return "it is not read any more"
    item = _described_input(plan, now)
    if before["key"] != item["key"]:
        return f"keys in it were {before['key']} and are {item['key']}"
    old, new = before["value"], item["value"]
    if old["format"] != new["format"]:
        return f"values in it were {old['format']} and are {new['format']}"
    faults = unreadable(old["type"], new["type"])
    return f"values in it have another type: {'; '.join(faults)}" if faults else ""


def _described_input(plan: Plan, item: Input) -> dict[str, Any]:
    node = plan.graph.by_name[item.node]
    assert isinstance(node, Source | Repartition)
    by = node.keyed_by if isinstance(node, Source) else node.selector
    return {
        "name": item.node,
        "topic": item.topic,
        "partitions": item.partitions,
        "internal": bool(item.upstream),
        "broadcast": item.broadcast,
        "key": node.key.name,
        "by": by if isinstance(by, str) else None,
        "value": stored_shape(node.value),
    }


def _topic_of(partition: str) -> str:
    return partition.rpartition("/")[0]


def _line(location: Location) -> str:
    return str(location) if location.file else ""


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"
