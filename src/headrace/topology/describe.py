"""Drawing a plan as text, as Mermaid and as JSON. Pure.

All three say the same: the sub-topologies and their tasks, what they read, the steps, what state these hold, what
they do with records that fail, where the results go, and for every edge whether a replay after a crash repeats it
position by position (deterministic), what a checkpoint contains leaves as it stands there (outbox), and so that who
reads only what is committed sees no repeats (transactional), or a replay may write something else (at-least-once), and
why.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from headrace.operators.aggregation import WindowedAggregate
from headrace.operators.emission import Emission, Every, When
from headrace.operators.retrying import Retry, final_policy
from headrace.operators.selectors import selector_name
from headrace.topology.graph import Node, Repartition, Sink, Source, Step
from headrace.topology.plan import (
    AT_LEAST_ONCE,
    Input,
    Plan,
    SubTopology,
    at_least_once,
    by_outbox,
    internal_topic,
    written,
)

_DETERMINISTIC = "deterministic"
_OUTBOX = "outbox"
_TRANSACTIONAL = "transactional"
_AT_LEAST_ONCE = AT_LEAST_ONCE
_LONGEST = 60
_MEANINGS = {
    _DETERMINISTIC: "a replay after a crash writes the same records with the same ids (the header headrace-id)",
    _OUTBOX: "records leave with the checkpoint that contains them, after a crash the same again with the same ids",
    _TRANSACTIONAL: "records leave as from an outbox, in transactions: who reads only what is committed sees each once",
    _AT_LEAST_ONCE: "a replay may write them in another order, or others, so that a repeat may have another id",
}
_STYLES = {
    _OUTBOX: ("outbox", "stroke-width: 4px"),
    _TRANSACTIONAL: ("transactional", "stroke-width: 8px"),
    _AT_LEAST_ONCE: ("atLeastOnce", "stroke-dasharray: 5 5"),
}
_EMITTED = {"close": "at close", "update": "on update"}
_UNITS = ((86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1000, "s"), (1, "ms"))


def describe(plan: Plan) -> dict[str, Any]:
    """Return the plan as JSON-able data: sub-topologies with inputs, steps and outputs."""
    promises: dict[str, tuple[str, str | None]] = {
        name: (_AT_LEAST_ONCE, reason) for name, reason in at_least_once(plan).items()
    }
    reasons = by_outbox(plan)
    promises |= {name: (_OUTBOX, reason) for name, reason in reasons.items()}
    if plan.transactions:
        promises |= {sink.name: (_TRANSACTIONAL, reasons.get(sink.name)) for sink in plan.sinks()}
    return {
        "topology": plan.graph.name,
        "dead_letter_topic": plan.dead_letter_topic(),
        "subtopologies": [_sub(plan, sub, promises) for sub in plan.subtopologies],
    }


def describe_json(plan: Plan) -> str:
    """Return the plan as JSON."""
    return json.dumps(describe(plan), indent=2)


def describe_text(plan: Plan) -> str:
    """Return the plan as indented text."""
    described = describe(plan)
    lines = [f"topology {described['topology']}"]
    if described["dead_letter_topic"] is not None:
        lines.append(f"records that fail go to {described['dead_letter_topic']}{_waiting(plan)}")
    for sub in described["subtopologies"]:
        lines += ["", f"sub-topology {sub['name']}: {_count(sub['tasks'], 'task')}"]
        for item in sub["inputs"]:
            lines += _told(_input_line(item), item)
        for step in sub["steps"]:
            lines += _told(f"{step['kind']} <- {_after(step)}", step)
        for output in sub["outputs"]:
            lines += _told(_output_line(output), output)
    promised = {output["guarantee"] for sub in described["subtopologies"] for output in sub["outputs"]}
    meanings = [f"{promise}: {meaning}" for promise, meaning in _MEANINGS.items() if promise in promised]
    return "\n".join([*lines, "", *meanings])


def _waiting(plan: Plan) -> str:
    """Say whose dead letters leave through an outbox."""
    writers = [
        sub.name
        for sub in plan.subtopologies
        if sub.name in plan.waiting_letters and any(final_policy(node.on_error) == "dead-letter" for node in sub.nodes)
    ]
    return f", those of {' and '.join(writers)} through an outbox" if writers else ""


def describe_mermaid(plan: Plan) -> str:
    """Return the plan as a Mermaid flow chart, a sub-graph for every sub-topology.

    Topics are parallelograms, internal ones hexagons, steps boxes and their state cylinders. The arrow to a topic says
    what is guaranteed there, and the topic's border is broken where that is at-least-once, and thick where records wait
    in an outbox, very thick where they leave it in transactions.
    """
    described = describe(plan)
    ids = {node.name: f"n{i}" for i, node in enumerate(plan.graph.nodes)}
    lines = ["flowchart TD"]
    for number, sub in enumerate(described["subtopologies"]):
        lines.append(f'  subgraph s{number}["{sub["name"]} x {sub["tasks"]}"]')
        lines += [f"    {line}" for line in _mermaid_nodes(sub, ids)]
        lines.append("  end")
    styled: dict[str, list[str]] = {promise: [] for promise in _STYLES}
    for sub in described["subtopologies"]:
        for step in sub["steps"]:
            lines += [f"  {ids[node]} -->{_label(port)} {ids[step['name']]}" for node, port in step["after"]]
        for output in sub["outputs"]:
            told = output["guarantee"]
            lines += [f"  {ids[node]} -->{_label(port, told)} {ids[output['name']]}" for node, port in output["after"]]
            if told in styled:
                styled[told].append(ids[output["name"]])
    lines += _mermaid_dead_letters(plan)
    for promise, (name, style) in _STYLES.items():
        if styled[promise]:
            lines.append(f"  classDef {name} {style}")
            lines.append(f"  class {','.join(dict.fromkeys(styled[promise]))} {name}")
    return "\n".join(lines)


def state_of(shape: Mapping[str, Any]) -> str:
    """Say in words what stored state depends on.

    Example:
        >>> state_of({"windows": "session", "gap_ms": 1_800_000, "aggregates": [["n", "count"], ["low", "min"]]})
        'windows session, gap 30m, aggregates n (count) low (min)'
        >>> state_of({"within_ms": [0, 1000], "left": {"format": "Msgpack", "type": {"fields": {"a": "int"}}}})
        'within 0ms before and 1s after, left Msgpack (a)'
    """
    return ", ".join(_parts(shape))


def _parts(shape: Mapping[str, Any]) -> list[str]:
    parts = []
    if shape.get("windows") == "aligned":
        shape = _as_written(shape)
    for name, value in shape.items():
        if value is None or value is False or value == []:
            continue
        if name.endswith("_ms"):
            parts.append(f"{name.removesuffix('_ms').replace('_', ' ')} {_durations(value)}")
        elif name == "form":
            parts.append(str(value))
        else:
            parts.append(name if value is True else f"{name} {_said(value)}")
    return parts


def _as_written(shape: Mapping[str, Any]) -> dict[str, Any]:
    """Return the shape of aligned windows with the name of the function that makes such."""
    if shape.get("size_ms") != shape.get("every_ms"):
        return {**shape, "windows": "hopping"}
    return {name: "tumbling" if name == "windows" else value for name, value in shape.items() if name != "every_ms"}


def _sub(plan: Plan, sub: SubTopology, promises: Mapping[str, tuple[str, str | None]]) -> dict[str, Any]:
    return {
        "name": sub.name,
        "tasks": sub.partitions,
        "inputs": [_input(plan, item) for item in sub.inputs],
        "steps": [_step(node) for node in sub.nodes if isinstance(node, Step)],
        "outputs": [_output(plan, node, promises.get(node.name)) for node in written(sub)],
    }


def _input(plan: Plan, item: Input) -> dict[str, Any]:
    node = plan.graph.by_name[item.node]
    assert isinstance(node, Source | Repartition)
    keyed_by = node.keyed_by if isinstance(node, Source) else node.selector
    return {
        "name": node.name,
        "topic": item.topic,
        "partitions": item.partitions,
        "internal": bool(item.upstream),
        "kind": _kind(node),
        "broadcast": item.broadcast,
        "value": node.value.name,
        "keyed_by": None if keyed_by is None else selector_name(keyed_by),
        "on_error": policy_of(node),
    }


def _kind(node: Source | Repartition) -> str:
    if isinstance(node, Source) and node.table:
        return "global table" if node.broadcast else "table"
    return "stream"


def _step(node: Step) -> dict[str, Any]:
    return {
        "name": node.name,
        "kind": node.spec.kind,
        "after": [list(port) for port in node.inputs],
        "stateful": node.spec.stateful,
        **({"shape": node.spec.shape()} if node.spec.stateful else {}),
        **(_closing(node.spec) if isinstance(node.spec, WindowedAggregate) else {}),
        "processing_time": node.spec.uses_clock,
        "on_error": policy_of(node),
    }


def _closing(spec: WindowedAggregate) -> dict[str, Any]:
    return {"lateness_ms": spec.lateness_ms, "emit": _emission(spec.emit)}


def _emission(emit: Emission) -> str:
    if isinstance(emit, Every):
        return f"every {_duration(emit.interval_ms)}"
    return f"when {selector_name(emit.predicate)}" if isinstance(emit, When) else emit


def _output(plan: Plan, node: Sink | Repartition, promise: tuple[str, str | None] | None) -> dict[str, Any]:
    topic = internal_topic(plan.graph, node) if isinstance(node, Repartition) else node.topic
    guarantee, reason = promise or (_DETERMINISTIC, None)
    return {
        "name": node.name,
        "topic": topic,
        "partitions": plan.internal_topics()[topic] if isinstance(node, Repartition) else node.partitions,
        "internal": isinstance(node, Repartition),
        "value": node.value.name,
        "after": [list(port) for port in node.inputs],
        "guarantee": guarantee,
        "reason": reason,
        "on_error": policy_of(node),
    }


def policy_of(node: Node) -> str:
    """Say what a node does with records that it fails on."""
    policy = node.on_error
    if not isinstance(policy, Retry):
        return policy
    return f"retry to {policy.attempts} calls, then {final_policy(policy)}"


def _told(line: str, item: dict[str, Any]) -> Iterator[str]:
    """Yield the line of a node, and below it what is to be said about it."""
    yield f"  {line}  [{item['name']}]"
    if item.get("stateful"):
        state = state_of(item["shape"])
        yield f"      keeps state{': ' if state else ''}{state}"
    if "emit" in item:
        late = f", lateness {_duration(item['lateness_ms'])}" if item["lateness_ms"] else ""
        yield f"      emits {_EMITTED.get(item['emit'], item['emit'])}{late}"
    if item.get("processing_time"):
        yield "      acts on processing time"
    if "guarantee" in item:
        yield f"      {item['guarantee']}{': ' + item['reason'] if item['reason'] else ''}"
    if item["on_error"] != "stop":
        yield f"      on error: {item['on_error']}"


def _input_line(item: dict[str, Any]) -> str:
    partitions = _count(item["partitions"], "partition")
    if item["internal"]:
        return f"read internal {item['topic']} ({partitions})"
    kind = "" if item["kind"] == "stream" else f"{item['kind']} "
    everywhere = ", read whole by every task" if item["broadcast"] else ""
    keyed = f", keyed by {item['keyed_by']}" if item["keyed_by"] else ""
    return f"read {kind}{item['topic']} ({partitions}{everywhere}) as {item['value']}{keyed}"


def _output_line(output: dict[str, Any]) -> str:
    partitions = f" ({_count(output['partitions'], 'partition')})" if output["partitions"] else ""
    if output["internal"]:
        return f"write internal {output['topic']}{partitions} <- {_after(output)}"
    return f"write {output['topic']}{partitions} as {output['value']} <- {_after(output)}"


def _after(item: dict[str, Any]) -> str:
    return ", ".join(f"{node}.{port}" if port else node for node, port in item["after"])


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _mermaid_nodes(sub: dict[str, Any], ids: Mapping[str, str]) -> Iterator[str]:
    for item in sub["inputs"]:
        kind = "" if item["kind"] == "stream" else f"<br/>{item['kind']}"
        name = ids[item["name"]]
        yield f'{name}{{{{"{item["name"]}"}}}}' if item["internal"] else f'{name}[/"{item["topic"]}{kind}"/]'
    for step in sub["steps"]:
        name = ids[step["name"]]
        yield f'{name}["{step["name"]}"]'
        if step["stateful"]:
            state = "<br/>".join(_parts(step["shape"])).replace('"', "'")
            yield f'{name}s[("{state or "state"}")]'
            yield f"{name} -.- {name}s"
    for output in sub["outputs"]:
        if not output["internal"]:
            yield f'{ids[output["name"]]}[\\"{output["topic"]}"\\]'


def _mermaid_dead_letters(plan: Plan) -> list[str]:
    topic = plan.dead_letter_topic()
    failing = [
        f"s{number}"
        for number, sub in enumerate(plan.subtopologies)
        if any(final_policy(node.on_error) == "dead-letter" for node in sub.nodes)
    ]
    return [] if topic is None else [f'  d[\\"{topic}"\\]', *[f"  {sub} -.->|fails| d" for sub in failing]]


def _label(*texts: str) -> str:
    told = ", ".join(text for text in texts if text)
    return f"|{told}|" if told else ""


def _durations(value: Any) -> str:
    """Say how long one duration is, or the two of a join: how much earlier, and how much later, a partner may be."""
    if not isinstance(value, list):
        return _duration(value)
    before, after = map(_duration, value)
    return before if before == after else f"{before} before and {after} after"


def _duration(value_ms: int) -> str:
    unit_ms, unit = next((size, name) for size, name in _UNITS if value_ms % size == 0 and (value_ms or size == 1))
    return f"{value_ms // unit_ms}{unit}"


def _said(value: Any) -> str:
    if isinstance(value, str | int | float):
        return str(value)
    if isinstance(value, dict) and set(value) == {"format", "type"}:
        return f"{value['format']} {_said(value['type'])}" if value["type"] else str(value["format"])
    if isinstance(value, dict) and set(value) == {"version", "oldest", "type"}:
        return " ".join([*([_said(value["type"])] if value["type"] else []), f"version {value['version']}"])
    if isinstance(value, dict) and isinstance(value.get("fields"), dict):
        return f"({', '.join(value['fields'])})"
    if isinstance(value, dict) and all(isinstance(item, dict) for item in value.values()):
        return " ".join(f"{name} ({state_of(item)})" for name, item in value.items())
    if isinstance(value, list) and all(_is_named(item) for item in value):
        return " ".join(f"{name} ({kind})" for name, kind, *_ in value)
    told = json.dumps(value, separators=(", ", ": "), default=str)
    return told if len(told) <= _LONGEST else f"{told[: _LONGEST - 3]}..."


def _is_named(item: Any) -> bool:
    """Return whether it is a name, what it stands for, and perhaps the types that belong to it."""
    return isinstance(item, list | tuple) and len(item) in (2, 3) and all(isinstance(part, str) for part in item[:2])
