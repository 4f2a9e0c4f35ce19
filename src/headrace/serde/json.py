"""JSON values, untyped or typed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from headrace.record import JoinedBytes


class Json:
    """JSON values in UTF-8.

    Args:
        kind: What a value is, as for ``Msgpack``; untyped if None.

    Example:
        >>> Json().decode(b'{"total": 9.5}')
        {'total': 9.5}
    """

    def __init__(self, kind: Any = None) -> None:
        self.kind = Any if kind is None else kind
        self._one = msgspec.json.Decoder(self.kind)
        self._encode = msgspec.json.Encoder().encode

    @property
    def name(self) -> str:
        """Return ``json`` and the type, if there is one."""
        return "json" if self.kind is Any else f"json[{self.kind.__name__}]"

    def encode_many(self, values: Sequence[Any]) -> list[bytes | None]:
        """Encode each value."""
        encode = self._encode
        return [None if value is None else encode(value) for value in values]

    def decode_many(self, values: JoinedBytes) -> list[Any]:
        """Decode each value; JSON texts cannot be joined without looking at each."""
        decode = self._one.decode
        return [None if value is None else decode(value) for value in values.split()]

    def decode(self, value: bytes | None) -> Any:
        """Decode one value."""
        return None if value is None else self._one.decode(value)
