"""The embedded log's files: tails, damage, rolls, indexes, retention, compaction, versions and faults."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import CorruptError, InvalidError, SettingsError
from headrace.log.api import TopicConfig
from headrace.log.embedded.log import EmbeddedLog
from headrace.log.embedded.marks import decode_end, encode_end
from headrace.record import JoinedBytes, RecordBatch
from headrace.testing.conformance.log_support import make_batch, read_all, values_of
from tests.log.on_disk import PART, TOPIC, contents, files, open_log


@pytest.fixture
def log(directory: Path) -> Iterator[EmbeddedLog]:
    log = open_log(directory)
    yield log
    log.close()


def written(directory: Path, batches: int = 3, *, segment_bytes: int = 2**20, flush: bool = False) -> list[int]:
    """Append batches of two values each and return where the growing segment ended after each of them."""
    log = open_log(directory)
    log.create_topic(TOPIC, 1, TopicConfig(segment_bytes=segment_bytes))
    ends = []
    for i in range(batches):
        log.append(PART, make_batch([b"a%d" % i, b"b%d" % i], start_ms=1000 * i))
        ends.append(files(directory)[-1].stat().st_size)
    if flush:
        log.flush()
    log.close()
    return ends


def test_a_tail_torn_at_every_byte_is_cut_at_the_next_append(tmp_path: Path) -> None:
    source = tmp_path / "source"
    first, second, third = written(source)
    for size in range(first, third + 1):
        copy = tmp_path / "copy"
        shutil.copytree(source, copy)
        os.truncate(files(copy)[0], size)
        whole = 2 * (1 + (size >= second) + (size >= third))
        log = open_log(copy)
        assert log.append(PART, make_batch([b"next"])) == whole
        assert contents(log) == [*[b"a0", b"b0", b"a1", b"b1", b"a2", b"b2"][:whole], b"next"]
        log.close()
        shutil.rmtree(copy)


def test_a_torn_tail_is_no_error_for_a_reader(directory: Path) -> None:
    first, second, _ = written(directory)
    os.truncate(files(directory)[0], second - 1)
    log = open_log(directory)
    assert contents(log) == [b"a0", b"b0"]
    assert log.end_offset(PART) == 2
    assert files(directory)[0].stat().st_size == first
    log.close()


def test_bytes_behind_the_published_end_are_not_read(directory: Path) -> None:
    written(directory)
    with files(directory)[0].open("ab") as file:
        file.write(b"\x00garbage" * 50)
    log = open_log(directory)
    assert len(contents(log)) == 6
    assert log.append(PART, make_batch([b"next"])) == 6
    assert contents(log, 6) == [b"next"]
    log.close()


def test_bytes_that_another_process_left_are_cut_by_one_that_appended_before(log: EmbeddedLog, directory: Path) -> None:
    log.create_topic(TOPIC, 1)
    log.append(PART, make_batch([b"a"]))
    with files(directory)[0].open("ab") as file:
        file.write(b"torn" * 1000)
    assert log.append(PART, make_batch([b"b"])) == 1
    log.close()
    assert contents(log) == [b"a", b"b"]


def test_a_whole_batch_that_was_not_published_stays(directory: Path) -> None:
    written(directory, 2)
    end = (directory / "topics" / TOPIC / "0" / "end").read_bytes()
    log = open_log(directory)
    log.append(PART, make_batch([b"x"]))
    log.close()
    (directory / "topics" / TOPIC / "0" / "end").write_bytes(end)
    log = open_log(directory)
    assert len(contents(log)) == 4
    assert log.append(PART, make_batch([b"y"])) == 5
    assert contents(log, 4) == [b"x", b"y"]
    log.close()


@pytest.mark.parametrize("damage", [None, b"", b"short", bytes(68), b"x" * 68])
def test_a_damaged_end_is_rebuilt(directory: Path, damage: bytes | None) -> None:
    written(directory, 6, segment_bytes=400)
    path = directory / "topics" / TOPIC / "0" / "end"

    def spoil() -> None:
        if damage is None:
            path.unlink()
        else:
            path.write_bytes(damage)

    spoil()
    log = open_log(directory)
    assert log.end_offset(PART) == 12
    spoil()
    assert len(contents(log)) == 12
    spoil()
    assert log.append(PART, make_batch([b"x"])) == 12
    log.close()


def test_every_flipped_bit_in_the_middle_is_corrupt_and_named(tmp_path: Path) -> None:
    directory = tmp_path / "log"
    first, second, _ = written(directory, flush=True)
    path = files(directory)[0]
    good = path.read_bytes()
    log = open_log(directory)
    for at in range(first, second):
        path.write_bytes(good[:at] + bytes([good[at] ^ 1 << at % 8]) + good[at + 1 :])
        with pytest.raises(CorruptError) as caught:
            contents(log)
        message = str(caught.value)
        assert all(part in message for part in (str(path), f"byte {first}", f"topic {TOPIC}", "partition 0", "Restore"))
    log.close()


def test_damage_in_the_middle_is_not_taken_for_a_torn_tail(directory: Path) -> None:
    first, second, _ = written(directory)
    path = files(directory)[0]
    good = path.read_bytes()
    middle = (first + second) // 2
    path.write_bytes(good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :])
    log = open_log(directory)
    with pytest.raises(CorruptError):
        log.append(PART, make_batch([b"x"]))
    with pytest.raises(CorruptError):
        contents(log)
    assert path.stat().st_size == len(good)
    log.close()


def test_a_missing_segment_is_corrupt(directory: Path) -> None:
    written(directory)
    files(directory)[0].unlink()
    log = open_log(directory)
    with pytest.raises(CorruptError, match="missing"):
        log.append(PART, make_batch([b"x"]))
    log.close()


def test_readers_follow_rolls(directory: Path) -> None:
    log = open_log(directory)
    log.create_topic(TOPIC, 1, TopicConfig(segment_bytes=300))
    reader = log.reader(PART, 0)
    for i in range(20):
        log.append(PART, make_batch([b"%d" % i, b"x"]))
        got = reader.read(100)
        assert got is not None
        assert got.values.split() == [b"%d" % i, b"x"]
        assert reader.read(100) is None
    assert len(files(directory)) > 5
    reader.close()
    assert len(contents(log)) == 40
    for start in range(41):
        assert len(contents(log, start)) == 40 - start
    log.close()


def test_a_roll_that_a_crash_left_unfinished_is_no_error(directory: Path) -> None:
    written(directory)
    partition = directory / "topics" / TOPIC / "0"
    for name in (f"{6:020d}.log", f"{9:020d}.log"):
        (partition / name).write_bytes(b"HEAD")
    log = open_log(directory)
    assert log.append(PART, make_batch([b"x"])) == 6
    assert len(contents(log)) == 7
    log.close()


@pytest.mark.parametrize("damage", [None, b"", b"damaged", "flip"])
def test_an_index_is_rebuilt(directory: Path, damage: bytes | str | None) -> None:
    written(directory, 10, segment_bytes=500)
    indexes = files(directory, ".index")
    good = [path.read_bytes() for path in indexes]
    for path, data in zip(indexes, good, strict=True):
        if damage is None:
            path.unlink()
        else:
            path.write_bytes(damage if isinstance(damage, bytes) else data[:20] + b"!" + data[21:])
    log = open_log(directory)
    assert [log.offset_at(PART, 1000 * i) for i in range(10)] == [2 * i for i in range(10)]
    assert [contents(log, offset)[0] for offset in range(0, 20, 2)] == [b"a%d" % i for i in range(10)]
    assert log.append(PART, make_batch([b"x"])) == 20
    log.close()
    assert [path.read_bytes() for path in files(directory, ".index")][: len(good) - 1] == good[:-1]


def test_a_long_segment_is_indexed(log: EmbeddedLog, directory: Path) -> None:
    log.create_topic(TOPIC, 1)
    for i in range(100):
        log.append(PART, make_batch([b"x" * 10_000], start_ms=i))
    assert files(directory, ".index")[0].stat().st_size > 10 * 28
    assert [log.offset_at(PART, i) for i in range(101)] == list(range(101))
    assert all(len(contents(log, i)) == 100 - i for i in range(0, 100, 9))


def test_large_and_small_batches_are_read_alike(log: EmbeddedLog, directory: Path) -> None:
    log.create_topic(TOPIC, 1)
    sizes = [10, 300_000, 20, 200_000, 200_000, 1_500_000, 5, 130_000, 131_072, 1]
    values = [bytes([i]) * size for i, size in enumerate(sizes)]
    ends = []
    for value in values:
        log.append(PART, make_batch([value, b"small"]))
        ends.append(files(directory)[0].stat().st_size)
    expected = [part for value in values for part in (value, b"small")]
    for start in range(len(expected)):
        assert contents(log, start) == expected[start:]
    log.close()
    good = files(directory)[0].read_bytes()
    for i in (1, 3, 5, 8):
        files(directory)[0].write_bytes(good[: ends[i] - 1])
        log = open_log(directory)
        assert contents(log) == expected[: 2 * i]
        log.close()
        files(directory)[0].write_bytes(good)
        (directory / "topics" / TOPIC / "0" / "end").unlink()
    at = ends[4] + 1000
    files(directory)[0].write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
    log = open_log(directory)
    with pytest.raises(CorruptError, match=f"byte {ends[4]}"):
        contents(log)
    log.close()


def test_a_newer_log_is_refused(directory: Path) -> None:
    written(directory)
    marker = directory / "headrace-log.json"
    content = json.loads(marker.read_text())
    assert content == {"format": 1, "identity": open_log(directory).identity, "crc32c": content["crc32c"]}
    assert len(content["identity"]) == 16, "another log has another one"
    marker.write_text('{"format": 2}')
    with pytest.raises(InvalidError, match=r"format 2.*format 1.*Upgrade headrace"):
        open_log(directory)
    marker.write_text("{")
    with pytest.raises(CorruptError):
        open_log(directory)


def test_a_newer_topic_or_end_is_refused(directory: Path) -> None:
    written(directory)
    log = open_log(directory)
    path = directory / "topics" / TOPIC / "topic.json"
    good = path.read_text()
    path.write_text(good.replace('"format": 1', '"format": 9'))
    with pytest.raises(InvalidError, match="Upgrade"):
        log.topics()
    path.write_text(good)
    log.close()


def test_a_bad_policy_and_a_bad_directory_are_settings_errors(tmp_path: Path) -> None:
    with pytest.raises(SettingsError):
        open_log(tmp_path, "sometimes")
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "log"):
        with pytest.raises(SettingsError, match="not a directory"):
            open_log(path)


@pytest.mark.parametrize("fsync", ["checkpoint", "always", "never"])
def test_what_is_on_the_disk_is_marked(directory: Path, fsync: str) -> None:
    log = open_log(directory, fsync)
    log.create_topic(TOPIC, 1, TopicConfig(segment_bytes=300))
    for _ in range(5):
        log.append(PART, make_batch([b"x"]))
    log.flush()
    end = decode_end((directory / "topics" / TOPIC / "0" / "end").read_bytes())
    assert (end.synced == end.position) == (fsync != "never")
    log.close()
    log = open_log(directory, fsync)
    assert log.append(PART, make_batch([b"x"])) == 5
    log.close()


def test_a_shortened_file_below_what_was_synced_is_cut_whole(directory: Path) -> None:
    first, second, _ = written(directory, flush=True)
    os.truncate(files(directory)[0], second - 3)
    log = open_log(directory)
    assert log.append(PART, make_batch([b"x"])) == 2
    assert contents(log) == [b"a0", b"b0", b"x"]
    assert first < files(directory)[0].stat().st_size
    log.close()


def test_an_end_that_says_too_much_is_corrected(directory: Path) -> None:
    written(directory)
    path = directory / "topics" / TOPIC / "0" / "end"
    end = decode_end(path.read_bytes())
    path.write_bytes(encode_end(end._replace(next_offset=99, position=end.position + 500)))
    log = open_log(directory)
    assert log.append(PART, make_batch([b"x"])) == 6
    assert len(contents(log)) == 7
    log.close()


batches = st.lists(st.lists(st.none() | st.binary(max_size=30), min_size=1, max_size=6), max_size=12)


@settings(max_examples=60, deadline=None)
@given(batches, st.integers(100, 600), st.integers(1, 7), st.data())
def test_a_log_is_a_list(
    appended: list[list[bytes | None]], segment_bytes: int, max_records: int, data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        log = open_log(directory, "never")
        log.create_topic(TOPIC, 1, TopicConfig(segment_bytes=segment_bytes))
        expected: list[tuple[int, bytes | None]] = []
        follower = log.reader(PART, 0)
        followed: list[bytes | None] = []
        for values in appended:
            if data.draw(st.booleans(), "reopen"):
                log.close()
                log = open_log(directory, "never")
            times = data.draw(st.lists(st.integers(0, 50), min_size=len(values), max_size=len(values)))
            batch = RecordBatch(times, [None] * len(values), JoinedBytes.of(values))
            assert log.append(PART, batch) == len(expected)
            expected.extend(zip(times, values, strict=True))
            if data.draw(st.booleans(), "follow"):
                followed.extend(values_of(read_all(follower, max_records)))
        followed.extend(values_of(read_all(follower, max_records)))
        follower.close()
        assert followed == [value for _, value in expected]
        start = data.draw(st.integers(0, len(expected)), "start")
        assert contents(log, start) == followed[start:]
        at = data.draw(st.integers(0, 51), "time")
        matching = [offset for offset, (time, _) in enumerate(expected) if time >= at]
        assert log.offset_at(PART, at) == (matching[0] if matching else len(expected))
        log.trim(PART, start)
        assert log.start_offset(PART) <= start
        assert contents(log, start) == followed[start:]
        log.close()


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_random_damage_never_passes_nor_crashes(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        written(directory, 8, segment_bytes=500)
        expected = [value for i in range(8) for value in (b"a%d" % i, b"b%d" % i)]
        for path in [path for path in files(directory, "") if path.is_file() and path.stat().st_size]:
            raw = bytearray(path.read_bytes())
            for _ in range(data.draw(st.integers(0, 2))):
                at = data.draw(st.integers(0, len(raw) * 8 - 1))
                raw[at // 8] ^= 1 << at % 8
            path.write_bytes(bytes(raw))
        log = open_log(directory, "never")
        for start in (0, 5, 13):
            reader = log.reader(PART, start)
            try:
                got = values_of(read_all(reader))
                assert got == expected[start : start + len(got)]
            except (CorruptError, InvalidError):
                pass
            reader.close()
        log.close()


def test_neighbouring_segments_join_without_a_gap(directory: Path) -> None:
    written(directory, 20, segment_bytes=300)
    bases = [int(path.name[:20]) for path in files(directory)]
    log = open_log(directory)
    for base, after in pairwise(bases):
        assert len(contents(log, base)) - len(contents(log, after)) == after - base
    log.close()
