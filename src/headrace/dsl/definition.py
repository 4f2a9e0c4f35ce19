"""What every stream of one topology shares: its nodes so far, and the checks made where the user's line stands."""

from __future__ import annotations

import difflib
import inspect
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from headrace.errors import TopologyError
from headrace.operators.aggregates import Aggregate
from headrace.operators.retrying import ErrorPolicy, Retry, final_policy
from headrace.operators.selectors import Selector
from headrace.serde.api import Serde
from headrace.serde.fields import can_read, fields_of
from headrace.serde.msgpack import Msgpack
from headrace.serde.primitives import KEYS, Str
from headrace.serde.schema import schema_of
from headrace.serde.tuples import Tuple
from headrace.topology.graph import Location, Node

_PACKAGE = __file__.removesuffix("dsl/definition.py")
_PLAIN = (dict, list, str, int, float, bool, bytes, type(None))


class Definition:
    """The nodes of a topology that is being written."""

    def __init__(self, on_error: ErrorPolicy) -> None:
        self.on_error = on_error
        self.nodes: list[Node] = []

    def policy(self, given: ErrorPolicy | None, *, retries: bool = False) -> ErrorPolicy:
        """Return what a step does with records that it fails on.

        Args:
            given: What the step's ``on_error=`` says; the topology's policy counts if None.
            retries: Whether the step can make a call again.

        Raises:
            TopologyError: ``given`` is no policy, or asks to retry what cannot be retried.
        """
        if given is None:
            return self.on_error if retries else final_policy(self.on_error)
        policy = check_policy(given)
        if not isinstance(policy, Retry):
            return policy
        if not retries:
            raise TopologyError(
                f"on_error=retry(...) was given to a step that cannot make its calls again ({user_location()})",
                remedy="It works for map, filter, flat_map, tap, branch, map_async and what combines the two sides of "
                "a join; do what may fail in one of those",
            )
        return replace(policy, then=policy.then or final_policy(self.on_error))

    def add(self, node: Node) -> None:
        """Append a node.

        Raises:
            TopologyError: its name is none.
        """
        if not isinstance(node.name, str):
            raise TopologyError(
                f"name= must be text, not {type(node.name).__name__} ({user_location()})",
                remedy="It names the step, so no aggregate can be called name" * isinstance(node.name, Aggregate),
            )
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


def check_policy(policy: ErrorPolicy) -> ErrorPolicy:
    """Return ``policy`` if it is one.

    Raises:
        TopologyError: it is not.
    """
    if not isinstance(policy, Retry) and policy not in ("stop", "skip", "dead-letter"):
        hint = "call it: retry(3)" if getattr(policy, "__name__", "") == "retry" else ""
        raise TopologyError(
            f'on_error must be "stop", "skip", "dead-letter" or retry(...), not {policy!r} ({user_location()})',
            remedy=hint,
        )
    return policy


def key_serde_of(kind: Any, selector: Selector | None) -> Serde[Any]:
    """Return the serde of a key from the annotation of what it comes from: numbers, UUIDs, tuples or, else, text."""
    annotation: Any = None
    if isinstance(selector, str) and isinstance(kind, type):
        try:
            annotation = typing.get_type_hints(kind).get(selector)
        except (NameError, TypeError):
            annotation = None
    elif callable(selector) and not inspect.isbuiltin(selector):
        annotation = getattr(selector, "__annotations__", {}).get("return")
        if "tuple[" in str(annotation):
            annotation = returned_type(selector)
    if typing.get_origin(annotation) is tuple:
        try:
            return Tuple(annotation)
        except TypeError as error:
            raise TopologyError(f"a key cannot be {annotation} ({user_location()}): {error}") from error
    return KEYS.get(annotation, Str)() if isinstance(annotation, type | str) else Str()


def returned_type(function: Callable[..., Any]) -> Any:
    """Return what a function's annotation says that it returns; None if it says nothing."""
    try:
        return typing.get_type_hints(function).get("return")
    except (AttributeError, NameError, TypeError):
        return None


def serde_of_results(function: Callable[..., Any], *, each: bool = False) -> Serde[Any]:
    """Return how what ``function`` makes is written to internal topics: typed, if it is annotated with a class.

    Args:
        function: What makes the values.
        each: The function returns several of them at a time, as in ``-> list[Payment]``.
    """
    kind: Any = function if isinstance(function, type) else returned_type(function)
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
    alike = len({(type(serde), serde.name) for serde in serdes}) == 1
    if one_kind and alike and all(schema_of(serde) == schema_of(serdes[0]) for serde in serdes):
        return serdes[0]
    return Msgpack(kinds[0] if one_kind else None)


def check_fields(kind: Any, selector: Any, what: str) -> None:
    """Refuse the name of a field that values of a type do not have, at the line that says it.

    Args:
        kind: The type of the values. Nothing is refused where its fields are not known, as of dicts.
        selector: A field's name; anything else is fine.
        what: Where it was said, for the error.

    Raises:
        TopologyError: there is no such field.
    """
    if not isinstance(selector, str) or can_read(kind, selector):
        return
    fields = fields_of(kind) or ()
    near = difflib.get_close_matches(selector, fields, n=3)
    raise TopologyError(
        f"{what}: {kind.__name__} has no field {selector!r} ({user_location()})",
        remedy=f"Did you mean {' or '.join(map(repr, near))}?" if near else f"It has {', '.join(map(repr, fields))}",
    )


def check_aggregated_fields(kind: Any, aggregates: Mapping[str, Aggregate]) -> None:
    """Refuse aggregates of fields that values of a type do not have, at the line that names them.

    Raises:
        TopologyError: as for ``check_fields``.
    """
    for name, item in aggregates.items():
        for field in item.fields:
            check_fields(kind, field, f"{name}= of aggregate")


def check_writable(serde: Serde[Any], what: str) -> None:
    """Refuse a serde that can only read, at the line that is to write with it.

    Raises:
        TopologyError: it says why it cannot write.
    """
    reason = getattr(serde, "unwritable", "")
    if reason:
        raise TopologyError(f"{what}: {reason} ({user_location()})", remedy="Give value=, a serde that can write")


def located(check: Callable[..., None], *arguments: Any) -> None:
    """Make a check that knows no lines, and name the user's in what it refuses.

    Raises:
        TopologyError: as ``check`` does.
    """
    try:
        check(*arguments)
    except TopologyError as error:
        raise TopologyError(f"{error.message} ({user_location()})", remedy=error.remedy) from error


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
    if is_async(function):
        raise TopologyError(
            f"{what} was given an async function ({user_location()}), which it would never await",
            remedy="Make it a plain function, or use map_async",
        )


def check_async_function(function: Callable[..., Any], what: str) -> None:
    """Refuse what is not an ``async def``, at the line that passes it.

    Raises:
        TopologyError: it cannot be called, or is a plain function.
    """
    if not callable(function):
        raise TopologyError(f"{what} needs an async function, not {type(function).__name__} ({user_location()})")
    if not is_async(function):
        raise TopologyError(
            f"{what} was given a plain function ({user_location()}), which would hold up all other calls",
            remedy="Define it with async def, or use map",
        )


def is_async(function: Callable[..., Any]) -> bool:
    """Return whether calling ``function`` gives something to await, as far as can be told."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


def user_location() -> Location:
    """Return the innermost line outside this package."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame = frame.f_back
    return Location(frame.f_code.co_filename, frame.f_lineno)
