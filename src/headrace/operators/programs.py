"""What a user writes for ``process``: a class or functions, and the context that they are given."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, ClassVar, Generic, TypeVar, overload

from headrace.errors import TopologyError
from headrace.operators.keyed_rows import ABSENT, Row, Turn
from headrace.operators.keyed_state import KeyedState
from headrace.record import TIMESTAMP_LIMIT
from headrace.settings import duration_ms

In_contra = TypeVar("In_contra", contravariant=True)
Out_co = TypeVar("Out_co", covariant=True)

Handler = Callable[[Any, "Context"], Iterable[Any] | None]


@dataclass(frozen=True, slots=True)
class Handlers:
    """The code of one task, bound to its states."""

    on_record: Handler
    on_timer: Handler | None
    on_clock_timer: Handler | None


@dataclass(frozen=True, slots=True)
class Program:
    """The code of a step: its states, and what binds it to those of one task."""

    states: Mapping[str, KeyedState]
    bind: Callable[[Mapping[str, KeyedState]], Handlers]
    has_timers: bool
    """Whether time may make results."""


class Context:
    """What user code is told about the record or timer it handles, and can ask for beside its states.

    Example:
        >>> from collections.abc import Iterator
        >>> from headrace import Context, Topology, ValueState
        >>> def begin(login: dict[str, str], context: Context, since: ValueState[int]) -> None:
        ...     since.value = context.timestamp
        ...     context.set_timer("over", after="8h")
        >>> def over(name: str, context: Context, since: ValueState[int]) -> Iterator[dict[str, int]]:
        ...     yield {"user": context.key, "since": since.value}
        >>> logins = Topology("t").stream("logins", keyed_by="user", time="at")
        >>> logins.process(begin, on_timer=over, since=ValueState(int)).to("forgotten-logins")
    """

    __slots__ = (
        "_before", "_decode_key", "_durations", "_emit", "_fixed", "_handlers", "_now_ms", "_place", "_raw_key", "_row",
        "_step", "_timed", "_turn", "_uses_clock", "timestamp",
    )  # fmt: skip

    def __init__(
        self,
        step: str,
        turn: Turn,
        handlers: Handlers,
        emit: Callable[[str, Any], None],
        decode_key: Callable[[bytes], Any],
        *,
        uses_clock: bool,
    ) -> None:
        self.timestamp = 0
        """The record's event time, or that for which the timer was set, in ms; results carry it. A timer that was set
        for a time that had passed runs at the time that event time had reached, a clock timer at the watermark."""
        self._step = step
        self._turn = turn
        self._handlers = handlers
        self._emit = emit
        self._decode_key = decode_key
        self._uses_clock = uses_clock
        self._now_ms = -1
        """Processing time, -1 if it is not known."""
        self._row = Row([])
        self._raw_key = b""
        self._before: Callable[[int], int] = _unknown
        self._place = 0
        self._fixed: int | None = None
        """The watermark, if it does not follow from the place of a record."""
        self._timed = False
        """True while a timer's code runs."""
        self._durations: dict[str | timedelta, int] = {}

    @property
    def key(self) -> Any:
        """The key of the record or timer."""
        return self._decode_key(self._raw_key)

    @property
    def watermark(self) -> int:
        """How far event time has come, in ms: every record before it was there, apart from late ones; -1 at first."""
        return self._before(self._place) if self._fixed is None else self._fixed

    @property
    def now_ms(self) -> int:
        """The processing time, in ms since the epoch; 0 while it is not known, as throughout a run with --until-end.

        Raises:
            TopologyError: the step does not say that it uses the clock.
        """
        self._check_clock("asks for context.now_ms")
        return max(0, self._now_ms)

    @property
    def timers(self) -> dict[str, int]:
        """The event-time timers of the current key that are set: name and time, the earliest first."""
        return dict(sorted(self._row.timers.items(), key=_by_time))

    @overload
    def set_timer(self, name: str, *, at: int) -> None: ...
    @overload
    def set_timer(self, name: str, *, after: str | timedelta) -> None: ...
    def set_timer(self, name: str, *, at: int | None = None, after: str | timedelta | None = None) -> None:
        """Let ``on_timer`` run for the current key when event time has passed a time.

        A key has one timer of each name; setting it again moves it. One that is set for a time that the watermark has
        passed runs at once, behind this record.

        Args:
            name: What ``on_timer`` is called with.
            at: When, in ms since the epoch.
            after: How long after ``context.timestamp``, instead of ``at``.

        Raises:
            TopologyError: there is no ``on_timer``, or ``on_timer`` sets a timer that is not later than its own time.
            ValueError: no event can have that time.
        """
        if self._handlers.on_timer is None:
            raise TopologyError(
                f"step {self._step!r} sets a timer and has no on_timer", remedy="Define on_timer(name, context)"
            )
        if (at is None) == (after is None):
            raise TopologyError(f"step {self._step!r} sets a timer with both or none of at= and after=: give one")
        time = self.timestamp + self._duration(after) if at is None else at
        if type(time) is not int:
            raise TypeError(f"a timer is set for a time in whole milliseconds, not {type(time).__name__}")
        if not 0 <= time < TIMESTAMP_LIMIT:
            raise ValueError("a timer is set for a time that no event can have: it is in ms since the epoch")
        if self._timed and time <= self.timestamp:
            raise TopologyError(
                f"a timer of step {self._step!r} sets one that is not later than its own time: they would never end",
                remedy="Set it for a time after context.timestamp",
            )
        turn, timers = self._turn, self._row.timers
        turn.undo.append((timers, name, timers.get(name, ABSENT)))
        timers[name] = time
        turn.earliest = min(turn.earliest, time)

    def cancel_timer(self, name: str) -> None:
        """Take a timer of the current key back, if it is set."""
        self._cancel(self._row.timers, name)

    def set_clock_timer(self, name: str, *, after: str | timedelta) -> None:
        """Let ``on_clock_timer`` run for the current key when processing time has passed, give or take 100 ms.

        A key has one of each name; setting it again moves it. After a restart it goes on to wait for the same moment.
        In a run with --until-end, which knows no processing time, it waits for a later run; it then begins to wait
        when that run begins.

        Args:
            name: What ``on_clock_timer`` is called with.
            after: How long from now.

        Raises:
            TopologyError: there is no ``on_clock_timer``.
        """
        if self._handlers.on_clock_timer is None:
            raise TopologyError(
                f"step {self._step!r} sets a clock timer and has no on_clock_timer",
                remedy="Define on_clock_timer(name, context)",
            )
        wait = max(1, self._duration(after))
        due = -wait if self._now_ms < 0 else self._now_ms + wait
        turn, timers = self._turn, self._row.clock_timers
        turn.undo.append((timers, name, timers.get(name, ABSENT)))
        timers[name] = due
        turn.clock_earliest = min(turn.clock_earliest, max(0, due))

    def cancel_clock_timer(self, name: str) -> None:
        """Take a clock timer of the current key back, if it is set."""
        self._cancel(self._row.clock_timers, name)

    def emit(self, output: str, value: Any) -> None:
        """Write a value to a named output, with the key and the timestamp of the record or timer.

        Raises:
            TopologyError: the step has no such output.
        """
        self._emit(output, value)

    def _cancel(self, timers: dict[str, int], name: str) -> None:
        if name in timers:
            self._turn.undo.append((timers, name, timers.pop(name)))
            self._turn.shrunk = True

    def _duration(self, duration: Any) -> int:
        known = self._durations.get(duration)
        if known is None:
            known = self._durations[duration] = duration_ms(duration, f"after of a timer of step {self._step!r}")
        return known

    def _check_clock(self, what: str) -> None:
        if not self._uses_clock:
            raise TopologyError(
                f"step {self._step!r} {what} and does not say that it uses the clock",
                remedy="Set uses_clock = True on the class, or pass process(..., uses_clock=True): a replay may then "
                "give other results",
            )


