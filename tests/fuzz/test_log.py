"""The bytes of the embedded log: whatever stands there, they are read as what was written or as damage."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from random import Random
from typing import Any

import msgpack
import pytest
from hypothesis import given

from headrace.errors import CorruptError, FatalError, InvalidError, NotFoundError
from headrace.log.api import TopicConfig
from headrace.log.embedded.coordinator import SqliteGroupStore
from headrace.log.embedded.files import read_versioned_json, write_json
from headrace.log.embedded.format import (
    CODEC_ZLIB,
    PREFIX_BYTES,
    BatchEncoder,
    EncodedBatch,
    SegmentHeader,
    decode_columns,
    decode_segment_header,
    encode_segment_header,
    open_batch,
    read_prefix,
    seal,
)
from headrace.log.embedded.log import EmbeddedLog
from headrace.log.embedded.marks import (
    INDEX_HEADER,
    End,
    IndexEntry,
    decode_end,
    decode_index,
    encode_end,
    encode_entry,
)
from headrace.record import JoinedBytes, Origin, Progress, RecordBatch, TopicPartition, control_batch
from headrace.testing.conformance.log_support import StillClock, assign_evenly, make_batch, read_all, values_of
from tests.fuzz.damage import damaged, examples, flipped, outcome, seeds, within

PART = TopicPartition("payments", 0)
BATCHES = [
    RecordBatch([1000, 999], [b"k1", b"k2"], JoinedBytes.of([b"v1", b"value2"])),
    RecordBatch(
        [1000, -1, 2**40], [b"k1", None, b""], JoinedBytes.of([b"v1", None, b""]),
        [(("a", b"1"), ("a", b"2")), (), (("\u00fc", b""),)],
        Origin("topology/step/0", [5, 6, 9]), Progress(950, True, 77), [40, 45, 46],
    ),
    RecordBatch([5] * 300, [b"key"] * 300, JoinedBytes.of([b"x" * 50] * 300)),
    control_batch(Progress(1234, False, -1), 99),
]  # fmt: skip


def encoded(batch: RecordBatch, codec: int) -> bytes:
    gaps = not isinstance(batch.offsets, range)
    parts = BatchEncoder(codec).encode(batch, explicit_offsets=gaps)
    return seal(parts, batch.offsets[0] if gaps else 7) + parts.columns


ENCODED = [encoded(batch, codec) for batch in BATCHES for codec in (0, CODEC_ZLIB)]
COLUMNS = [BatchEncoder().encode(batch).columns for batch in BATCHES]


def decode(data: bytes) -> RecordBatch:
    length, checksum = read_prefix(data, 0)
    covered = data[PREFIX_BYTES : PREFIX_BYTES + length]
    if len(covered) < length:
        raise CorruptError("cut short")
    return decode_columns(open_batch(covered, checksum), covered)


def rows(batch: RecordBatch) -> Any:
    origin = batch.origin and (batch.origin.source, list(batch.origin.positions))
    headers = [[*map(tuple, row)] for row in batch.headers] if batch.headers else None
    columns = list(batch.timestamps), list(batch.keys), batch.values.split(), list(batch.offsets)
    return *columns, headers, origin, batch.progress, batch.control


@examples(700)
@given(seeds)
def test_a_batch_is_what_was_written_or_corrupt(rng: Random) -> None:
    data = damaged(rng, rng.choice(ENCODED), ENCODED)
    with within(5):
        try:
            got = decode(data)
        except CorruptError:
            return
    assert any(data.startswith(whole) and rows(got) == rows(decode(whole)) for whole in ENCODED)


@examples(700)
@given(seeds)
def test_columns_under_a_valid_checksum_are_a_batch_or_corrupt(rng: Random) -> None:
    columns = damaged(rng, rng.choice(COLUMNS), COLUMNS)
    claimed = rng.choice([len(columns), len(columns), 2**28, 2**28 - 100, 0, 1])
    records = rng.choice([1, 2, 3, 300, 0, 2**32 - 1, len(columns) // 8])
    attributes = rng.choice([0, 0, 1, 2, 8, 9])
    parts = EncodedBatch(columns, records, max(records, rng.choice([1, 300])), 0, 0, attributes, claimed)
    with within(5):
        try:
            got = decode(seal(parts, rng.choice([0, 40])) + columns)
        except CorruptError:
            return
        assert len(got) == len(got.keys) == len(got.values.split()) == len(got.offsets) == records
        if got.headers is not None:
            assert len(got.headers) == records


@pytest.mark.parametrize("column", range(9))
@examples(40)
@given(rng=seeds)
def test_one_column_that_is_something_else_is_corrupt_or_a_batch(column: int, rng: Random) -> None:
    columns = msgpack.unpackb(COLUMNS[1])
    strange = [None, 5, -1, 2**63, 1.5, True, "text", b"", b"x", [], [[]], [None], columns[rng.randrange(9)]]
    columns[column] = rng.choice([*strange, rng.randbytes(24), rng.randbytes(12)])
    data = msgpack.packb(columns)
    try:
        got = decode(seal(EncodedBatch(data, 3, 7, 0, 0, 0, len(data)), 40) + data)
    except CorruptError:
        return
    assert len(rows(got)[0]) == 3


MARKS: dict[str, tuple[Any, list[bytes]]] = {
    "end": (decode_end, [encode_end(End(10, 5, 4096, -3, 2048, 1024, 2)), encode_end(End(99, 0, 32, 0, 0, 0, 1))]),
    "segment": (decode_segment_header, [encode_segment_header(SegmentHeader(n, 2**40 + n)) for n in (0, 10**9)]),
}


@pytest.mark.parametrize("name", MARKS)
@examples(300)
@given(rng=seeds)
def test_a_mark_is_what_was_written_or_corrupt(name: str, rng: Random) -> None:
    read, good = MARKS[name]
    data = damaged(rng, rng.choice(good), good)
    try:
        got = read(data)
    except CorruptError:
        return
    assert any(data.startswith(whole) and got == read(whole) for whole in good)


@examples(300)
@given(seeds)
def test_of_an_index_only_what_was_written_is_believed(rng: Random) -> None:
    entries = [IndexEntry(n * 10, n * 70_000, n * 5) for n in range(rng.randrange(1, 8))]
    good = INDEX_HEADER + b"".join(map(encode_entry, entries))
    found = decode_index(damaged(rng, good, [good]))
    assert all(entry in entries for entry in found)
    assert found == sorted(found)


SMALL = [{"format": 1, "identity": "0123456789abcdef"}, {"format": 1, "partitions": 3, "config": {"compact": False}}]


@examples(200)
@given(seeds)
def test_a_small_file_is_what_was_written_or_damaged(rng: Random) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "file.json")
        good = []
        for content in SMALL:
            write_json(path, content)
            good.append(path.read_bytes())
        data = damaged(rng, rng.choice(good), good)
        path.write_bytes(data)
        found, told = outcome(lambda: read_versioned_json(path, 1), CorruptError, InvalidError)
        # What has lost its checksum too may be anything: earlier versions wrote none.
        assert str(path) in told if told else found in SMALL or b'"crc32c"' not in data


def written(directory: Path) -> list[bytes]:
    """Make a log of several segments, and return the values in it."""
    log = EmbeddedLog(directory, clock=StillClock(), fsync="never")
    log.create_topic("payments", 1, TopicConfig(segment_bytes=1500))
    values = [b"%d-" % n * (n % 7 + 1) for n in range(60)]
    for start in range(0, 60, 3):
        log.append(PART, make_batch(values[start : start + 3], start_ms=start))
    log.close()
    return values


def read(log: EmbeddedLog, start: int, expected: list[bytes]) -> int:
    """Read to the end or the damage; return how many came, which must be those that were written."""
    got: list[Any] = []
    try:
        reader = log.reader(PART, start)
        try:
            while (batch := reader.read(100)) is not None:
                got += batch.values.split()
        finally:
            reader.close()
    except (CorruptError, InvalidError):
        pass
    assert got == expected[start : start + len(got)]
    return len(got)


@examples(80)
@given(seeds)
def test_a_log_with_damage_in_its_files(rng: Random) -> None:
    with tempfile.TemporaryDirectory() as name, within(20):
        directory = Path(name, "log")
        values = written(directory)
        partition = directory / "topics" / "payments" / "0"
        files = sorted(path for path in partition.iterdir() if path.is_file())
        contents = [path.read_bytes() for path in files]
        for _ in range(rng.randrange(1, 4)):
            path = rng.choice(files)
            path.write_bytes(damaged(rng, path.read_bytes(), contents))
        log = EmbeddedLog(directory, clock=StillClock(), fsync="never")
        for start in (0, 17, 45):
            read(log, start, values)
        for call in (
            lambda: log.offset_at(PART, 30), lambda: log.end_offset(PART), lambda: log.start_offset(PART),
            lambda: log.clean(10**13), lambda: log.trim(PART, 10),
        ):  # fmt: skip
            try:
                call()
            except (CorruptError, InvalidError):
                pass
        try:
            at = log.append(PART, make_batch([b"new"]))
        except (CorruptError, InvalidError):
            log.close()
            return
        reader = log.reader(PART, at)
        assert values_of(read_all(reader)) == [b"new"]
        reader.close()
        log.close()


@examples(60)
@given(seeds)
def test_damaged_indexes_lose_nothing(rng: Random) -> None:
    with tempfile.TemporaryDirectory() as name, within(20):
        directory = Path(name, "log")
        values = written(directory)
        indexes = sorted((directory / "topics" / "payments" / "0").glob("*.index"))
        contents = [path.read_bytes() for path in indexes]
        for path, content in zip(indexes, contents, strict=True):
            if rng.random() < 0.7:
                path.write_bytes(damaged(rng, content, contents))
        log = EmbeddedLog(directory, clock=StillClock(), fsync="never")
        for start in (0, 17, 59):
            assert read(log, start, values) == 60 - start
        assert [log.offset_at(PART, time) for time in (0, 30, 57)] == [0, 30, 57]
        assert log.append(PART, make_batch([b"new"])) == 60
        log.close()


@examples(60)
@given(seeds)
def test_a_group_database_with_damage(rng: Random) -> None:
    with tempfile.TemporaryDirectory() as name, within(20):
        directory = Path(name, "log")
        log = EmbeddedLog(directory, clock=StillClock(), fsync="never")
        members = [
            log.group("g").join(f"m{n}", {f"u{n}": [] for n in range(30)}, assign_evenly, session_timeout_ms=1000)
            for n in range(3)
        ]
        members[0].poll()
        log.close()
        database = directory / "groups.sqlite"
        for side in directory.glob("groups.sqlite-*"):
            side.unlink()
        good = database.read_bytes()
        at = 100 if rng.random() < 0.7 else 0
        bad = damaged(rng, good[at:], [good]) if rng.random() < 0.6 else flipped(rng, good[at:], 200)
        database.write_bytes(good[:at] + bad)
        try:
            store = SqliteGroupStore(directory, durable=False)
        except (CorruptError, InvalidError, FatalError):
            return
        log = EmbeddedLog(directory, clock=StillClock(), fsync="never")
        try:
            log.groups()
            log.group("g").committed()
            log.group("g").members()
            member = log.group("g").join("z", {"u0": []}, assign_evenly, session_timeout_ms=1000)
            member.poll()
            member.heartbeat()
            member.leave()
        except (CorruptError, InvalidError, FatalError):
            pass
        finally:
            log.close()
            store.close()


@examples(150)
@given(seeds)
def test_a_damaged_description_of_a_topic(rng: Random) -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name, "log")
        log = EmbeddedLog(directory, clock=StillClock(), fsync="never")
        topic = log.create_topic("payments", 3, TopicConfig(retention_ms=10**9))
        path = directory / "topics" / "payments" / "topic.json"
        good = path.read_bytes()
        strange = json.loads(good)
        strange.pop("crc32c")
        field = rng.choice([*strange, "retention_ms", "segment_bytes", "compact"])
        (strange if field in strange else strange["config"])[field] = rng.choice(
            [None, -1, 0, 2.5, "3", [], {}, True, 10**400, {"x": 1}]
        )
        path.write_bytes(damaged(rng, good, [good]) if rng.random() < 0.6 else json.dumps(strange).encode())
        try:
            found = log.topics().get("payments")
        except (CorruptError, InvalidError):
            found = topic
        if found != topic:  # of a file without a checksum, as earlier versions wrote it
            assert found is not None
            assert type(found.partitions) is int
            assert type(found.config.segment_bytes) is int
            try:
                log.append(TopicPartition("payments", 0), make_batch([b"x"]))
                log.clean(1)
            except (CorruptError, InvalidError, NotFoundError):
                pass
        log.close()
