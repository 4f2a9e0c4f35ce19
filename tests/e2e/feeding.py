"""Payments that arrive while workers run."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from zlib import crc32

import msgspec

from headrace.demo.payments import Payments
from headrace.record import JoinedBytes, RecordBatch, TopicPartition
from tests.e2e.harness import Site

PARTITIONS = 4


class Feed:
    """Appends payments by customer, a little at a time, from a thread of its own.

    Args:
        site: Where the log is.
        payments: All there are.
        batch: How many at a time.
        pause_s: Between two batches.
        eager: Go on by itself; else only as far as ``allow`` says.
    """

    def __init__(self, site: Site, payments: Payments, *, batch: int, pause_s: float, eager: bool) -> None:
        self._log = site.open()
        self._log.create_topic("payments", PARTITIONS)
        self._payments = payments
        self._batch = batch
        self._pause_s = pause_s
        self._allowed = threading.Semaphore(payments.count if eager else 0)
        self._hurry = threading.Event()
        self._given_up = False
        self._thread = threading.Thread(target=self._run)

    @contextmanager
    def going(self) -> Iterator[Feed]:
        """Append for as long as the block lasts; unless it fails, all that is left at its end."""
        with self.meanwhile():
            yield self
            self._end()

    @contextmanager
    def meanwhile(self) -> Iterator[Feed]:
        """Append for as long as the block lasts, and no longer."""
        self._thread.start()
        try:
            yield self
        finally:
            self._given_up = True
            self._end()
            self._log.close()

    def _end(self) -> None:
        self._hurry.set()
        self.allow(self._payments.count)
        self._thread.join()

    def allow(self, payments: int) -> None:
        """Let it append this many more."""
        self._allowed.release(max(1, payments // self._batch))

    def _run(self) -> None:
        encode = msgspec.msgpack.Encoder().encode
        for rows in self._payments.batches(self._batch):
            self._allowed.acquire()
            if self._given_up:
                return
            parts: dict[int, list[tuple[int, bytes, bytes]]] = {}
            for row in rows:
                key = row["customer_id"].encode()
                parts.setdefault(crc32(key) % PARTITIONS, []).append((row["at"], key, encode(row)))
            for partition, part in sorted(parts.items()):
                times, keys, values = zip(*part, strict=True)
                batch = RecordBatch(list(times), list(keys), JoinedBytes.of(list(values)))
                self._log.append(TopicPartition("payments", partition), batch)
            self._hurry.wait(self._pause_s)
