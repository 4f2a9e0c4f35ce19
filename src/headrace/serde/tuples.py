"""Tuples of plain values: keys of several parts."""

from __future__ import annotations

import typing
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import msgspec

from headrace.record import JoinedBytes

_PARTS = (str, int, bytes, bool, UUID)
"""Types of which equal values have equal bytes, as it takes for keys."""


class Tuple:
    """Tuples of one length whose parts are ``str``, ``int``, ``bytes``, ``bool`` or ``UUID``, as a MessagePack array.

    Equal tuples have equal bytes.

    Args:
        kind: The type, such as ``tuple[str, int]``.

    Raises:
        TypeError: it is no such type.

    Example:
        >>> Tuple(tuple[str, int]).encode_many([("ann", 5)])
        [b'\\x92\\xa3ann\\x05']
    """

    def __init__(self, kind: Any) -> None:
        parts = typing.get_args(kind)
        if not parts or any(part not in _PARTS for part in parts):
            raise TypeError("its parts are not each one of str, int, bytes, bool and UUID")
        self.kind = kind
        self.name = f"tuple[{', '.join(part.__name__ for part in parts)}]"
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(kind).decode

    def encode_many(self, values: Sequence[Any]) -> list[bytes | None]:
        """Encode tuples of that type."""
        for value in values:
            if value is not None and type(value) is not tuple:
                raise TypeError(f"expected {self.name}, got {type(value).__name__}")
        msgspec.convert(values, list[self.kind | None], builtin_types=(UUID, bytes))  # type: ignore[name-defined]
        return [None if value is None else self._encode(value) for value in values]

    def decode_many(self, values: JoinedBytes) -> list[Any]:
        """Decode the column."""
        return [self.decode(value) for value in values.split()]

    def decode(self, value: bytes | None) -> Any:
        """Decode one tuple."""
        return None if value is None else self._decode(value)
