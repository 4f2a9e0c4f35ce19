"""The bytes of batches, segment headers, ends and index entries."""

from __future__ import annotations

from array import array
from pathlib import Path
from typing import Any

import google_crc32c
import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import CorruptError, InvalidError
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
from headrace.log.embedded.marks import (
    INDEX_HEADER,
    End,
    IndexEntry,
    decode_end,
    decode_index,
    encode_end,
    encode_entry,
)
from headrace.record import JoinedBytes, Origin, Progress, RecordBatch, control_batch

GOLDEN = Path(__file__).parent / "golden"
PLAIN = RecordBatch([1000, 999], [b"k1", b"k2"], JoinedBytes.of([b"v1", b"value2"]))
FULL = RecordBatch(
    [1000, -1, 2**40], [b"k1", None, b""], JoinedBytes.of([b"v1", None, b""]),
    [(("a", b"1"), ("a", b"2")), (), (("\u00fc", b""),)],
    Origin("topology/step/0", [5, 6, 9]), Progress(950, True, 77), [40, 45, 46],
)  # fmt: skip
CONTROL = control_batch(Progress(1234, False, -1), 99)


def encode(batch: RecordBatch, base: int, *, gaps: bool = False, codec: int = 0) -> bytes:
    encoded = BatchEncoder(codec).encode(batch, explicit_offsets=gaps)
    return seal(encoded, base) + encoded.columns


def decode(data: bytes) -> RecordBatch:
    if len(data) < PREFIX_BYTES:
        raise CorruptError("short")
    length, checksum = read_prefix(data, 0)
    if len(data) != PREFIX_BYTES + length:
        raise CorruptError("another length")
    return decode_columns(open_batch(data[PREFIX_BYTES:], checksum), data[PREFIX_BYTES:])


def rows(batch: RecordBatch) -> dict[str, object]:
    return {
        "timestamps": list(batch.timestamps), "keys": list(batch.keys), "values": batch.values.split(),
        "headers": batch.headers and [tuple(map(tuple, row)) for row in batch.headers],
        "origin": batch.origin and (batch.origin.source, list(batch.origin.positions)),
        "progress": batch.progress, "control": batch.control,
    }  # fmt: skip


GOLDEN_FILES = {
    "batch-plain-v1.bin": encode(PLAIN, 7),
    "batch-full-v1.bin": encode(FULL, 40, gaps=True),
    "batch-control-v1.bin": encode(CONTROL, 2**40),
    "segment-header-v1.bin": encode_segment_header(SegmentHeader(123456789, 1_700_000_000_000)),
    "end-v1.bin": encode_end(End(10, 5, 4096, -3, 2048, 1024, 2)),
    "end-deleted-v1.bin": encode_end(End(0, 0, 0, 0, 0, 0, 0, deleted=True)),
    "index-v1.bin": INDEX_HEADER + encode_entry(IndexEntry(5, 32, -(2**63))) + encode_entry(IndexEntry(9, 70_000, 8)),
}


@pytest.mark.parametrize("name", GOLDEN_FILES)
def test_the_bytes_are_those_of_version_1(name: str) -> None:
    assert GOLDEN_FILES[name] == (GOLDEN / name).read_bytes()


def test_golden_batches_are_read() -> None:
    plain = decode((GOLDEN / "batch-plain-v1.bin").read_bytes())
    assert (rows(plain), plain.offsets) == (rows(PLAIN), range(7, 9))
    full = decode((GOLDEN / "batch-full-v1.bin").read_bytes())
    assert (rows(full), full.offsets) == (rows(FULL), [40, 45, 46])
    control = decode((GOLDEN / "batch-control-v1.bin").read_bytes())
    assert (rows(control), control.offsets) == (rows(CONTROL), range(2**40, 2**40 + 1))
    compressed = decode((GOLDEN / "batch-zlib-v1.bin").read_bytes())
    assert rows(compressed) == rows(FULL)


def test_golden_marks_are_read() -> None:
    assert decode_end((GOLDEN / "end-v1.bin").read_bytes()) == End(10, 5, 4096, -3, 2048, 1024, 2)
    assert decode_end((GOLDEN / "end-deleted-v1.bin").read_bytes()).deleted
    header = decode_segment_header((GOLDEN / "segment-header-v1.bin").read_bytes())
    assert header == SegmentHeader(123456789, 1_700_000_000_000)
    entries = decode_index((GOLDEN / "index-v1.bin").read_bytes())
    assert entries == [IndexEntry(5, 32, -(2**63)), IndexEntry(9, 70_000, 8)]


