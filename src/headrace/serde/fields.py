"""The names by which a type's values can be read."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any

from headrace.serde.models import is_model


def fields_of(kind: Any) -> tuple[str, ...] | None:
    """Return the names of a type's fields, in their order.

    Returns:
        None if the type has no certain fields: it is a dict, says nothing of them, or takes any.

    Example:
        >>> from typing import NamedTuple
        >>> class Point(NamedTuple):
        ...     x: int
        ...     y: int
        >>> fields_of(Point), fields_of(dict)
        (('x', 'y'), None)
    """
    if not isinstance(kind, type) or hasattr(kind, "__getattr__"):
        return _of_model(kind) if is_model(kind) else None
    if typing.is_typeddict(kind):
        return tuple(kind.__annotations__)
    if dataclasses.is_dataclass(kind):
        return tuple(field.name for field in dataclasses.fields(kind))
    descriptor: Any = getattr(kind, "DESCRIPTOR", None)
    if descriptor is not None and hasattr(descriptor, "fields_by_name"):
        return tuple(descriptor.fields_by_name)
    found: Any = getattr(kind, "__struct_fields__", None) or getattr(kind, "_fields", None)
    return tuple(found) if found else None


def can_read(kind: Any, name: str) -> bool:
    """Return whether a value of ``kind`` may have a field of that name: what is not known may.

    Example:
        >>> can_read(dict, "total"), can_read(range, "total")
        (True, True)
    """
    fields = fields_of(kind)
    if fields is None or name in fields:
        return True
    return not typing.is_typeddict(kind) and hasattr(kind, name)  # a property, say


def _of_model(kind: Any) -> tuple[str, ...] | None:
    if kind.model_config.get("extra") == "allow":
        return None
    return tuple(kind.__pydantic_fields__)
