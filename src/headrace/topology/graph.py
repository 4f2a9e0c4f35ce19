"""The graph: frozen nodes, made by the language in ``dsl`` and read by everything else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from headrace.operators import retrying
from headrace.operators.api import MAIN, Spec
from headrace.operators.selectors import Selector
from headrace.serde.api import Serde

ErrorPolicy = retrying.ErrorPolicy
"""What happens with a record that cannot be decoded or processed."""


class Location(NamedTuple):
    """The user's line that defined a node."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


class Port(NamedTuple):
    """One output of one node."""

    node: str
    port: str = MAIN


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Reads a topic."""

    name: str
    topic: str
    value: Serde[Any]
    key: Serde[Any]
    keyed_by: Selector | None = None
    time: Selector | None = None
    out_of_orderness_ms: int = 0
    idle_after_ms: int = 30_000
    broadcast: bool = False
    """True if every task that reads it reads all partitions: a global table."""
    table: bool = False
    """True if each record is the row of its key from there on, or, without a value, deletes it."""
    on_error: ErrorPolicy = "stop"
    location: Location = Location("", 0)
    inputs: tuple[Port, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Applies an operator."""

    name: str
    inputs: tuple[Port, ...]
    spec: Spec
    on_error: ErrorPolicy = "stop"
    location: Location = Location("", 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Repartition:
    """Writes to an internal topic by a new key, and is the source of what follows."""

    name: str
    inputs: tuple[Port, ...]
    selector: Selector | None
    """Gives the new key; None if the records have it already."""
    key: Serde[Any]
    value: Serde[Any]
    on_error: ErrorPolicy = "stop"
    location: Location = Location("", 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sink:
    """Writes to a topic."""

    name: str
    inputs: tuple[Port, ...]
    topic: str
    value: Serde[Any]
    partitions: int | None = None
    on_error: ErrorPolicy = "stop"
    location: Location = Location("", 0)


Node = Source | Step | Repartition | Sink


@dataclass(frozen=True, slots=True)
class Graph:
    """A topology: its nodes in an order in which every node follows its inputs."""

    name: str
    nodes: tuple[Node, ...]
    by_name: Mapping[str, Node] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_name", {node.name: node for node in self.nodes})

    def children(self, name: str) -> list[tuple[str, Node]]:
        """Return the nodes that read ``name``, each with the port that it reads."""
        return [(port.port, node) for node in self.nodes for port in node.inputs if port.node == name]
