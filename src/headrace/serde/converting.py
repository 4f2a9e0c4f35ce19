"""Conversion to types that several threads use."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import msgspec

_Kind = TypeVar("_Kind")


def converter(kind: type[_Kind]) -> Callable[[Any], _Kind]:
    """Return what turns plain values into a type, as ``msgspec.convert`` does; to be made where a module defines it.

    What msgspec finds out about a class it keeps there, and begins to do so before it knows all. So two threads that
    come with the first value of a class at the same time crash the process (msgspec 0.22): the second one uses what
    the first has not finished. Here, as with a ``Decoder`` that is made when its module is imported, it is known
    before there are threads.

    Args:
        kind: A dataclass, struct, typed dictionary or named tuple, or a type that contains some.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass
        ... class Payment:
        ...     total: float
        >>> converter(Payment)({"total": 1})
        Payment(total=1.0)
    """
    msgspec.msgpack.Decoder(kind)
    return partial(msgspec.convert, type=kind)
