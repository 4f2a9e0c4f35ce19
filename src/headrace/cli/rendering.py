"""From batches to lines of JSON, in bulk. Pure."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import msgspec

from headrace.cli.encoding import value_serde
from headrace.cli.options import KeySerde, ValueSerde
from headrace.record import Headers, RecordBatch
from headrace.serde.api import Serde
from headrace.serde.primitives import Int


class Line(msgspec.Struct):
    """One record, as it is printed."""

    key: Any
    value: Any
    timestamp: int
    partition: int
    offset: int
    headers: Any


class BatchRenderer:
    """Turns batches into newline-delimited JSON.

    What does not decode is printed as ``{"base64": ...}``, so that one odd record hides nothing else.

    Args:
        values: How values were written; where MessagePack was meant, JSON objects and arrays are known too.
        keys: How keys were written.
    """

    def __init__(self, values: ValueSerde = ValueSerde.MSGPACK, keys: KeySerde = KeySerde.STR) -> None:
        self._binary_values = values is ValueSerde.BYTES
        self._guesses = values is ValueSerde.MSGPACK
        self._serde: Serde[Any] = value_serde(values)
        self._key: Callable[[bytes | None], Any] = {
            KeySerde.STR: _text, KeySerde.INT: _number, KeySerde.BYTES: in_base64,
        }[keys]  # fmt: skip
        self._text_keys = keys is KeySerde.STR
        encoder = msgspec.json.Encoder()
        self._encode_lines = encoder.encode_lines
        self._encode = encoder.encode

    def render(self, batch: RecordBatch, partition: int) -> bytes:
        """Return a line for every record."""
        keys = self._keys(batch)
        headers = _headers(batch)
        try:
            values = self._all_values(batch)
            return self._encode_lines([
                Line(key, value, timestamp, partition, offset, header)
                for key, value, timestamp, offset, header in zip(
                    keys, values, batch.timestamps, batch.offsets, headers, strict=True
                )
            ])  # fmt: skip
        except Exception:  # noqa: BLE001  # a value can fail to decode, or hold what JSON cannot say, in many ways
            return b"".join(
                self._one(Line(key, value, timestamp, partition, offset, header))
                for key, value, timestamp, offset, header in zip(
                    keys, batch.values.split(), batch.timestamps, batch.offsets, headers, strict=True
                )
            )

    def _keys(self, batch: RecordBatch) -> list[Any]:
        if self._text_keys:
            try:
                return [None if key is None else key.decode() for key in batch.keys]
            except UnicodeDecodeError:
                pass  # one by one, below
        return list(map(self._key, batch.keys))

    def _all_values(self, batch: RecordBatch) -> list[Any]:
        if self._binary_values:
            return list(map(in_base64, batch.values.split()))
        return self._serde.decode_many(batch.values)

    def _one(self, line: Line) -> bytes:
        data = line.value
        try:
            line.value = in_base64(data) if self._binary_values else self._serde.decode(data)
            return self._encode(line) + b"\n"
        except Exception:  # noqa: BLE001  # as above
            line.value = self._otherwise(data)
            return self._encode(line) + b"\n"

    def _otherwise(self, data: Any) -> Any:
        """Return a value that does not decode as what it should be: as JSON if nobody said otherwise and it is."""
        if self._guesses and data[:1] in (b"{", b"["):
            try:
                return msgspec.json.decode(data)
            except msgspec.DecodeError:
                pass
        return in_base64(data)


def in_base64(data: bytes | None) -> Any:
    """Return bytes in the form in which JSON can hold them.

    Example:
        >>> in_base64(b"headrace"), in_base64(None)
        ({'base64': 'aGVhZHJhY2U='}, None)
    """
    return None if data is None else {"base64": base64.b64encode(data).decode()}


def _text(key: bytes | None) -> Any:
    if key is None:
        return None
    try:
        return key.decode()
    except UnicodeDecodeError:
        return in_base64(key)


def _number(key: bytes | None) -> Any:
    try:
        return Int().decode(key)
    except ValueError:
        return in_base64(key)


def _headers(batch: RecordBatch) -> list[list[list[Any]]]:
    if batch.headers is None and batch.origin is None:
        return [[]] * len(batch)
    # The record says which headers a reader sees; only batches that have some take this way.
    return [_pairs(record.headers) for record in batch.records("", 0)]


def _pairs(headers: Headers) -> list[list[Any]]:
    return [[name, _text(value)] for name, value in headers]
