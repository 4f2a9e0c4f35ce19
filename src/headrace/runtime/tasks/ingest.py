"""From the bytes of a source partition to decoded records with event times. Pure."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from headrace.errors import RetriableError
from headrace.operators.api import Batch
from headrace.operators.selectors import select, selector_name
from headrace.record import TIMESTAMP_LIMIT, JoinedBytes, RecordBatch
from headrace.serde.api import Serde
from headrace.serde.primitives import Str
from headrace.topology.graph import Source

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)

OnFailure = Callable[[int, Exception], None]
"""(offset, what was raised); raises itself if the policy is to stop."""


def ingest(source: Source, records: RecordBatch, on_failure: OnFailure) -> Batch | None:
    """Decode a batch, read its event times and check its keys.

    The fast path does each for the whole batch; only if that fails are the records looked at one by one.

    Returns:
        The records that are good; None if there are none.

    Raises:
        RetriableError: something that the serde needs cannot be reached.
    """
    try:
        values = source.value.decode_many(records.values)
        timestamps = _event_times(source, values, records)
        _check_keys(source, values, records)
        return Batch(records.offsets, timestamps, records.keys, values, records.headers)
    except RetriableError:
        raise  # no record is at fault if a schema registry, say, cannot be reached
    except Exception:  # noqa: BLE001  # a value can fail in as many ways as a user's selector
        return _one_by_one(source, records, on_failure)


def decode(serde: Serde[Any], records: RecordBatch, on_failure: OnFailure) -> Batch | None:
    """Decode a batch of an internal topic, whose event times stand in the records."""
    try:
        values = serde.decode_many(records.values)
        return Batch(records.offsets, records.timestamps, records.keys, values, records.headers)
    except Exception:  # noqa: BLE001  # whatever a serde raises
        return _decode_one_by_one(serde, records, on_failure)


def _decode_one_by_one(serde: Serde[Any], records: RecordBatch, on_failure: OnFailure) -> Batch | None:
    good: list[int] = []
    values: list[Any] = []
    for i, data in enumerate(records.values.split()):
        try:
            values.append(serde.decode(data))
            good.append(i)
        except Exception as error:  # noqa: BLE001  # as above
            on_failure(records.offsets[i], error)
    return _good(records, good, values, [records.timestamps[i] for i in good]) if good else None


def _one_by_one(source: Source, records: RecordBatch, on_failure: OnFailure) -> Batch | None:
    good: list[int] = []
    values: list[Any] = []
    timestamps: list[int] = []
    for i, data in enumerate(records.values.split()):
        part = RecordBatch(
            records.timestamps[i : i + 1],
            records.keys[i : i + 1],
            JoinedBytes.of([data]),
            offsets=records.offsets[i : i + 1],
        )
        try:
            value = source.value.decode(data)
            timestamp = _event_times(source, [value], part)[0]
            _check_keys(source, [value], part)
        except RetriableError:
            raise
        except Exception as error:  # noqa: BLE001  # as above
            on_failure(records.offsets[i], error)
            continue
        good.append(i)
        values.append(value)
        timestamps.append(timestamp)
    return _good(records, good, values, timestamps) if good else None


def _good(records: RecordBatch, good: list[int], values: list[Any], timestamps: list[int]) -> Batch:
    headers = records.headers and [records.headers[i] for i in good]
    return Batch([records.offsets[i] for i in good], timestamps, [records.keys[i] for i in good], values, headers)


def _event_times(source: Source, values: list[Any], records: RecordBatch) -> Any:
    timestamps: Any
    if source.time is None:
        timestamps = records.timestamps
    elif source.table and None in values:  # a deletion has no value that could hold its time
        times = iter(select(source.time, [value for value in values if value is not None]))
        timestamps = [s if v is None else next(times) for s, v in zip(records.timestamps, values, strict=True)]
    else:
        timestamps = select(source.time, values)
    try:
        array("q", timestamps)
    except (TypeError, OverflowError):
        timestamps = [_milliseconds(value, source) for value in timestamps]
    if min(timestamps) < 0 or max(timestamps) >= TIMESTAMP_LIMIT:
        for timestamp in timestamps:
            _check_range(timestamp)
    return timestamps


def _milliseconds(value: Any, source: Source) -> int:
    what = f"the event time, {selector_name(source.time)!r}," if source.time is not None else "the record's timestamp"
    if type(value) is int:
        return value
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise ValueError(f"{what} is a datetime without a time zone; event times are UTC")
        return (value - _EPOCH) // _MILLISECOND
    raise TypeError(
        f"{what} must be whole milliseconds since the epoch or an aware datetime, not {type(value).__name__}"
    )


def _check_range(timestamp: int) -> None:
    if timestamp < 0:
        raise ValueError("the event time lies before 1970; it must be milliseconds since the epoch")
    if timestamp >= TIMESTAMP_LIMIT:
        hint = "; it looks like microseconds or nanoseconds" if timestamp >= 1000 * 10**12 else ""
        raise ValueError(
            f"the event time lies beyond the year 2199, where it would close every window before it{hint}; "
            "it must be milliseconds since the epoch"
        )


def _check_keys(source: Source, values: list[Any], records: RecordBatch) -> None:
    if source.table and None in records.keys:
        raise ValueError("the record has no key, by which a table knows its rows; produce with a key")
    if source.keyed_by is None:
        return
    fields = select(source.keyed_by, values)
    keys = records.keys
    if isinstance(source.key, Str):
        try:
            joined = "\0".join(fields).encode()
            if joined == b"\0".join(keys) and joined.count(0) == len(fields) - 1:  # type: ignore[arg-type]
                return
        except TypeError:
            pass  # something is not text: the slow way says what
    if None in keys:
        raise ValueError("the record has no key, although the stream says keyed_by=")
    if source.key.encode_many(fields) != list(keys):
        raise ValueError(
            f"the record's key is not its {selector_name(source.keyed_by)!r} as {source.key.name}, although the stream "
            "says keyed_by=; produce with that key, or leave keyed_by= out and use key_by()"
        )
