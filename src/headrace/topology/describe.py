"""Drawing a plan as text, as Mermaid and as JSON."""

from __future__ import annotations

import json
from typing import Any

from headrace.topology.graph import Node, Repartition, Sink, Source, Step
from headrace.topology.plan import Plan, SubTopology, internal_topic, is_deterministic


def describe_json(plan: Plan) -> str:
    """Return the plan as JSON: sub-topologies with inputs, steps and outputs."""
    return json.dumps(
        {"topology": plan.graph.name, "subtopologies": [_sub(plan, s) for s in plan.subtopologies]}, indent=2
    )


def describe_text(plan: Plan) -> str:
    """Return the plan as indented text."""
    lines = [f"topology {plan.graph.name}"]
    for sub in plan.subtopologies:
        lines.append(f"\nsub-topology {sub.name}: {sub.partitions} task{'s' * (sub.partitions != 1)}")
        lines += ["  " + _line(plan, sub, node) for node in sub.nodes]
    return "\n".join(lines)


def describe_mermaid(plan: Plan) -> str:
    """Return the plan as a Mermaid flow chart, a sub-graph for every sub-topology."""
    ids = {node.name: f"n{i}" for i, node in enumerate(plan.graph.nodes)}
    lines = ["flowchart TD"]
    for number, sub in enumerate(plan.subtopologies):
        lines.append(f'  subgraph s{number}["{sub.name} x {sub.partitions}"]')
        here = [n for n in sub.nodes if not (isinstance(n, Repartition) and n.name not in sub.sources)]
        lines += [f"    {ids[node.name]}{_shape(node)}" for node in here]
        lines.append("  end")
    for node in plan.graph.nodes:
        for port in node.inputs:
            label = f"|{port.port}|" if port.port else ""
            lines.append(f"  {ids[port.node]} -->{label} {ids[node.name]}")
    return "\n".join(lines)


def _shape(node: Node) -> str:
    if isinstance(node, Source):
        return f'[/"{node.topic}"/]'
    if isinstance(node, Sink):
        return f'[\\"{node.topic}"\\]'
    if isinstance(node, Repartition):
        return f'{{{{"{node.name}"}}}}'
    return f'[("{node.name}")]' if node.spec.stateful else f'["{node.name}"]'


def _guarantee(plan: Plan, sub: SubTopology, node: Repartition | Sink) -> str:
    return "deterministic" if is_deterministic(plan.graph, sub, node) else "at-least-once"


def _line(plan: Plan, sub: SubTopology, node: Node) -> str:
    after = ", ".join(f"{p.node}.{p.port}" if p.port else p.node for p in node.inputs)
    if isinstance(node, Source):
        keyed = f", keyed by {node.keyed_by}" if node.keyed_by else ""
        return f"read {node.topic} as {node.value.name}{keyed}  [{node.name}]"
    if isinstance(node, Sink):
        return f"write {node.topic} as {node.value.name} <- {after}  [{node.name}; {_guarantee(plan, sub, node)}]"
    if isinstance(node, Repartition):
        topic = internal_topic(plan.graph, node)
        if node.name in sub.sources:
            return f"read internal {topic}  [{node.name}]"
        return f"write internal {topic} <- {after}  [{node.name}; {_guarantee(plan, sub, node)}]"
    state = ", keeps state" if node.spec.stateful else ""
    return f"{node.spec.kind} <- {after}  [{node.name}{state}]"


def _sub(plan: Plan, sub: SubTopology) -> dict[str, Any]:
    return {
        "name": sub.name,
        "tasks": sub.partitions,
        "inputs": [{"topic": i.topic, "partitions": i.partitions, "internal": bool(i.upstream)} for i in sub.inputs],
        "steps": [
            {
                "name": node.name,
                "kind": node.spec.kind,
                "after": [list(port) for port in node.inputs],
                "stateful": node.spec.stateful,
                **({"shape": node.spec.shape()} if node.spec.stateful else {}),
            }
            for node in sub.nodes
            if isinstance(node, Step)
        ],
        "outputs": [
            {
                "name": node.name,
                "topic": node.topic if isinstance(node, Sink) else internal_topic(plan.graph, node),
                "internal": isinstance(node, Repartition),
                "after": [list(port) for port in node.inputs],
                "guarantee": _guarantee(plan, sub, node),
            }
            for node in sub.nodes
            if isinstance(node, Sink) or (isinstance(node, Repartition) and node.name not in sub.sources)
        ],
    }