@pytest.mark.parametrize("data", [encode(FULL, 40, gaps=True), encode(FULL, 40, codec=CODEC_ZLIB), encode(PLAIN, 0)])
def test_no_flipped_bit_and_no_cut_passes(data: bytes) -> None:
    for at in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[at // 8] ^= 1 << at % 8
        with pytest.raises(CorruptError):
            decode(bytes(flipped))
    for size in range(len(data)):
        with pytest.raises(CorruptError):
            decode(data[:size])


@pytest.mark.parametrize("name", ["end-v1.bin", "segment-header-v1.bin"])
def test_no_flipped_bit_passes_in_marks(name: str) -> None:
    data = (GOLDEN / name).read_bytes()
    read = decode_end if name.startswith("end") else decode_segment_header
    for at in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[at // 8] ^= 1 << at % 8
        with pytest.raises(CorruptError):
            read(bytes(flipped))
    for size in range(len(data)):
        with pytest.raises(CorruptError):
            read(data[:size])


def test_a_newer_version_is_refused_and_not_called_corrupt() -> None:
    for name, read in (("end-v1.bin", decode_end), ("segment-header-v1.bin", decode_segment_header)):
        raw = bytearray((GOLDEN / name).read_bytes()[:-4])
        raw[4 if name.startswith("end") else 8] = 2
        with pytest.raises(InvalidError, match="Upgrade headrace"):
            read(bytes(raw) + google_crc32c.value(bytes(raw)).to_bytes(4, "little"))


def test_a_damaged_index_gives_what_stands_before_the_damage() -> None:
    data = (GOLDEN / "index-v1.bin").read_bytes()
    assert decode_index(b"") == decode_index(b"x" * 99) == []
    for at in range(len(data)):
        flipped = bytearray(data)
        flipped[at] ^= 0x40
        assert len(decode_index(bytes(flipped))) < 2


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_corrupt(data: bytes) -> None:
    for read in (decode, decode_end, decode_segment_header):
        with pytest.raises(CorruptError):
            read(data)
    decode_index(data)


@given(st.binary(max_size=200), st.integers(-2, 5), st.integers(0, 20))
def test_arbitrary_columns_under_a_valid_checksum_are_corrupt(columns: bytes, records: int, attributes: int) -> None:
    encoded = EncodedBatch(columns, max(records, 0), max(records, 0), 0, 0, attributes, len(columns))
    with pytest.raises(CorruptError):
        decode(seal(encoded, 0) + columns)


def packed(*numbers: int, code: str = "q") -> bytes:
    return array(code, numbers).tobytes()


@pytest.mark.parametrize(
    ("column", "content"),
    [
        (0, packed(1)), (0, packed(1, 2, 3)), (0, b"1234567"), (0, None), (1, [b"k"]), (1, [b"k", 1]), (1, [b"k", "k"]),
        (1, [b"k", [b"k"]]), (1, None), (2, packed(1, code="i")), (2, packed(1, 1, code="i")),
        (2, packed(-2, 5, code="i")), (2, packed(2**31 - 1, 2**31 - 1, code="i")), (3, b"longer"), (3, "abc"),
        (4, b""), (4, [[], []]), (4, msgpack.packb([()])), (4, msgpack.packb([(), (("n", "v"),)])),
        (4, msgpack.packb([(), 5])), (4, b"\xdd\xff\xff\xff\xff"), (5, 5), (5, b"x"), (6, packed(1)), (6, None),
        (7, [1, 2, 3]), (7, [1, True]), (7, b"x"), (8, packed(1, 2)), (8, packed(0, 0)), (8, packed(0, 2)), (8, [0, 1]),
    ],
)  # fmt: skip
def test_columns_that_make_no_sense_are_corrupt(column: int, content: object) -> None:
    columns: list[object] = [
        packed(1, 2), [b"k", None], packed(1, 2, code="i"), b"abc", None, "source", packed(1, 2), None, None,
    ]  # fmt: skip
    good = msgpack.packb(columns)
    assert len(decode(seal(EncodedBatch(good, 2, 2, 1, 2, 0, len(good)), 0) + good)) == 2
    columns[column] = content
    bad = msgpack.packb(columns)
    with pytest.raises(CorruptError):
        decode(seal(EncodedBatch(bad, 2, 2, 1, 2, 0, len(bad)), 0) + bad)


def test_a_compressed_batch_that_grows_beyond_its_header_is_corrupt() -> None:
    encoded = BatchEncoder(CODEC_ZLIB).encode(RecordBatch([1], [None], JoinedBytes.of([bytes(10**6)])))
    lying = encoded._replace(columns_bytes=1000)
    with pytest.raises(CorruptError):
        decode(seal(lying, 0) + encoded.columns)


def test_what_cannot_be_stored_is_invalid() -> None:
    values = JoinedBytes.of([b"v"])
    text: Any = "text"
    for bad in (
        RecordBatch([2**63], [b"k"], values), RecordBatch([text], [b"k"], values), RecordBatch([1], [text], values),
        RecordBatch([1], [b"k"], values, [(("\ud800", b""),)]),
        RecordBatch([1], [b"k"], JoinedBytes(b"abc", [1])), RecordBatch([1], [b"k"], JoinedBytes(b"", [-2])),
        RecordBatch([1], [b"k"], values, [(("name", text),)]), RecordBatch([1], [b"k"], JoinedBytes(text, [4])),
    ):  # fmt: skip
        with pytest.raises(InvalidError):
            BatchEncoder().encode(bad)


optional_bytes = st.none() | st.binary(max_size=20)
record_rows = st.tuples(
    st.integers(-(2**63), 2**63 - 1), optional_bytes, optional_bytes,
    st.lists(st.tuples(st.text(max_size=5).filter(lambda text: text.isprintable()), st.binary(max_size=5)), max_size=2),
    st.integers(0, 2**62),
)  # fmt: skip


@settings(max_examples=200)
@given(
    st.lists(record_rows, min_size=1, max_size=20), st.booleans(), st.none() | st.text(max_size=9), st.booleans(),
    st.integers(0, 2**60), st.sampled_from([0, CODEC_ZLIB]),
)  # fmt: skip
def test_what_is_encoded_is_decoded(
    records: list[tuple[int, bytes | None, bytes | None, list[tuple[str, bytes]], int]],
    with_headers: bool, source: str | None, progress: bool, base: int, codec: int,
) -> None:  # fmt: skip
    batch = RecordBatch(
        [row[0] for row in records], [row[1] for row in records], JoinedBytes.of([row[2] for row in records]),
        [tuple(row[3]) for row in records] if with_headers else None,
        None if source is None else Origin(source, [row[4] for row in records]),
        Progress(base, progress, -1) if progress else None,
    )  # fmt: skip
    got = decode(encode(batch, base, codec=codec))
    assert rows(got) == rows(batch)
    assert list(got.offsets) == list(range(base, base + len(records)))
