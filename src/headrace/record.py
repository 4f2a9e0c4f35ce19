"""Records, and batches of them as a struct of arrays.

A batch is the unit of everything: of appending, reading, decoding and processing. It holds the records of one
partition column by column, so that work on it is one call or one comprehension and not one call per record.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

MIN_WATERMARK = -1
"""The watermark of an input of which nothing is known yet; event times are never negative."""

TIMESTAMP_LIMIT = 7_258_118_400_000
"""Event times must lie before the year 2200: one wild timestamp would close every window behind it."""

Headers = tuple[tuple[str, bytes], ...]
"""Names and values that travel with a record; names may repeat."""


class TopicPartition(NamedTuple):
    """One partition of one topic."""

    topic: str
    partition: int

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}"


class Origin(NamedTuple):
    """Which edge of which task made the records of a batch, and where on that edge each one stands.

    A replay after a crash makes the same records with the same positions, so a reader that remembers the highest
    position of each source drops what it has seen.
    """

    source: str
    """``topology/step/task`` and whatever else makes the sequence of positions unique."""
    positions: Sequence[int]
    """One per record, growing."""


class Progress(NamedTuple):
    """How far the producer of a batch had got when it wrote it; it speaks of everything before and in the batch."""

    watermark: int
    """Milliseconds; ``MIN_WATERMARK`` when unknown."""
    idle: bool
    """True if the producer's input has run dry, so that nobody should wait for its watermark."""
    end: int
    """-1, or the end of the bounded input up to which the producer is finished (see ``runtime.workers.bounds``)."""


class JoinedBytes:
    """A column of byte strings held as one buffer and their lengths; a missing value has length -1.

    Joining is free for what is stored joined, and splitting happens only if somebody asks.
    """

    __slots__ = ("joined", "lengths")

    def __init__(self, joined: bytes, lengths: Sequence[int]) -> None:
        self.joined = joined
        self.lengths = lengths

    @classmethod
    def of(cls, values: Sequence[bytes | None]) -> JoinedBytes:
        """Join ``values``; the fast path is a column without missing values."""
        try:
            return cls(b"".join(values), array("i", map(len, values)))  # type: ignore[arg-type]
        except TypeError:
            lengths = array("i", [-1 if v is None else len(v) for v in values])
            return cls(b"".join([v for v in values if v is not None]), lengths)

    def __len__(self) -> int:
        return len(self.lengths)

    def split(self) -> list[bytes | None]:
        """Return the values one by one."""
        joined = self.joined
        if self.lengths and min(self.lengths) < 0:
            ends = list(accumulate(max(n, 0) for n in self.lengths))
            return [None if n < 0 else joined[end - n : end] for n, end in zip(self.lengths, ends, strict=True)]
        ends = list(accumulate(self.lengths))
        return [joined[end - n : end] for n, end in zip(self.lengths, ends, strict=True)]

    def tail(self, start: int) -> JoinedBytes:
        """Return the column without its first ``start`` values."""
        skipped = sum(n for n in self.lengths[:start] if n > 0)
        return JoinedBytes(self.joined[skipped:], self.lengths[start:])


@dataclass(slots=True)
class RecordBatch:
    """Records of one partition, column by column, as the log stores them.

    The offsets are ``base_offset``, ``base_offset + 1``, … unless ``offsets`` says otherwise; a batch that was not
    appended yet has none that mean anything. All columns have the same length.
    """

    timestamps: Sequence[int]
    keys: Sequence[bytes | None]
    values: JoinedBytes
    headers: Sequence[Headers] | None = None
    origin: Origin | None = None
    progress: Progress | None = None
    offsets: Sequence[int] = range(0)
    control: bool = False
    """True for a batch that only carries ``progress``: it holds one empty record, which no reader delivers."""

    def __len__(self) -> int:
        return len(self.timestamps)

    @property
    def next_offset(self) -> int:
        """The offset to read after this batch."""
        return self.offsets[-1] + 1

    def tail(self, start: int) -> RecordBatch:
        """Return the batch without its first ``start`` records."""
        if not start:
            return self
        origin = self.origin and Origin(self.origin.source, self.origin.positions[start:])
        headers = self.headers and self.headers[start:]
        return RecordBatch(
            self.timestamps[start:], self.keys[start:], self.values.tail(start), headers, origin,
            self.progress, self.offsets[start:], self.control,
        )  # fmt: skip

    def records(self, topic: str, partition: int) -> Iterator[Record]:
        """Yield the records one by one, for tools and tests; the hot path never does."""
        headers = self.headers or [()] * len(self)
        for i, value in enumerate(self.values.split()):
            extra: Headers = headers[i]
            if self.origin is not None:
                extra = (*extra, (ID_HEADER, f"{self.origin.source}/{self.origin.positions[i]}".encode()))
            yield Record(topic, partition, self.offsets[i], self.timestamps[i], self.keys[i], value, extra)


ID_HEADER = "headrace-id"
"""The header that names an output record in a way that a repeat after a crash repeats."""


@dataclass(frozen=True, slots=True)
class Record:
    """One record, as tools and tests see it; ``key`` and ``value`` are bytes unless the caller decoded them."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: Any
    value: Any
    headers: Headers = ()


def control_batch(progress: Progress, timestamp: int = 0) -> RecordBatch:
    """Return the batch that carries ``progress`` to a partition that got no records.

    Example:
        >>> control_batch(Progress(1000, False, -1)).control
        True
    """
    return RecordBatch([timestamp], [None], JoinedBytes(b"", [-1]), progress=progress, control=True)
