"""Aggregation over session windows.

State is one row per key, its open sessions in time order: a MessagePack list of ``[first, last, accumulators]``, where
the accumulators are a row of their own. When a session may close is noted in an agenda; a session that grew meanwhile
is noted again further on, so a record costs no change of a timer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from headrace.operators.agenda import Agenda
from headrace.operators.api import Batch, Outputs, RecordsFailedError
from headrace.operators.compiled import Accumulators, Compiled, RowCodec, RowFailedError
from headrace.operators.results import Failures, Results, Row, leave
from headrace.operators.times import Time, check_order
from headrace.operators.windowed import LATE
from headrace.record import MIN_WATERMARK
from headrace.state.cache import WriteBehind


@dataclass(slots=True)
class Session:
    """One open session of one key."""

    first: int
    last: int
    accumulators: Accumulators


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
        found = []
        for data in rows:
            stored = msgspec.msgpack.decode(data, type=list[tuple[Time, Time, bytes]])
            check_order([first for first, _, _ in stored])
            accumulators = self._rows.decode_many([row for _, _, row in stored])
            sessions = []
            for (first, last, _), row in zip(stored, accumulators, strict=True):
                check_order([first, last])
                sessions.append(Session(first, last, row))
            found.append(sessions)
        return found


class OpenSessions:
    """The sessions that have not closed yet.

    Args:
        gap_ms: Records of one key that are less than this apart belong together.
        lateness_ms: How long after its end a session closes.
        compiled: Puts records into accumulators.
        sessions: Where the sessions of each key are kept.
        slots: Where the agenda is kept.
    """

    def __init__(
        self,
        gap_ms: int,
        lateness_ms: int,
        compiled: Compiled,
        sessions: WriteBehind[list[Session]],
        slots: WriteBehind[bool],
    ) -> None:
        self.gap_ms = gap_ms
        self.lateness_ms = lateness_ms
        self._wait_ms = gap_ms + lateness_ms
        """How long after its last record a session closes."""
        self._compiled = compiled
        self._cache = sessions
        self._sessions = sessions.bucket(b"")
        self._agenda = Agenda(slots, max(1, gap_ms // 8), self._outstanding)

    def load(self, keys: Iterable[bytes | None]) -> None:
        """Bring the sessions of some keys into memory."""
        self._sessions.load([key for key in keys if key is not None])

    def of(self, key: bytes) -> list[Session]:
        """Return the sessions of a key, for changing them."""
        return self._sessions.live.get(key) or self._sessions.get(key) or []

    def joined(self, key: bytes, timestamp: int, value: Any, watermark: int) -> tuple[Session, list[Session]] | None:
        """Return the session that a record makes with those that it connects, and which those are; nothing changes.

        Returns:
            None if the record's session had closed.

        Raises:
            Exception: user code failed.
        """
        gap, wait = self.gap_ms, self._wait_ms
        near = [
            session
            for session in self._sessions.live.get(key) or self._sessions.get(key) or ()
            if session.first - gap < timestamp < session.last + gap and session.last + wait > watermark
        ]
        if not near and timestamp + wait <= watermark:
            return None
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
        return joined, near

    def put(self, key: bytes, joined: Session, near: list[Session]) -> None:
        """Put a session in the place of those that it was made of."""
        live = self._sessions.live
        sessions = live.get(key, ())
        if len(sessions) == len(near):
            live[key] = [joined]
        else:
            rest = [session for session in sessions if session not in near]
            live[key] = sorted([*rest, joined], key=lambda session: session.first)
        if not near:
            self._agenda.note(joined.last + self._wait_ms, key)

    def close(self, watermark: int) -> list[Row]:
        """Take away the sessions that the watermark has passed, by their end and then by key."""
        closed: list[tuple[int, bytes, Session]] = []
        gap, wait, note = self.gap_ms, self._wait_ms, self._agenda.note
        while noted := self._agenda.take(watermark):
            keys = list(dict.fromkeys(key for _, key in noted))
            self._sessions.load(keys)
            for key in keys:
                stay = []
                for session in self._sessions.peek(key) or ():
                    if session.last + wait > watermark:
                        stay.append(session)
                        note(session.last + wait, key)
                    else:
                        closed.append((session.last + gap, key, session))
                if not stay:
                    self._cache.discard(self._sessions, key)
                elif len(stay) < len(self.of(key)):
                    self._sessions.live[key] = stay
        closed.sort(key=lambda item: item[:2])
        return [((end, session.first), key, session.accumulators) for end, key, session in closed]

    def next_close(self) -> int | None:
        """Return the watermark that closes the first session."""
        while (first := self._agenda.first()) is not None:
            due, key = first
            closes = [session.last + self._wait_ms for session in self._sessions.peek(key) or ()]
            if closes and min(closes) <= due:
                return due
            self._agenda.pop()
            for close in closes:
                self._agenda.note(close, key)
        return None

    def last_close(self) -> int | None:
        """Return the watermark that closes the last session."""
        closes = [sessions[-1].last + self._wait_ms for _, sessions in self._cache.rows(self._sessions)]
        return max(closes, default=None)

    def _outstanding(self, keys: Sequence[bytes]) -> Iterable[tuple[int, bytes]]:
        self._sessions.load(keys)
        wait, peek = self._wait_ms, self._sessions.peek
        return [(session.last + wait, key) for key in keys for session in peek(key) or ()]


class SessionAggregateOperator:
    """Emits each session once, when the watermark passes its end and the lateness."""

    def __init__(self, sessions: OpenSessions, results: Results) -> None:
        self._sessions = sessions
        self._results = results
        self._watermark = MIN_WATERMARK

    def process(self, batch: Batch) -> Outputs:
        """Add each record to the session it belongs to, joining sessions that it connects."""
        sessions = self._sessions
        sessions.load(batch.keys)
        failures: Failures = []
        late = [False] * len(batch)
        limit = batch.running.last if batch.running else self._watermark
        for i, (key, timestamp, value) in enumerate(zip(batch.keys, batch.timestamps, batch.values, strict=True)):
            watermark = self._watermark
            if batch.running and timestamp + sessions.lateness_ms <= limit:  # one nearby may have closed meanwhile
                watermark = batch.running.before(batch.offsets[i])
            try:
                found = sessions.joined(key or b"", timestamp, value, watermark)
            except RowFailedError as failed:
                failures.append((i, failed.__cause__ if isinstance(failed.__cause__, Exception) else failed))
            except Exception as error:  # noqa: BLE001  # a user's merge may raise anything
                failures.append((i, error))
            else:
                late[i] = found is None
                if found is not None:
                    sessions.put(key or b"", *found)
        outputs: Outputs = [(LATE, batch.where(late))] if any(late) else []
        if failures:
            raise RecordsFailedError(failures, outputs)
        return outputs

    def on_watermark(self, watermark: int) -> Outputs:
        """Close the sessions that the watermark has passed, by their end and then by key."""
        self._watermark = watermark
        failures: Failures = []
        return leave(self._results.in_batches(self._sessions.close(watermark), failures), failures)

    def output_watermark(self, watermark: int) -> int:
        """Hold the watermark back by the lateness, as results come that much after the session's end."""
        return max(MIN_WATERMARK, watermark - self._sessions.lateness_ms)

    def next_close(self) -> int | None:
        """Return the watermark that closes the first session."""
        return self._sessions.next_close()

    def close_at_end(self) -> int | None:
        """Return the watermark that closes the last open session."""
        return self._sessions.last_close()
