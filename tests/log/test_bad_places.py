"""What happens to a log in use when its disk fills up, its files go away, or it may not be used any more."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from headrace.errors import CorruptError, FatalError, NotFoundError, RetriableError, SettingsError
from headrace.log.api import Committed, TopicConfig
from headrace.log.embedded.log import EmbeddedLog
from headrace.log.embedded.marks import decode_end
from headrace.record import TopicPartition
from headrace.testing.conformance.log_support import assign_evenly, make_batch, read_all, values_of
from tests.log.on_disk import PART, TOPIC, contents, files, open_log
from tests.log.test_faults import faults

UNITS: dict[str, list[TopicPartition]] = {"a": [], "b": []}


@pytest.fixture
def log(directory: Path) -> Iterator[EmbeddedLog]:
    log = open_log(directory)
    log.create_topic(TOPIC, 1, TopicConfig(segment_bytes=400))
    yield log
    log.close()


@pytest.mark.parametrize("remade", [False, True])
def test_a_log_that_was_deleted_takes_no_more_records(log: EmbeddedLog, directory: Path, remade: bool) -> None:
    log.append(PART, make_batch([b"a"]))
    reader = log.reader(PART, 0)
    assert values_of(read_all(reader)) == [b"a"]
    shutil.rmtree(directory / "topics" / TOPIC)
    if remade:
        other = open_log(directory)
        other.create_topic(TOPIC, 1)
        other.close()
    with pytest.raises(NotFoundError, match="deleted"):
        reader.read(10)
    reader.close()
    if remade:
        assert log.append(PART, make_batch([b"b"])) == 0
        assert contents(log) == [b"b"]
        return
    with pytest.raises(NotFoundError, match=TOPIC):
        log.append(PART, make_batch([b"b"]))
    with pytest.raises(NotFoundError, match=TOPIC):
        log.end_offset(PART)


def test_a_segment_that_was_deleted_takes_no_more_records(log: EmbeddedLog, directory: Path) -> None:
    log.append(PART, make_batch([b"a"]))
    (path,) = files(directory)
    aside = path.rename(path.with_name("aside"))
    data = aside.read_bytes()
    aside.unlink()
    with pytest.raises(CorruptError, match="missing"):
        log.append(PART, make_batch([b"b"]))
    path.write_bytes(data)
    assert log.append(PART, make_batch([b"b"])) == 1
    assert contents(log) == [b"a", b"b"]


@pytest.mark.parametrize(("code", "kind"), [(errno.ENOSPC, RetriableError), (errno.EIO, FatalError)])
def test_a_flush_that_fails_is_made_up_for_by_the_next(
    log: EmbeddedLog, directory: Path, code: int, kind: type[Exception]
) -> None:
    for value in (b"a" * 300, b"b" * 300):
        log.append(PART, make_batch([value]))
    forced: list[str] = []

    def fail(count: int, name: str, call: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        if name == "fsync":
            raise OSError(code, os.strerror(code))
        return call(*arguments)

    def remember(count: int, name: str, call: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        if name == "fsync":
            forced.append(os.readlink(f"/proc/self/fd/{arguments[0]}"))
        return call(*arguments)

    with faults(fail), pytest.raises(kind, match=f"flush of topic {TOPIC}"):
        log.flush()
    with faults(remember):
        log.flush()
    assert {str(path) for path in files(directory)} <= set(forced)
    end = decode_end((directory / "topics" / TOPIC / "0" / "end").read_bytes())
    assert end.synced == end.position


@pytest.mark.parametrize("fsync", ["checkpoint", "always", "never"])
def test_a_reader_hands_out_only_what_the_power_cannot_take(directory: Path, fsync: str) -> None:
    """Whoever appended it, flushed or not; what was forced already is not forced again."""
    log, other = open_log(directory, fsync=fsync), open_log(directory, fsync=fsync)
    log.create_topic(TOPIC, 1, TopicConfig(segment_bytes=1000))
    durable: dict[str, int] = {}
    count = 0

    def remember(_: int, name: str, call: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        nonlocal count
        if name == "fsync":
            at = os.readlink(f"/proc/self/fd/{arguments[0]}")
            durable[at] = os.path.getsize(at)
            count += at.endswith(".log")
        return call(*arguments)

    reader = other.reader(PART, 0)
    with faults(remember):
        for value in (b"a", b"b", b"c"):
            log.append(PART, make_batch([value * 300]))
        segments = [str(path) for path in files(directory)]
        assert len(segments) > 1, "the segments must be small"
        assert values_of(read_all(reader)) == [value * 300 for value in (b"a", b"b", b"c")]
        assert {at: durable.get(at) for at in segments} == {
            at: None if fsync == "never" else os.path.getsize(at) for at in segments
        }
        assert str(directory / "topics" / TOPIC / "0") in durable or fsync == "never"
        log.append(PART, make_batch([b"d"]))
        log.append(PART, make_batch([b"e"]))
        before = count
        assert [values_of([reader.read(1)]) for _ in range(2)] == [[b"d"], [b"e"]]
        assert count - before == (fsync == "checkpoint"), "once, for both"
        log.append(PART, make_batch([b"f"]))
        log.flush()
        before = count
        assert values_of(read_all(reader)) == [b"f"]
        assert count == before, "the writer forced it"
    for one in (reader, log, other):
        one.close()


def test_a_reader_that_cannot_force_hands_out_nothing(log: EmbeddedLog) -> None:
    log.append(PART, make_batch([b"a"]))
    reader = log.reader(PART, 0)

    def fail(_: int, name: str, call: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        if name == "fsync":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return call(*arguments)

    with faults(fail), pytest.raises(RetriableError, match=f"read of topic {TOPIC}"):
        reader.read(10)
    assert reader.position == 0
    with faults(fail), pytest.raises(RetriableError):
        reader.read(10)
    assert values_of(read_all(reader)) == [b"a"]
    reader.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(disk)], check=False)
    if mounted.returncode:
        pytest.skip("a small disk can only be made by root")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def fill(path: Path) -> None:
    """Write until nothing more goes."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        while True:
            os.write(fd, b"x" * 4096)
    except OSError:
        return
    finally:
        os.close(fd)


