"""From bytes to records with event times."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from headrace.record import JoinedBytes, RecordBatch
from headrace.runtime.tasks.ingest import decode, ingest
from headrace.serde.json import Json
from headrace.serde.msgpack import Msgpack
from headrace.serde.primitives import Int, Str
from headrace.topology.graph import Source

Failures = list[tuple[int, Exception]]


def source(**options: Any) -> Source:
    return Source(**{"name": "in", "topic": "in", "value": Msgpack(), "key": Str(), **options})


def batch(
    values: list[Any], keys: list[bytes | None] | None = None, timestamps: list[int] | None = None
) -> RecordBatch:
    encoded = JoinedBytes.of(Msgpack().encode_many(values))
    return RecordBatch(timestamps or [7] * len(values), keys or [None] * len(values), encoded, offsets=range(10, 99))


def taken(node: Source, records: RecordBatch) -> tuple[list[int], list[int], Failures]:
    """Return offsets and event times of the good records, and the failures."""
    failures: Failures = []
    found = ingest(node, records, lambda offset, error: failures.append((offset, error)))
    return (
        ([], [], failures) if found is None else (list(found.offsets)[: len(found)], list(found.timestamps), failures)
    )


def test_the_records_own_timestamps_are_the_event_times() -> None:
    assert taken(source(), batch([{}, {}], timestamps=[5, 6]))[1] == [5, 6]


@pytest.mark.parametrize("selector", ["at", lambda value: value["at"]])
def test_a_field_or_a_function_gives_the_event_times(selector: Any) -> None:
    assert taken(source(time=selector), batch([{"at": 5}, {"at": 9}]))[1:] == ([5, 9], [])


EXACT = [
    (datetime(1970, 1, 1, tzinfo=UTC), 0),
    (datetime(1970, 1, 1, 0, 0, 1, 1_000, tzinfo=UTC), 1_001),
    (datetime(2024, 2, 29, 12, 0, 0, 1_000, tzinfo=UTC), 1_709_208_000_001),
    (datetime(2014, 4, 9, 23, 4, 4, 999_999, tzinfo=UTC), 1_397_084_644_999),
    (datetime(2024, 7, 1, 2, 0, tzinfo=timezone(timedelta(hours=2))), 1_719_792_000_000),
]


@pytest.mark.parametrize(("moment", "expected"), EXACT)
def test_aware_datetimes_are_exact_to_the_millisecond(moment: datetime, expected: int) -> None:
    assert taken(source(time=lambda _: moment), batch([{}]))[1:] == ([expected], [])


def test_every_millisecond_of_a_second_survives_as_a_datetime() -> None:
    start = datetime(2033, 5, 18, 3, 33, 20, tzinfo=UTC)
    values = [{"i": i} for i in range(1000)]
    found = taken(source(time=lambda v: start + timedelta(milliseconds=v["i"])), batch(values))
    assert found[1] == [2_000_000_000_000 + i for i in range(1000)]


BAD_TIMES = [
    (-1, "before 1970"),
    (253_402_300_799_000, "beyond the year 2199"),
    (1_709_208_000_000_000, "microseconds"),
    (2**70, "beyond the year 2199"),
    ("2024-01-01", "not str"),
    (1.5, "not float"),
    (None, "not NoneType"),
]


@pytest.mark.parametrize(("time", "part"), BAD_TIMES)
def test_an_impossible_time_fails_alone(time: Any, part: str) -> None:
    node = source(time=lambda value: time if value["at"] == 2 else value["at"])
    offsets, times, failures = taken(node, batch([{"at": 1}, {"at": 2}, {"at": 3}]))
    assert (offsets, times) == ([10, 12], [1, 3])
    assert [offset for offset, _ in failures] == [11]
    assert part in str(failures[0][1])


def test_a_naive_datetime_is_refused() -> None:
    _, _, failures = taken(source(time=lambda _: datetime(2024, 1, 1)), batch([{}]))  # noqa: DTZ001
    assert "without a time zone" in str(failures[0][1])


@pytest.mark.parametrize("values", [[True, 5], [True, datetime(2024, 1, 1, tzinfo=UTC)]])
def test_what_a_time_may_be_does_not_depend_on_its_neighbours(values: list[Any]) -> None:
    offsets, times, failures = taken(source(time=lambda v: values[v["i"]]), batch([{"i": 0}, {"i": 1}]))
    assert (offsets, failures) == ([10, 11], [])
    assert times[0] == 1


def test_a_missing_time_field_fails_alone_and_is_named() -> None:
    offsets, _, failures = taken(source(time="at"), batch([{"at": 1}, {"when": 2}]))
    assert offsets == [10]
    assert failures[0][0] == 11
    assert "'at'" in str(failures[0][1])


def test_a_tombstone_has_no_field() -> None:
    offsets, _, failures = taken(source(time="at"), batch([None, {"at": 1}]))
    assert offsets == [11]
    assert "no value" in str(failures[0][1])


def test_a_tombstone_with_its_own_timestamp_passes() -> None:
    found = ingest(source(), batch([None, {"at": 1}]), lambda *_: pytest.fail("nothing is wrong with it"))
    assert found is not None
    assert found.values == [None, {"at": 1}]


def test_damaged_bytes_fail_alone() -> None:
    values = JoinedBytes.of([b"\x81\xa1a\x01", b"\xc1", b"\x80"])
    offsets, _, failures = taken(source(), RecordBatch([1, 2, 3], [None] * 3, values, offsets=range(10, 13)))
    assert offsets == [10, 12]
    assert [offset for offset, _ in failures] == [11]


def test_headers_stay_with_their_records() -> None:
    values = JoinedBytes.of([b"\xc1", b"\x80"])
    headers = [(("h", b"1"),), (("h", b"2"),)]
    records = RecordBatch([1, 2], [None] * 2, values, headers, offsets=range(2))
    found = ingest(source(), records, lambda *_: None)
    assert found is not None
    assert found.headers == [headers[1]]


@pytest.mark.parametrize("key", [b"other", b"", None, b"k\0"])
def test_a_key_that_is_not_the_field_fails_alone(key: bytes | None) -> None:
    offsets, _, failures = taken(source(keyed_by="k"), batch([{"k": "k"}, {"k": "k"}], [b"k", key]))
    assert offsets == [10]
    assert failures[0][0] == 11


@pytest.mark.parametrize("serde", [Str(), Int(), Json()])
def test_a_record_without_key_and_field_has_no_key(serde: Any) -> None:
    offsets, _, failures = taken(source(keyed_by="k", key=serde), batch([{"k": None}], [None]))
    assert offsets == []
    assert "no key" in str(failures[0][1])


def test_keys_cannot_be_told_apart_by_where_they_are_joined() -> None:
    fields = [{"k": "a\0b"}, {"k": "c"}]
    assert taken(source(keyed_by="k"), batch(fields, [b"a", b"b\0c"]))[0] == []
    assert taken(source(keyed_by="k"), batch(fields, [b"a\0b", b"c"]))[0] == [10, 11]


def test_whole_numbers_as_keys() -> None:
    keys = Int().encode_many([1, 2])
    assert taken(source(keyed_by="k", key=Int()), batch([{"k": 1}, {"k": 3}], keys))[0] == [10]


def test_one_bad_internal_record_does_not_take_its_neighbours_along() -> None:
    failures: Failures = []
    values = JoinedBytes.of([b"\x80", b"\xc1", b"\x80"])
    records = RecordBatch([1, 2, 3], [b"k"] * 3, values, offsets=range(10, 13))
    found = decode(Msgpack(), records, lambda offset, error: failures.append((offset, error)))
    assert found is not None
    assert (list(found.offsets), list(found.timestamps)) == ([10, 12], [1, 3])
    assert [offset for offset, _ in failures] == [11]
