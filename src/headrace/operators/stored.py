"""Values of a stream as rows of the store, and back.

A value is stored as its stream's serde writes it. A row of the one byte ``0xc1``, which no MessagePack or UTF-8 begins
with, is a missing value (None); a value whose bytes begin with ``0xc1`` has one more of them in front.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from headrace.errors import TopologyError
from headrace.record import JoinedBytes
from headrace.serde.api import Serde, changed_type, internal_serde
from headrace.serde.schema import schema_of

_MISSING = b"\xc1"


def stored_shape(serde: Serde[Any]) -> dict[str, Any]:
    """Describe what stored values of a stream depend on, for ``Spec.shape``: how they are written, and their type.

    Example:
        >>> from headrace.serde.json import Json
        >>> stored_shape(Json())
        {'format': 'Json', 'type': None}
    """
    serde = internal_serde(serde)
    return {"format": type(serde).__name__, "type": schema_of(serde)}


class StoredValues:
    """Turns the values that a step keeps into bytes and back.

    Args:
        serde: That of the stream the values come from.
        step: The step's name, for messages.

    Example:
        >>> from headrace.serde.msgpack import Msgpack
        >>> stored = StoredValues(Msgpack(), "orders-join-payments")
        >>> stored.encode_many([{"n": 1}, None])
        [b'\\x81\\xa1n\\x01', b'\\xc1']
        >>> stored.decode_many([b"\\x81\\xa1n\\x01", b"\\xc1"])
        [{'n': 1}, None]
    """

    def __init__(self, serde: Serde[Any], step: str) -> None:
        self._serde = internal_serde(serde)
        self._step = step

    def check(self, values: Sequence[Any]) -> None:
        """Refuse values that would come back from the store as another type.

        Call it with every batch: the values themselves are encoded no sooner than at the next checkpoint.

        Raises:
            TopologyError: there is one; the message names the step and the type.
        """
        changed = changed_type(self._serde, values)
        if changed is not None:
            name, others = changed
            raise TopologyError(
                f"step {self._step!r} keeps {name} objects in its state, from which they would come back as {others}",
                remedy=f"Annotate the function that makes them with -> {name}, or make dicts",
            )

    def encode_many(self, values: Sequence[Any]) -> list[bytes]:
        """Return one row per value.

        Raises:
            TopologyError: a value would come back as another type, or cannot be encoded at all.
        """
        self.check(values)
        try:
            rows = self._serde.encode_many(values)
        except (TypeError, ValueError) as error:
            raise TopologyError(
                f"step {self._step!r} cannot keep a value in its state: it does not encode as {self._serde.name}",
                remedy="Give the stream the serde that its values have, or make dicts of plain values",
            ) from error
        return [_MISSING if row is None else _MISSING + row if row[:1] == _MISSING else row for row in rows]

    def decode_many(self, rows: Sequence[bytes]) -> list[Any]:
        """Return the values of ``rows``."""
        column = JoinedBytes.of(rows)
        if _MISSING in column.joined:
            column = JoinedBytes.of([_unescaped(row) for row in rows])
        return self._serde.decode_many(column)


def _unescaped(row: bytes) -> bytes | None:
    if row == _MISSING:
        return None
    return row[1:] if row[:1] == _MISSING else row
