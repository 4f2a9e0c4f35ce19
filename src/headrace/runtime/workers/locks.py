"""Files that show by a lock that the process which made them lives."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Protocol


class TakeLock(Protocol):
    """Takes the lock on a file."""

    def __call__(self, path: Path, *, wait: bool) -> Callable[[], None] | None:
        """Return what releases the lock; None if another has it, or had it and deleted the file."""
        ...


def take_lock(path: Path, *, wait: bool) -> Callable[[], None] | None:
    """Lock a file, which is made if there is none, until the lock is released or the process dies.

    Args:
        path: The file.
        wait: Whether to wait for another who has the lock.

    Returns:
        What releases the lock; None if another has it, or had it and deleted the file.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(fd).st_ino == os.stat(path).st_ino:
            return partial(os.close, fd)
    except BlockingIOError:
        pass
    except FileNotFoundError:
        pass
    os.close(fd)
    return None
