"""What a topology has written, as rows like those of the answers, and how the two differ."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any

from bench.nexmark.topologies.times import day
from headrace import Topology

Row = dict[str, Any]


def topology_of(number: int) -> Topology:
    """Return the topology that is a query."""
    topology: Topology = importlib.import_module(f"bench.nexmark.topologies.q{number}").topology
    return topology


def rows_of(number: int, written: Iterable[tuple[Any, Row | None]]) -> list[Row]:
    """Return what was written as rows of the answer.

    Of changes only the last one of each key counts, of windows that were written again and again the last of each.

    Args:
        number: The query.
        written: Keys and values in the order of each key.
    """
    read = _READERS.get(number, _as_it_is)
    if number not in _CHANGES:
        return [row for _, value in written if value is not None for row in read(value)]
    last: dict[Any, Row | None] = {}
    for key, value in written:
        last[key, (value or {}).get("window_start")] = value
    return [row for value in last.values() if value is not None for row in read(value)]


def differences(answer: Sequence[Row], found: Sequence[Row], most: int = 3) -> list[str]:
    """Compare rows, in any order, by the columns of the answer, and describe the first that only one side has."""
    if not answer or not found:
        return [] if len(answer) == len(found) else [f"{len(answer)} rows expected, {len(found)} found"]
    columns = list(answer[0])
    expected, actual = (Counter(tuple(row.get(c) for c in columns) for row in side) for side in (answer, found))
    said = []
    for what, more in (("missing", expected - actual), ("unexpected", actual - expected)):
        if more:
            said.append(f"{more.total()} {what}")
            said += [f"  {dict(zip(columns, row, strict=True))}" for row in list(more)[:most]]
    return said


_CHANGES = frozenset([3, 4, 15, 16, 17, 18, 19])
"""The queries whose rows change."""


def _as_it_is(value: Row) -> list[Row]:
    return [value]


def _renamed(**names: str) -> Callable[[Row], list[Row]]:
    return lambda value: [value | {new: value[old] for old, new in names.items()}]


def _exact(value: Row) -> list[Row]:
    return [value | {"price": Decimal(value["price"])}]


def _of_day(key: str) -> Callable[[Row], list[Row]]:
    return lambda value: [value | {key: value["key"], "day": day(value["window_start"])}]


def _offer(value: Row) -> list[Row]:
    sides = [{f"{side}_{name}": field for name, field in value[side].items()} for side in ("bid", "auction")]
    return [value["auction"] | value["bid"] | value["auction"] | sides[0] | sides[1]]


def _ranked(value: Row) -> list[Row]:
    return [bid | {"rank_number": rank} for rank, bid in enumerate(value["highest"], 1)]


_WINDOW = _renamed(key="bidder", window_start="start_time", window_end="end_time")

_READERS: Mapping[int, Callable[[Row], list[Row]]] = {
    1: _exact,
    4: _renamed(key="category"),
    5: _renamed(key="auction"),
    6: _renamed(key="seller"),
    8: _renamed(key="id", person="name"),
    9: _offer,
    11: _WINDOW,
    12: _WINDOW,
    14: _exact,
    15: _renamed(key="day"),
    16: _of_day("channel"),
    17: _of_day("auction"),
    19: _ranked,
    20: _offer,
}
"""How a value becomes rows, where its fields are not called as the columns are."""
