"""User code with state and timers per key: what no other operator covers.

State is one row per key (see ``keyed_rows``) and the notes of when to look at which key (see ``notes``): a timer costs
a note only if it is the earliest thing that its key waits for, so moving one further off costs nothing.

A record runs when everything that was due before it has run. A timer at ``t`` runs as soon as the watermark is later
than ``t``, between two records; timers run in the order of their times, keys and names. What a record did is undone if
its code fails. What has outlived its time to live is never seen, and goes physically when the watermark has passed it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from headrace.errors import HeadraceError, TopologyError
from headrace.operators.api import (
    EMIT_RECORDS,
    MAIN,
    Batch,
    Outputs,
    RecordsFailedError,
    StepContext,
    watermarks_before,
)
from headrace.operators.causes import cause
from headrace.operators.keyed_rows import ABSENT, Row, RowCodec, Turn
from headrace.operators.keyed_state import KeyedState
from headrace.operators.notes import NEVER, NOTES, Note, Notes
from headrace.operators.programs import Context, Handlers, Program
from headrace.record import MIN_WATERMARK
from headrace.state.cache import Codec, WriteBehind

_TOGETHER = 512
"""Keys whose rows are read with one call of the store when many are due at once."""

_SINGLE = frozenset({dict, str, bytes, tuple})
"""Types of results that could be iterated over, and surely were not meant to be."""


@dataclass(frozen=True, slots=True)
class ProcessRecords:
    """Runs user code on every record of a key, with state and timers."""

    program: Program
    outputs: tuple[str, ...]
    dropped: tuple[str, ...]
    """States that the step had once and shall forget."""
    decode_key: Callable[[bytes], Any]
    uses_clock: bool
    kind: ClassVar[str] = "process"
    stateful: ClassVar[bool] = True
    sided: ClassVar[bool] = False
    ports: tuple[str, ...] = field(init=False)
    timed_ports: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        ports = (MAIN, *self.outputs)
        object.__setattr__(self, "ports", ports)
        object.__setattr__(self, "timed_ports", ports if self.program.has_timers else ())

    def shape(self) -> dict[str, Any]:
        """Describe what stored rows depend on."""
        states = {name: state.shape() for name, state in sorted(self.program.states.items())}
        return {"states": states, "dropped": sorted(self.dropped)}

    def build(self, context: StepContext) -> ProcessOperator:
        """Make the operator of one task."""
        turn = Turn()
        states: dict[str, KeyedState] = {
            name: state.bound(turn, slot, f"state {name!r} of step {context.step!r}")
            for slot, (name, state) in enumerate(self.program.states.items())
        }
        codec = RowCodec(context.step, states)
        rows = WriteBehind(
            context.store,
            context.store_prefix("rows"),
            Codec(codec.encode_many, codec.decode_many),
            budget=context.budget,
            width=0,
        )
        notes = Notes(WriteBehind(context.store, context.store_prefix("notes"), NOTES, budget=context.budget))
        clock_notes = None
        if self.uses_clock:
            cache = WriteBehind(context.store, context.store_prefix("clock"), NOTES, budget=context.budget)
            clock_notes = Notes(cache)
        handlers = self.program.bind(states)
        outlet = Outlet(context.step, self.ports)
        shared = Context(context.step, turn, handlers, outlet.emit, self.decode_key, uses_clock=self.uses_clock)
        return ProcessOperator(handlers, shared, outlet, list(states.values()), rows, notes, clock_notes)


class Outlet:
    """Gathers results by port, each with a mark that says what it came from."""

    def __init__(self, step: str, ports: Sequence[str]) -> None:
        self.values: dict[str, list[Any]] = {port: [] for port in ports}
        self.marks: dict[str, list[Any]] = {port: [] for port in ports}
        """Of a record's results its place in the batch, of a timer's its time and key."""
        self.mark: Any = 0
        """That of the call of user code that is going on."""
        self._step = step

    def emit(self, port: str, value: Any) -> None:
        """Take a result for a named output."""
        values = self.values.get(port)
        if values is None or port == MAIN:
            known = ", ".join(map(repr, [port for port in self.values if port != MAIN])) or "none"
            raise TopologyError(
                f"step {self._step!r} has no output {port!r}",
                remedy=f"Name it in process(..., outputs=(...)); those named there: {known}",
            )
        values.append(value)
        self.marks[port].append(self.mark)

    def take(self, results: Any) -> None:
        """Take what user code returned, which may be a generator that has yet to run.

        Raises:
            TopologyError: it is no collection of results.
            Exception: the generator fails.
        """
        if type(results) in _SINGLE or not hasattr(results, "__iter__"):
            raise TopologyError(
                f"step {self._step!r} was returned a {type(results).__name__} by its function, not several results",
                remedy="Yield the results, or return a list of them",
            )
        values, marks = self.values[MAIN], self.marks[MAIN]
        values.extend(results)
        marks.extend([self.mark] * (len(values) - len(marks)))

    def drop(self) -> None:
        """Forget what the call of user code that is going on made."""
        for port, marks in self.marks.items():
            while marks and marks[-1] is self.mark:
                marks.pop()
            del self.values[port][len(marks) :]

    def of_records(self, batch: Batch) -> Outputs:
        """Return and forget what records of ``batch`` made."""
        outputs: Outputs = []
        for port, marks, values in self._taken():
            outputs.append((port, batch.pick(marks).with_values(values)))
        return outputs

    def of_time(self, batch: Batch | None = None, place: int = 0, *, at_once: bool = False) -> Outputs:
        """Return and forget what time made, while ``batch`` went by, before or ``at_once`` behind the record there."""
        outputs: Outputs = []
        for port, marks, values in self._taken():
            for start in range(0, len(marks), EMIT_RECORDS):
                part = marks[start : start + EMIT_RECORDS]
                timestamps, keys = map(list, zip(*part, strict=True))
                made = values[start : start + EMIT_RECORDS]
                running = None if batch is None else batch.running
                if batch is None:
                    causes = [-1] * len(part)
                elif at_once:
                    causes = [batch.offsets[place]] * len(part)
                else:
                    causes = [cause(batch, place, timestamp + 1) for timestamp in timestamps]
                outputs.append((port, Batch(causes, timestamps, keys, made, None, running, batch is not None)))
        return outputs

    def _taken(self) -> list[tuple[str, list[Any], list[Any]]]:
        taken = [(port, marks, self.values[port]) for port, marks in self.marks.items() if marks]
        for port, _, _ in taken:
            self.marks[port], self.values[port] = [], []
        return taken


class ProcessOperator:
    """The running form of ``ProcessRecords``."""

    def __init__(
        self,
        handlers: Handlers,
        context: Context,
        outlet: Outlet,
        states: list[KeyedState],
        rows: WriteBehind[Row],
        notes: Notes,
        clock_notes: Notes | None,
    ) -> None:
        self._handlers = handlers
        self._context = context
        self._turn = context._turn
        self._outlet = outlet
        self._blank = [ABSENT] * len(states)
        self._mortal = [(slot, state) for slot, state in enumerate(states) if state.ttl_ms]
        self._cache = rows
        self._rows = rows.bucket(b"")
        self._notes = notes
        self._clock_notes = clock_notes
        self._time = MIN_WATERMARK
        """The watermark up to which everything has run that was due."""
        self._restored = bool(notes)
        """True until the watermark is known that the state was left at: what was still due then waits for a record."""
        self._asked = False
        """True from ``close_at_end`` to the next watermark, which is then the end of the input."""
        self._end: int | None = None
        """At the end of the input the watermark up to which timers run; those set meanwhile stay for a later run."""
        self._ended = False
        """True if that was done."""

    def process(self, batch: Batch) -> Outputs:
        """Run the records, and between them the timers that are due."""
        if batch.offsets[0] >= 0:
            self._go_on()
        before = watermarks_before(batch, self._time)
        limit = self._last(batch)
        rows, live, get = self._rows, self._rows.live, self._rows.get
        rows.load(batch.keys)  # type: ignore[arg-type]
        turn, context, outlet, notes = self._turn, self._context, self._outlet, self._notes
        on_record = self._handlers.on_record
        failures: list[tuple[int, Exception]] = []
        outputs: Outputs = []
        context._before = before
        keys: Any = batch.keys
        for place, (key, timestamp, value) in enumerate(zip(keys, batch.timestamps, batch.values, strict=True)):
            if notes.next < limit and notes.next < before(place):
                outputs += self._between(batch, place, before(place), failures)
                before = context._before
            row = live.get(key) or get(key)
            if row is None:
                row = Row(self._blank.copy())
            turn.cells = row.cells
            turn.now = timestamp if timestamp >= limit else max(timestamp, before(place))
            context.timestamp = timestamp
            context._row, context._raw_key, context._place = row, key, place
            outlet.mark = place
            try:
                results = on_record(value, context)
                if results is not None:
                    outlet.take(results)
            except HeadraceError:
                raise
            except Exception as error:  # noqa: BLE001  # user code may raise anything
                self._undo()
                failures.append((place, error))
                continue
            if turn.undo:
                self._keep(key, row)
                if notes.next < limit and notes.next < before(place):
                    self._time = max(self._time, before(place))
                    outputs += self._between(batch, place, self._time, failures, at_once=True)
                    before = context._before
        self._time = max(self._time, before(len(batch) - 1))
        outputs += outlet.of_records(batch)
        if failures:
            raise RecordsFailedError(failures, outputs)
        return outputs

    def on_watermark(self, watermark: int) -> Outputs:
        """Run the timers that the watermark has passed."""
        if self._restored:
            self._restored = False
            self._time = watermark
            return []
        if not self._asked:
            self._go_on()
        self._asked = False
        limit = watermark
        if self._end is not None:
            limit = 0 if self._ended else min(watermark, self._end)
            self._ended = self._ended or limit == self._end
        failures: list[tuple[int, Exception]] = []
        self._fire(limit, failures)
        self._time = max(self._time, watermark)
        outputs = self._outlet.of_time()
        if failures:
            raise RecordsFailedError(failures, outputs)
        return outputs

    def on_clock(self, now_ms: int) -> Outputs:
        """Run the clock timers that are due; return nothing if there are none."""
        self._context._now_ms = now_ms
        notes = self._clock_notes
        if notes is None or notes.next > now_ms:
            return []
        failures: list[tuple[int, Exception]] = []
        self._run(notes, now_ms + 1, failures, self._wake_by_clock)
        self._fire(self._time, failures)  # timers that were set for a time that had passed
        outputs = self._outlet.of_time()
        if failures:
            raise RecordsFailedError(failures, outputs)
        return outputs or [(MAIN, Batch([], [], [], []))]

    def output_watermark(self, watermark: int) -> int:
        """Return the watermark: results come at once."""
        return watermark

    def next_close(self) -> int | None:
        """Return a watermark by which a timer may run."""
        self._asked = False
        if self._handlers.on_timer is None or not self._notes:
            return None
        return max(self._notes.next, self._time) + 1

    def close_at_end(self) -> int | None:
        """Return the watermark that lets the last timer run that is set when the input ends."""
        self._asked = True
        if self._end is None:
            if self._handlers.on_timer is None or not self._notes:
                return None
            latest = [max(row.timers.values()) for _, row in self._cache.rows(self._rows) if row.timers]
            if not latest:
                return None
            self._end = max(latest) + 1
        return None if self._ended else self._end

    def _go_on(self) -> None:
        """Learn that there is more input: timers run again."""
        self._asked = self._ended = self._restored = False
        self._end = None

    def _last(self, batch: Batch) -> int:
        """Return the highest watermark within ``batch``."""
        if batch.timed or batch.offsets[0] < 0:
            return max(self._time, *batch.timestamps)
        return max(self._time, batch.running.last) if batch.running is not None else self._time

    def _between(
        self, batch: Batch, place: int, limit: int, failures: list[tuple[int, Exception]], *, at_once: bool = False
    ) -> Outputs:
        """Run the timers that are due before the record at ``place``; return what was made until then.

        Args:
            batch: What goes by.
            place: Where it has got to.
            limit: The watermark.
            failures: Takes what fails.
            at_once: Whether the record at ``place`` has run, and set timers for times that had passed.
        """
        outputs = self._outlet.of_records(batch)
        self._fire(limit, failures)
        self._time = max(self._time, limit)
        self._context._before = watermarks_before(batch, self._time)
        return outputs + self._outlet.of_time(batch, place, at_once=at_once)

    def _fire(self, limit: int, failures: list[tuple[int, Exception]]) -> None:
        self._run(self._notes, limit, failures, self._wake)

    def _run(
        self,
        notes: Notes,
        limit: int,
        failures: list[tuple[int, Exception]],
        wake: Callable[[Note, list[tuple[int, Exception]]], None],
    ) -> None:
        """Look at all keys for which there are notes for times before ``limit``, in order."""
        while notes.next < limit:
            due = notes.take(limit, _TOGETHER)
            self._rows.load([key for _, key in due])
            for note in due:
                while (earlier := notes.take_before(note)) is not None:
                    wake(earlier, failures)
                wake(note, failures)

    def _wake(self, note: Note, failures: list[tuple[int, Exception]]) -> None:
        """Run the timers of a key that are due at the time of the note, and sweep out what has expired."""
        at, key = note
        row = self._rows.peek(key)
        if row is None or row.wake != at:
            return
        self._rows.get(key)  # it changes from here on
        timers = row.timers
        for time, name in sorted((time, name) for name, time in timers.items() if time <= at):
            if timers.get(name) != time:
                continue  # a timer before this one took it back
            del timers[name]
            self._turn.now = max(time, self._time)
            self._context._fixed = max(time + 1, self._time)
            self._call(self._handlers.on_timer, name, key, row, max(time, self._time), failures)
        row.wake = min(timers.values(), default=NEVER)
        for slot, state in self._mortal:
            if row.cells[slot] is not ABSENT:
                row.cells[slot], again = state.sweep(row.cells[slot], max(at, self._time))
                row.wake = min(row.wake, again)
        if row.wake < NEVER:
            self._notes.add(row.wake, key)
        elif row.empty:
            self._cache.discard(self._rows, key)

    def _wake_by_clock(self, note: Note, failures: list[tuple[int, Exception]]) -> None:
        """Run the clock timers of a key that are due."""
        at, key = note
        row = self._rows.peek(key)
        if row is None or row.clock_wake != at:
            return
        self._rows.get(key)
        timers, now = row.clock_timers, self._context._now_ms
        for name, time in timers.items():
            if time < 0:  # it was set when the time was not known: it begins to run now
                timers[name] = now - time
        for time, name in sorted((time, name) for name, time in timers.items() if time <= now):
            if timers.get(name) != time:
                continue
            del timers[name]
            self._turn.now = max(0, self._time)
            self._context._fixed = self._time
            self._call(self._handlers.on_clock_timer, name, key, row, max(0, self._time), failures)
        row.clock_wake = min(timers.values(), default=NEVER)
        if self._clock_notes is not None and timers:
            self._clock_notes.add(row.clock_wake, key)
        if row.empty:
            self._cache.discard(self._rows, key)

    def _call(
        self, handler: Any, name: str, key: bytes, row: Row, timestamp: int, failures: list[tuple[int, Exception]]
    ) -> None:
        """Run a timer's code."""
        if handler is None:
            return  # the code that set it is gone, and with it what it was for
        turn, context, outlet = self._turn, self._context, self._outlet
        turn.cells = row.cells
        context.timestamp = timestamp
        context._row, context._raw_key, context._timed = row, key, True
        outlet.mark = (timestamp, key)
        try:
            results = handler(name, context)
            if results is not None:
                outlet.take(results)
            self._keep(key, row)
        except HeadraceError:
            raise
        except Exception as error:  # noqa: BLE001  # user code may raise anything
            self._undo()
            failures.append((-1, error))
        finally:
            context._timed, context._fixed = False, None

    def _keep(self, key: bytes, row: Row) -> None:
        """Let what user code wrote stand."""
        turn = self._turn
        self._rows.live[key] = row
        if turn.clock_earliest < row.clock_wake and self._clock_notes is not None:
            row.clock_wake = turn.clock_earliest
            self._clock_notes.add(max(0, row.clock_wake), key)
        if turn.earliest < row.wake:
            row.wake = turn.earliest
            self._notes.add(row.wake, key)
        shrunk = turn.shrunk
        turn.succeed()
        if shrunk and not self._context._timed and row.empty:
            self._cache.discard(self._rows, key)

    def _undo(self) -> None:
        self._turn.fail()
        self._outlet.drop()
