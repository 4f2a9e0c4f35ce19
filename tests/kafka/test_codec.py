"""Batches as Kafka's records, and back: any batch, and bytes that an earlier version wrote."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import pytest
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import CorruptError, InvalidError
from headrace.log.kafka.codec import BATCH_HEADER, batches, check, is_described, rows, size_bytes
from headrace.record import ID_HEADER, JoinedBytes, Origin, Progress, RecordBatch, control_batch
from headrace.testing.conformance.log_support import make_batch

GOLDEN = Path(__file__).parent / "golden"
OTHER = (("other", b""),)

nullable = st.none() | st.binary(max_size=40)
header = st.tuples(st.text(min_size=1, max_size=5).filter(lambda name: not name.startswith("headrace")), st.binary())


@st.composite
def record_batches(draw, *, kinds=("plain", "ids", "internal")):
    count = draw(st.integers(1, 12))
    columns = {}
    if draw(st.booleans()):
        columns["headers"] = draw(st.lists(st.lists(header, max_size=2).map(tuple), min_size=count, max_size=count))
    kind = draw(st.sampled_from(kinds))
    if kind != "plain":
        positions = draw(st.lists(st.integers(0, 2**50), min_size=count, max_size=count, unique=True))
        columns["origin"] = Origin(draw(st.sampled_from(["t/s/in-0", "t/ü/in-1/topic"])), sorted(positions))
    if kind == "internal":
        columns["progress"] = Progress(draw(st.integers(-1, 2**45)), draw(st.booleans()), draw(st.integers(-1, 2**40)))
    return make_batch(
        draw(st.lists(nullable, min_size=count, max_size=count)),
        keys=draw(st.lists(nullable, min_size=count, max_size=count)),
        start_ms=draw(st.integers(0, 2**43)),
        **columns,
    )


def written(*appended: RecordBatch) -> bytes:
    """Return one of Kafka's record batches that holds all of ``appended``."""
    builder = DefaultRecordBatchBuilder(
        magic=2, compression_type=0, is_transactional=0, producer_id=-1, producer_epoch=-1, base_sequence=0,
        batch_size=1 << 24,
    )  # fmt: skip
    offset = 0
    for batch in appended:
        for timestamp, key, value, headers in rows(batch, described=is_described(batch)):
            assert builder.append(offset, timestamp, key, value, headers) is not None
            offset += 1
    return bytes(builder.build())


def read(raw: bytes) -> list[RecordBatch]:
    return batches(list(MemoryRecords(raw).next_batch()), "topic/0")


def columns(batch: RecordBatch):
    """Return what can be compared of a batch."""
    origin = batch.origin and (batch.origin.source, list(batch.origin.positions))
    headers = batch.headers if batch.headers and any(batch.headers) else None
    return (
        list(batch.timestamps), list(batch.keys), batch.values.split(),
        headers and [tuple(row) for row in headers], origin, batch.progress, batch.control,
    )  # fmt: skip


def rows_of(batch: RecordBatch):
    """Return a batch record by record."""
    headers = batch.headers or [()] * len(batch)
    ids = [(batch.origin.source, at) for at in batch.origin.positions] if batch.origin else [None] * len(batch)
    return list(zip(batch.timestamps, batch.keys, batch.values.split(), map(tuple, headers), ids, strict=True))


@settings(deadline=None)
@given(record_batches(kinds=["plain", "ids", "internal"]))
def test_a_batch_comes_back(batch):
    check(batch)
    (got,) = read(written(batch))
    assert columns(got) == columns(batch)
    assert list(got.offsets) == list(range(len(batch)))


@settings(max_examples=50, deadline=None)
@given(st.lists(record_batches(kinds=["internal", "ids"]), min_size=1, max_size=5))
def test_batches_that_left_together_are_told_apart(appended):
    got = read(written(*appended))
    assert [offset for batch in got for offset in batch.offsets] == list(range(sum(map(len, appended))))
    assert [rows_of(batch) for batch in got if batch.progress] == [rows_of(b) for b in appended if b.progress]
    # Those with ids may be joined, or split where ids do not grow.
    flat = chain.from_iterable
    assert list(flat(map(rows_of, got))) == list(flat(map(rows_of, appended)))


@settings(deadline=None)
@given(record_batches())
def test_the_size_is_never_underestimated(batch):
    assert size_bytes(batch, described=is_described(batch)) >= len(written(batch)) - 61


