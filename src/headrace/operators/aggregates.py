"""Aggregates: how the values of one group become one.

An aggregate is four functions of an accumulator. The hot loop that applies several of them to a batch is generated
as Python source (``operators.compiled``), in which the built-in ones stand as expressions, so that a record costs no
call; a user's own are called.
"""

from __future__ import annotations

import builtins
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from headrace.errors import TopologyError
from headrace.operators.accumulating import (
    append,
    by_time,
    chan,
    copied,
    distinct_key,
    insert,
    measure_of,
    ranked,
    ranked_with_ties,
    tied,
    timestamp_of,
    welford,
    when_of,
)
from headrace.operators.aggregate import COUNT_INLINE, Aggregate
from headrace.operators.selectors import Selector, getter

__all__ = [
    "COUNT_INLINE",
    "Aggregate",
    "approx_distinct",
    "collect",
    "combine",
    "count",
    "count_distinct",
    "first",
    "fold",
    "last",
    "max",
    "mean",
    "min",
    "quantile",
    "reduce",
    "stddev",
    "sum",
    "top",
    "variance",
]

_ORDERED = frozenset([int, float, str, bytes, bool])


def count() -> Aggregate:
    """Count the records.

    Example:
        >>> from headrace import agg
        >>> agg.count().step(2, None, 0)
        3
    """
    return Aggregate(
        "count", None, lambda x, t: 1, lambda a, x, t: a + 1, lambda a, b: a + b, inline=COUNT_INLINE, empty=0
    )


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

    Example:
        >>> from headrace import agg
        >>> entry_page = agg.first("page")
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

    Example:
        >>> from headrace import agg
        >>> exit_page = agg.last("page")
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


