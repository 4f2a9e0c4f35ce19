"""Every write of an append fails or is the last one of its process, one after the other."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from headrace.errors import RetriableError
from headrace.log.api import TopicConfig
from headrace.log.embedded.log import EmbeddedLog
from headrace.record import TopicPartition
from headrace.testing.conformance.log_support import StillClock, make_batch, read_all, values_of

PART = TopicPartition("payments", 0)
CALLS = ("pwrite", "pwritev", "ftruncate", "fsync")
SEVERAL = [b"x" * 40, b"y" * 40]


class Killed(BaseException):
    """Stands for the end of the process: nothing after it has an effect."""


@contextmanager
def faults(fail: Callable[[int, str, Callable[..., Any], tuple[Any, ...]], Any]) -> Iterator[None]:
    """Send the calls that change files through ``fail`` with their number, from 1 on."""
    originals = {name: getattr(os, name) for name in CALLS}
    count = 0

    def replaced(name: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            nonlocal count
            count += 1
            return fail(count, name, originals[name], arguments)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in CALLS:
            patch.setattr(os, name, replaced(name))
        yield


def opened(tmp_path: Path, fsync: str) -> EmbeddedLog:
    return EmbeddedLog(tmp_path / "log", clock=StillClock(), fsync=fsync)


def prepared(tmp_path: Path, fsync: str) -> EmbeddedLog:
    """Return a log of which the second append from here on rolls."""
    log = opened(tmp_path, fsync)
    log.create_topic("payments", 1, TopicConfig(segment_bytes=700))
    for _ in range(2):
        log.append(PART, make_batch(SEVERAL))
    return log


def check(log: EmbeddedLog, appended: int) -> None:
    reader = log.reader(PART, 0)
    assert values_of(read_all(reader)) == SEVERAL * appended
    reader.close()
    for offset in range(2 * appended):
        reader = log.reader(PART, offset)
        got = reader.read(1)
        assert got is not None
        assert list(got.offsets) == [offset]
        reader.close()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
@pytest.mark.parametrize("number", range(1, 12))
def test_a_write_that_fails_leaves_nothing_behind(tmp_path: Path, number: int, code: int) -> None:
    log = prepared(tmp_path, "always")
    appended = 2
    messages: list[str] = []

    def fail(count: int, name: str, call: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        if count >= number and name != "ftruncate":
            raise OSError(code, os.strerror(code))
        return call(*arguments)

    with faults(fail):
        for _ in range(3):
            try:
                log.append(PART, make_batch(SEVERAL))
                appended += 1
            except RetriableError as error:
                messages.append(str(error))
            assert log.end_offset(PART) == 2 * appended
    assert all("topic payments, partition 0" in message and str(tmp_path) in message for message in messages)
    check(log, appended)
    for _ in range(4):
        assert log.append(PART, make_batch(SEVERAL)) == 2 * appended
        appended += 1
    check(log, appended)
    log.close()


@pytest.mark.parametrize("written", [0, 1, 30])
def test_short_writes_are_continued(tmp_path: Path, written: int) -> None:
    def halve(count: int, name: str, call: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        if name == "pwritev":
            fd, parts, position = arguments
            return os.pwrite(fd, b"".join(parts)[:written], position) if written else 0
        return call(*arguments)

    log = prepared(tmp_path, "never")
    with faults(halve):
        for _ in range(4):
            log.append(PART, make_batch(SEVERAL))
    check(log, 6)
    log.close()


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("number", range(1, 14))
def test_a_process_that_dies_at_any_write_leaves_whole_batches(tmp_path: Path, number: int, half: bool) -> None:
    log = prepared(tmp_path, "always")
    appended, killed = 2, False

    def die(count: int, name: str, call: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        if count < number:
            return call(*arguments)
        if count == number and half and name == "pwritev":
            data = b"".join(arguments[1])
            os.pwrite(arguments[0], data[: len(data) // 2], arguments[2])
        raise Killed

    with faults(die):
        try:
            for _ in range(3):
                log.append(PART, make_batch(SEVERAL))
                appended += 1
        except Killed:
            killed = True
    log.close()
    log = opened(tmp_path, "always")
    at = log.append(PART, make_batch(SEVERAL))
    assert at in ((2 * appended, 2 * appended + 2) if killed else (2 * appended,))
    check(log, at // 2 + 1)
    for _ in range(4):
        log.append(PART, make_batch(SEVERAL))
    check(log, at // 2 + 5)
    log.close()
