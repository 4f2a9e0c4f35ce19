"""Retention, trimming and compaction of the embedded log."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import NotFoundError
from headrace.log.api import TopicConfig
from headrace.log.embedded.cleaning import ClosedSegment, beyond_retention
from headrace.testing.conformance.log_support import StillClock, make_batch, read_all, values_of
from tests.log.on_disk import PART, TOPIC, contents, files, open_log


def test_retention_by_age_counts_from_the_closing_of_a_segment(directory: Path) -> None:
    clock = StillClock(10_000_000)
    log = open_log(directory, clock=clock)
    log.create_topic(TOPIC, 1, TopicConfig(retention_ms=1000, segment_bytes=300))
    for i in range(10):
        log.append(PART, make_batch([b"%d" % i]))  # history: timestamps long before the clock
    log.clean(clock.now_ms() + 1000)
    assert log.start_offset(PART) == 0
    clock.time_ms += 600
    log.append(PART, make_batch([b"new" * 100]))
    log.clean(clock.now_ms() + 1000 - 600 + 1)
    start = log.start_offset(PART)
    assert 0 < start <= 10
    assert len(contents(log, start)) == 11 - start
    reader = log.reader(PART, 0)
    with pytest.raises(NotFoundError, match=f"kept are {start} to 11"):
        reader.read(1)
    reader.close()
    log.close()


def test_retention_is_applied_at_a_roll(directory: Path) -> None:
    log = open_log(directory)
    log.create_topic(TOPIC, 1, TopicConfig(retention_ms=None, retention_bytes=1000, segment_bytes=300))
    for _ in range(30):
        log.append(PART, make_batch([b"x" * 100]))
    assert 1000 <= sum(path.stat().st_size for path in files(directory)) < 1700
    assert len(files(directory)) == len(files(directory, ".index"))
    log.close()


def test_a_reader_that_retention_overtakes_says_so(directory: Path) -> None:
    log = open_log(directory)
    log.create_topic(TOPIC, 1, TopicConfig(segment_bytes=300))
    for i in range(10):
        log.append(PART, make_batch([b"%d" % i]))
    reader = log.reader(PART, 0)
    assert reader.read(1) is not None
    log.trim(PART, 9)
    with pytest.raises(NotFoundError, match="no longer kept"):
        read_all(reader)
    reader.position = log.start_offset(PART)
    assert values_of(read_all(reader))[-1] == b"9"
    reader.close()
    log.close()


@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9), st.integers(0, 9)), max_size=8),
    st.integers(0, 9), st.none() | st.integers(0, 20), st.none() | st.integers(0, 20), st.integers(0, 30),
)  # fmt: skip
def test_retention_takes_the_oldest_and_nothing_that_is_needed(
    facts: list[tuple[int, int, int]], growing: int, age: int | None, size: int | None, now: int
) -> None:
    segments = [ClosedSegment(i, i + 1, *fact) for i, fact in enumerate(facts)]
    config = TopicConfig(retention_ms=age, retention_bytes=size)
    doomed = beyond_retention(segments, growing, config, now)
    assert doomed == list(range(len(doomed)))
    for i, segment in enumerate(segments):
        after = growing + sum(later.size_bytes for later in segments[i + 1 :])
        old = age is not None and now - max(segment.max_timestamp, segment.closed_ms) > age
        if i <= len(doomed):
            assert (i in doomed) == (old or (size is not None and after >= size))


def test_compaction_keeps_the_newest_of_every_key(directory: Path) -> None:
    log = open_log(directory)
    log.create_topic(TOPIC, 1, TopicConfig(retention_ms=1, segment_bytes=500, compact=True))
    newest: dict[bytes, tuple[int, bytes | None]] = {}
    for i in range(60):
        keys = [b"k%d" % (i % 7), b"k%d" % (i % 3), b"once%d" % i]
        values = [b"v%d" % i, None if i % 4 == 0 else b"w%d" % i, b"o%d" % i]
        base = log.append(PART, make_batch(values, keys=keys))
        newest.update({key: (base + n, value) for n, (key, value) in enumerate(zip(keys, values, strict=True))})
    growing = int(files(directory)[-1].name[:20])
    before = sum(path.stat().st_size for path in files(directory))
    slow = log.reader(PART, 0)
    assert slow.read(1) is not None
    log.clean(10**12)
    assert sum(path.stat().st_size for path in files(directory)) < before
    reader = log.reader(PART, 0)
    seen = {}
    for batch in read_all(reader, 2):
        for key, offset, value in zip(batch.keys, batch.offsets, batch.values.split(), strict=True):
            assert key is not None
            assert offset >= growing or newest[key] == (offset, value)
            seen[key] = (offset, value)
    reader.close()
    live = {key: at for key, at in newest.items() if at[1] is not None}
    assert {key: at for key, at in seen.items() if at[1] is not None} == live
    assert len(read_all(slow)) > 0
    assert slow.position == 180
    slow.close()
    snapshot = [path.read_bytes() for path in files(directory)]
    log.clean(10**12)
    assert [path.read_bytes() for path in files(directory)] == snapshot
    for start in range(0, 180, 7):
        got = log.reader(PART, start)
        first = got.read(1)
        assert first is not None
        assert first.offsets[0] >= start
        got.close()
    assert log.append(PART, make_batch([b"x"])) == 180
    log.close()
