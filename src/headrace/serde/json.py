"""JSON values, untyped or typed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import msgspec

from headrace.record import JoinedBytes
from headrace.serde.hooks import from_json, json_to_plain
from headrace.serde.models import dump_json, is_model, validate
from headrace.serde.msgpack import check_kind, kind_name


class Json:
    """JSON values in UTF-8.

    Args:
        kind: What a value is, as for ``Msgpack``; untyped if None. A pydantic model reads and writes JSON by its own
            rules.

    Raises:
        TypeError: values of ``kind`` could not be decoded.

    Example:
        >>> Json().decode(b'{"total": 9.5}')
        {'total': 9.5}
    """

    def __init__(self, kind: Any = None) -> None:
        self.kind = Any if kind is None else kind
        check_kind(self.kind)
        self._decode: Callable[[bytes], Any] = msgspec.json.Decoder(self.kind, dec_hook=from_json).decode
        self._encode: Callable[[Any], bytes] = msgspec.json.Encoder(enc_hook=json_to_plain).encode
        if is_model(kind):
            self._decode = partial(validate, kind, json=True)
            self._encode_other, self._encode = self._encode, self._encode_model

    @property
    def name(self) -> str:
        """Return ``json`` and the type, if there is one."""
        return "json" if self.kind is Any else f"json[{kind_name(self.kind)}]"

    def encode_many(self, values: Sequence[Any]) -> list[bytes | None]:
        """Encode each value."""
        encode = self._encode
        return [None if value is None else encode(value) for value in values]

    def decode_many(self, values: JoinedBytes) -> list[Any]:
        """Decode each value; JSON texts cannot be joined without looking at each."""
        decode = self._decode
        return [None if value is None else decode(value) for value in values.split()]

    def decode(self, value: bytes | None) -> Any:
        """Decode one value."""
        return None if value is None else self._decode(value)

    def _encode_model(self, value: Any) -> bytes:
        return dump_json(value) if isinstance(value, self.kind) else self._encode_other(value)
