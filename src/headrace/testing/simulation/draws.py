"""Chance that depends on nothing but a seed and the place it is asked for. Pure.

A stream of random numbers would change for everything behind a fault that is left out. Here each decision has a name
of its own, so what is left out leaves all other decisions as they were.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import TypeVar

T = TypeVar("T")

_UNIT = float(2**32)


class Draws:
    """Numbers by name.

    Example:
        >>> draws = Draws(1)
        >>> draws.whole("workers", 1, 3) == draws.whole("workers", 1, 3)
        True
        >>> 1 <= draws.whole("workers", 1, 3) <= 3
        True
    """

    def __init__(self, seed: int) -> None:
        self._prefix = f"{seed}/"

    def pair(self, name: str) -> tuple[float, float]:
        """Return two independent numbers in ``[0, 1)``."""
        bits = int.from_bytes(blake2b((self._prefix + name).encode(), digest_size=8).digest(), "little")
        return (bits & 0xFFFFFFFF) / _UNIT, (bits >> 32) / _UNIT

    def unit(self, name: str) -> float:
        """Return a number in ``[0, 1)``."""
        return self.pair(name)[0]

    def whole(self, name: str, least: int, most: int) -> int:
        """Return a whole number from ``least`` to ``most``, both included."""
        return least + int(self.unit(name) * (most - least + 1))

    def one(self, name: str, choices: Sequence[T]) -> T:
        """Return one of ``choices``."""
        return choices[int(self.unit(name) * len(choices))]
