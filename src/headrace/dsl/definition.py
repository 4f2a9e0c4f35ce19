"""What every stream of one topology shares: its nodes so far, and the checks made where the user's line stands."""

from __future__ import annotations

import inspect
import sys
import typing
from collections.abc import Callable, Sequence
from typing import Any

from headrace.errors import TopologyError
from headrace.operators.selectors import Selector
from headrace.serde.api import Serde
from headrace.serde.msgpack import Msgpack
from headrace.serde.primitives import Int, Str
from headrace.topology.graph import ErrorPolicy, Location, Node

_PACKAGE = __file__.removesuffix("dsl/definition.py")
_PLAIN = (dict, list, str, int, float, bool, bytes, type(None))


class Definition:
    """The nodes of a topology that is being written."""

    def __init__(self, on_error: ErrorPolicy) -> None:
        self.on_error = on_error
        self.nodes: list[Node] = []

    def add(self, node: Node) -> None:
        """Append a node."""
        self.nodes.append(node)

    def free_name(self, wanted: str) -> str:
        """Return ``wanted``, or with a number behind it if a step has that name: only for steps without state."""
        taken = {node.name for node in self.nodes}
        number = 2
        name = wanted
        while name in taken:
            name = f"{wanted}-{number}"
            number += 1
        return name


def check_policy(policy: str) -> ErrorPolicy:
    """Return ``policy`` if it is one.

    Raises:
        TopologyError: it is not.
    """
    if policy not in ("stop", "skip"):
        raise TopologyError(f'on_error must be "stop" or "skip", not {policy!r}')
    return policy  # type: ignore[return-value]


def key_serde_of(kind: Any, selector: Selector | None) -> Serde[Any]:
    """Return the serde of a key from the annotation of the field it comes from: whole numbers or, else, text."""
    annotation: Any = None
    if isinstance(selector, str) and isinstance(kind, type):
        try:
            annotation = typing.get_type_hints(kind).get(selector)
        except (NameError, TypeError):
            annotation = None
    elif callable(selector) and not inspect.isbuiltin(selector):
        annotation = getattr(selector, "__annotations__", {}).get("return")
    return Int() if annotation in (int, "int") else Str()


def serde_of_results(function: Callable[..., Any], *, each: bool = False) -> Serde[Any]:
    """Return how what ``function`` makes is written to internal topics: typed, if it is annotated with a class.

    Args:
        function: What makes the values.
        each: The function returns several of them at a time, as in ``-> list[Payment]``.
    """
    kind: Any = function
    if not isinstance(function, type):
        try:
            kind = typing.get_type_hints(function).get("return")
        except (AttributeError, NameError, TypeError):
            return Msgpack()
    if each:
        kind = next(iter(typing.get_args(kind)), None)
    if not isinstance(kind, type) or issubclass(kind, _PLAIN):
        return Msgpack()
    try:
        return Msgpack(kind)
    except TypeError:
        return Msgpack()


def merged_serde(serdes: Sequence[Serde[Any]]) -> Serde[Any]:
    """Return how values of several streams are written to internal topics: typed, if all are of one type."""
    kinds = [getattr(serde, "kind", None) for serde in serdes]
    one_kind = all(kind == kinds[0] for kind in kinds)
    if one_kind and len({(type(serde), serde.name) for serde in serdes}) == 1:
        return serdes[0]
    return Msgpack(kinds[0] if one_kind else None)


def check_selector(selector: Any, what: str) -> None:
    """Refuse what is neither a field nor a function, at the line that passes it.

    Raises:
        TopologyError: it is neither.
    """
    if not isinstance(selector, str):
        check_function(selector, what)


def check_function(function: Callable[..., Any], what: str) -> None:
    """Refuse what cannot be called on a record, at the line that passes it.

    Raises:
        TopologyError: it cannot be called, or is an ``async def``.
    """
    if not callable(function):
        raise TopologyError(f"{what} needs a function, not {type(function).__name__} ({user_location()})")
    if inspect.iscoroutinefunction(function):
        raise TopologyError(
            f"{what} was given an async function ({user_location()}), which it would never await",
            remedy="Make it a plain function",
        )


def user_location() -> Location:
    """Return the innermost line outside this package."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame = frame.f_back
    return Location(frame.f_code.co_filename, frame.f_lineno)
