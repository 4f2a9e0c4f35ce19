"""What the fuzz tests share: damage to bytes, limits of time, and how many examples there are.

``HEADRACE_FUZZ=100 pytest tests/fuzz --timeout=0`` tries a hundred times as many examples, and others each time.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from random import Random
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

FACTOR = float(os.environ.get("HEADRACE_FUZZ", "1"))
"""How many times the usual number of examples."""


def examples(count: int) -> Callable[[Any], Any]:
    """Set how many examples a property test tries; without ``HEADRACE_FUZZ`` they are the same each time."""
    return settings(
        max_examples=max(1, int(count * FACTOR)), deadline=None, derandomize=FACTOR == 1,
        suppress_health_check=list(HealthCheck), database=None,
    )  # fmt: skip


class TooLongError(BaseException):
    """An example took more processor time than any may."""


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Fail if the block takes more than so much processor time; the timer is not the one of pytest-timeout."""

    def stop(number: int, frame: Any) -> None:
        raise TooLongError(f"more than {seconds} s")

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def outcome(call: Callable[[], Any], *allowed: type[Exception]) -> tuple[Any, str]:
    """Return what a call returns and nothing, or nothing and the text of an error that it may raise."""
    try:
        return call(), ""
    except allowed as error:
        return None, str(error) or type(error).__name__


def damaged(rng: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Return other bytes: random ones, or flipped, cut, longer, spliced, or with a length that claims gigabytes."""
    ways: list[Callable[[], bytes]] = [
        lambda: rng.randbytes(rng.choice([0, 1, 2, len(data), rng.randrange(200)])),
        lambda: flipped(rng, data, 1),
        lambda: flipped(rng, data, rng.randrange(1, 9)),
        lambda: data[: rng.randrange(len(data) + 1)],
        lambda: data[rng.randrange(len(data) + 1) :],
        lambda: data + rng.randbytes(rng.randrange(1, 20)),
        lambda: spliced(rng, data, rng.choice(others)),
        lambda: overwritten(rng, data, rng.choice(HUGE)),
        lambda: overwritten(rng, data, rng.choice(NESTED)),
        lambda: rng.choice(others),
    ]
    return rng.choice(ways)()


HUGE = (
    b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\xff" * 8, b"\xff" * 7 + b"\x7f", b"\xdd\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xc9\xff\xff\xff\xff\x01", bytes(8),
    b"\xcb\x7f\xf8\0\0\0\0\0\0", b"\xcf" + b"\xff" * 8, b"\xd3\x80" + bytes(7),
)  # fmt: skip
"""Lengths and numbers at the limits, as they stand in some format."""

NESTED = (b"\x91" * 5000, b"[" * 5000, b'{"a":' * 5000, b"\x81\xa0" * 5000)


def flipped(rng: Random, data: bytes, bits: int) -> bytes:
    """Return ``data`` with so many bits flipped, not all of them elsewhere."""
    raw = bytearray(data)
    for _ in range(bits if raw else 0):
        raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    return bytes(raw)


def spliced(rng: Random, data: bytes, other: bytes) -> bytes:
    """Return the beginning of one and the end of the other."""
    return data[: rng.randrange(len(data) + 1)] + other[rng.randrange(len(other) + 1) :]


def overwritten(rng: Random, data: bytes, part: bytes) -> bytes:
    """Return ``data`` with ``part`` somewhere in place of what was there."""
    at = rng.randrange(len(data) + 1)
    return data[:at] + part + data[at + len(part) :]


seeds = st.integers(0, 2**63).map(Random)
"""Generators, from which an example draws its damage; an example is known by its seed."""
