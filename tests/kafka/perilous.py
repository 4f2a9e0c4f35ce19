"""The topology of ``tests.e2e.uncertain``, whose process is struck at a chosen point of a chosen transaction.

``PERIL`` says what happens, where and when: ``KILL-before-3`` kills the process before its third transaction with
records begins, ``STOP-within-2`` stops it in the second one when all its records are written and it is not committed,
and ``KILL-behind-1`` kills it when the first one is committed and nobody knows it yet.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Awaitable, Callable
from itertools import count
from typing import Any

from headrace.log.kafka.transactions import KafkaWriter
from tests.e2e.uncertain import topology

__all__ = ["topology"]


def _strike(place: str, transaction: int) -> None:
    what, where, number = os.environ["PERIL"].split("-")
    if (where, int(number)) == (place, transaction):
        os.kill(os.getpid(), {"KILL": signal.SIGKILL, "STOP": signal.SIGSTOP}[what])


def _struck(write: Callable[..., None], produce: Callable[..., Awaitable[None]]) -> tuple[Any, Any]:
    transactions, begun = count(1), dict[KafkaWriter, int]()

    def perilous_write(self: KafkaWriter, *arguments: Any) -> None:
        begun[self] = number = next(transactions)
        _strike("before", number)
        write(self, *arguments)
        _strike("behind", number)

    async def perilous_produce(self: KafkaWriter, *arguments: Any) -> None:
        await produce(self, *arguments)
        _strike("within", begun[self])

    return perilous_write, perilous_produce


if "PERIL" in os.environ:
    KafkaWriter.write, KafkaWriter._produce = _struck(KafkaWriter.write, KafkaWriter._produce)
