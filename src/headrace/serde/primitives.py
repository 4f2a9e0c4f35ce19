"""Serdes of single values: bytes, text and whole numbers."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from headrace.record import JoinedBytes

_LONG = struct.Struct(">q")
_INT = struct.Struct(">i")


class Bytes:
    """Leave bytes as they are."""

    name = "bytes"

    def encode_many(self, values: Sequence[bytes | None]) -> list[bytes | None]:
        """Check that the values are bytes."""
        for value in values:
            if value is not None and not isinstance(value, bytes):
                raise TypeError(f"expected bytes, got {type(value).__name__}")
        return list(values)

    def decode_many(self, values: JoinedBytes) -> list[bytes | None]:
        """Split the column."""
        return values.split()

    def decode(self, value: bytes | None) -> bytes | None:
        """Return the value."""
        return value


class Str:
    """Text as UTF-8."""

    name = "str"

    def encode_many(self, values: Sequence[str | None]) -> list[bytes | None]:
        """Encode as UTF-8."""
        try:
            return [value.encode() for value in values]  # type: ignore[union-attr]
        except AttributeError:
            return [_encode_text(value) for value in values]

    def decode_many(self, values: JoinedBytes) -> list[str | None]:
        """Decode UTF-8."""
        return [self.decode(value) for value in values.split()]

    def decode(self, value: bytes | None) -> str | None:
        """Decode UTF-8; an error names the position and not the bytes."""
        if value is None:
            return None
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"not UTF-8 at byte {error.start}") from None


class Int:
    """Whole numbers as eight bytes, big-endian and signed; four bytes are read too.

    These are the formats of Kafka's LongSerializer and IntegerSerializer.
    """

    name = "int"

    def encode_many(self, values: Sequence[int | None]) -> list[bytes | None]:
        """Encode as eight bytes."""
        return [None if value is None else _encode_long(value) for value in values]

    def decode_many(self, values: JoinedBytes) -> list[int | None]:
        """Decode four or eight bytes each."""
        return [self.decode(value) for value in values.split()]

    def decode(self, value: bytes | None) -> int | None:
        """Decode four or eight bytes."""
        if value is None:
            return None
        if len(value) not in (4, 8):
            raise ValueError(f"expected a whole number of 4 or 8 bytes, got {len(value)} bytes")
        number: int = (_LONG if len(value) == 8 else _INT).unpack(value)[0]
        return number


def _encode_text(value: str | None) -> bytes | None:
    if value is not None and not isinstance(value, str):
        raise TypeError(f"expected str, got {type(value).__name__}")
    return None if value is None else value.encode()


def _encode_long(value: int) -> bytes:
    if type(value) is not int:
        raise TypeError(f"expected int, got {type(value).__name__}")
    try:
        return _LONG.pack(value)
    except struct.error:
        raise ValueError("expected a whole number of at most 64 bits") from None
