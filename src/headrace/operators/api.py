"""What an operator is.

An operator maps a batch to batches. It does no I/O but on the store it was given, reads no clock, and does the same
for the same records however they were cut into batches. The runtime calls, for every batch that reaches the step,
``process``, and whenever the step's watermark has moved, ``on_watermark``; both return what goes on, by port.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, compress
from operator import itemgetter
from typing import Any, Protocol

from headrace.record import Headers
from headrace.state.api import Store
from headrace.state.cache import Budget

MAIN = ""
"""The port that a step's results leave by unless it has several."""

EMIT_RECORDS = 2048
"""Results that were not caused by one input batch (a closed window) leave in batches of at most this many."""


class RunningWatermark(Protocol):
    """The watermark as it moved while the records of one source batch went by."""

    last: int
    """The watermark behind the batch."""

    def before(self, offset: int) -> int:
        """Return the watermark just before the record at ``offset``."""
        ...


@dataclass(slots=True)
class Batch:
    """Decoded records inside a task, column by column; all columns have one length."""

    offsets: Sequence[int]
    """Of the input record that each one came from."""
    timestamps: Sequence[int]
    """Event times."""
    keys: Sequence[bytes | None]
    """As they are in the log; the stream's key serde decodes them."""
    values: list[Any]
    headers: Sequence[Headers] | None = None
    running: RunningWatermark | None = None
    """Set while the watermark moves within the batch: it has the exact answer to what was late."""

    def __len__(self) -> int:
        return len(self.values)

    def with_values(self, values: list[Any]) -> Batch:
        """Return the batch with other values."""
        return Batch(self.offsets, self.timestamps, self.keys, values, self.headers, self.running)

    def where(self, mask: Sequence[Any]) -> Batch:
        """Return the records whose place in ``mask`` is true."""
        return Batch(
            list(compress(self.offsets, mask)), list(compress(self.timestamps, mask)),
            list(compress(self.keys, mask)), list(compress(self.values, mask)),
            self.headers and list(compress(self.headers, mask)), self.running,
        )  # fmt: skip

    def with_running(self, running: RunningWatermark) -> Batch:
        """Return the batch under another watermark."""
        return Batch(self.offsets, self.timestamps, self.keys, self.values, self.headers, running)

    def pick(self, rows: Sequence[int]) -> Batch:
        """Return the records at the places ``rows``, in that order."""
        if len(rows) == 1:
            return self.part(rows[0], rows[0] + 1)
        pick = itemgetter(*rows)
        headers = self.headers and list(pick(self.headers))
        columns = list(pick(self.timestamps)), list(pick(self.keys)), list(pick(self.values))
        return Batch(pick(self.offsets), *columns, headers, self.running)

    @staticmethod
    def concatenate(batches: Sequence[Batch]) -> Batch:
        """Return the records of several batches, which have one watermark, one batch after the other."""

        def column(name: str) -> list[Any]:
            return list(chain.from_iterable(getattr(batch, name) for batch in batches))

        headers: list[Headers] | None = None
        if any(batch.headers for batch in batches):
            headers = [row for batch in batches for row in (batch.headers or [()] * len(batch))]
        return Batch(
            column("offsets"), column("timestamps"), column("keys"), column("values"), headers, batches[0].running
        )

    def part(self, start: int, stop: int | None = None) -> Batch:
        """Return the records from ``start`` to before ``stop``."""
        cut = slice(start, stop)
        return Batch(
            self.offsets[cut], self.timestamps[cut], self.keys[cut], self.values[cut],
            self.headers and self.headers[cut], self.running,
        )  # fmt: skip


Outputs = list[tuple[str, Batch]]
"""Batches by port, in the order in which they go on."""


class RecordsFailedError(Exception):
    """User code failed on some records of a batch; all others took effect.

    Raised by stateful operators, whose batches cannot simply be run again.
    """

    def __init__(self, failures: Sequence[tuple[int, Exception]], done: Outputs) -> None:
        super().__init__(len(failures))
        self.failures = sorted(failures, key=lambda failure: failure[0])
        """Place in the batch, and what was raised."""
        self.done = done
        """What goes on because of the others."""


@dataclass(frozen=True, slots=True)
class StepContext:
    """What a stateful operator gets when a task is built."""

    step: str
    store: Store
    store_prefix: Callable[[str], bytes]
    """Gives the key prefix of a named part of this step's state."""
    budget: Budget


class Operator(Protocol):
    """One step of a task."""

    def process(self, batch: Batch) -> Outputs:
        """Take a batch of records.

        Raises:
            RecordsFailedError: user code failed on some of them (stateful operators).
            Exception: user code failed; nothing took effect (stateless operators).
        """
        ...

    def on_watermark(self, watermark: int) -> Outputs:
        """Learn that all records up to ``watermark`` have come, apart from late ones."""
        ...

    def output_watermark(self, watermark: int) -> int:
        """Return what ``watermark`` means for what follows: less, where results come later than their time."""
        ...

    def next_close(self) -> int | None:
        """Return a watermark at which something closes, no later than need be; None if nothing is open."""
        ...

    def close_at_end(self) -> int | None:
        """Return the watermark at which nothing would be left open, None if nothing is: for the end of the input."""
        ...


class Spec(Protocol):
    """An immutable description of a step, from which each task builds its own operator."""

    @property
    def kind(self) -> str:
        """Name the kind of step, for ``describe``."""
        ...

    @property
    def stateful(self) -> bool:
        """Tell whether the operator keeps state."""
        ...

    @property
    def ports(self) -> tuple[str, ...]:
        """List the ports that results leave by."""
        ...

    def shape(self) -> dict[str, Any]:
        """Describe whatever the stored state depends on."""
        ...

    def build(self, context: StepContext) -> Operator:
        """Make the operator of one task."""
        ...
