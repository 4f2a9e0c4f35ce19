"""How large a record may be."""

from __future__ import annotations

from collections.abc import Iterable

from headrace.errors import InvalidError
from headrace.record import Headers

_RECORD_OVERHEAD_BYTES = 160
"""At most what a log adds to key, value and headers of a record that stands alone."""
_HEADER_OVERHEAD_BYTES = 10


def record_bytes(key: bytes | None, value: bytes | None, headers: Headers = ()) -> int:
    """Return at most how many bytes a record takes in a log.

    Example:
        >>> record_bytes(b"key", b"value")
        168
    """
    size = len(key or b"") + len(value or b"") + _RECORD_OVERHEAD_BYTES
    return size + sum(4 * len(name) + len(data) + _HEADER_OVERHEAD_BYTES for name, data in headers)


def largest(keys: Iterable[bytes | None], values: Iterable[bytes | None]) -> int:
    """Return at most how many bytes the largest of records without headers takes.

    Example:
        >>> largest([b"a", None], [b"value", b"v"])
        166
    """
    longest = (max(map(len, filter(None, column)), default=0) for column in (keys, values))
    return sum(longest) + _RECORD_OVERHEAD_BYTES


def too_large(what: str, size_bytes: int, topic: str, limit_bytes: int) -> InvalidError:
    """Say that a record is larger than its topic takes."""
    return InvalidError(
        f"{what} is larger than topic {topic} takes: about {size_bytes:,} bytes, and at most {limit_bytes:,}",
        remedy="Raise max.message.bytes of the topic, or make the record smaller",
    )
