"""The bytes of record batches and of segment headers. Pure: nothing here reads or writes a file.

All integers are little-endian. A segment file is one header and then batches without gaps::

    segment  magic 8s | version u16 | reserved u16 | created u64 (ms) | base offset u64 | crc32c u32 of what precedes
    batch    length u32 of what follows the checksum | crc32c u32 of what follows it |
             base offset u64 | count u32 | span u32 | first timestamp i64 | max timestamp i64 |
             attributes u16 | reserved u16 | size of the columns u32 | columns

``span`` is how many offsets the batch covers, which is more than ``count`` after compaction. The columns are one
msgpack array, compressed as the attributes say::

    [timestamps, keys, lengths, values, headers, source, positions, progress, offsets]

Timestamps, positions and offsets are packed int64, lengths are packed int32 (-1 for a missing value), the values are
joined, and headers are a msgpack array inside a binary. The last five are nil where there are none.
"""

from __future__ import annotations

import struct
import sys
import threading
import zlib
from array import array
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import google_crc32c
import msgpack

from headrace.errors import CorruptError, InvalidError
from headrace.record import Headers, JoinedBytes, Origin, Progress, RecordBatch

FORMAT_VERSION = 1
CODEC_NONE = 0
CODEC_ZLIB = 1
MAX_BATCH_BYTES = 256 * 1024 * 1024
"""No batch is larger, so a damaged length cannot make a reader take all memory."""

_MAGIC = b"HEADRACE"
_SEGMENT = struct.Struct("<8sHHQQ")
_CHECKSUM = struct.Struct("<I")
SEGMENT_HEADER_BYTES = _SEGMENT.size + _CHECKSUM.size
_PREFIX = struct.Struct("<II")
PREFIX_BYTES = _PREFIX.size
_HEADER = struct.Struct("<qIIqqHHI")
HEADER_BYTES = PREFIX_BYTES + _HEADER.size
_CODEC_MASK = 0b0111
_CONTROL_BIT = 0b1000
_KNOWN_ATTRIBUTES = _CODEC_MASK | _CONTROL_BIT
_COLUMNS = 9
_BIG_ENDIAN = sys.byteorder == "big"


class SegmentHeader(NamedTuple):
    """The first bytes of a segment file."""

    base_offset: int
    created_ms: int
    """When the file was made, by the log's clock; the segment before it was closed at this time."""


class BatchHeader(NamedTuple):
    """What is known of a batch without decoding its columns."""

    base_offset: int
    records: int
    span: int
    first_timestamp: int
    max_timestamp: int
    attributes: int
    columns_bytes: int

    @property
    def next_offset(self) -> int:
        """The offset after the batch."""
        return self.base_offset + self.span

    @property
    def control(self) -> bool:
        """Whether the batch carries progress only."""
        return bool(self.attributes & _CONTROL_BIT)


class EncodedBatch(NamedTuple):
    """A batch whose columns are encoded and which waits for its base offset."""

    columns: bytes
    records: int
    span: int
    first_timestamp: int
    max_timestamp: int
    attributes: int
    columns_bytes: int

    @property
    def size_bytes(self) -> int:
        """How much the batch takes in the file."""
        return HEADER_BYTES + len(self.columns)


def encode_segment_header(header: SegmentHeader) -> bytes:
    """Return the bytes that a segment file starts with."""
    raw = _SEGMENT.pack(_MAGIC, FORMAT_VERSION, 0, header.created_ms, header.base_offset)
    return raw + _CHECKSUM.pack(google_crc32c.value(raw))


def decode_segment_header(data: bytes) -> SegmentHeader:
    """Read the first bytes of a segment file.

    Raises:
        CorruptError: they are not those of a segment.
        InvalidError: a newer headrace wrote them.
    """
    if len(data) < SEGMENT_HEADER_BYTES:
        raise CorruptError("the segment header is cut short")
    raw = data[: _SEGMENT.size]
    magic, version, _, created_ms, base_offset = _SEGMENT.unpack(raw)
    if magic != _MAGIC or _CHECKSUM.unpack_from(data, _SEGMENT.size)[0] != google_crc32c.value(raw):
        raise CorruptError("the segment header is damaged")
    if version != FORMAT_VERSION:
        raise InvalidError(
            f"the segment has format {version}, and this headrace reads format {FORMAT_VERSION}",
            remedy="Upgrade headrace",
        )
    return SegmentHeader(base_offset, created_ms)


