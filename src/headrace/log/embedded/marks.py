"""The bytes of published ends and of index entries. Pure: nothing here reads or writes a file.

The end file of a partition holds one record, which every append rewrites in place; it is also what appenders lock.
An index file holds a header and one entry per stretch of its segment, and a last entry at the end of the segment
once that is closed.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import google_crc32c

from headrace.errors import CorruptError, InvalidError
from headrace.log.embedded.format import SEGMENT_HEADER_BYTES

NO_TIMESTAMP = -(2**63)
_VERSION = 1
_END = struct.Struct("<4sHHQQQqQQQ")
_CHECKSUM = struct.Struct("<I")
END_BYTES = _END.size + _CHECKSUM.size
_DELETED = 1
_ENTRY = struct.Struct("<QQq")
ENTRY_BYTES = _ENTRY.size + _CHECKSUM.size
INDEX_HEADER = b"HRIX" + struct.pack("<HH", _VERSION, 0)


class End(NamedTuple):
    """How far a partition reaches, as its appenders published it."""

    next_offset: int
    segment: int
    """The base offset of the segment that grows."""
    position: int
    """The byte of that segment file behind the last batch; 0 if the file does not exist yet."""
    max_timestamp: int
    """The highest timestamp in that segment, or ``NO_TIMESTAMP``."""
    synced: int
    """Up to this byte the segment is known to be on the disk."""
    indexed: int
    """The byte that the last index entry points at."""
    entries: int
    """How many entries the index of that segment has."""
    deleted: bool = False
    """True once the topic was deleted: for those who still have its files open."""


EMPTY = End(0, 0, 0, NO_TIMESTAMP, SEGMENT_HEADER_BYTES, 0, 0)
"""The end of a partition to which nothing was appended."""


class IndexEntry(NamedTuple):
    """One known place in a segment."""

    offset: int
    """No batch before ``position`` holds this offset or a later one."""
    position: int
    """A byte of the segment where a batch starts, or its end."""
    max_timestamp: int
    """No batch before ``position`` holds a later timestamp; ``NO_TIMESTAMP`` at the first batch."""


def encode_end(end: End) -> bytes:
    """Return the content of an end file."""
    raw = _END.pack(b"HREN", _VERSION, _DELETED if end.deleted else 0, *end[:7])
    return raw + _CHECKSUM.pack(google_crc32c.value(raw))


def decode_end(data: bytes) -> End:
    """Read the content of an end file.

    Raises:
        CorruptError: it fails its checksum, as it does for the moment in which it is written.
        InvalidError: a newer headrace wrote it.
    """
    if len(data) != END_BYTES:
        raise CorruptError("the published end is cut short")
    raw = data[: _END.size]
    magic, version, flags, *fields = _END.unpack(raw)
    if magic != b"HREN" or _CHECKSUM.unpack_from(data, _END.size)[0] != google_crc32c.value(raw):
        raise CorruptError("the published end is damaged")
    if version != _VERSION:
        raise InvalidError(
            f"the published end has format {version}, and this headrace reads format {_VERSION}",
            remedy="Upgrade headrace",
        )
    return End(*fields)._replace(deleted=bool(flags & _DELETED))


def encode_entry(entry: IndexEntry) -> bytes:
    """Return the bytes of one index entry."""
    raw = _ENTRY.pack(*entry)
    return raw + _CHECKSUM.pack(google_crc32c.value(raw))


def decode_index(data: bytes) -> list[IndexEntry]:
    """Return the entries of an index file up to the first that cannot be trusted.

    An index is only a hint, so whatever is damaged is left out.
    """
    entries: list[IndexEntry] = []
    if data[: len(INDEX_HEADER)] != INDEX_HEADER:
        return entries
    last = (-1, 0)
    for at in range(len(INDEX_HEADER), len(data) - ENTRY_BYTES + 1, ENTRY_BYTES):
        raw = data[at : at + _ENTRY.size]
        entry = IndexEntry(*_ENTRY.unpack(raw))
        damaged = _CHECKSUM.unpack_from(data, at + _ENTRY.size)[0] != google_crc32c.value(raw)
        if damaged or entry[:2] <= last:
            break
        entries.append(entry)
        last = entry[:2]
    return entries
