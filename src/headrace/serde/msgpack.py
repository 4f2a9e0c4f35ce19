"""MessagePack, the default serde: untyped, or typed by a class with annotated fields."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import msgspec

from headrace.record import JoinedBytes
from headrace.serde.hooks import from_plain, is_readable, to_plain
from headrace.serde.models import Models, check_aliases, is_model

_ARRAY_HEADER = struct.Struct(">BI")
_NIL = b"\xc0"


class Msgpack:
    """MessagePack values.

    Args:
        kind: What a value is: a ``msgspec.Struct``, dataclass, ``TypedDict``, pydantic model, Protobuf message, any
            type msgspec knows, or a class with ``to_bytes()`` and a class method ``from_bytes(data)``. Values that
            are something else do not decode. Untyped if None: mappings are dicts.

    Raises:
        TypeError: values of ``kind`` could not be decoded.

    Example:
        >>> Msgpack().encode_many([{"total": 9.5}])
        [b'\\x81\\xa5total\\xcb@#\\x00\\x00\\x00\\x00\\x00\\x00']
    """

    def __init__(self, kind: Any = None) -> None:
        self.kind = Any if kind is None else kind
        check_kind(self.kind)
        self._one = msgspec.msgpack.Decoder(self.kind, dec_hook=from_plain)
        self._models = Models(kind) if is_model(kind) else None
        element = self.kind if self._models is None else Any
        self._many = msgspec.msgpack.Decoder(list[element], dec_hook=from_plain)  # type: ignore[valid-type]
        self._encode = msgspec.msgpack.Encoder(enc_hook=to_plain).encode

    @property
    def name(self) -> str:
        """Return ``msgpack`` and the type, if there is one."""
        return "msgpack" if self.kind is Any else f"msgpack[{kind_name(self.kind)}]"

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
        return decoded if self._models is None else self._models.validate_many(decoded)

    def decode(self, value: bytes | None) -> Any:
        """Decode one value."""
        return None if value is None else self._one.decode(value)


def check_kind(kind: Any) -> None:
    """Refuse a class whose values could be written and never read.

    Raises:
        TypeError: says why it is one.
    """
    if not isinstance(kind, type):
        return
    if is_model(kind):
        check_aliases(kind)
    elif isinstance(msgspec.inspect.type_info(kind), msgspec.inspect.CustomType) and not is_readable(kind):
        raise TypeError(f"{kind_name(kind)} has no typed fields")


def kind_name(kind: Any) -> str:
    """Return what a type is called in names of serdes."""
    return getattr(kind, "__name__", None) or str(kind)
