"""What aggregates do with their accumulators, where that takes more than an expression."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import msgspec

_ATOMS = frozenset([int, float, str, bytes, bool, type(None)])


def distinct_key(value: Any) -> Any:
    """Return what stands for ``value`` where distinct values are counted: equal for equal ones, also from the store.

    Example:
        >>> distinct_key("a"), distinct_key(2.0), distinct_key(b"x"), distinct_key(float("nan"))
        ('a', 2, b'bx', b'n')
    """
    kind = type(value)
    if kind is str or kind is int:
        return value
    if kind is float:
        if value != value:  # noqa: PLR0124  # NaN
            return b"n"
        return int(value) if value.is_integer() and abs(value) < 2.0**63 else value
    if kind is bytes:
        return b"b" + value
    return value if kind is bool or value is None else b"o" + msgspec.msgpack.encode(value)


def copied(value: Any) -> Any:
    """Return a copy of ``value``, all the way down, that a user's function may change."""
    return value if type(value) in _ATOMS else deepcopy(value)


def welford(a: Sequence[Any], x: Any, t: int) -> list[Any]:
    """Add a value to ``[count, mean, squares of the distances from it]``."""
    n = a[0] + 1
    distance = x - a[1]
    mean = a[1] + distance / n
    return [n, mean, a[2] + distance * (x - mean)]


def chan(a: Sequence[Any], b: Sequence[Any]) -> list[Any]:
    """Merge two accumulators of ``welford``."""
    n = a[0] + b[0]
    distance = b[1] - a[1]
    return [n, a[1] + distance * b[0] / n, a[2] + b[2] + distance * distance * a[0] * b[0] / n]


def ranked(rows: list[Any], measured: Any, timestamp: int, kept: Any, n: int) -> list[Any]:
    """Return the first ``n`` of ``rows`` and one more: ``[measure, time, value]``, the greatest first."""
    place = len(rows)
    while place and (
        measured > rows[place - 1][0] or (measured == rows[place - 1][0] and timestamp < rows[place - 1][1])
    ):
        place -= 1
    return rows if place >= n else [*rows[:place], [measured, timestamp, kept], *rows[place : n - 1]]


def ranked_with_ties(rows: list[Any], measured: Any, timestamp: int, kept: Any, n: int) -> list[Any]:
    """Return the rows of ``ranked``, and those that are equal to the last of them."""
    if len(rows) >= n and measured < rows[-1][0]:
        return rows
    return tied(ranked(rows, measured, timestamp, kept, len(rows) + 1), n)


def tied(rows: list[Any], n: int) -> list[Any]:
    """Return the first ``n`` rows and those that are equal to the last of them."""
    end = n
    while end < len(rows) and rows[end][0] == rows[n - 1][0]:
        end += 1
    return rows[:end]


def append(accumulator: list[Any], value: Any, timestamp: int) -> list[Any]:
    """Add ``[time, value]`` at the end."""
    accumulator.append([timestamp, value])
    return accumulator


def insert(accumulator: list[Any], value: Any, timestamp: int, limit: int) -> list[Any]:
    """Add ``[time, value]`` at its place in time, and drop what is behind the first ``limit``."""
    place = len(accumulator)
    while place and timestamp < accumulator[place - 1][0]:
        place -= 1
    if place < limit:
        accumulator.insert(place, [timestamp, value])
        del accumulator[limit:]
    return accumulator


def by_time(accumulator: list[Any]) -> list[Any]:
    """Return the values of ``[time, value]`` by time."""
    return [value for _, value in sorted(accumulator, key=timestamp_of)]


def timestamp_of(pair: Any) -> int:
    """Return the time of ``[time, value]``."""
    timestamp: int = pair[0]
    return timestamp


def measure_of(row: Any) -> Any:
    """Return what a row of ``ranked`` is compared by."""
    return row[0]


def when_of(row: Any) -> Any:
    """Return the time of a row of ``ranked``."""
    return row[1]
