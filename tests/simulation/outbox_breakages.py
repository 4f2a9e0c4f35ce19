"""Deliberate breakages of what exactly-once consists of; see ``breakages``."""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import Any

from headrace.runtime.tasks.edges import Edge
from headrace.runtime.tasks.executor import Chain
from headrace.runtime.tasks.outbox import Outbox
from headrace.runtime.workers.worker import Worker
from headrace.testing import Faults
from tests.simulation.breakages import Breakage, Patch, outputs_not_flushed


def left_at_once(patch: Patch) -> None:
    """What has to wait for a checkpoint leaves as soon as it is made."""
    original = Chain.pack

    def pack(self: Chain, *arguments: Any) -> Any:
        kept: list[Any] = []
        with patch.context() as inner:
            inner.setattr(self._outbox, "add", kept.append)
            return original(self, *arguments) + kept

    patch.setattr(Chain, "pack", pack)


def left_before_it_counts(patch: Patch) -> None:
    """What waits leaves when its checkpoint begins, and not when it counts."""
    original = Worker._checkpoint

    def checkpoint(self: Worker, slot: Any) -> None:
        before = slot.job
        original(self, slot)
        if slot.job is not before:
            self._send(slot, slot.task.saved())

    patch.setattr(Worker, "_checkpoint", checkpoint)


def forgotten_before_sent(patch: Patch) -> None:
    """A checkpoint forgets rows of the outbox that the log has refused until now."""
    original = Worker._checkpoint

    def checkpoint(self: Worker, slot: Any) -> None:
        refused, slot.unsent = slot.unsent, deque()
        original(self, slot)
        slot.unsent = refused

    patch.setattr(Worker, "_checkpoint", checkpoint)


def forgotten_too_soon(patch: Patch) -> None:
    """A flush forgets the rows that it writes: nothing remembers them until they have left."""
    original = Outbox.flush

    def flush(self: Outbox, batch: Any) -> None:
        class Forgetful:
            deletes: list[bytes] = batch.deletes

            def put(self, key: bytes, value: bytes) -> None:
                return

        original(self, Forgetful())  # type: ignore[arg-type]

    patch.setattr(Outbox, "flush", flush)


def progress_overtakes(patch: Patch) -> None:
    """Reports of progress do not wait behind what they speak of."""
    patch.setattr(Outbox, "tell", lambda self, append, *, changed: [append])


def not_sent_again(patch: Patch) -> None:
    """Whoever restores takes the rows that he finds as sent."""
    original = Outbox.restore

    def restore(self: Outbox, store: Any) -> None:
        original(self, store)
        self.saved()

    patch.setattr(Outbox, "restore", restore)


def positions_not_continued(patch: Patch) -> None:
    """A new owner numbers from the start what leaves by the outbox."""
    original = Edge.restore

    def restore(self: Edge, sequences: Any, checkpoint: int) -> None:
        original(self, {} if self.outbox else sequences, 0)

    patch.setattr(Edge, "restore", restore)


def positions_behind_others(patch: Patch) -> None:
    """A new owner numbers from the other end, below what has left already."""
    original = Edge.restore

    def restore(self: Edge, sequences: Any, checkpoint: int) -> None:
        original(self, {}, max(0, (1 << 20) - checkpoint))

    patch.setattr(Edge, "restore", restore)


def sent_in_disorder(patch: Patch) -> None:
    """What was released leaves with the last first."""
    original = Outbox.saved
    patch.setattr(Outbox, "saved", lambda self: original(self)[::-1])


_ONCE = {"guarantee": "exactly-once"}
_POWER = Faults(power=3, log=2)
_outbox = partial(Breakage, settings=_ONCE)

OUTBOX_BREAKAGES: dict[str, Breakage] = {
    "what waits leaves at once": _outbox(left_at_once, "asked", frozenset()),
    "what waits leaves before it counts": _outbox(left_before_it_counts, "met", frozenset(), Faults(checkpoints=4)),
    "refused rows are forgotten": _outbox(forgotten_before_sent, "asked", frozenset(), Faults(log=8, crashes=3)),
    "rows are forgotten too soon": _outbox(forgotten_too_soon, "tried", frozenset()),
    "rows are forgotten before they are durable": _outbox(outputs_not_flushed, "asked", frozenset(), _POWER),
    "progress overtakes": _outbox(progress_overtakes, "delayed", frozenset()),
    "rows are not sent again": _outbox(not_sent_again, "asked", frozenset()),
    "positions are not continued": _outbox(positions_not_continued, "timed", frozenset()),
    "positions go back": _outbox(positions_behind_others, "asked", frozenset()),
    "rows leave in disorder": _outbox(sent_in_disorder, "asked", frozenset()),
}