def collect(selector: Selector | None = None, limit: int | None = None, *, kind: Any = None) -> Aggregate:
    """Keep every value in a list, by timestamp; equal ones in the order in which they came.

    Args:
        selector: What to keep of each value; all of it if None.
        limit: Keep only so many, the earliest ones; as many as come if None.
        kind: Its type, if it is not made of plain values.

    Raises:
        TopologyError: ``limit`` is not a whole number above 0.

    Example:
        >>> from headrace import agg
        >>> pages, first_ten = agg.collect("page"), agg.collect("page", limit=10)
    """
    if limit is not None:
        _check_number(limit, "limit of agg.collect")
    return Aggregate(
        "collect" if limit is None else f"collect {limit}",
        selector,
        lambda x, t: [[t, x]],
        append if limit is None else lambda a, x, t: insert(a, x, t, limit),
        lambda a, b: a + b if limit is None else sorted(a + b, key=timestamp_of)[:limit],
        by_time,
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


def fold(
    initial: Any,
    step: Callable[[Any, Any], Any],
    merge: Callable[[Any, Any], Any] | None = None,
    *,
    selector: Selector | None = None,
    kind: Any = None,
) -> Aggregate:
    """Take the values of a group into an accumulator, one after the other.

    ``step`` and ``merge`` are given copies, which they may change and return. Where a copy for each record costs too
    much, write an ``Aggregate`` with ``in_place=True``.

    Args:
        initial: The accumulator before the first value, or a function that makes it, such as ``list``.
        step: (accumulator, value) -> accumulator. If records may come out of order, it must not depend on theirs.
        merge: (accumulator, accumulator) -> accumulator of both groups, the earlier one first. Needed for windows
            whose groups join: session, sliding and counting windows.
        selector: What to take of each value; all of it if None.
        kind: The accumulator's type, if it is not made of plain values.

    Raises:
        TopologyError: ``step`` or ``merge`` cannot be called.

    Example:
        >>> from headrace import agg
        >>> def add(totals, order):
        ...     totals[order["shop"]] = totals.get(order["shop"], 0) + order["total"]
        ...     return totals
        >>> by_shop = agg.fold(dict, add)
    """
    if not callable(step):
        raise TopologyError("agg.fold needs a step: a function of the accumulator and a value")
    if merge is not None and not callable(merge):
        raise TopologyError("merge of agg.fold must be a function of two accumulators")
    begin: Callable[[], Any] = initial if callable(initial) else lambda: copied(initial)
    return Aggregate(
        "fold",
        selector,
        lambda x, t: step(begin(), x),
        lambda a, x, t: step(copied(a), x),
        None if merge is None else lambda a, b: merge(copied(a), copied(b)),
        kind=kind,
    )


def count_distinct(selector: Selector | None = None) -> Aggregate:
    """Count the distinct values, exactly; every one of them is kept.

    Numbers that are equal are one value, and so are all that are no number (NaN).

    Args:
        selector: What to count of each value, such as a field; the whole value if None. It must be something that
            MessagePack can hold.

    Example:
        >>> from headrace import agg
        >>> visitors = agg.count_distinct("user_id")
    """
    get = getter(selector)
    return Aggregate(
        "count_distinct",
        lambda value: distinct_key(get(value)),
        lambda x, t: {x: None},
        lambda a, x, t: (a.setdefault(x), a)[1],
        lambda a, b: {**a, **b},
        len,
        inline=("{{{x}: None}}", "({a}.setdefault({x}), {a})[1]"),
        in_place=True,
        empty=0,
        reads=_named(selector),
    )


def variance(selector: Selector, ddof: int = 1) -> Aggregate:
    """Compute the variance: the squares of the distances from the mean, divided by ``n - ddof``.

    It is computed in one pass without loss of precision (Welford), and merges (Chan).

    Args:
        selector: The field or function whose value counts.
        ddof: 1 for the variance of what the values are a sample of, 0 for that of the values themselves.

    Returns:
        An aggregate whose result is None for a group of no more than ``ddof`` values.

    Example:
        >>> from headrace import agg
        >>> spread = agg.variance("celsius")
    """
    if ddof not in (0, 1):
        raise TopologyError(f"ddof of agg.variance must be 0 or 1, not {ddof!r}")
    return Aggregate(
        "variance",
        selector,
        lambda x, t: [1, x + 0.0, 0.0],
        welford,
        chan,
        lambda a: a[2] / (a[0] - ddof) if a[0] > ddof else None,
        inline=(
            "[1, {x} + 0.0, 0.0]",
            "[(n := {a}[0] + 1), (m := {a}[1] + (d := {x} - {a}[1]) / n), {a}[2] + d * ({x} - m)]",
        ),
    )


def stddev(selector: Selector, ddof: int = 1) -> Aggregate:
    """Compute the standard deviation: the square root of ``variance``.

    Args:
        selector: The field or function whose value counts.
        ddof: As for ``variance``.
    """
    return replace(
        variance(selector, ddof).then(lambda found: None if found is None else math.sqrt(found)), name="stddev"
    )


def top(
    n: int, selector: Selector | None = None, *, by: Selector | None = None, ties: bool = False, kind: Any = None
) -> Aggregate:
    """Keep the greatest values in a list, the greatest first; of equal ones the earlier, then the one that came first.

    Args:
        n: How many.
        selector: What to keep of each value; all of it if None.
        by: What they are compared by, numbers, text or bytes; what is kept of them if None.
        ties: Keep also what is equal to the last of the ``n``, however many that are.
        kind: The type of what is kept, if it is not made of plain values.

    Raises:
        TopologyError: ``n`` is not a whole number above 0.

    Example:
        >>> from headrace import agg
        >>> largest = agg.top(3, "order_id", by="total")
        >>> winners = agg.top(1, "player", by="points", ties=True)
    """
    _check_number(n, "n of agg.top")
    keep = getter(selector)
    measure = keep if by is None else getter(by)

    def select(value: Any) -> tuple[Any, Any]:
        measured = measure(value)
        if type(measured) not in _ORDERED or measured != measured:  # noqa: PLR0124  # NaN is no place in an order
            raise TypeError("agg.top compares numbers, text or bytes")
        return measured, keep(value)

    insert_one, cut = (ranked_with_ties, tied) if ties else (ranked, lambda rows, most: rows[:most])
    return Aggregate(
        f"top {n} with ties" if ties else f"top {n}",
        select,
        lambda x, t: [[x[0], t, x[1]]],
        lambda a, x, t: insert_one(a, x[0], t, x[1], n),
        lambda a, b: cut(sorted(sorted([*a, *b], key=when_of), key=measure_of, reverse=True), n),
        lambda a: [row[2] for row in a],
        kind=None if kind is None else list[tuple[Any, int, kind]],
        reads=_named(selector, by),
    )


def approx_distinct(selector: Selector | None = None, *, precision: int = 12) -> Aggregate:
    """Count the distinct values approximately, in little memory: a HyperLogLog sketch.

    The result depends on the set of values only: not on their order, and not on how often they come.

    Args:
        selector: What to count of each value; the whole value if None.
        precision: 2 to the power of it are the sketch's registers, half a byte each; the standard error is
            1.04 / sqrt(registers), so 1.6 % and 2 KB for 12. From 7 to 21.

    Raises:
        TopologyError: datasketches is not installed, or ``precision`` is out of range.

    Example:
        >>> from headrace import agg
        >>> visitors = agg.approx_distinct("user_id")
    """
    from headrace.operators.sketches import approx_distinct

    return approx_distinct(selector, precision, _named(selector))


def quantile(selector: Selector, q: float | Sequence[float], *, compression: int = 200) -> Aggregate:
    """Estimate quantiles, in little memory: a t-digest, which is most exact at both ends.

    The result depends on the order of the values, by less than the error of the estimate, and on nothing else: a
    replay repeats it.

    Args:
        selector: The field or function whose value counts; a number.
        q: Which quantile, from 0 to 1: 0.5 is the median. Or several of them.
        compression: The size of the digest: more is more exact.

    Returns:
        An aggregate whose result is a float, or a list of floats if ``q`` is a sequence.

    Raises:
        TopologyError: datasketches is not installed, or ``q`` or ``compression`` is out of range.

    Example:
        >>> from headrace import agg
        >>> latency = agg.quantile("millis", [0.5, 0.99])
    """
    from headrace.operators.sketches import quantile

    return quantile(selector, q, compression, _named(selector))


def combine(function: Callable[..., Any], /, **parts: Aggregate) -> Aggregate:
    """Make one result of those of several aggregates.

    Args:
        function: What makes it; it is given the results of ``parts`` by their names.
        **parts: The aggregates.

    Raises:
        TopologyError: ``function`` cannot be called, or a part is not an aggregate.

    Example:
        >>> from headrace import agg
        >>> per_visitor = agg.combine(
        ...     lambda total, visitors: total / visitors, total=agg.sum("total"), visitors=agg.count_distinct("user_id")
        ... )
    """
    if not callable(function):
        raise TopologyError(f"agg.combine needs a function of the results, not {type(function).__name__}")
    for name, part in parts.items():
        if not isinstance(part, Aggregate):
            raise TopologyError(f"{name}= of agg.combine must be an aggregate, not {type(part).__name__}")
    if not parts:
        raise TopologyError("agg.combine needs at least one aggregate")
    items = list(parts.values())
    selects = [getter(item.selector) for item in items]
    merges = [item.merge for item in items if item.merge is not None]
    typed = any(item.kind is not None for item in items)
    kinds = tuple(Any if item.kind is None else item.kind for item in items)
    # A step that changes its accumulator runs when no other can fail any more.
    in_turn = sorted(range(len(items)), key=lambda i: items[i].in_place)

    def step(accumulator: Sequence[Any], values: Sequence[Any], timestamp: int) -> list[Any]:
        stepped = list(accumulator)
        for i in in_turn:
            stepped[i] = items[i].step(accumulator[i], values[i], timestamp)
        return stepped

    return Aggregate(
        f"combine({', '.join(f'{name}={item.name}' for name, item in parts.items())})",
        lambda value: [select(value) for select in selects],
        lambda xs, t: [item.first(x, t) for item, x in zip(items, xs, strict=True)],
        step,
        None if len(merges) < len(items)
        else lambda a, b: [merge(x, y) for merge, x, y in zip(merges, a, b, strict=True)],
        lambda a: function(**{
            name: x if item.result is None else item.result(x) for (name, item), x in zip(parts.items(), a, strict=True)
        }),
        kind=tuple[kinds] if typed else None,  # type: ignore[valid-type]
        in_place=any(item.in_place for item in items),
        reads=tuple(name for item in items for name in item.fields),
        parts=tuple(items),
    )  # fmt: skip


def _named(*selectors: Selector | None) -> tuple[str, ...]:
    return tuple(selector for selector in selectors if isinstance(selector, str))


def _check_number(value: Any, what: str) -> None:
    if type(value) is not int or value < 1:
        raise TopologyError(f"{what} must be a whole number above 0, not {value!r}")


def _stamped(kind: Any) -> Any:
    return None if kind is None else tuple[int, kind]  # the pair is read back as a tuple and never changed in place