def passes(call: Callable[[], Any]) -> bool:
    """Call, and say whether there was space for it."""
    try:
        call()
    except RetriableError as error:
        assert "Free space" in error.remedy  # noqa: PT017  # which of many calls raises is not known
        return False
    return True


def test_a_full_disk_under_everything_that_a_log_writes(small_disk: Path) -> None:
    log = open_log(small_disk / "log")
    log.create_topic(TOPIC, 1, TopicConfig(segment_bytes=2000))
    member = log.group("g").join("m", UNITS, assign_evenly, session_timeout_ms=60_000)
    lease = member.poll().leases["a"]
    expected: list[bytes | None] = []
    committed = 0
    for turn in range(3):
        fill(small_disk / "filling")
        before = committed
        for n in range(40):
            value = b"%d-%d" % (turn, n) * 40
            if passes(partial(log.append, PART, make_batch([value]))):
                expected.append(value)
            place = Committed(committed + 1, "x" * 3000)
            committed += passes(partial(member.commit, lease, {PART: place}))
        assert len(expected) < 40 * (turn + 1), "the disk is full"
        assert committed < before + 40
        assert not passes(partial(log.create_topic, f"new-{turn}", 4))
        (small_disk / "filling").unlink()
        log.append(PART, make_batch([b"after"]))
        expected.append(b"after")
        committed += 1
        member.commit(lease, {PART: Committed(committed)})
        assert log.create_topic(f"new-{turn}", 4).partitions == 4
        assert contents(log) == expected
        assert log.group("g").committed() == {PART: Committed(committed)}
    log.close()
    again = open_log(small_disk / "log")
    assert contents(again) == expected
    again.close()


FORBIDDEN = """
import os, sys
from pathlib import Path
from headrace.clock import SystemClock
from headrace.errors import SettingsError
from headrace.log.embedded.log import EmbeddedLog
from headrace.record import TopicPartition
from headrace.testing.conformance.log_support import make_batch
log = EmbeddedLog(Path(sys.argv[1]), clock=SystemClock(), fsync="checkpoint")
part = TopicPartition("payments", 0)
log.append(part, make_batch([b"first"]))
os.setuid(65534)
refused = 0
for turn in range(6):
    if turn == 4:
        print("refused", refused, flush=True)
        sys.stdin.readline()
    try:
        log.append(part, make_batch([b"%d" % turn * 200]))
        log.flush()
        print("appended", turn, flush=True)
    except SettingsError as error:
        assert "may not use the log" in str(error) and "--log" in str(error), error
        refused += 1
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_permission_that_is_lost_in_use_and_given_back(log: EmbeddedLog, directory: Path) -> None:
    for path in (directory, *directory.parents):
        if path.stat().st_uid == os.geteuid() and str(path).startswith("/tmp/"):
            path.chmod(0o755)
    command = [sys.executable, "-c", FORBIDDEN, str(directory)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            lines = iter(child.stdout.readline, "")
            before: list[list[str]] = []
            for line in lines:
                before.append(line.split())
                if line.startswith("refused"):
                    break
            assert int(before[-1][1]) > 0
            for path in [*directory.rglob("*"), directory]:
                path.chmod(0o777)
            child.stdin.write("go\n")
            child.stdin.flush()
            after = [line.split()[1] for line in lines]
            assert after == ["4", "5"]
            assert child.wait(20) == 0
        finally:
            child.kill()
    appended = [line[1] for line in before if line[0] == "appended"] + after
    assert contents(log) == [b"first", *[turn.encode() * 200 for turn in appended]]


LOCKING = """
import sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
sys.stdin.readline()
database.execute("ROLLBACK")
"""


def test_a_group_database_that_another_process_locks(
    log: EmbeddedLog, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.log.embedded.coordinator._BUSY_TIMEOUT_S", 0.05)
    member = log.group("g").join("m", UNITS, assign_evenly, session_timeout_ms=60_000)
    lease = member.poll().leases["a"]
    command = [sys.executable, "-c", LOCKING, str(directory / "groups.sqlite")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        try:
            assert child.stdout.readline() == "locked\n"
            commit = partial(member.commit, lease, {PART: Committed(1)})
            for call in (member.heartbeat, commit, partial(member.release, "a")):
                with pytest.raises(RetriableError, match="stayed locked"):
                    call()
            child.communicate("go\n", timeout=20)
        finally:
            child.kill()
    member.commit(lease, {PART: Committed(2)})
    member.heartbeat()
    assert log.group("g").committed() == {PART: Committed(2)}
    assert member.poll().leases["a"] == lease


def test_a_group_database_that_was_replaced_is_not_used(log: EmbeddedLog, directory: Path) -> None:
    member = log.group("g").join("m", UNITS, assign_evenly, session_timeout_ms=60_000)
    path = directory / "groups.sqlite"
    path.rename(path.with_name("aside"))
    sqlite3.connect(path).close()
    for call in (member.heartbeat, member.poll):
        with pytest.raises(CorruptError, match="deleted or replaced"):
            call()
    path.unlink(missing_ok=True)
    path.with_name("aside").rename(path)
    member.heartbeat()
    assert set(member.poll().leases) == {"a", "b"}


def test_a_log_in_a_place_without_rights(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="--log"):
        open_log(tmp_path / "file" / "log")
