"""Aggregation over windows: what a step is, and which operator it runs as."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from headrace.operators.agenda import MARKS
from headrace.operators.aggregates import Aggregate
from headrace.operators.api import MAIN, Operator, StepContext
from headrace.operators.compiled import Compiled, RowCodec, compile_aggregates
from headrace.operators.counting import CountedCodec, CountingAggregateOperator
from headrace.operators.custom import CustomLayout, CustomWindows
from headrace.operators.emission import Emission, Every, Ticks, When, marked, never_in_place
from headrace.operators.emitting import EmitByRecord, RecordState, SessionsByRecord, TimeWindowsByRecord
from headrace.operators.periodic import EmitPeriodically, PeriodicSessions, PeriodicWindows
from headrace.operators.results import DecodeKeys, Results
from headrace.operators.sessions import OpenSessions, SessionAggregateOperator, SessionCodec
from headrace.operators.sliding import PanesCodec, SlidingAggregateOperator
from headrace.operators.windowed import LATE, OpenWindows, WindowedAggregateOperator
from headrace.operators.windows import AlignedWindows, CountingWindows, SessionWindows, SlidingWindows, WindowLayout
from headrace.serde.schema import schema_of
from headrace.state.cache import Codec, WriteBehind

Windows = AlignedWindows | CustomWindows | SessionWindows | SlidingWindows | CountingWindows


@dataclass(frozen=True, slots=True)
class WindowedAggregate:
    """Aggregates per key and window; results leave when the window closes, or as ``emit`` says."""

    windows: Windows
    aggregates: Mapping[str, Aggregate]
    lateness_ms: int
    decode_keys: DecodeKeys
    emit: Emission = "close"
    kind: ClassVar[str] = "window"
    stateful: ClassVar[bool] = True
    sided: ClassVar[bool] = False
    uses_clock: ClassVar[bool] = False
    ports: ClassVar[tuple[str, ...]] = (MAIN, LATE)

    @property
    def timed_ports(self) -> tuple[str, ...]:
        """Return the port of results, unless each of them leaves with a record."""
        return () if self.emit == "update" else (MAIN,)

    def shape(self) -> dict[str, Any]:
        """Describe what stored rows depend on."""
        kept = self._kept()
        aggregates: list[list[Any]] = []
        for name, item in self.aggregates.items():
            kinds = [] if item.kind is None else [schema_of(item.kind)]
            aggregates.append([name, item.name, *kinds])
        shape = {**self.windows.shape(), "aggregates": aggregates}
        marks = list(kept.values())[len(aggregates) :]
        return {**shape, "mark": marks[0].name} if marks else shape

    def build(self, context: StepContext) -> Operator:
        """Make the operator of one task."""
        kept = self._kept()
        rows = RowCodec(context.step, kept)
        plain = compile_aggregates(self.aggregates)
        compiled = compile_aggregates(kept) if len(kept) > len(self.aggregates) else plain
        results = Results(plain, self.decode_keys)
        if isinstance(self.windows, SessionWindows):
            return self._sessions(context, self.windows, rows, compiled, results)
        if isinstance(self.windows, SlidingWindows):
            return self._sliding(context, self.windows, rows, compiled, results)
        if isinstance(self.windows, CountingWindows):
            counted = CountedCodec(rows)
            windows = _cache(context, "windows", Codec(counted.encode_many, counted.decode_many), width=0)
            return CountingAggregateOperator(self.windows.size, compiled, results, windows, _marks(context, "slots"))
        return self._time_windows(context, self.windows, rows, compiled, results)

    def _kept(self) -> dict[str, Aggregate]:
        return marked(self.aggregates, self.emit, sessions=isinstance(self.windows, SessionWindows))

    def _time_windows(
        self,
        context: StepContext,
        windows: AlignedWindows | CustomWindows,
        rows: RowCodec,
        compiled: Compiled,
        results: Results,
    ) -> Operator:
        layout: WindowLayout = CustomLayout(windows.assigner) if isinstance(windows, CustomWindows) else windows
        codec = Codec(rows.encode_many, rows.decode_many)
        opened = OpenWindows(
            layout, self.lateness_ms, compiled, _cache(context, "windows", codec, width=layout.prefix_width)
        )
        if self.emit == "close":
            return WindowedAggregateOperator(opened, results)
        if isinstance(self.emit, Every):
            ticks = Ticks(self.emit.interval_ms, _marks(context, "changed"))
            return EmitPeriodically(PeriodicWindows(opened, results, self.aggregates, ticks), ticks)
        trying = compile_aggregates(never_in_place(self._kept()))
        return self._by_record(TimeWindowsByRecord(opened, trying), results)

    def _sessions(
        self, context: StepContext, windows: SessionWindows, rows: RowCodec, compiled: Compiled, results: Results
    ) -> Operator:
        codec = SessionCodec(rows)
        cache = _cache(context, "sessions", Codec(codec.encode_many, codec.decode_many), width=0)
        sessions = OpenSessions(windows.gap_ms, self.lateness_ms, compiled, cache, _marks(context, "slots"))
        if self.emit == "close":
            return SessionAggregateOperator(sessions, results)
        if isinstance(self.emit, Every):
            ticks = Ticks(self.emit.interval_ms, _marks(context, "changed"))
            return EmitPeriodically(PeriodicSessions(sessions, results, ticks), ticks)
        return self._by_record(SessionsByRecord(sessions), results)

    def _sliding(
        self, context: StepContext, windows: SlidingWindows, rows: RowCodec, compiled: Compiled, results: Results
    ) -> Operator:
        codec = PanesCodec(rows)
        return SlidingAggregateOperator(
            windows.size_ms,
            self.lateness_ms,
            compiled,
            results,
            _cache(context, "panes", Codec(codec.encode_many, codec.decode_many), width=0),
            _marks(context, "slots"),
            grows=any(item.in_place for item in self.aggregates.values()),
        )

    def _by_record(self, state: RecordState, results: Results) -> Operator:
        return EmitByRecord(state, results, self.emit.predicate if isinstance(self.emit, When) else None)


def _cache(context: StepContext, part: str, codec: Codec[Any], *, width: int) -> WriteBehind[Any]:
    return WriteBehind(context.store, context.store_prefix(part), codec, budget=context.budget, width=width)


def _marks(context: StepContext, part: str) -> WriteBehind[bool]:
    return WriteBehind(context.store, context.store_prefix(part), MARKS, budget=context.budget)
