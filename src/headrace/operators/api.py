"""What an operator is.

An operator maps a batch to batches. It does no I/O but on the store it was given, reads no clock, and does the same
for the same records however they were cut into batches. The runtime calls, for every batch that reaches the step,
``process``, and whenever the step's watermark has moved, ``on_watermark``; both return what goes on, by port.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
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
    timed: bool = False
    """True if the passing of event time made these records while a source batch went by: see ``watermarks_before``."""
    moments: Sequence[int] | None = None
    """For records that time made and that may lie ahead of it: the watermark before each one."""

    def __len__(self) -> int:
        return len(self.values)

    def with_values(self, values: list[Any]) -> Batch:
        """Return the batch with other values."""
        return replace(self, values=values)

    def where(self, mask: Sequence[Any]) -> Batch:
        """Return the records whose place in ``mask`` is true."""
        return Batch(
            list(compress(self.offsets, mask)), list(compress(self.timestamps, mask)),
            list(compress(self.keys, mask)), list(compress(self.values, mask)),
            self.headers and list(compress(self.headers, mask)), self.running, self.timed,
            self.moments and list(compress(self.moments, mask)),
        )  # fmt: skip

    def with_running(self, running: RunningWatermark) -> Batch:
        """Return the batch under another watermark."""
        return replace(self, running=running)

    def pick(self, rows: Sequence[int]) -> Batch:
        """Return the records at the places ``rows``, in that order."""
        if len(rows) == 1:
            return self.part(rows[0], rows[0] + 1)
        pick = itemgetter(*rows)
        headers = self.headers and list(pick(self.headers))
        columns = list(pick(self.timestamps)), list(pick(self.keys)), list(pick(self.values))
        moments = self.moments and list(pick(self.moments))
        return Batch(pick(self.offsets), *columns, headers, self.running, self.timed, moments)

    @staticmethod
    def concatenate(batches: Sequence[Batch]) -> Batch:
        """Return the records of several batches, which have one watermark, one batch after the other."""

        def column(name: str) -> list[Any]:
            return list(chain.from_iterable(getattr(batch, name) for batch in batches))

        headers: list[Headers] | None = None
        if any(batch.headers for batch in batches):
            headers = [row for batch in batches for row in (batch.headers or [()] * len(batch))]
        timed = all(batch.timed for batch in batches)
        moments: list[int] | None = None
        if any(batch.moments for batch in batches):
            moments = [moment for batch in batches for moment in (batch.moments or batch.timestamps)]
        columns = column("offsets"), column("timestamps"), column("keys"), column("values")
        return Batch(*columns, headers, batches[0].running, timed, moments)

    def part(self, start: int, stop: int | None = None) -> Batch:
        """Return the records from ``start`` to before ``stop``."""
        cut = slice(start, stop)
        return Batch(
            self.offsets[cut], self.timestamps[cut], self.keys[cut], self.values[cut],
            self.headers and self.headers[cut], self.running, self.timed, self.moments and self.moments[cut],
        )  # fmt: skip


def watermarks_before(batch: Batch, floor: int) -> Callable[[int], int]:
    """Return a function that gives the watermark just before the record at a place of ``batch``.

    It never goes down from one place to the next where the batch is in the order of the input. An operator that does
    something when a time has passed (a timer, a periodic result) does it between the records, as soon as the watermark
    before the next one says so, and what is left in ``on_watermark``. Then it does not matter where batches are cut.

    For records that time itself made (by closing a window, by a timer) it is their own timestamp: whatever time makes
    carries the last timestamp that had to be complete for it. Where that is not so, ``moments`` says it.

    Args:
        batch: Records.
        floor: The watermark that the operator knows of.
    """
    if batch.timed or batch.offsets[0] < 0:
        moments = batch.moments or batch.timestamps
        return lambda place: max(moments[place], floor)
    running, offsets = batch.running, batch.offsets
    if running is None or running.last <= floor:
        return lambda place: floor
    before = running.before
    return lambda place: max(before(offsets[place]), floor)


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


class SidedOperator(Operator, Protocol):
    """A step whose inputs mean different things, such as the two sides of a join."""

    def process_sides(self, batch: Batch, sides: Sequence[int]) -> Outputs:
        """Take records of several inputs; called instead of ``process``.

        Args:
            batch: Records in the order of the input; of what came from one input record, side 0 first.
            sides: For every record the place of its input among the step's inputs.

        Raises:
            RecordsFailedError: user code failed on some of them.
        """
        ...


class ClockOperator(Operator, Protocol):
    """A step that acts on processing time too."""

    def on_clock(self, now_ms: int) -> Outputs:
        """Learn the time; return nothing, not even an empty batch, if nothing changed."""
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

    @property
    def timed_ports(self) -> tuple[str, ...]:
        """List the ports by which records leave that the passing of event time made, alone or among others.

        Every one of them carries the timestamp ``output_watermark(w) - 1``, where ``w`` is the watermark that makes
        it, or a later one; so what follows never takes it for late. Their order must not depend on how the input was
        cut into batches.
        """
        ...

    @property
    def sided(self) -> bool:
        """Tell whether the operator is a ``SidedOperator``; if not, all its inputs mean the same."""
        ...

    @property
    def uses_clock(self) -> bool:
        """Tell whether the operator is a ``ClockOperator``, so that a replay may not repeat what it did."""
        ...

    def shape(self) -> dict[str, Any]:
        """Describe whatever the stored state depends on."""
        ...

    def build(self, context: StepContext) -> Operator:
        """Make the operator of one task."""
        ...
