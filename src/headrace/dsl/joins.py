"""Joins of a keyed stream: with another within an interval or as of its time, and with tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, Literal, Self, TypeVar

from headrace.dsl.definition import Definition, check_function, user_location
from headrace.dsl.global_join import join_global
from headrace.dsl.keyed import KeyedStream
from headrace.dsl.stream import Stream
from headrace.dsl.table import GlobalTable, Table, combined
from headrace.errors import TopologyError
from headrace.operators.api import Spec
from headrace.operators.as_of_join import AsOfHow, AsOfJoin
from headrace.operators.interval_join import LATE_RIGHT, How, IntervalJoin
from headrace.operators.latest_join import LatestJoin
from headrace.operators.windowed import LATE
from headrace.serde.api import Serde
from headrace.settings import duration_ms
from headrace.topology.graph import ErrorPolicy, Port

R = TypeVar("R")

Within = str | timedelta | tuple[str | timedelta, str | timedelta]
"""How far apart the records of a pair may be: one duration for both ways, or (before, after)."""

Match = Literal["as-of", "latest"]
"""Which row of a table a record meets: that of its own time, or the one that is known when it comes."""

Combine = Callable[[Any, Any], Any]


class JoinResults(KeyedStream[R]):
    """What a join of two streams makes, with the records of both sides that came too late beside it."""

    def __init__(
        self,
        definition: Definition,
        port: Port,
        anchor: str,
        value: Serde[Any],
        key: Serde[Any],
        late: KeyedStream[Any],
        late_right: KeyedStream[Any],
    ) -> None:
        super().__init__(definition, port, anchor, value, key)
        self.late = late
        """Records of the left stream that came too late for any partner, unchanged; they are counted in any case."""
        self.late_right = late_right
        """The same of the right stream."""

    def _same(self, port: Port) -> Self:
        return type(self)(
            self._definition, port, self._anchor, self._value, self._key, self.late, self.late_right
        )  # fmt: skip


def join(left: KeyedStream[Any], other: Any, combine: Combine, how: Any, options: Mapping[str, Any]) -> Any:
    """Append the join that the type of ``other`` asks for; ``options`` holds the rest of what the user gave.

    Raises:
        TopologyError: the two cannot be joined, or an option does not belong to such a join.
        SettingsError: a duration is none.
    """
    name, on_error = options["name"], options["on_error"]
    if isinstance(other, GlobalTable):
        _refuse(options, "a global table", "within", "lateness", "match")
        return join_global(left, other, combine, on=options["on"], how=how, name=name, on_error=on_error)
    check_function(combine, "join")
    if isinstance(other, Table):
        _refuse(options, "a table", "within", "lateness", "on")
        return _join_table(left, other, combine, how, options["match"] or "as-of", name, on_error)
    _check_streams("join", left, other)
    _refuse(options, "a stream", "match", "on")
    if options["within"] is None:
        raise TopologyError(
            f"a join of two streams needs within= ({user_location()}): without it every record would be kept for ever",
            remedy='Say how far apart in time two records may be, such as within="10m" or within=("5m", "1m")',
        )
    if how not in ("inner", "left", "right", "outer"):
        raise TopologyError(f'how must be "inner", "left", "right" or "outer", not {how!r} ({user_location()})')
    before_ms, after_ms = _within_ms(options["within"])
    lateness_ms = duration_ms(options["lateness"] or "0s", f"lateness of join ({user_location()})")
    return _join_streams(left, other, combine, before_ms, after_ms, how, lateness_ms, name, on_error)


def as_of(
    left: KeyedStream[Any],
    right: Any,
    combine: Combine,
    within: str | timedelta | None,
    how: str,
    name: str | None,
    on_error: ErrorPolicy | None,
) -> KeyedStream[Any]:
    """Append the as-of join of two streams.

    Raises:
        TopologyError: the two cannot be joined.
        SettingsError: ``within`` is no duration.
    """
    check_function(combine, "as_of")
    if isinstance(right, Table):
        raise TopologyError(
            f"as_of needs a stream on the right, not a table ({user_location()})",
            remedy="Use join(table, ...), which takes the row as it was at the record's time",
        )
    _check_streams("as_of", left, right)
    within_ms = None if within is None else duration_ms(within, f"within of as_of ({user_location()})")
    spec = AsOfJoin(left._value, right._value, _check_how(how), within_ms)
    return _combined(left, right, spec, name or f"{left._anchor}-as_of-{right._anchor}", combine, on_error)


def _join_streams(
    left: KeyedStream[Any], right: KeyedStream[Any], combine: Combine, before_ms: int, after_ms: int, how: How,
    lateness_ms: int, name: str | None, on_error: ErrorPolicy | None,
) -> JoinResults[Any]:  # fmt: skip
    name = name or f"{left._anchor}-join-{right._anchor}"
    spec = IntervalJoin(left._value, right._value, before_ms, after_ms, how, lateness_ms)
    made = _combined(left, right, spec, name, combine, on_error)
    late, late_right = left._same(Port(name, LATE)), right._same(Port(name, LATE_RIGHT))
    return JoinResults(made._definition, made._port, name, made._value, made._key, late, late_right)


def _join_table(
    left: KeyedStream[Any], table: Table[Any], combine: Combine, how: str, match: str, name: str | None,
    on_error: ErrorPolicy | None,
) -> KeyedStream[Any]:  # fmt: skip
    right = table._changes
    _check_sides("join", left, right)
    if how in ("right", "outer"):
        raise TopologyError(
            f"how={how!r} does not fit a stream and a table ({user_location()}): a row without records makes nothing",
            remedy='Use how="inner" or how="left", or join two tables',
        )
    known = _check_how(how)
    if match not in ("as-of", "latest"):
        raise TopologyError(f'match must be "as-of" or "latest", not {match!r} ({user_location()})')
    spec: Spec
    if match == "latest":
        spec = LatestJoin(right._value, known)
    else:
        spec = AsOfJoin(left._value, right._value, known, table=True)
    return _combined(left, right, spec, name or f"{left._anchor}-join-{right._anchor}", combine, on_error)


def _combined(
    left: KeyedStream[Any], right: KeyedStream[Any], spec: Spec, name: str, combine: Combine,
    on_error: ErrorPolicy | None,
) -> KeyedStream[Any]:  # fmt: skip
    left._add_step(spec, name, (left._port, right._port), on_error)
    return combined(left, name, combine, on_error)


def _within_ms(within: Any) -> tuple[int, int]:
    if not isinstance(within, tuple):
        both = duration_ms(within, f"within of join ({user_location()})")
        return both, both
    if len(within) != 2:
        raise TopologyError(
            f"within must be one duration or two, (before, after), not {len(within)} ({user_location()})"
        )
    before, after = (f"within of join ({way}) ({user_location()})" for way in ("before", "after"))
    return duration_ms(within[0], before), duration_ms(within[1], after)


def _check_streams(what: str, left: KeyedStream[Any], other: Any) -> None:
    if not isinstance(other, Stream):
        raise TopologyError(
            f"{what} needs a keyed stream or a table, not {type(other).__name__} ({user_location()})",
            remedy="Read a topic with topology.stream(..., keyed_by=...) or topology.table(...)",
        )
    if not isinstance(other, KeyedStream):
        raise TopologyError(
            f"the right side of {what} has no key ({user_location()}), so nothing says which records belong together",
            remedy="Use key_by(...) on it, or say keyed_by= where its topic is read",
        )
    _check_sides(what, left, other)


def _check_sides(what: str, left: KeyedStream[Any], right: KeyedStream[Any]) -> None:
    if left._definition is not right._definition:
        raise TopologyError(f"{what} needs both sides to be of the same topology ({user_location()})")
    if left._key.name != right._key.name:
        raise TopologyError(
            f"the keys of the two sides of {what} are of different types, {left._key.name} and {right._key.name} "
            f"({user_location()}), so none would ever be equal",
            remedy="Give both the same type with key= where the topics are read or in key_by(...)",
        )


def _check_how(how: Any) -> AsOfHow:
    if how not in ("inner", "left"):
        raise TopologyError(f'how must be "inner" or "left", not {how!r} ({user_location()})')
    known: AsOfHow = how
    return known


def _refuse(options: Mapping[str, Any], what: str, *names: str) -> None:
    for name in names:
        if options[name] is not None:
            raise TopologyError(
                f"{name}= does not belong to a join with {what} ({user_location()})",
                remedy=_REMEDIES[name],
            )


_REMEDIES = {
    "within": "Leave it out: a record meets the row of its own time, however old that is",
    "lateness": "Leave it out: late records are joined with what is known when they come",
    "match": 'Leave it out: only a table\'s row can be the "latest"; see as_of() for streams',
    "on": "Leave it out, and use key_by(...) on the stream that refers to the other's key",
}
