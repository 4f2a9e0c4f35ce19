"""Card payments for the demonstration and the benchmarks: made up, and the same for the same seed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random  # noqa: TID251 - seeded by the caller
from typing import TypedDict

DUPLICATE_AFTER_MS = 30_000
"""A duplicate follows its original within this time."""

LATE_MS = (120_000, 600_000)
"""Late payments are between two and ten minutes late."""

_MOST_REMEMBERED = 100_000
_SKEWED_SHARE = 0.6


class Payment(TypedDict):
    """A card payment."""

    transaction_id: str
    customer_id: str
    total: float
    at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Payments:
    """A stream of payments, in the order in which they arrive.

    Six in ten payments come from few customers, who pay many times a minute, the others from all customers alike.

    Args:
        count: How many payments there are, duplicates and late ones among them.
        seed: The same seed makes the same payments, however they are cut into batches.
        customers: How many customers pay.
        start_ms: When the first payment arrives.
        duration_ms: How much time passes between the first and the last arrival.
        disorder_ms: How much earlier than it arrives a payment may have been made.
        duplicate_share: The share of payments that repeat one of the half minute before.
        late_share: The share of payments that were made minutes before they arrive.

    Example:
        >>> next(Payments(count=2).batches(1))
        [{'transaction_id': 't0', 'customer_id': 'c017264', 'total': 381.88, 'at': 1699999998725}]
    """

    count: int
    seed: int = 1
    customers: int = 100_000
    start_ms: int = 1_700_000_000_000
    duration_ms: int = 600_000
    disorder_ms: int = 5_000
    duplicate_share: float = 0.0
    late_share: float = 0.0

    def batches(self, size: int = 4096) -> Iterator[list[Payment]]:
        """Yield the payments, ``size`` at a time."""
        draw = Random(self.seed).random
        fault = Random(self.seed + 1)
        names = [f"c{number:06d}" for number in range(self.customers)]
        room = min(_MOST_REMEMBERED, max(1, DUPLICATE_AFTER_MS * self.count // max(1, self.duration_ms)))
        recent: deque[Payment] = deque(maxlen=room)
        faulty = self.duplicate_share > 0 or self.late_share > 0
        for first in range(0, self.count, size):
            batch = self._batch(first, min(first + size, self.count), names, draw)
            if faulty:
                self._spoil(batch, recent, fault)
            yield batch

    def _batch(self, first: int, end: int, names: list[str], draw: Callable[[], float]) -> list[Payment]:
        customers, disorder_ms, start_ms = self.customers, self.disorder_ms, self.start_ms
        pace = self.duration_ms / self.count
        return [
            {
                "transaction_id": f"t{number}",
                "customer_id": names[
                    int(customers ** draw()) - 1 if draw() < _SKEWED_SHARE else int(draw() * customers)
                ],
                "total": int(1 + draw() * 49_999) / 100,
                "at": start_ms + int(pace * number) - int(draw() * disorder_ms),
            }
            for number in range(first, end)
        ]

    def _spoil(self, batch: list[Payment], recent: deque[Payment], fault: Random) -> None:
        """Replace payments by duplicates of ``recent`` ones and make others late."""
        late_below = self.duplicate_share + self.late_share
        for i, payment in enumerate(batch):
            what = fault.random()
            if what < self.duplicate_share and recent:
                batch[i] = recent[int(fault.random() * len(recent))]
                continue
            if self.duplicate_share <= what < late_below:
                payment["at"] -= int(LATE_MS[0] + fault.random() * (LATE_MS[1] - LATE_MS[0]))
            recent.append(payment)
