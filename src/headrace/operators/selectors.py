"""Selectors: a field's name or a function, applied to a whole column of values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter, itemgetter
from typing import Any, TypeVar

from headrace.serde.api import Serde
from headrace.serde.primitives import Str

Selector = str | Callable[[Any], Any]
"""A field of mappings and objects alike, or a function of the value."""

V = TypeVar("V")

SelectorOf = str | Callable[[V], Any]
"""A ``Selector`` for values of one type, so that a type checker looks into the function."""


def selector_name(selector: Selector) -> str:
    """Return what a selector is called in step names.

    Example:
        >>> selector_name("customer_id"), selector_name(len)
        ('customer_id', 'len')
    """
    return selector if isinstance(selector, str) else function_name(selector)


def function_name(function: Callable[..., Any]) -> str:
    """Return a function's name in a form that can stand in a step's name."""
    name = getattr(function, "__name__", type(function).__name__)
    return "lambda" if name == "<lambda>" else name.strip("_<>") or "function"


def decode_keys(serde: Serde[Any], keys: Sequence[bytes]) -> list[Any]:
    """Decode the keys of a batch.

    Example:
        >>> decode_keys(Str(), [b"a", b"b"])
        ['a', 'b']
    """
    if isinstance(serde, Str):
        texts = b"\0".join(keys).decode().split("\0")
        if len(texts) == len(keys):  # no key has a zero byte in it
            return texts
    return [serde.decode(key) for key in keys]


def select(selector: Selector, values: list[Any]) -> list[Any]:
    """Apply ``selector`` to every value.

    A field name reads mappings by key and everything else by attribute.

    Raises:
        KeyError: a mapping lacks the field.
        AttributeError: an object lacks it.

    Example:
        >>> select("a", [{"a": 1}, {"a": 2}])
        [1, 2]
    """
    if not values:
        return []
    if not isinstance(selector, str):
        return list(map(selector, values))
    if "." in selector:
        return [_field(selector, value) for value in values]  # to attrgetter it would be a path
    get: Callable[[Any], Any] = itemgetter(selector) if isinstance(values[0], Mapping) else attrgetter(selector)
    try:
        return list(map(get, values))
    except (KeyError, AttributeError, TypeError):
        return [_field(selector, value) for value in values]


def getter(selector: Selector | None) -> Callable[[Any], Any]:
    """Return the function that applies ``selector`` to one value; all of it if None.

    Example:
        >>> getter("a")({"a": 1}), getter(None)(5)
        (1, 5)
    """
    if selector is None:
        return lambda value: value
    if not isinstance(selector, str):
        return selector
    return lambda value: _field(selector, value)


def _field(name: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        if name not in value:
            raise KeyError(f"the value has no field {name!r}")
        return value[name]
    if value is None:
        raise AttributeError(f"the record has no value, so no field {name!r}")
    try:
        return getattr(value, name)
    except AttributeError:
        raise AttributeError(f"{type(value).__name__} has no field {name!r}") from None
