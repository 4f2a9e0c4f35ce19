"""Values of classes that msgspec does not know, on their way to MessagePack or JSON and back.

Three kinds of class are known by what they can do, so that none of their libraries has to be there: pydantic models,
Protobuf messages, and any class with ``to_bytes()`` and a class method ``from_bytes(data)``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from headrace.serde.models import dump, is_model, validate

_AS_TEXT = frozenset(["ipaddress", "pathlib", "pydantic.networks", "pydantic_core._pydantic_core"])
"""Modules whose values are written as the text that makes them again."""


def is_readable(kind: Any) -> bool:
    """Return whether values of ``kind``, a class that msgspec does not know, can be read by ``from_plain``.

    Example:
        >>> is_readable(complex)
        False
    """
    return reader_of(kind) is not None or is_model(kind)


def reader_of(kind: Any) -> Callable[[bytes], Any] | None:
    """Return what makes a value of ``kind`` of bytes, if it is a class that does so."""
    name = "FromString" if hasattr(kind, "SerializeToString") else "from_bytes" if hasattr(kind, "to_bytes") else ""
    return getattr(kind, name, None)


def to_plain(value: Any) -> Any:
    """Return a value that msgspec can write.

    Raises:
        TypeError: ``value`` is of no class that could be written.
    """
    kind = type(value)
    if is_model(kind):
        return dump(value)
    if hasattr(kind, "SerializeToString"):
        return value.SerializeToString(deterministic=True)
    if hasattr(kind, "to_bytes") and hasattr(kind, "from_bytes"):
        return value.to_bytes()
    if kind.__module__ in _AS_TEXT:
        return str(value)
    raise TypeError(f"Encoding objects of type {kind.__name__} is unsupported")


def from_plain(kind: Any, plain: Any) -> Any:
    """Make a value of ``kind`` of what ``to_plain`` made of it.

    Raises:
        ValueError: it cannot be made of ``plain``.
    """
    if is_model(kind):
        return validate(kind, plain)
    return _from_bytes(kind, plain)


def from_json(kind: Any, plain: Any) -> Any:
    """Make a value of ``kind`` of what stood for it in JSON.

    Raises:
        ValueError: it cannot be made of ``plain``.
    """
    if is_model(kind):
        return validate(kind, msgspec.json.encode(plain), json=True)
    return _from_bytes(kind, msgspec.convert(plain, bytes) if isinstance(plain, str) else plain)


def json_to_plain(value: Any) -> Any:
    """Return a value that msgspec can write as JSON."""
    return dump(value, json=True) if is_model(type(value)) else to_plain(value)


def _from_bytes(kind: Any, plain: Any) -> Any:
    read = reader_of(kind)
    if read is None or not isinstance(plain, bytes):
        raise ValueError(f"Expected `{kind.__name__}`, got `{type(plain).__name__}`")
    try:
        return read(plain)
    except Exception as error:  # noqa: BLE001  # a class's own reader may raise anything, and say anything
        raise ValueError(f"The bytes are no `{kind.__name__}`: {type(error).__name__}") from None