class Process(ABC, Generic[In_contra, Out_co]):
    """Code for ``KeyedStream.process``: a subclass says what happens with each record of a key.

    Declare states on the class, or in ``__init__``; while code runs, they are those of the current key. Everything else
    that an object holds is shared by all keys of a task and forgotten when the task moves: make it constant.

    Results are yielded, or returned as a list. Those of a record have its timestamp, those of a timer the time for
    which it was set; all have the key. What a record's code did is undone if it raises.

    Example:
        >>> from headrace import Topology, ValueState
        >>> class EveryThird(Process[dict[str, int], str]):
        ...     seen = ValueState(int, default=0)
        ...
        ...     def on_record(self, record: dict[str, int], context: Context) -> Iterable[str] | None:
        ...         self.seen.value += 1
        ...         if self.seen.value % 3 == 0:
        ...             yield f"{self.seen.value} records of {context.key}"
        >>> Topology("t").stream("in", keyed_by="k").process(EveryThird).to("out")
    """

    uses_clock: ClassVar[bool] = False
    """Whether code asks for ``context.now_ms``; a class with ``on_clock_timer`` uses the clock in any case."""

    @abstractmethod
    def on_record(self, record: In_contra, context: Context) -> Iterable[Out_co] | None:
        """Handle a record."""

    def on_timer(self, name: str, context: Context) -> Iterable[Out_co] | None:
        """Handle a timer that event time has passed."""
        return None

    def on_clock_timer(self, name: str, context: Context) -> Iterable[Out_co] | None:
        """Handle a timer that processing time has passed."""
        return None


def program_of_object(template: Process[Any, Any]) -> Program:
    """Return the program that an object of a user's class is."""
    cls = type(template)
    declared: dict[str, Any] = {}
    for parent in reversed(cls.__mro__):
        declared |= vars(parent)
    declared |= vars(template)
    states = {name: state for name, state in declared.items() if isinstance(state, KeyedState)}
    on_timer = cls.on_timer is not Process.on_timer
    on_clock = cls.on_clock_timer is not Process.on_clock_timer

    def bind(bound: Mapping[str, KeyedState]) -> Handlers:
        own = copy.copy(template)
        vars(own).update(bound)
        return Handlers(own.on_record, own.on_timer if on_timer else None, own.on_clock_timer if on_clock else None)

    return Program(states, bind, on_timer or on_clock)


def program_of_functions(
    functions: tuple[Callable[..., Any], Callable[..., Any] | None, Callable[..., Any] | None],
    states: Mapping[str, KeyedState],
    takes: Callable[[Callable[..., Any]], Iterable[str]],
) -> Program:
    """Return the program that functions are.

    Args:
        functions: For records, timers and clock timers.
        states: By the name of the parameter that takes each.
        takes: Tells which of them a function takes.
    """

    def bind(bound: Mapping[str, KeyedState]) -> Handlers:
        own = [f and partial(f, **{name: bound[name] for name in takes(f)}) for f in functions]
        assert own[0] is not None
        return Handlers(own[0], own[1], own[2])

    return Program(dict(states), bind, any(functions[1:]))


def _by_time(timer: tuple[str, int]) -> tuple[int, str]:
    return timer[1], timer[0]


def _unknown(place: int) -> int:
    raise TopologyError("the context was used outside of on_record and on_timer")
