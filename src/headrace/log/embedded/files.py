"""What the operating system may answer, said in the project's own errors; and locks between processes."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from headrace.errors import (
    CorruptError,
    FatalError,
    HeadraceError,
    InvalidError,
    NotFoundError,
    RetriableError,
    SettingsError,
)

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
    """Write a small file so that nobody ever sees half of it."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.new")
    temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
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
        content = json.loads(path.read_bytes())
        version = content["format"]
        if type(version) is not int:
            raise TypeError("the format is not a number")
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptError(
            f"the file {path} is damaged", remedy="Restore it from a backup, or delete what it describes"
        ) from error
    if version > supported or version < 1:
        raise InvalidError(
            f"the file {path} has format {version}, and this headrace supports format {supported}",
            remedy="Upgrade headrace",
        )
    return dict(content)


def sync_directory(directory: Path) -> None:
    """Force the names of the files in ``directory`` to the disk."""
    with opened(directory) as fd:
        os.fsync(fd)
