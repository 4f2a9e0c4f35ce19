"""Serdes of single values: bytes, text, numbers and UUIDs."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from headrace.record import JoinedBytes

_LONG = struct.Struct(">q")
_INT = struct.Struct(">i")
_DOUBLE = struct.Struct(">d")
_FLOAT = struct.Struct(">f")


class Bytes:
    """Leave bytes as they are."""

    name = "bytes"
    schema = "bytes"

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
    schema = "str"

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
    schema = "int"

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


class Float:
    """Floating-point numbers as eight bytes, IEEE 754 and big-endian; four bytes are read too.

    These are the formats of Kafka's DoubleSerializer and FloatSerializer. Whole numbers are written as floats.
    """

    name = "float"
    schema = "float"

    def encode_many(self, values: Sequence[float | None]) -> list[bytes | None]:
        """Encode as eight bytes."""
        return [None if value is None else _encode_double(value) for value in values]

    def decode_many(self, values: JoinedBytes) -> list[float | None]:
        """Decode four or eight bytes each; a column of eight each in one call."""
        lengths = values.lengths
        if lengths and min(lengths) == max(lengths) == 8:
            return list(struct.unpack(f">{len(lengths)}d", values.joined))
        return [self.decode(value) for value in values.split()]

    def decode(self, value: bytes | None) -> float | None:
        """Decode four or eight bytes."""
        if value is None:
            return None
        if len(value) not in (4, 8):
            raise ValueError(f"expected a floating-point number of 4 or 8 bytes, got {len(value)} bytes")
        number: float = (_DOUBLE if len(value) == 8 else _FLOAT).unpack(value)[0]
        return number


class Uuid:
    """UUIDs as their text of 36 characters, in lower case; upper case is read too.

    This is the format of Kafka's UUIDSerializer, which does not write the 16 bytes.
    """

    name = "uuid"
    schema = "uuid"

    def encode_many(self, values: Sequence[UUID | None]) -> list[bytes | None]:
        """Encode as text."""
        return [None if value is None else _encode_uuid(value) for value in values]

    def decode_many(self, values: JoinedBytes) -> list[UUID | None]:
        """Decode text."""
        return [self.decode(value) for value in values.split()]

    def decode(self, value: bytes | None) -> UUID | None:
        """Decode text; an error tells the length and not the text."""
        if value is None:
            return None
        if len(value) != 36:
            raise ValueError(f"expected a UUID as text of 36 characters, got {len(value)} bytes")
        text = value.decode("ascii", "replace")
        if (text[8], text[13], text[18], text[23]) != ("-", "-", "-", "-"):
            raise ValueError("expected a UUID as text, with hyphens")
        try:
            return UUID(text)
        except ValueError:
            raise ValueError("expected a UUID as text, in hexadecimal digits") from None


KEYS: dict[Any, type[Int | Uuid]] = {int: Int, "int": Int, UUID: Uuid, "UUID": Uuid, "uuid.UUID": Uuid}
"""Serdes of keys that are not text, by the annotation of the field they come from."""


def _encode_double(value: float) -> bytes:
    if type(value) is not float and type(value) is not int:
        raise TypeError(f"expected float, got {type(value).__name__}")
    try:
        return _DOUBLE.pack(value)
    except (OverflowError, struct.error):
        raise ValueError("expected a number that a float can hold") from None


def _encode_uuid(value: UUID) -> bytes:
    if not isinstance(value, UUID):
        raise TypeError(f"expected UUID, got {type(value).__name__}")
    return str(value).encode()


def _encode_text(value: str | None) -> bytes | None:
    if value is not None and not isinstance(value, str):
        raise TypeError(f"expected str, got {type(value).__name__}; key= and value= say what it is if not str")
    return None if value is None else value.encode()


def _encode_long(value: int) -> bytes:
    if type(value) is not int:
        raise TypeError(f"expected int, got {type(value).__name__}")
    try:
        return _LONG.pack(value)
    except struct.error:
        raise ValueError("expected a whole number of at most 64 bits") from None
