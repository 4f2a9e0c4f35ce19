"""Aggregation over session windows.

State is one row per key, its open sessions in time order: ``[first, last, accumulators]``. When a session may close is
noted in a slot of time: each slot is a bucket with the keys to look at when the watermark reaches it. A session that
grew meanwhile is noted again further on, so a record costs no change of a timer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import msgspec

from headrace.operators.aggregates import Aggregate
from headrace.operators.api import EMIT_RECORDS, MAIN, Batch, Outputs, RecordsFailedError, StepContext
from headrace.operators.compiled import Accumulators, Compiled, RowCodec, RowFailedError, compile_aggregates
from headrace.operators.windowed import LATE, DecodeKeys
from headrace.operators.windows import SessionWindows
from headrace.record import MIN_WATERMARK
from headrace.state.cache import Bucket, Codec, WriteBehind
from headrace.state.keys import decode_time, encode_time

_MARKS: Codec[bool] = Codec(lambda marks: [b""] * len(marks), lambda rows: [True] * len(rows))
"""Rows that only have to be there."""


@dataclass(slots=True)
class Session:
    """One open session of one key."""

    first: int
    last: int
    accumulators: Accumulators


@dataclass(frozen=True, slots=True)
class SessionAggregate:
    """Aggregates per key and session; results leave when the watermark passes ``last + gap + lateness``."""

    windows: SessionWindows
    aggregates: Mapping[str, Aggregate]
    lateness_ms: int
    decode_keys: DecodeKeys
    kind: ClassVar[str] = "window"
    stateful: ClassVar[bool] = True
    sided: ClassVar[bool] = False
    uses_clock: ClassVar[bool] = False
    timed_ports: ClassVar[tuple[str, ...]] = (MAIN,)
    ports: ClassVar[tuple[str, ...]] = (MAIN, LATE)

    def shape(self) -> dict[str, Any]:
        """Describe what stored sessions depend on."""
        return {**self.windows.shape(), "aggregates": [[name, item.name] for name, item in self.aggregates.items()]}

    def build(self, context: StepContext) -> SessionAggregateOperator:
        """Make the operator of one task."""
        rows = RowCodec(context.step, self.aggregates)
        codec = SessionCodec(rows)
        sessions = WriteBehind(
            context.store,
            context.store_prefix("sessions"),
            Codec(codec.encode_many, codec.decode_many),
            budget=context.budget,
            width=0,
        )
        slots = WriteBehind(context.store, context.store_prefix("slots"), _MARKS, budget=context.budget)
        compiled = compile_aggregates(self.aggregates)
        return SessionAggregateOperator(
            self.windows.gap_ms, self.lateness_ms, compiled, self.decode_keys, sessions, slots
        )


class SessionCodec:
    """The sessions of a key as MessagePack: firsts, lasts, rows."""

    def __init__(self, rows: RowCodec) -> None:
        self._rows = rows

    def encode_many(self, values: Sequence[list[Session]]) -> list[bytes]:
        """Encode the sessions of each key."""
        rows = iter(self._rows.encode_many([session.accumulators for sessions in values for session in sessions]))
        return [
            msgspec.msgpack.encode([(session.first, session.last, next(rows)) for session in sessions])
            for sessions in values
        ]

    def decode_many(self, rows: Sequence[bytes]) -> list[list[Session]]:
        """Decode the sessions of each key."""
        return [
            [
                Session(first, last, self._rows.decode_many([row])[0])
                for first, last, row in msgspec.msgpack.decode(data, type=list[tuple[int, int, bytes]])
            ]
            for data in rows
        ]


class SessionAggregateOperator:
    """The running form of ``SessionAggregate``."""

    def __init__(
        self,
        gap_ms: int,
        lateness_ms: int,
        compiled: Compiled,
        decode_keys: DecodeKeys,
        sessions: WriteBehind[list[Session]],
        slots: WriteBehind[bool],
    ) -> None:
        self._gap_ms = gap_ms
        self._lateness_ms = lateness_ms
        self._compiled = compiled
        self._decode_keys = decode_keys
        self._sessions = sessions.bucket(b"")
        self._cache = sessions
        self._slots = slots
        self._watermark = MIN_WATERMARK
        self._slot_ms = max(1, gap_ms // 8)
        self._open: dict[int, Bucket[bool]] = {decode_time(bucket.prefix): bucket for bucket in slots.buckets()}

    def process(self, batch: Batch) -> Outputs:
        """Add each record to the session it belongs to, joining sessions that it connects."""
        self._sessions.load([key for key in batch.keys if key is not None])
        failures: list[tuple[int, Exception]] = []
        late = [False] * len(batch)
        limit = batch.running.last if batch.running else self._watermark
        for i, (key, timestamp, value) in enumerate(zip(batch.keys, batch.timestamps, batch.values, strict=True)):
            watermark = self._watermark
            if batch.running and timestamp + self._lateness_ms <= limit:  # a session nearby may have closed meanwhile
                watermark = batch.running.before(batch.offsets[i])
            try:
                late[i] = not self._add(key or b"", timestamp, value, watermark)
            except RowFailedError as failed:
                failures.append((i, failed.__cause__ if isinstance(failed.__cause__, Exception) else failed))
            except Exception as error:  # noqa: BLE001  # a user's merge may raise anything
                failures.append((i, error))
        outputs: Outputs = [(LATE, batch.where(late))] if any(late) else []
        if failures:
            raise RecordsFailedError(failures, outputs)
        return outputs

    def on_watermark(self, watermark: int) -> Outputs:
        """Close the sessions that the watermark has passed, by their end and then by key."""
        self._watermark = watermark
        closed: list[tuple[int, bytes, Session]] = []
        for slot in sorted(self._open):
            if slot * self._slot_ms > watermark:
                break
            bucket = self._open.pop(slot)
            keys = [key for key, _ in self._slots.rows(bucket)]
            self._slots.drop(bucket)
            closed += self._close(keys, watermark)
        closed.sort(key=lambda item: item[:2])
        return [
            (MAIN, self._results(closed[start : start + EMIT_RECORDS])) for start in range(0, len(closed), EMIT_RECORDS)
        ]

    def output_watermark(self, watermark: int) -> int:
        """Hold the watermark back by the lateness, as results come that much after the session's end."""
        return max(MIN_WATERMARK, watermark - self._lateness_ms)

    def next_close(self) -> int | None:
        """Return the watermark behind the first slot, by which whatever is noted there has closed or moved on."""
        return (min(self._open) + 1) * self._slot_ms if self._open else None

    def close_at_end(self) -> int | None:
        """Return the watermark that closes the last open session."""
        ends = [sessions[-1].last for _, sessions in self._cache.rows(self._sessions)]
        return max(ends) + self._gap_ms + self._lateness_ms if ends else None

    def _add(self, key: bytes, timestamp: int, value: Any, watermark: int) -> bool:
        """Add one record; return False if its session had closed."""
        gap, lateness = self._gap_ms, self._lateness_ms
        sessions = self._sessions.live.get(key) or self._sessions.get(key) or []
        near = [
            session
            for session in sessions
            if session.first - gap < timestamp < session.last + gap and session.last + gap + lateness > watermark
        ]
        if not near and timestamp + gap + lateness <= watermark:
            return False
        alone: dict[bytes, Accumulators] = {}
        self._compiled.update(alone, {}, [key], [value], [timestamp])
        joined = Session(timestamp, timestamp, alone[key])
        for session in near:
            earlier, later = (session, joined) if session.first <= joined.first else (joined, session)
            joined = Session(
                earlier.first,
                max(session.last, joined.last),
                self._compiled.merge(earlier.accumulators, later.accumulators),
            )
        rest = [session for session in sessions if session not in near]
        self._sessions.live[key] = sorted([*rest, joined], key=lambda session: session.first)
        if not near:
            self._note(key, joined)
        return True

    def _note(self, key: bytes, session: Session) -> None:
        """Remember to look at a session when the watermark reaches its close."""
        slot = (session.last + self._gap_ms + self._lateness_ms) // self._slot_ms
        bucket = self._open.get(slot)
        if bucket is None:
            bucket = self._open[slot] = self._slots.bucket(encode_time(slot))
        bucket.live[key] = True

    def _close(self, keys: Sequence[bytes], watermark: int) -> list[tuple[int, bytes, Session]]:
        wait = self._gap_ms + self._lateness_ms
        closed = []
        self._sessions.load(keys)
        for key in keys:
            sessions = self._sessions.live.get(key) or self._sessions.get(key) or []
            stay = [session for session in sessions if session.last + wait > watermark]
            closed += [(s.last + self._gap_ms, key, s) for s in sessions if s.last + wait <= watermark]
            for session in stay:
                self._note(key, session)
            if stay:
                self._sessions.live[key] = stay
            elif sessions:
                self._cache.discard(self._sessions, key)
        return closed

    def _results(self, closed: Sequence[tuple[int, bytes, Session]]) -> Batch:
        keys = [key for _, key, _ in closed]
        values = [
            self._compiled.results([key], [session.accumulators], session.first, end)[0]
            for key, (end, _, session) in zip(self._decode_keys(keys), closed, strict=True)
        ]
        return Batch([-1] * len(keys), [end - 1 for end, _, _ in closed], keys, values)
