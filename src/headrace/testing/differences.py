"""What is wrong with records, as a table that a person can read. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from headrace.operators.selectors import Selector, select
from headrace.record import Record
from headrace.testing.events import Event

_MOST_ROWS = 20
_MOST_FIELDS = 8
_WIDEST = 40
_MOST_COMPARED = 1_000_000
"""Pairs that are compared to put two lists side by side; longer ones are compared place by place."""
_MOST_LIKENED = 200
_ALIKE = 0.5
"""Of the fields of two records, the part that must be equal for one to be taken for the other, changed."""

_ABSENT = object()
"""Stands where an expectation says nothing, or a value has no such field."""


@dataclass(frozen=True, slots=True)
class Expected:
    """A record that should be there; what is left out may be anything."""

    value: Any
    key: Any = _ABSENT
    timestamp: Any = _ABSENT


@dataclass(frozen=True, slots=True)
class Difference:
    """One record that is not as it should be."""

    kind: str
    """``missing``, ``unexpected``, ``changed`` or ``out of place``."""
    place: int
    """Among the records that are there; of a missing one, among those that should be."""
    actual: Record | None
    expected: Expected | None


def assert_records(
    actual: Iterable[Record], expected: Iterable[Any], *, ordered: bool = True, by: Selector | None = None
) -> None:
    """Fail with a table of the differences unless ``actual`` are the records that are expected.

    Structs and dataclasses equal mappings with the same fields, so it does not matter how a topic is decoded.

    Args:
        actual: What ``TopologyTestDriver.read`` returned.
        expected: For each record its value, ``(key, value)``, ``(key, value, timestamp)``, an ``Event`` or a
            ``Record``; keys and timestamps that are left out may be anything. ``pytest.approx`` works inside values.
        ordered: Whether their order matters.
        by: The field or function of the value that says which record is which, so that a wrong one is told as a
            changed one; if None, the most similar one is taken.

    Raises:
        AssertionError: they differ.

    Example:
        >>> from headrace import Topology
        >>> from headrace.testing import TopologyTestDriver
        >>> topology = Topology("doubled")
        >>> topology.stream("in", value=int).map(lambda n: 2 * n).to("out")
        >>> driver = TopologyTestDriver(topology)
        >>> driver.send_many("in", [1, 2])
        >>> assert_records(driver.read("out"), [2, 4])
        >>> driver.send_many("in", [3])
        >>> assert_records(driver.read("out"), [(None, 7)])
        Traceback (most recent call last):
            ...
        AssertionError: the records are not as expected: 1 missing, 1 unexpected; 0 are right
        <BLANKLINE>
                    place  key   timestamp  value
        missing     0      None             7
        unexpected  0      None  0          6
    """
    __tracebackhide__ = True
    there = list(actual)
    wanted = [expectation(item) for item in expected]
    found = differences(there, wanted, ordered=ordered, by=by)
    if found:
        right = len(there) - sum(difference.actual is not None for difference in found)
        raise AssertionError(f"the records are not as expected: {summary(found)}; {right} are right\n\n{table(found)}")


def expectation(item: Any) -> Expected:
    """Return what an expected value, tuple, event or record says about a record."""
    if isinstance(item, Event):
        return Expected(item.value, _ABSENT if item.key is None else item.key, item.timestamp)
    if isinstance(item, Record):
        return Expected(item.value, item.key, item.timestamp)
    if isinstance(item, tuple) and len(item) in (2, 3):
        return Expected(item[1], item[0], *item[2:])
    return Expected(item)


def differences(
    actual: Sequence[Record], expected: Sequence[Expected], *, ordered: bool = True, by: Selector | None = None
) -> list[Difference]:
    """Return what distinguishes the records from those that are expected, in the order of their places."""
    matched = _aligned(actual, expected) if ordered else _matched(range(len(actual)), actual, expected)
    taken = set(matched.values())
    missing = [place for place in range(len(expected)) if place not in matched]
    extra = [place for place in range(len(actual)) if place not in taken]
    moved = _matched(extra, actual, expected, missing)
    missing, extra = _without(missing, moved), _without(extra, set(moved.values()))
    changed = _alike(extra, actual, missing, expected) if by is None else _same(extra, actual, missing, expected, by)
    found = [
        *[Difference("out of place", j, actual[j], expected[i]) for i, j in moved.items()],
        *[Difference("changed", j, actual[j], expected[i]) for i, j in changed.items()],
        *[Difference("missing", i, None, expected[i]) for i in _without(missing, changed)],
        *[Difference("unexpected", j, actual[j], None) for j in _without(extra, set(changed.values()))],
    ]
    return sorted(found, key=lambda difference: (difference.place, difference.kind))


def summary(found: Sequence[Difference]) -> str:
    """Return how many differences there are of each kind."""
    kinds = [difference.kind for difference in found]
    order = ("missing", "unexpected", "changed", "out of place")
    return ", ".join(f"{kinds.count(kind):,} {kind}" for kind in order if kind in kinds)


def table(found: Sequence[Difference]) -> str:
    """Return the first differences as an aligned table; what a changed record should be stands in brackets."""
    shown = found[:_MOST_ROWS]
    names, left_out = _columns(shown)
    lines = [["", "place", "key", "timestamp", *names]]
    for difference in shown:
        cells = [_cell(difference, name) for name in ("key", "timestamp")]
        cells += [_cell(difference, name, of_value=True) for name in names]
        lines.append([difference.kind, str(difference.place), *cells])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    told = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
    if len(found) > len(shown):
        told.append(f"... and {len(found) - len(shown):,} more")
    if left_out:
        told.append(f"fields left out: {', '.join(left_out)}")
    return "\n".join(told)


def _aligned(actual: Sequence[Record], expected: Sequence[Expected]) -> dict[int, int]:
    """Return which expectations are met where, in order, as many as possible."""
    start = 0
    while start < min(len(actual), len(expected)) and _meets(actual[start], expected[start]):
        start += 1
    matched = {place: place for place in range(start)}
    rows, columns = len(expected) - start, len(actual) - start
    if rows * columns > _MOST_COMPARED:
        return matched | {i: i for i in range(start, min(len(actual), len(expected))) if _meets(actual[i], expected[i])}
    # The longest common subsequence, from its end.
    longest = [[0] * (columns + 1) for _ in range(rows + 1)]
    equal = [[_meets(actual[start + j], expected[start + i]) for j in range(columns)] for i in range(rows)]
    for i in reversed(range(rows)):
        for j in reversed(range(columns)):
            below = max(longest[i + 1][j], longest[i][j + 1])
            longest[i][j] = longest[i + 1][j + 1] + 1 if equal[i][j] else below
    i = j = 0
    while i < rows and j < columns:
        if equal[i][j]:
            matched[start + i] = start + j
            i, j = i + 1, j + 1
        elif longest[i + 1][j] >= longest[i][j + 1]:
            i += 1
        else:
            j += 1
    return matched


def _matched(
    places: Iterable[int], actual: Sequence[Record], expected: Sequence[Expected], wanted: Iterable[int] | None = None
) -> dict[int, int]:
    """Return which expectations are met by any of the records at ``places``."""
    left = list(places)
    matched: dict[int, int] = {}
    # Those that say most come first, so that one that is content with anything takes no record from them.
    order = sorted(range(len(expected)) if wanted is None else wanted, key=lambda i: _freedom(expected[i]))
    for i in order:
        for j in left:
            if _meets(actual[j], expected[i]):
                matched[i] = j
                left.remove(j)
                break
    return matched


def _same(
    extra: Sequence[int], actual: Sequence[Record], missing: Sequence[int], expected: Sequence[Expected], by: Selector
) -> dict[int, int]:
    """Return the pairs of which ``by`` says that they are the same."""
    left = list(zip(extra, select(by, [actual[j].value for j in extra]), strict=True))
    pairs: dict[int, int] = {}
    for i, wanted in zip(missing, select(by, [expected[i].value for i in missing]), strict=True):
        found = next((item for item in left if item[1] == wanted), None)
        if found is not None:
            pairs[i] = found[0]
            left.remove(found)
    return pairs


def _alike(
    extra: Sequence[int], actual: Sequence[Record], missing: Sequence[int], expected: Sequence[Expected]
) -> dict[int, int]:
    """Return the pairs that are similar enough, the most similar first."""
    scores = [
        (-_likeness(actual[j], expected[i]), abs(i - j), i, j)
        for i in missing[:_MOST_LIKENED]
        for j in extra[:_MOST_LIKENED]
    ]
    pairs: dict[int, int] = {}
    for score, _, i, j in sorted(scores):
        if -score >= _ALIKE and i not in pairs and j not in pairs.values():
            pairs[i] = j
    return pairs


def _without(places: Iterable[int], settled: Container[int]) -> list[int]:
    return [place for place in places if place not in settled]


def _likeness(actual: Record, expected: Expected) -> float:
    """Return the part of the fields that are equal; nothing is like a value without fields."""
    here, there = _fields(actual.value), _fields(expected.value)
    if here is None or there is None:
        return 0.0
    pairs = [(here.get(name, _ABSENT), there.get(name, _ABSENT)) for name in {**here, **there}]
    pairs += [(actual.key, expected.key)] * (expected.key is not _ABSENT)
    pairs += [(actual.timestamp, expected.timestamp)] * (expected.timestamp is not _ABSENT)
    return sum(bool(a == b) for a, b in pairs) / max(1, len(pairs))


def _meets(actual: Record, expected: Expected) -> bool:
    if expected.key is not _ABSENT and actual.key != expected.key:
        return False
    if expected.timestamp is not _ABSENT and actual.timestamp != expected.timestamp:
        return False
    if actual.value == expected.value:
        return True
    here, there = _fields(actual.value), _fields(expected.value)
    return here is not None and here == there


def _freedom(expected: Expected) -> int:
    return (expected.key is _ABSENT) + (expected.timestamp is _ABSENT)


def _fields(value: Any) -> Mapping[str, Any] | None:
    """Return the fields of a value, None if it has none."""
    if isinstance(value, Mapping):
        return value
    if isinstance(value, msgspec.Struct):
        return msgspec.structs.asdict(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return None


def _columns(found: Sequence[Difference]) -> tuple[list[str], list[str]]:
    """Return the fields that the table shows, those that changed first of all, and those that it leaves out."""
    names: dict[str, bool] = {}
    for difference in found:
        sides = [side for side in (difference.expected, difference.actual) if side is not None]
        for side in sides:
            fields = _fields(side.value)
            for name in ["value"] if fields is None else fields:
                changed = difference.kind == "changed" and _cell(difference, name, of_value=True).endswith(")")
                names[str(name)] = names.get(str(name), False) or changed
    kept = sorted(names, key=lambda name: not names[name])[:_MOST_FIELDS]
    return [name for name in names if name in kept], [name for name in names if name not in kept]


def _cell(difference: Difference, name: str, *, of_value: bool = False) -> str:
    get = _field_of if of_value else getattr
    here = _ABSENT if difference.actual is None else get(difference.actual, name)
    there = _ABSENT if difference.expected is None else get(difference.expected, name)
    if difference.actual is None:
        return _text(there)
    if difference.kind != "changed" or (there is _ABSENT and not of_value) or here is there or here == there:
        return _text(here)
    return f"{_text(here) or 'none'} (not {_text(there) or 'there'})"


def _field_of(side: Record | Expected, name: str) -> Any:
    fields = _fields(side.value)
    if fields is None:
        return side.value if name == "value" else _ABSENT
    return fields.get(name, _ABSENT)


def _text(value: Any) -> str:
    if value is _ABSENT:
        return ""
    told = repr(value)
    return told if len(told) <= _WIDEST else f"{told[: _WIDEST - 3]}..."
