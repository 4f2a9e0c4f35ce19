"""Forces to the disk what others appended, so that nobody relies on records that could go with the power."""

from __future__ import annotations

import os
from itertools import pairwise

from headrace.log.embedded.files import opened, storage, sync_directory
from headrace.log.embedded.reader import published_end
from headrace.log.embedded.segment import Place


def force_before(place: Place, known: int, offset: int) -> int:
    """Force what stands before ``offset`` in a partition to the disk.

    Args:
        place: The partition.
        known: The offset up to which that was done before.
        offset: The offset up to which it is wanted.

    Returns:
        The offset up to which everything has now been forced, at least ``offset`` if the partition goes so far.

    Raises:
        RetriableError: the disk refuses.
    """
    if offset <= known:
        return known
    with storage(f"flush of {place}", place.directory):
        end = published_end(place)
        bases = place.bases()
        for base, following in pairwise([*bases, end.next_offset]):
            if following > known:
                force_segment(place, base)
        sync_directory(place.directory)
    return end.next_offset


def force_segment(place: Place, base: int) -> None:
    """Force one segment to the disk, if retention has not deleted it."""
    try:
        with opened(place.segment(base)) as fd:
            os.fsync(fd)
    except FileNotFoundError:
        return
