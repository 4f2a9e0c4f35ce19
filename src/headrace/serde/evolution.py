"""Whether what was written as one type can be read as another, from the two descriptions that ``schema_of`` gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def unreadable(before: Any, after: Any) -> list[str]:
    """Say why what was written as one type cannot be read as another.

    Args:
        before: ``schema_of`` the type that was written.
        after: ``schema_of`` the type that is to be read.

    Returns:
        One phrase for each thing that is wrong, naming the field; none if everything can be read.

    Example:
        >>> import msgspec
        >>> from headrace.serde.schema import schema_of
        >>> class Old(msgspec.Struct):
        ...     id: str
        ...     total: int
        >>> class New(msgspec.Struct):
        ...     id: str
        ...     total: float
        ...     currency: str
        >>> unreadable(schema_of(Old), schema_of(New))
        ["field 'currency' is new and has no default"]
        >>> unreadable(schema_of(New), schema_of(Old))
        ["field 'total' was float and is int"]
    """
    return _compare(before, after, "")


def _compare(before: Any, after: Any, where: str) -> list[str]:
    if after is None or before == after:
        return []
    if isinstance(before, dict) and isinstance(after, dict):
        for form, compare in _FORMS.items():
            if form in before and form in after:
                return compare(before, after, where)
    if _covers(before, after, where):
        return []
    return [f"{where or 'it'} was {_phrase(before)} and is {_phrase(after)}"]


def _covers(before: Any, after: Any, where: str) -> bool:
    """Return whether ``after`` takes every value of ``before``, of another form."""
    if isinstance(before, dict) and "any_of" in before:
        return all(not _compare(option, after, where) for option in before["any_of"])
    if isinstance(after, dict) and "any_of" in after:
        return any(not _compare(before, option, where) for option in after["any_of"])
    if isinstance(before, dict) and "limits" in before:
        return not _compare(before["type"], after, where)
    if isinstance(before, dict) and "one_of" in before and after in ("int", "str"):
        return all(type(value).__name__ == after for value in before["one_of"])
    if isinstance(before, dict) and isinstance(after, dict) and "items" in before and "array" in after:
        return all(not _compare(item, after["array"], where) for item in before["items"])
    return (before, after) == ("int", "float")


def _compare_fields(before: Any, after: Any, where: str) -> list[str]:
    old, new = before["fields"], after["fields"]
    optional, omitted = set(after.get("optional", ())), set(before.get("omitted", ()))
    found = []
    if before.get("tag") != after.get("tag") and after.get("tag") is not None:
        found.append(f"{where or 'it'} has another tag")
    for name in new:
        field = f"field {name!r}" + (f" of {where}" if where else "")
        if name in old:
            found += _compare(old[name], new[name], field)
            if name in omitted and name not in optional:
                found.append(f"{field} was not always written and has no default")
        elif name not in optional:
            found.append(f"{field} is new and has no default")
    if after.get("closed"):
        found += [f"field {name!r} is gone, and no others are allowed" for name in old if name not in new]
    return found


def _compare_rows(before: Any, after: Any, where: str) -> list[str]:
    old, new = before["items"], after["items"]
    names = after.get("names")
    found = []
    for i, (was, now) in enumerate(zip(old, new, strict=False)):
        place = f"field {names[i]!r}" if names else f"item {i}"
        found += _compare(was, now, place + (f" of {where}" if where else ""))
    shorter = before.get("required", len(old)) < after.get("required", len(new))
    longer = len(old) > len(new) and ("names" not in after or after.get("closed"))
    if shorter or longer:
        found.append(f"{where or 'it'} has another number of items")
    if names and before.get("names") and before["names"][: len(new)] != names[: len(old)]:
        found.append(f"{where or 'it'} has its fields at other places")
    return found


def _compare_options(before: Any, after: Any, where: str) -> list[str]:
    options = after["any_of"]
    if all(any(not _compare(was, now, where) for now in options) for was in before["any_of"]):
        return []
    return [f"{where or 'it'} was {_phrase(before)} and is {_phrase(after)}"]


def _compare_values(before: Any, after: Any, where: str) -> list[str]:
    gone = [value for value in before["one_of"] if value not in after["one_of"]]
    return [f"{where or 'it'} may no longer be {value!r}" for value in gone]


def _compare_limits(before: Any, after: Any, where: str) -> list[str]:
    found = _compare(before["type"], after["type"], where)
    if before["limits"] != after["limits"]:
        found.append(f"{where or 'it'} has other limits")
    return found


def _compare_up(before: Any, after: Any, where: str) -> list[str]:
    if before == after:
        return []  # the two objects they stand for are being compared further out
    return [f"{where or 'it'} holds itself in another way"]


def _compare_items(before: Any, after: Any, where: str) -> list[str]:
    return _compare(before["array"], after["array"], f"the items of {where or 'it'}")


def _compare_maps(before: Any, after: Any, where: str) -> list[str]:
    (old_key, old_value), (new_key, new_value) = before["map"], after["map"]
    return [
        *_compare(old_key, new_key, f"the keys of {where or 'it'}"),
        *_compare(old_value, new_value, f"the values of {where or 'it'}"),
    ]


def _compare_messages(before: Any, after: Any, where: str) -> list[str]:
    old, new = before["message"], after["message"]
    found = []
    for number in new:
        if number in old:
            (was, _, repeated), (now, name, repeats) = old[number], new[number]
            field = f"field {name!r}" + (f" of {where}" if where else "")
            if repeated != repeats or (was != now and not (isinstance(was, dict) and isinstance(now, dict))):
                found.append(f"{field} is of another type")
            elif isinstance(was, dict):
                found += _compare(was, now, field)
    return found


def _compare_avro(before: Any, after: Any, where: str) -> list[str]:
    if before["avro"] != after["avro"]:
        return [f"{where or 'it'} has another Avro schema"]
    return _compare(before["kind"], after["kind"], where)


_FORMS: dict[str, Callable[[Any, Any, str], list[str]]] = {
    "fields": _compare_fields,
    "items": _compare_rows,
    "any_of": _compare_options,
    "one_of": _compare_values,
    "limits": _compare_limits,
    "up": _compare_up,
    "array": _compare_items,
    "map": _compare_maps,
    "message": _compare_messages,
    "avro": _compare_avro,
}


def _phrase(described: Any) -> str:
    if described is None:
        return "untyped"
    if isinstance(described, str):
        return described
    if "any_of" in described:
        return " or ".join(map(_phrase, described["any_of"]))
    if "limits" in described:
        return f"limited {_phrase(described['type'])}"
    for form, phrase in (("fields", "an object"), ("items", "a tuple"), ("array", "an array"), ("map", "a dict")):
        if form in described:
            return phrase
    return "one of certain values" if "one_of" in described else "another object"
