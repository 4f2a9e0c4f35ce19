"""Aggregates: how the values of one group become one.

An aggregate is four functions of an accumulator. The hot loop that applies several of them to a batch is generated
as Python source (``operators.compiled``), in which the built-in ones stand as expressions, so that a record costs no
call; a user's own are called.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from headrace.errors import TopologyError
from headrace.operators.selectors import Selector

COUNT_INLINE = ("1", "{a} + 1")
"""Counting needs no value and cannot fail, which the generated loop makes use of."""


@dataclass(frozen=True, slots=True)
class Aggregate:
    """One aggregate over the values of a group.

    Args:
        name: What it is called in ``describe``.
        selector: The field or function whose value is aggregated; the whole value if None.
        first: (selected value, timestamp) -> accumulator of a group of one.
        step: (accumulator, selected value, timestamp) -> accumulator with one more.
        merge: (accumulator, accumulator) -> accumulator of both groups, the earlier one first.
        result: accumulator -> what stands in the result.
        kind: The accumulator's type if it is not made of dict, list, str, int, float, bool, bytes and None;
            needed to read it back from the store.
        inline: ``first`` and ``step`` as expressions of ``{a}``, ``{x}`` and ``{t}``, for the generated loop.
        in_place: True if ``step`` changes the accumulator in place; such steps run after all others, so that a
            record on which one fails leaves nothing behind.
    """

    name: str
    selector: Selector | None
    first: Callable[[Any, int], Any]
    step: Callable[[Any, Any, int], Any]
    merge: Callable[[Any, Any], Any]
    result: Callable[[Any], Any] | None = None
    kind: Any = None
    inline: tuple[str, str] | None = None
    in_place: bool = False


def count() -> Aggregate:
    """Count the records.

    Example:
        >>> from headrace import agg
        >>> agg.count().step(2, None, 0)
        3
    """
    return Aggregate("count", None, lambda x, t: 1, lambda a, x, t: a + 1, lambda a, b: a + b, inline=COUNT_INLINE)


def sum(selector: Selector) -> Aggregate:  # noqa: A001  # named for what it does; used as agg.sum
    """Add up a field or a function of the value."""
    return Aggregate(
        "sum", selector, lambda x, t: x + 0, lambda a, x, t: a + x, lambda a, b: a + b,
        inline=("{x} + 0", "{a} + {x}"),  # so that a first value that is no number fails, and not those after it
    )  # fmt: skip


def min(selector: Selector) -> Aggregate:  # noqa: A001
    """Keep the smallest."""
    return Aggregate(
        "min",
        selector,
        lambda x, t: builtins.min(x, x),
        lambda a, x, t: x if x < a else a,
        lambda a, b: b if b < a else a,
        inline=("{x} if {x} < {x} else {x}", "{x} if {x} < {a} else {a}"),  # fails on what has no order
    )


def max(selector: Selector) -> Aggregate:  # noqa: A001
    """Keep the largest."""
    return Aggregate(
        "max",
        selector,
        lambda x, t: builtins.max(x, x),
        lambda a, x, t: x if x > a else a,
        lambda a, b: b if b > a else a,
        inline=("{x} if {x} > {x} else {x}", "{x} if {x} > {a} else {a}"),
    )


def mean(selector: Selector) -> Aggregate:
    """Average; kept as sum and count, so that it merges exactly."""
    return Aggregate(
        "mean",
        selector,
        lambda x, t: [x + 0, 1],
        lambda a, x, t: [a[0] + x, a[1] + 1],
        lambda a, b: [a[0] + b[0], a[1] + b[1]],
        lambda a: a[0] / a[1],
        inline=("[{x} + 0, 1]", "[{a}[0] + {x}, {a}[1] + 1]"),
    )


def first(selector: Selector | None = None, *, kind: Any = None) -> Aggregate:
    """Keep the value with the earliest timestamp; of equal ones the one that came first.

    Args:
        selector: What to keep of each value; all of it if None.
        kind: Its type, if it is not made of plain values (dict, list, str, int, float, bool, bytes, None).
    """
    return Aggregate(
        "first",
        selector,
        lambda x, t: [t, x],
        lambda a, x, t: [t, x] if t < a[0] else a,
        lambda a, b: b if b[0] < a[0] else a,
        lambda a: a[1],
        kind=_stamped(kind),
        inline=("[{t}, {x}]", "[{t}, {x}] if {t} < {a}[0] else {a}"),
    )


def last(selector: Selector | None = None, *, kind: Any = None) -> Aggregate:
    """Keep the value with the latest timestamp; of equal ones the one that came last.

    Args:
        selector: What to keep of each value; all of it if None.
        kind: Its type, if it is not made of plain values.
    """
    return Aggregate(
        "last",
        selector,
        lambda x, t: [t, x],
        lambda a, x, t: [t, x] if t >= a[0] else a,
        lambda a, b: b if b[0] >= a[0] else a,
        lambda a: a[1],
        kind=_stamped(kind),
        inline=("[{t}, {x}]", "[{t}, {x}] if {t} >= {a}[0] else {a}"),
    )


def collect(selector: Selector | None = None, *, kind: Any = None) -> Aggregate:
    """Keep every value in a list, by timestamp; equal ones in the order in which they came.

    Args:
        selector: What to keep of each value; all of it if None.
        kind: Its type, if it is not made of plain values.
    """
    return Aggregate(
        "collect",
        selector,
        lambda x, t: [[t, x]],
        _append,
        lambda a, b: a + b,
        _by_time,
        kind=None if kind is None else list[_stamped(kind)],  # type: ignore[misc]
        in_place=True,
    )


def reduce(function: Callable[[Any, Any], Any], selector: Selector | None = None, *, kind: Any = None) -> Aggregate:
    """Combine two into one, again and again.

    Args:
        function: (combined so far, next) -> combined. Associative and commutative, if the window is a session or
            records may come out of order.
        selector: What to combine of each value; all of it if None.
        kind: The type of what is combined, if it is not made of plain values.

    Raises:
        TopologyError: ``function`` cannot be called.

    Example:
        >>> from headrace import agg
        >>> longest = agg.reduce(lambda a, b: a if len(a) >= len(b) else b, "name")
    """
    if not callable(function):
        raise TopologyError("agg.reduce needs a function of two values")
    return Aggregate("reduce", selector, lambda x, t: x, lambda a, x, t: function(a, x), function, kind=kind)


def _stamped(kind: Any) -> Any:
    return None if kind is None else tuple[int, kind]  # the pair is read back as a tuple and never changed in place


def _append(accumulator: list[Any], value: Any, timestamp: int) -> list[Any]:
    accumulator.append([timestamp, value])
    return accumulator


def _by_time(accumulator: list[Any]) -> list[Any]:
    return [value for _, value in sorted(accumulator, key=_timestamp)]


def _timestamp(pair: Any) -> int:
    timestamp: int = pair[0]
    return timestamp
