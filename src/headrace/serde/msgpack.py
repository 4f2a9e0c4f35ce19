"""MessagePack, the default serde: untyped, or typed by a class with annotated fields."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import msgspec

from headrace.record import JoinedBytes

_ARRAY_HEADER = struct.Struct(">BI")
_NIL = b"\xc0"


class Msgpack:
    """MessagePack values.

    Args:
        kind: What a value is: a ``msgspec.Struct``, dataclass, ``TypedDict`` or any type msgspec knows. Values that
            are something else do not decode. Untyped if None: mappings are dicts.

    Raises:
        TypeError: msgspec cannot decode into ``kind``.

    Example:
        >>> Msgpack().encode_many([{"total": 9.5}])
        [b'\\x81\\xa5total\\xcb@#\\x00\\x00\\x00\\x00\\x00\\x00']
    """

    def __init__(self, kind: Any = None) -> None:
        self.kind = Any if kind is None else kind
        self._one = msgspec.msgpack.Decoder(self.kind)
        self._many = msgspec.msgpack.Decoder(list[self.kind])  # type: ignore[name-defined]
        self._encode = msgspec.msgpack.Encoder().encode

    @property
    def name(self) -> str:
        """Return ``msgpack`` and the type, if there is one."""
        return "msgpack" if self.kind is Any else f"msgpack[{self.kind.__name__}]"

    def encode_many(self, values: Sequence[Any]) -> list[bytes | None]:
        """Encode each value."""
        encoded: list[bytes | None] = list(map(self._encode, values))
        return [None if data == _NIL else data for data in encoded] if _NIL in encoded else encoded

    def decode_many(self, values: JoinedBytes) -> list[Any]:
        """Decode the column in one call, as the elements of one array.

        An empty value could hide that its neighbour holds two, so a column with one is decoded value by value.
        """
        lengths = values.lengths
        if not lengths or min(lengths) <= 0:
            return [self.decode(value) for value in values.split()]
        decoded: list[Any] = self._many.decode(_ARRAY_HEADER.pack(0xDD, len(lengths)) + values.joined)
        return decoded

    def decode(self, value: bytes | None) -> Any:
        """Decode one value."""
        return None if value is None else self._one.decode(value)
