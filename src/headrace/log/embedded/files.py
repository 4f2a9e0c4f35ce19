"""What the operating system may answer, said in the project's own errors; and locks between processes."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import google_crc32c

from headrace.errors import (
    CorruptError,
    FatalError,
    HeadraceError,
    InvalidError,
    NotFoundError,
    RetriableError,
    SettingsError,
)

_EAGER_ATTEMPTS = 50
"""How often a lock is asked for without a pause: appends take microseconds."""
_CHECKSUM = "crc32c"
"""Stands beside the content of a small file; those of earlier versions have none."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
_TOO_MANY = (errno.EMFILE, errno.ENFILE)
_MISSING = (errno.ENOENT, errno.ENOTDIR)


def storage_error(error: OSError, what: str, directory: Path) -> HeadraceError:
    """Say what went wrong with ``what`` in ``directory``."""
    if error.errno in _FULL:
        return RetriableError(
            f"the disk is full or a limit is reached: {what} in {directory}: {error.strerror}",
            remedy="Free space, raise the limit or shorten the topic's retention; nothing was written",
        )
    if error.errno in _FORBIDDEN:
        return SettingsError(
            f"this user may not use the log: {what} in {directory}: {error.strerror}",
            remedy="Run as the user who owns the directory, or choose another one with --log",
        )
    if error.errno in _TOO_MANY:
        return SettingsError(
            f"too many open files: {what} in {directory}: {error.strerror}",
            remedy="Raise the limit on open files (ulimit -n) or run more workers",
        )
    if error.errno in _MISSING:
        return NotFoundError(
            f"it is gone: {what} in {directory}", remedy="Create the topic again, or leave it out of the topology"
        )
    return FatalError(f"the storage failed: {what} in {directory}: {error.strerror}", remedy="Check the disk")


@contextmanager
def storage(what: str, directory: Path) -> Iterator[None]:
    """Turn what the operating system raises into the project's own errors."""
    try:
        yield
    except OSError as error:
        raise storage_error(error, what, directory) from error


@contextmanager
def locked_file(path: Path) -> Iterator[None]:
    """Hold the lock on ``path`` against every other thread and process that asks for it."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def take_lock(fd: int, patience_ms: int, what: str) -> None:
    """Take the lock on an open file that others hold for an instant only, unless they are stopped.

    Args:
        fd: Of the file.
        patience_ms: How long to wait for it.
        what: What the lock is for, named in the error.

    Raises:
        RetriableError: it did not become free; the message names the process that holds it.
    """
    pause = threading.Event()
    for attempt in range(_EAGER_ATTEMPTS + patience_ms):
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pause.wait(0.0 if attempt < _EAGER_ATTEMPTS else 0.001)
        else:
            return
    raise RetriableError(
        f"{what} waited in vain for {patience_ms} ms: {_holder(fd)} holds the lock",
        remedy="It goes on by itself when that process does; if it is stopped, continue it (SIGCONT) or kill it",
    )


def _holder(fd: int) -> str:
    """Say which process holds the lock on an open file, where the operating system tells."""
    inode = str(os.fstat(fd).st_ino)
    try:
        lines = Path("/proc/locks").read_text(encoding="ascii").splitlines()
    except OSError:
        return "another process"
    rows = [line.split() for line in lines if " FLOCK " in line and " -> " not in line]
    return next((f"process {row[4]}" for row in rows if row[5].rpartition(":")[2] == inode), "another process")


@contextmanager
def opened(path: Path, flags: int = os.O_RDONLY) -> Iterator[int]:
    """Open a file for as long as the block lasts."""
    fd = os.open(path, flags, 0o666)
    try:
        yield fd
    finally:
        os.close(fd)


def write_all(fd: int, data: bytes, position: int) -> None:
    """Write ``data`` at ``position``, however many calls that takes."""
    written = os.pwrite(fd, data, position)
    while written < len(data):
        written += os.pwrite(fd, data[written:], position + written)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a small file so that nobody ever sees half of it, with a checksum of what it says."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.new")
    temporary.write_text(json.dumps({**content, _CHECKSUM: _checksum(content)}, indent=1) + "\n", encoding="utf-8")
    with opened(temporary) as fd:
        os.fsync(fd)
    temporary.rename(path)


def read_versioned_json(path: Path, supported: int) -> dict[str, Any]:
    """Read a file that ``write_json`` wrote.

    Raises:
        FileNotFoundError: there is none.
        InvalidError: a newer headrace wrote it.
        CorruptError: it makes no sense.
    """
    try:
        content = dict(json.loads(path.read_bytes()))
        version = content["format"]
        if type(version) is not int:
            raise TypeError("the format is not a number")
        told = content.pop(_CHECKSUM, None)
        if version == supported and told is not None and told != _checksum(content):
            raise ValueError("the checksum does not match")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptError(
            f"the file {path} is damaged", remedy="Restore it from a backup, or delete what it describes"
        ) from error
    if version > supported or version < 1:
        raise InvalidError(
            f"the file {path} has format {version}, and this headrace supports format {supported}",
            remedy="Upgrade headrace",
        )
    return content


def _checksum(content: dict[str, Any]) -> str:
    return f"{google_crc32c.value(json.dumps(content, sort_keys=True).encode()):08x}"


def sync_directory(directory: Path) -> None:
    """Force the names of the files in ``directory`` to the disk."""
    with opened(directory) as fd:
        os.fsync(fd)
