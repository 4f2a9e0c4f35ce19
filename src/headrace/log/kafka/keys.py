"""The partition of a key in users' topics: murmur2, as Java's own clients have it."""

from __future__ import annotations

from functools import lru_cache
from struct import Struct

_CACHED = 1 << 17
_SEED = 0x9747B28C
_FACTOR = 0x5BD1E995
_32_BITS = 0xFFFFFFFF
_WORDS = [Struct(f"<{count}I").unpack_from for count in range(64)]
"""Takes the first so many words from a key."""


@lru_cache(_CACHED)
def java_hash(key: bytes) -> int:
    """Return the hash by whose remainder Java's clients choose a partition; not negative.

    Hashing takes a microsecond and more in Python, twice that in the client library, so the hashes of as many keys as
    are often alive are kept.

    Example:
        >>> java_hash(b"customer-1") % 6, java_hash(b"") % 6
        (3, 3)
    """
    length = len(key)
    count = length >> 2
    hashed = _SEED ^ length
    words = _WORDS[count](key) if count < len(_WORDS) else Struct(f"<{count}I").unpack_from(key)
    for word in words:
        mixed = word * _FACTOR & _32_BITS
        hashed = (hashed * _FACTOR ^ (mixed ^ mixed >> 24) * _FACTOR) & _32_BITS
    if length & 3:
        hashed = (hashed ^ int.from_bytes(key[count << 2 :], "little")) * _FACTOR & _32_BITS
    hashed = (hashed ^ hashed >> 13) * _FACTOR & _32_BITS
    return (hashed ^ hashed >> 15) & 0x7FFFFFFF