class BatchEncoder:
    """Encodes batches; one buffer serves all threads, which take turns."""

    def __init__(self, codec: int = CODEC_NONE) -> None:
        self._codec = codec
        self._packer = msgpack.Packer()
        self._lock = threading.Lock()

    def encode(self, batch: RecordBatch, *, explicit_offsets: bool = False) -> EncodedBatch:
        """Encode the columns of a batch that is not empty.

        Args:
            batch: The records.
            explicit_offsets: Store ``batch.offsets`` because they have gaps.

        Raises:
            InvalidError: the columns differ in length or hold something that cannot be stored.
        """
        count = len(batch)
        values = batch.values
        _check_lengths(batch, count)
        try:
            timestamps = _packed("q", batch.timestamps)
            lengths = _packed("i", values.lengths)
            origin, progress = batch.origin, batch.progress
            keys = batch.keys if type(batch.keys) is list else list(batch.keys)
            if not _are_keys(keys):
                raise InvalidError("a key of the batch is neither bytes nor missing")
            joined: object = values.joined
            if type(joined) is not bytes or not _are_lengths(lengths.tobytes(), len(joined)):
                raise InvalidError("the values of the batch do not have the lengths that stand beside them")
            columns = [
                memoryview(timestamps), keys,
                memoryview(lengths), joined,
                None if batch.headers is None else _packed_headers(batch.headers),
                None if origin is None else str(origin.source),
                None if origin is None else memoryview(_packed("q", origin.positions)),
                None if progress is None else (int(progress[0]), bool(progress[1]), int(progress[2])),
                memoryview(_packed("q", batch.offsets)) if explicit_offsets else None,
            ]  # fmt: skip
            with self._lock:
                raw: bytes = self._packer.pack(columns)
        except (TypeError, ValueError, OverflowError) as error:
            raise InvalidError(f"the batch cannot be stored: {type(error).__name__} in one of its columns") from error
        span = batch.offsets[-1] - batch.offsets[0] + 1 if explicit_offsets else count
        attributes = self._codec | (_CONTROL_BIT if batch.control else 0)
        stored = zlib.compress(raw, 1) if self._codec == CODEC_ZLIB else raw
        if max(len(raw), len(stored)) > MAX_BATCH_BYTES - HEADER_BYTES:
            raise InvalidError(
                f"the batch of {count} records takes {len(raw)} bytes, and the limit is {MAX_BATCH_BYTES}",
                remedy="Append fewer records at once",
            )
        return EncodedBatch(stored, count, span, timestamps[0], max(batch.timestamps), attributes, len(raw))


def seal(encoded: EncodedBatch, base_offset: int) -> bytes:
    """Return the header that makes ``encoded`` the batch at ``base_offset``; the columns follow it in the file."""
    columns, count, span, first, highest, attributes, columns_bytes = encoded
    header = _HEADER.pack(base_offset, count, span, first, highest, attributes, 0, columns_bytes)
    checksum = google_crc32c.extend(google_crc32c.value(header), columns)
    return _PREFIX.pack(_HEADER.size + len(columns), checksum) + header


def read_prefix(data: bytes, at: int) -> tuple[int, int]:
    """Return the length of what follows the prefix at ``at``, and its checksum.

    Raises:
        CorruptError: no batch has that length.
    """
    if len(data) - at < PREFIX_BYTES:
        raise CorruptError("a batch is cut short")
    length, checksum = _PREFIX.unpack_from(data, at)
    if not _HEADER.size < length <= MAX_BATCH_BYTES:
        raise CorruptError("the length of a batch makes no sense")
    return length, checksum


def peek_header(data: bytes, at: int) -> BatchHeader:
    """Read the header that follows a prefix without checking the checksum of the batch."""
    base_offset, count, span, first, highest, attributes, _, columns_bytes = _HEADER.unpack_from(data, at)
    return BatchHeader(base_offset, count, span, first, highest, attributes, columns_bytes)


def open_batch(covered: bytes, checksum: int) -> BatchHeader:
    """Check what follows a prefix, and return its header.

    Raises:
        CorruptError: the checksum does not match, or the header makes no sense.
    """
    if google_crc32c.value(covered) != checksum:
        raise CorruptError("the checksum of a batch does not match")
    if len(covered) <= _HEADER.size:
        raise CorruptError("a batch is cut short")
    header = peek_header(covered, 0)
    if (
        header.base_offset < 0
        or not 0 < header.records <= header.span
        or header.columns_bytes > MAX_BATCH_BYTES
        or 8 * header.records > header.columns_bytes
        or header.attributes & ~_KNOWN_ATTRIBUTES
    ):
        raise CorruptError("the header of a batch makes no sense")
    return header


def decode_columns(header: BatchHeader, covered: bytes) -> RecordBatch:
    """Decode the columns of a batch that ``open_batch`` accepted.

    Raises:
        CorruptError: they are not columns of equal length.
    """
    columns = _unpack(_stored_columns(header, covered), header.records)
    if type(columns) is not list or len(columns) != _COLUMNS:
        raise CorruptError("a batch does not hold the columns of its format")
    timestamps, keys, lengths, joined, headers, source, positions, progress, offsets = columns
    count = header.records
    if type(keys) is not list or len(keys) != count or not _are_keys(keys):
        raise CorruptError("the keys of a batch make no sense")
    return RecordBatch(
        _unpacked("q", timestamps, count).tolist(),
        keys,
        _joined(lengths, joined, count),
        None if headers is None else _headers(headers, count),
        None if source is None else _origin(source, positions, count),
        None if progress is None else _progress(progress),
        range(header.base_offset, header.base_offset + count) if offsets is None else _offsets(header, offsets),
        header.control,
    )


