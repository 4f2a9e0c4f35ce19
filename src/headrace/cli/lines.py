"""Reading lines from standard input in bulk, without letting a slow one wait for company."""

from __future__ import annotations

import io
import select
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import BinaryIO

from headrace.errors import RecordError

_CHUNK_BYTES = 1024 * 1024
_LINE_LIMIT_BYTES = 64 * 1024 * 1024


class Stop:
    """Becomes true when a signal asks to stop, so that what is under way is finished first."""

    def __init__(self) -> None:
        self.signal = 0

    def __bool__(self) -> bool:
        return self.signal != 0

    def set(self, number: int, frame: FrameType | None) -> None:
        """Remember the signal; this is a signal handler."""
        self.signal = number


@contextmanager
def stopping() -> Iterator[Stop]:
    """Turn SIGINT and SIGTERM into a ``Stop`` for as long as the context lasts."""
    stop = Stop()
    before = {number: signal.signal(number, stop.set) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def chunks(stream: BinaryIO, stop: Stop, linger_ms: int) -> Iterator[bytes]:
    """Yield whole lines, as many at a time as there are.

    Args:
        stream: Where they come from.
        stop: Ends the lines early; one that is not complete is left out.
        linger_ms: When no line came for this long, an empty chunk is yielded: the time to write what was collected.

    Raises:
        RecordError: a line is longer than 64 MiB.
    """
    descriptor = _descriptor(stream)
    parts: list[bytes] = []
    held = 0
    while not stop:
        if descriptor is not None and not _ready(descriptor, linger_ms):
            yield b""
            continue
        data = stream.read1(_CHUNK_BYTES) if hasattr(stream, "read1") else stream.read(_CHUNK_BYTES)
        if not data:
            if rest := b"".join(parts):
                yield rest
            return
        cut = data.rfind(b"\n") + 1
        if not cut:
            parts.append(data)
            held += len(data)
            if held > _LINE_LIMIT_BYTES:
                raise RecordError("a line is longer than 64 MiB", remedy="Is the input newline-delimited JSON?")
            continue
        parts.append(data[:cut])
        yield b"".join(parts)
        parts, held = [data[cut:]], len(data) - cut


def _ready(descriptor: int, timeout_ms: int) -> bool:
    return bool(select.select([descriptor], [], [], timeout_ms / 1000)[0])


def _descriptor(stream: BinaryIO) -> int | None:
    try:
        return stream.fileno()
    except (AttributeError, io.UnsupportedOperation):
        return None
