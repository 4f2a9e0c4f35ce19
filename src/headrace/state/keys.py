"""Order-preserving layouts of keys: what is sorted before encoding is sorted after it.

A key of a store is a sequence of parts: the two bytes of the store's id, then times, numbers and byte strings. Every
part says where it ends, so that each of them, and the record key above all, can be read back from the row.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from headrace.errors import CorruptError

STORE_ID_LIMIT = 0xFFFF
"""Ids of stores lie below this, so that every prefix of a store has a key behind it."""

TIME_WIDTH = 8
"""Bytes that a time takes."""

BYTES_END = b"\0\0"
"""What ends a byte string within a key."""

_TIME = struct.Struct(">Q")
_ID = struct.Struct(">H")


def store_prefix(store_id: int) -> bytes:
    """Return the first bytes of every key of the store that a step calls its own.

    Raises:
        ValueError: the id is negative or not below ``STORE_ID_LIMIT``.

    Example:
        >>> store_prefix(258)
        b'\\x01\\x02'
    """
    if not 0 <= store_id < STORE_ID_LIMIT:
        raise ValueError(f"a store id must lie in [0, {STORE_ID_LIMIT}): {store_id}")
    return _ID.pack(store_id)


def encode_time(time_ms: int) -> bytes:
    """Return a time, or any number in ``[0, 2**64)``, as eight bytes that sort like the number.

    Example:
        >>> encode_time(1)
        b'\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x01'
    """
    return _TIME.pack(time_ms)


def decode_time(key: bytes, start: int = 0) -> int:
    """Return the time that begins at ``start``; the next part begins ``TIME_WIDTH`` later.

    Raises:
        CorruptError: the key ends before.
    """
    try:
        return int(_TIME.unpack_from(key, start)[0])
    except struct.error:
        raise CorruptError(f"a key of {len(key)} bytes holds no time at byte {start}") from None


def encode_times(times_ms: Iterable[int]) -> list[bytes]:
    """Return ``encode_time`` of each time."""
    return list(map(_TIME.pack, times_ms))


def decode_times(rows: Iterable[bytes]) -> list[int]:
    """Return the time that each row is.

    Raises:
        CorruptError: a row is not eight bytes.
    """
    try:
        return [time for (time,) in map(_TIME.unpack, rows)]
    except struct.error:
        raise CorruptError(f"a row that should be a time does not have {TIME_WIDTH} bytes") from None


def encode_bytes(value: bytes) -> bytes:
    """Return ``value`` with an end that sorts before everything that could follow it.

    Example:
        >>> encode_bytes(b"a\\x00b")
        b'a\\x00\\xffb\\x00\\x00'
    """
    return escape_bytes(value) + BYTES_END


def escape_bytes(value: bytes) -> bytes:
    """Return ``value`` so that ``BYTES_END`` can stand behind it and nowhere else."""
    return value.replace(b"\0", b"\0\xff")


def encode_bytes_many(values: Iterable[bytes]) -> list[bytes]:
    """Return ``encode_bytes`` of each value."""
    return list(map(encode_bytes, values))


def decode_bytes(key: bytes, start: int = 0) -> tuple[bytes, int]:
    """Return the byte string that begins at ``start``, and where the next part begins.

    Raises:
        CorruptError: it has no end.

    Example:
        >>> decode_bytes(b"a\\x00\\xffb\\x00\\x00rest")
        (b'a\\x00b', 6)
    """
    # Within the value every zero is followed by 0xff, so two zeros in a row can only be its end.
    end = key.find(BYTES_END, start)
    if end < 0:
        raise CorruptError(f"a key of {len(key)} bytes holds a byte string without an end at byte {start}")
    return key[start:end].replace(b"\0\xff", b"\0"), end + len(BYTES_END)


def prefix_end(prefix: bytes) -> bytes | None:
    """Return the smallest key that is greater than every key with ``prefix``; None if there is no such key.

    Example:
        >>> prefix_end(b"a\\xff"), prefix_end(b"")
        (b'b', None)
    """
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes([stem[-1] + 1]) if stem else None
