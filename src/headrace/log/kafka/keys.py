"""The partition of a key in users' topics: murmur2, as Java's own clients have it."""

from __future__ import annotations

from functools import lru_cache

from aiokafka.partitioner import murmur2

_CACHED = 1 << 17


@lru_cache(_CACHED)
def java_hash(key: bytes) -> int:
    """Return the hash by whose remainder Java's clients choose a partition; not negative.

    Hashing takes microseconds in Python, so the hashes of as many keys as are often alive are kept.

    Example:
        >>> java_hash(b"customer-1") % 6, java_hash(b"") % 6
        (3, 3)
    """
    return int(murmur2(key)) & 0x7FFFFFFF
