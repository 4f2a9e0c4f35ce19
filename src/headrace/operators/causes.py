"""Which input record let time make something, where that leaves in the middle of a batch.

What follows knows by it how far time was: not as far as at the record before which it leaves, if others lie between,
which a filter dropped or which another step held back.
"""

from __future__ import annotations

from bisect import bisect_left

from headrace.operators.api import Batch


def cause(batch: Batch, place: int, due: int) -> int:
    """Return the offset of the input record that moved the watermark to ``due``.

    Args:
        batch: What goes by.
        place: The first place in it before which the watermark is as far as that.
        due: The watermark.
    """
    offsets, running = batch.offsets, batch.running
    at_once = not (batch.timed or offsets[0] < 0)
    if running is None:
        return offsets[place - 1] if at_once and place else offsets[place]
    first, last = (offsets[place - 1] if at_once and place else 0), offsets[place]
    if at_once and place and last - first <= 1:
        return first
    return first + bisect_left(range(first, last + 1), due, key=running.before) - 1