def _check_lengths(batch: RecordBatch, count: int) -> None:
    headers, origin = batch.headers, batch.origin
    if not (
        count == len(batch.keys) == len(batch.values)
        and (headers is None or len(headers) == count)
        and (origin is None or len(origin.positions) == count)
    ):
        raise InvalidError("the columns of the batch differ in length")


def _packed(typecode: str, numbers: Sequence[int]) -> array[int]:
    packed = numbers if isinstance(numbers, array) and numbers.typecode == typecode else array(typecode, numbers)
    if _BIG_ENDIAN:
        packed = array(typecode, packed)
        packed.byteswap()
    return packed


def _unpacked(typecode: str, data: object, count: int) -> array[int]:
    numbers = array(typecode)
    if type(data) is not bytes or len(data) != count * numbers.itemsize:
        raise CorruptError("the columns of a batch differ in length")
    numbers.frombytes(data)
    if _BIG_ENDIAN:
        numbers.byteswap()
    return numbers


def _stored_columns(header: BatchHeader, covered: bytes) -> memoryview | bytes:
    stored = memoryview(covered)[_HEADER.size :]
    codec = header.attributes & _CODEC_MASK
    if codec == CODEC_NONE:
        return stored
    if codec != CODEC_ZLIB:
        raise CorruptError(f"a batch is compressed with an unknown codec {codec}")
    inflate = zlib.decompressobj()
    try:
        raw = inflate.decompress(stored, header.columns_bytes + 1)
    except zlib.error as error:
        raise CorruptError("the compressed columns of a batch are damaged") from error
    if len(raw) != header.columns_bytes or not inflate.eof:
        raise CorruptError("the compressed columns of a batch have another size than its header says")
    return raw


def _unpack(data: memoryview | bytes, count: int, *, use_list: bool = True) -> Any:
    try:
        return msgpack.unpackb(data, use_list=use_list, max_array_len=max(count, 1024), max_map_len=0, max_ext_len=0)
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        raise CorruptError("the columns of a batch are not msgpack") from error


def _are_keys(keys: list[Any]) -> bool:
    try:
        b"".join(keys)
    except TypeError:
        return all(key is None or type(key) is bytes for key in keys)
    return True


def _are_lengths(raw: bytes, total: int) -> bool:
    # Read as unsigned, a negative length is larger than any batch, so one sum checks sign and total.
    unsigned = array("I", raw)
    if _BIG_ENDIAN:
        unsigned.byteswap()
    if sum(unsigned) == total:
        return True
    signed = [length if length < 2**31 else length - 2**32 for length in unsigned]
    return min(signed) >= -1 and sum(signed) + signed.count(-1) == total


def _joined(lengths: object, joined: object, count: int) -> JoinedBytes:
    signed = _unpacked("i", lengths, count)
    if type(joined) is not bytes or type(lengths) is not bytes or not _are_lengths(lengths, len(joined)):
        raise CorruptError("the values of a batch do not have the lengths that stand beside them")
    return JoinedBytes(joined, signed)


def _packed_headers(headers: Sequence[Headers]) -> bytes:
    if not all(type(name) is str and type(value) is bytes for row in headers for name, value in row):
        raise InvalidError("a header of the batch is not a text with bytes")
    packed: bytes = msgpack.packb(headers)
    return packed


def _headers(data: object, count: int) -> Sequence[Headers]:
    if type(data) is not bytes:
        raise CorruptError("the headers of a batch make no sense")
    headers = _unpack(data, max(count, len(data)), use_list=False)
    if type(headers) is not tuple or len(headers) != count:
        raise CorruptError("the headers of a batch make no sense")
    for row in headers:
        if type(row) is not tuple or not all(type(p) is tuple and list(map(type, p)) == [str, bytes] for p in row):
            raise CorruptError("the headers of a batch make no sense")
    return headers


def _origin(source: object, positions: object, count: int) -> Origin:
    if type(source) is not str:
        raise CorruptError("the origin of a batch makes no sense")
    return Origin(source, _unpacked("q", positions, count))


def _progress(progress: Any) -> Progress:
    if type(progress) is not list or list(map(type, progress)) != [int, bool, int]:
        raise CorruptError("the progress in a batch makes no sense")
    return Progress(*progress)


def _offsets(header: BatchHeader, data: object) -> list[int]:
    offsets = _unpacked("q", data, header.records).tolist()
    ascending = all(a < b for a, b in pairwise(offsets))
    if not ascending or offsets[0] != header.base_offset or offsets[-1] >= header.next_offset:
        raise CorruptError("the offsets of a batch do not grow within what it covers")
    return offsets
