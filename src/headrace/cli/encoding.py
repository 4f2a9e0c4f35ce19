"""From lines of JSON to the columns of a batch, and what is wrong with a line that does not fit. Pure."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import msgspec

from headrace.cli.options import KeySerde, ValueSerde
from headrace.errors import RecordError, SettingsError
from headrace.log.limits import largest
from headrace.record import TIMESTAMP_LIMIT
from headrace.serde.api import Serde
from headrace.serde.json import Json
from headrace.serde.msgpack import Msgpack
from headrace.serde.primitives import Bytes, Int, Str

_NANOSECONDS = 1000 * 10**12
_SPACE = (b"\n", b"\r", b" ", b"\t")
_ODD_STARTS = tuple(b"\n" + space for space in _SPACE)
"""How blank lines begin; among them, bulk decoding would not notice that two values stand on one line."""


class Columns(NamedTuple):
    """Records, column by column."""

    timestamps: Sequence[int]
    keys: Sequence[bytes] | None
    values: Sequence[bytes | None]


class LineEncoder:
    """Turns lines of JSON into records.

    Args:
        key: The field that is the key; None for records without keys.
        time: The field that is the timestamp; None for ``now_ms``.
        value_serde: How values are written: ``str`` takes JSON texts, ``bytes`` takes ``{"base64": "..."}``, as
            ``headrace consume`` prints them.
        key_serde: How keys are written.

    Raises:
        SettingsError: a field of values that have none.
    """

    def __init__(
        self,
        key: str | None = None,
        time: str | None = None,
        value_serde: ValueSerde = ValueSerde.MSGPACK,
        key_serde: KeySerde = KeySerde.STR,
    ) -> None:
        if (key or time) and value_serde in (ValueSerde.STR, ValueSerde.BYTES):
            raise SettingsError(
                f"--{'key' if key else 'time'} names a field, and values written as {value_serde} have no fields",
                remedy="Use --value-serde msgpack or json, or leave --key and --time out",
            )
        self.largest_bytes: int | None = None
        """What a record may take; None if any size will do."""
        self._key = key
        self._time = time
        self._key_serde = key_serde
        self._decode_lines = msgspec.json.Decoder().decode_lines
        self._decode = msgspec.json.Decoder().decode
        self._encode_values = value_encoder(value_serde)
        self._encode_keys = _key_encoder(key_serde)

    def encode(self, chunk: bytes, now_ms: int) -> Columns:
        """Encode whole lines at once; blank ones do not count.

        Raises:
            Exception: some line is bad; ``encode_line`` tells what is wrong with it.
        """
        if chunk[:1] in _SPACE or any(start in chunk for start in _ODD_STARTS):
            values = [self._decode(line) for line in chunk.split(b"\n") if not _is_blank(line)]
        else:
            values = self._decode_lines(chunk)
            if len(values) != chunk.count(b"\n") + (chunk[-1:] not in (b"\n", b"")):
                raise ValueError("a line holds more or less than one value")
        return self._columns(values, now_ms)

    def encode_line(self, line: bytes, number: int, now_ms: int) -> Columns | None:
        """Encode one line; None if it is blank.

        Raises:
            RecordError: names the line and what is wrong, without any of its contents.
        """
        if _is_blank(line):
            return None
        try:
            value = self._decode(line)
        except msgspec.MsgspecError as error:
            raise bad_line(number, f"is not JSON: {_lower(error)}") from None
        except (UnicodeDecodeError, RecursionError):
            raise bad_line(number, "is not JSON: it is not UTF-8, or nested too deeply") from None
        try:
            return self._columns([value], now_ms)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise bad_line(number, self._fault(value, error)) from None

    def _columns(self, values: list[Any], now_ms: int) -> Columns:
        keys = None if self._key is None else self._encode_keys([value[self._key] for value in values])
        if self._time is None:
            timestamps: Sequence[int] = [now_ms] * len(values)
        else:
            timestamps = timestamps_of([value[self._time] for value in values])
        encoded = self._encode_values(values)
        if self.largest_bytes is not None and (size := largest(keys or (), encoded)) > self.largest_bytes:
            raise ValueError(
                f"It takes about {size:,} bytes, and the topic takes at most {self.largest_bytes:,} (max.message.bytes)"
            )
        return Columns(timestamps, keys, encoded)

    def _fault(self, value: Any, error: Exception) -> str:
        """Say what is wrong with a value; ``error`` is what encoding it raised."""
        fields = [field for field in (self._key, self._time) if field is not None]
        if fields and not isinstance(value, dict):
            return f"is not an object, so it has no field {fields[0]!r}"
        for field in fields:
            if field not in value:
                return f"has no field {field!r}"
        if self._key is not None:
            try:
                self._encode_keys([value[self._key]])
            except (TypeError, ValueError) as wrong:
                return f"has a key that cannot be written: field {self._key!r} {_expected(self._key_serde, wrong)}"
        if self._time is not None:
            try:
                timestamps_of([value[self._time]])
            except (TypeError, ValueError) as wrong:
                return f"has no usable time: field {self._time!r} {wrong}"
        return f"cannot be written: {_lower(error)}"


def bad_line(number: int, what: str) -> RecordError:
    """Return the error for a line of standard input."""
    return RecordError(f"line {number:,} of standard input {what}")


def value_encoder(serde: ValueSerde) -> Callable[[list[Any]], Sequence[bytes | None]]:
    """Return what encodes decoded JSON values as ``serde`` says."""
    if serde is ValueSerde.BYTES:
        return lambda values: [None if value is None else _bytes_of(value) for value in values]
    chosen: dict[ValueSerde, Serde[Any]] = {
        ValueSerde.MSGPACK: Msgpack(),
        ValueSerde.JSON: Json(),
        ValueSerde.STR: Str(),
    }
    return chosen[serde].encode_many


def value_serde(serde: ValueSerde) -> Serde[Any]:
    """Return the serde of that name."""
    chosen: dict[ValueSerde, Serde[Any]] = {
        ValueSerde.MSGPACK: Msgpack(),
        ValueSerde.JSON: Json(),
        ValueSerde.STR: Str(),
        ValueSerde.BYTES: Bytes(),
    }
    return chosen[serde]


def timestamps_of(values: list[Any]) -> Sequence[int]:
    """Return event times: whole milliseconds since the epoch as they are, ISO-8601 texts with a zone as such.

    Raises:
        TypeError: a value is neither.
        ValueError: a text is no time, has no zone, or a time lies before 1970 or beyond the year 2199.
    """
    if set(map(type, values)) != {int}:
        values = [value if type(value) is int else _milliseconds(value) for value in values]
    if values and (min(values) < 0 or max(values) >= TIMESTAMP_LIMIT):
        for value in values:
            _check_range(value)
    return values


def parse_time(text: str) -> int:
    """Return an ISO-8601 time with a zone in milliseconds since the epoch.

    Raises:
        ValueError: it is none.

    Example:
        >>> parse_time("2023-11-14T22:13:20Z")
        1700000000000
    """
    try:
        told = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError("is text and no ISO-8601 time") from None
    if told.tzinfo is None:
        raise ValueError("has no time zone; write 2023-11-14T22:13:20Z or ...+01:00")
    return round(told.timestamp() * 1000)


def _milliseconds(value: Any) -> int:
    if isinstance(value, str):
        return parse_time(value)
    raise TypeError("must be whole milliseconds since the epoch or ISO-8601 text with a zone")


def _check_range(timestamp: int) -> None:
    if timestamp < 0:
        raise ValueError("lies before 1970; it must be milliseconds since the epoch")
    if timestamp >= TIMESTAMP_LIMIT:
        hint = "; it looks like microseconds or nanoseconds" if timestamp >= _NANOSECONDS else ""
        raise ValueError(f"lies beyond the year 2199{hint}; it must be milliseconds since the epoch")


def _key_encoder(serde: KeySerde) -> Callable[[list[Any]], list[bytes]]:
    if serde is KeySerde.STR:
        return lambda keys: list(map(str.encode, keys))
    if serde is KeySerde.BYTES:
        return lambda keys: list(map(_bytes_of, keys))
    encode = Int().encode_many

    def encode_numbers(keys: list[Any]) -> list[bytes]:
        if None in keys:
            raise TypeError("expected int, got null")
        return encode(keys)  # type: ignore[return-value]

    return encode_numbers


def _expected(serde: KeySerde, wrong: Exception) -> str:
    if serde is KeySerde.STR:
        return "is not text; for whole numbers give --key-serde int"
    if serde is KeySerde.INT:
        return "is not a whole number of at most 64 bits"
    return str(wrong)


def _bytes_of(value: Any) -> bytes:
    if not isinstance(value, dict) or list(value) != ["base64"] or not isinstance(value["base64"], str):
        raise TypeError('must be {"base64": "..."}, which is how bytes are written in JSON')
    try:
        return base64.b64decode(value["base64"], validate=True)
    except binascii.Error:
        raise ValueError("holds text that is not base64") from None


def _is_blank(line: bytes) -> bool:
    return not line.strip(b" \t\r\n")


def _lower(error: Exception) -> str:
    text = str(error) or type(error).__name__
    return text.removeprefix("JSON is malformed: ")