def test_a_control_batch_has_no_time():
    control = control_batch(Progress(77, False, 5), 10**12)
    control.origin = Origin("t/s/in-0", [0])
    assert next(iter(MemoryRecords(written(control)).next_batch())).timestamp == -1
    got, other = read(written(control, make_batch([b"x"], progress=Progress(78, False, 5))))
    assert (got.control, got.progress, list(got.timestamps)) == (True, Progress(77, False, 5), [0])
    assert (other.control, other.values.split(), list(other.timestamps)) == (False, [b"x"], [1000])


def test_ids_of_several_writers_are_told_apart():
    one = make_batch([b"a", b"b"], origin=Origin("t/s/in-0", [4, 7]))
    two = make_batch([b"c"], origin=Origin("t/s/in-1", [1]))
    again = make_batch([b"d", b"e"], origin=Origin("t/s/in-1", [1, 2]))
    stranger = make_batch([b"f"], headers=[(("headrace-id", b"no position"),)])
    got = read(written(one, two, again, stranger))
    assert list(map(columns, got)) == list(map(columns, (one, two, again, stranger)))


@pytest.mark.parametrize(
    "ids",
    [
        [b"t/s/in-0/4", b"7"], [b"t/s/in-0/4", b"t/s/in-0/"], [b"t/s/in-0/4", b"t/s/in-0/x"], [b"4", b"7"],
        [b"/4", b"/7"], [b"t/s/in-0/4", b"t/s/in-0/4"], [b"t/s/in-0/4", b"t/s/in-0/3"], [b"", b""],
        [b"t/s/in-0/4", b"t/s/in-00/5"], [b"t/s/in-0/4", b"t/s/in-0/5/6"], [b"t/s/in-0/4", b"t/s/in-0/" + b"1" * 19],
        [b"t/s/in-0/4", b"t/s/in-0/9"],
    ],
)  # fmt: skip
def test_ids_are_read_one_by_one_or_all_at_once(ids):
    headers = [((ID_HEADER, own),) for own in ids]
    together = read(written(make_batch([b"a", b"b"], headers=headers)))
    # With another header in the middle, they are looked at one by one.
    apart = read(written(*(make_batch([b"v"], headers=[(*more, *row)]) for row in headers for more in ((), OTHER))))
    alone = [row for batch in apart for row in rows_of(batch)][::2]
    assert [row[3:] for batch in together for row in rows_of(batch)] == [row[3:] for row in alone]
    for batch in together:
        positions = list(batch.origin.positions) if batch.origin else []
        assert positions == sorted(set(positions))


def test_uneven_columns_are_refused():
    for bad in (
        RecordBatch([1, 2], [b"k"], JoinedBytes.of([b"v", b"v"])),
        make_batch([b"v"], headers=[(), ()]),
        make_batch([b"v"], origin=Origin("s", [1, 2])),
    ):
        with pytest.raises(InvalidError):
            check(bad)


@pytest.mark.parametrize("described", [b"", b"\xc1", b"\x01", b"\x93\x01\x02\x03", b"\x96\x01\x05\xc2\xc0\xc0\xc0"])
def test_what_makes_no_sense_is_said_to_be_damaged(described):
    raw = written(make_batch([b"v"], headers=[((BATCH_HEADER, described),)]))
    with pytest.raises(CorruptError, match="topic/0, offset 0"):
        read(raw)


def test_a_newer_version_is_refused():
    raw = written(make_batch([b"v"], headers=[((BATCH_HEADER, b"\x91\x02"),)]))
    with pytest.raises(InvalidError, match="newer"):
        read(raw)


def golden_batches() -> list[RecordBatch]:
    control = control_batch(Progress(1_700_000_000_000, True, 12))
    control.origin = Origin("spend/by-customer/payments-0", [0])
    return [
        make_batch([b"one", None, b""], keys=[b"k", b"", None], start_ms=1_700_000_000_000,
                   origin=Origin("spend/by-customer/payments-0", [5, 6, 9]), progress=Progress(-1, False, -1)),
        make_batch([b"two"], headers=[(("trace", b"\x01"),)], progress=Progress(1_700_000_000_000, False, -1)),
        control,
    ]  # fmt: skip


def test_the_format_is_what_it_was():
    raw = (GOLDEN / "internal-v1.bin").read_bytes()
    assert written(*golden_batches()) == raw
    assert list(map(columns, read(raw))) == list(map(columns, golden_batches()))
