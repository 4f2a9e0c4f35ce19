"""The frame that Confluent's serializers put before a value: a zero byte and the schema's id in four bytes."""

from __future__ import annotations

import struct

from headrace.errors import TopologyError

_HEADER = struct.Struct(">BI")
HEADER_BYTES = _HEADER.size


def frame(schema_id: int) -> bytes:
    """Return what stands before a value.

    Example:
        >>> frame(7)
        b'\\x00\\x00\\x00\\x00\\x07'
    """
    return _HEADER.pack(0, schema_id)


def schema_id_of(value: bytes) -> int:
    """Return the schema's id.

    Raises:
        ValueError: the value has no such frame.

    Example:
        >>> schema_id_of(frame(7) + b"...")
        7
    """
    if len(value) < HEADER_BYTES or value[0] != 0:
        raise ValueError("the value does not begin with a zero byte and a schema id, as wire='confluent' says")
    found: int = _HEADER.unpack_from(value)[1]
    return found


def check_wire(what: str, wire: str, schema_id: int | None) -> None:
    """Refuse settings of a wire format that make no sense.

    Raises:
        TopologyError: says which.
    """
    if wire not in ("plain", "confluent"):
        raise TopologyError(f'wire of {what} must be "plain" or "confluent", not {wire!r}')
    if schema_id is None:
        return
    if wire == "plain":
        raise TopologyError(f'{what} has schema_id=, which wire="plain" does not write', remedy='Add wire="confluent"')
    if type(schema_id) is not int or not 0 <= schema_id < 2**32:
        raise TopologyError(f"schema_id of {what} must be a whole number of 32 bits")
