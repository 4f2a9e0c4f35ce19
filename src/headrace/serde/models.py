"""Pydantic models. Nothing here imports pydantic before somebody has defined a model with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import msgspec

from headrace.serde.schema import schema_of


class _Validator(Protocol):
    def validate_python(self, value: Any, *, by_alias: bool, by_name: bool) -> Any: ...

    def validate_json(self, value: bytes, *, by_alias: bool, by_name: bool) -> Any: ...


def is_model(kind: Any) -> bool:
    """Return whether ``kind`` is a pydantic model.

    Example:
        >>> is_model(dict)
        False
    """
    return isinstance(kind, type) and hasattr(kind, "__pydantic_validator__") and hasattr(kind, "model_dump")


def dump(value: Any, *, json: bool = False) -> Any:
    """Return a model's fields, by their aliases, without computed ones, which could not be read back.

    Raises:
        TypeError: the model holds values of other types than its fields.
    """
    mode = "json" if json else "python"
    try:
        return value.model_dump(mode=mode, by_alias=True, round_trip=True, warnings="error")
    except ValueError:
        raise TypeError(f"a {type(value).__name__} holds a value of another type than its field") from None


def dump_json(value: Any) -> bytes:
    """Return a model as JSON.

    Raises:
        TypeError: the model holds values of other types than its fields.
    """
    serializer = type(value).__pydantic_serializer__
    try:
        data: bytes = serializer.to_json(value, by_alias=True, round_trip=True, warnings="error")
    except ValueError:
        raise TypeError(f"a {type(value).__name__} holds a value of another type than its field") from None
    return data


def validate(kind: Any, value: Any, *, json: bool = False) -> Any:
    """Make a model of its fields, by their names or aliases, or of the JSON text of them.

    Raises:
        ValueError: names the fields that are wrong and in what way, and no value.
    """
    validator: _Validator = kind.__pydantic_validator__
    try:
        if json:
            return validator.validate_json(value, by_alias=True, by_name=True)
        return validator.validate_python(value, by_alias=True, by_name=True)
    except Exception as error:  # noqa: BLE001  # a validator may raise anything, and say anything
        raise ValueError(_described(kind, error)) from None


class Models:
    """Many models at once.

    Args:
        kind: The model.
    """

    def __init__(self, kind: Any) -> None:
        from pydantic import TypeAdapter

        self._kind = kind
        self._validate = TypeAdapter(list[kind]).validator.validate_python

    def validate_many(self, values: Sequence[Any]) -> list[Any]:
        """Make a model of each.

        Raises:
            ValueError: as ``validate`` does for the first that is wrong.
        """
        try:
            found: list[Any] = self._validate(values, by_alias=True, by_name=True)
        except Exception:  # noqa: BLE001  # a validator may raise anything
            return [self._validate_one(value) for value in values]
        return found

    def _validate_one(self, value: Any) -> Any:
        try:
            return validate(self._kind, value)
        except ValueError as error:
            raise msgspec.ValidationError(str(error)) from None  # which is what one by one raises


def check_aliases(kind: Any) -> None:
    """Refuse a model that would not read what it writes.

    Raises:
        TypeError: names the field that is written by another name than it is read by.
    """
    for name, field in kind.__pydantic_fields__.items():
        written = field.serialization_alias
        if written is None or written in (name, *_read_by(field.validation_alias)):
            continue
        raise TypeError(f"its field {name!r} is written by the alias {written!r}, which it is not read by")


def _read_by(alias: Any) -> Iterator[str]:
    if isinstance(alias, str):
        yield alias
    for choice in getattr(alias, "choices", ()):
        yield from _read_by(choice)


def _described(kind: Any, error: Any) -> str:
    if not hasattr(error, "errors"):
        return f"not a {kind.__name__}: {type(error).__name__}"
    names = set(_names(schema_of(kind)))
    found = []
    for detail in error.errors(include_url=False, include_context=False, include_input=False):
        place = [part if part in names else "..." for part in detail["loc"]]  # a key of a dict, say, would be data
        found.append(f"{'.'.join(place)} ({detail['type']})" if place else str(detail["type"]))
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return f"not a {kind.__name__}: {', '.join(found[:3])}{more}"


def _names(described: Any) -> Iterator[str]:
    if isinstance(described, dict):
        yield from described.get("fields", ())
        for part in [*described.values(), *described.get("fields", {}).values()]:
            yield from _names(part)
    elif isinstance(described, list):
        for part in described:
            yield from _names(part)
