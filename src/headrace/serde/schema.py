"""What the bytes of a type depend on, as plain data that can be stored and compared.

A description speaks of the bytes and not of the class: it has no class names, a dataclass and a ``TypedDict`` with the
same fields have the same one, and so have ``list[int]`` and ``set[int]``. Its forms are:

=================================  ==================================================================================
``None``                           anything: no type was given, or ``Any``, ``object`` or ``dict``
``"int"``, ``"str"``, ...          a scalar
``{"one_of": [...]}``              an enumeration or a literal
``{"any_of": [...]}``              a union
``{"array": item}``                a list, set or tuple of any length
``{"items": [...]}``               a tuple of that length, or the fields of an object written as an array
``{"map": [key, value]}``          a dict
``{"fields": {name: type}}``       an object, by the names that stand in the bytes. ``optional`` lists the fields that
                                   bytes may lack when they are read, ``omitted`` those that are not always written;
                                   ``tag`` is the tag's field and value; ``closed`` is true if no other field may stand
                                   in the bytes
``{"limits": {...}, "type": ...}``  a type with bounds, lengths or a pattern
``{"class": name}``                a class that makes its own bytes: its ``stored_as``, or else its module and name
``{"message": {number: [...]}}``    a Protobuf message: type, name and whether it repeats, for each field
``{"up": n}``                      the object that is ``n`` objects further out, this one being the first
=================================  ==================================================================================
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import inspect as kinds

_SCALARS: dict[type[Any], str] = {
    kinds.NoneType: "null",
    kinds.BoolType: "bool",
    kinds.IntType: "int",
    kinds.FloatType: "float",
    kinds.StrType: "str",
    kinds.BytesType: "bytes",
    kinds.ByteArrayType: "bytes",
    kinds.MemoryViewType: "bytes",
    kinds.DateTimeType: "datetime",
    kinds.TimeType: "time",
    kinds.DateType: "date",
    kinds.TimeDeltaType: "timedelta",
    kinds.UUIDType: "uuid",
    kinds.DecimalType: "decimal",
    kinds.ExtType: "ext",
}
_ARRAYS = (kinds.ListType, kinds.SetType, kinds.FrozenSetType, kinds.VarTupleType)
_LIMITS = ("gt", "ge", "lt", "le", "multiple_of", "min_length", "max_length", "pattern", "tz")
_UNTYPED = (None, Any, object, dict)

Stack = tuple[Any, ...]
"""The classes that are being described, the outermost first."""


def schema_of(kind: Any) -> Any:
    """Describe a type's fields and their types, as far as reading its bytes depends on them.

    Equal descriptions mean that what was written as one type can be read as the other. Of two that differ,
    ``evolution.unreadable`` tells whether the second can still read what the first wrote.

    Args:
        kind: A type, or a serde: then its own ``schema`` or else that of its ``kind``.

    Returns:
        Plain data for JSON, the same in every process; None if nothing is known of the values.

    Example:
        >>> import msgspec
        >>> class Payment(msgspec.Struct, rename="camel"):
        ...     order_id: str
        ...     total: float | None = None
        >>> schema_of(Payment)
        {'fields': {'orderId': 'str', 'total': {'any_of': ['float', 'null']}}, 'optional': ['total']}
    """
    if not isinstance(kind, type) and hasattr(kind, "decode_many"):
        own = getattr(kind, "schema", None)
        return own if own is not None else schema_of(getattr(kind, "kind", None))
    if any(kind is untyped for untyped in _UNTYPED):
        return None
    return _of_annotation(kind, ())


def _of_annotation(annotation: Any, stack: Stack) -> Any:
    try:
        info = kinds.type_info(annotation)
    except (TypeError, NameError):
        return {"class": _qualified(annotation)}
    return _of(info, stack)


def _of(info: kinds.Type, stack: Stack) -> Any:
    if isinstance(info, kinds.Metadata):
        return _of(info.type, stack)
    if isinstance(info, kinds.AnyType | kinds.RawType):
        return None
    scalar = _SCALARS.get(type(info))
    if scalar is not None:
        return _limited(scalar, info)
    if isinstance(info, (*_ARRAYS, kinds.DictType, kinds.TupleType)):
        return _of_collection(info, stack)
    if isinstance(info, kinds.UnionType):
        return {"any_of": _in_order([_of(option, stack) for option in info.types])}
    if isinstance(info, kinds.LiteralType):
        return {"one_of": _in_order(list(info.values))}
    return _of_class(info, stack)


def _of_collection(info: Any, stack: Stack) -> Any:
    if isinstance(info, kinds.DictType):
        return _limited({"map": [_of(info.key_type, stack), _of(info.value_type, stack)]}, info)
    if isinstance(info, kinds.TupleType):
        return {"items": [_of(item, stack) for item in info.item_types]}
    return _limited({"array": _of(info.item_type, stack)}, info)


def _of_class(info: Any, stack: Stack) -> Any:
    cls = info.cls
    if isinstance(info, kinds.EnumType):
        return {"one_of": _in_order([_plain(member.value) for member in cls])}
    if cls in stack:
        return {"up": len(stack) - stack.index(cls)}
    inner = (*stack, cls)
    if isinstance(info, kinds.StructType):
        return _of_struct(info, inner)
    if isinstance(info, kinds.TypedDictType):
        missing = [field.name for field in info.fields if not field.required]
        return _object({f.encode_name: _of(f.type, inner) for f in info.fields}, optional=missing, omitted=missing)
    if isinstance(info, kinds.DataclassType):
        optional = [field.encode_name for field in info.fields if not field.required]
        return _object({f.encode_name: _of(f.type, inner) for f in info.fields}, optional=optional)
    return _row(info.fields, inner) if isinstance(info, kinds.NamedTupleType) else _of_other(cls, inner)


def _of_other(cls: Any, stack: Stack) -> Any:
    """Describe a class that msgspec does not know, ``cls`` being the last of ``stack``."""
    fields = getattr(cls, "__pydantic_fields__", None)
    if isinstance(fields, Mapping):
        return _of_model(cls, fields, stack)
    if hasattr(cls, "SerializeToString"):
        return _of_message(cls.DESCRIPTOR, stack[:-1])
    return {"class": getattr(cls, "stored_as", None) or _qualified(cls)}


def _of_struct(info: kinds.StructType, stack: Stack) -> Any:
    extra: dict[str, Any] = {}
    if info.tag_field is not None:
        extra["tag"] = [info.tag_field, info.tag]
    if info.forbid_unknown_fields:
        extra["closed"] = True
    if info.array_like:
        return {**_row(info.fields, stack), **extra}
    optional = [field.encode_name for field in info.fields if not field.required]
    omitted = optional if info.cls.__struct_config__.omit_defaults else []
    return _object({f.encode_name: _of(f.type, stack) for f in info.fields}, optional, omitted, extra)


def _row(fields: Sequence[kinds.Field], stack: Stack) -> dict[str, Any]:
    row: dict[str, Any] = {"items": [_of(field.type, stack) for field in fields]}
    row["names"] = [field.encode_name for field in fields]
    required = sum(1 for field in fields if field.required)
    return row if required == len(fields) else {**row, "required": required}


def _of_model(cls: Any, fields: Mapping[str, Any], stack: Stack) -> Any:
    config = getattr(cls, "model_config", {})
    described = {}
    optional = []
    for name, field in fields.items():
        written = field.serialization_alias or name
        inner = _of_annotation(field.annotation, stack)
        described[written] = _limited(inner, *field.metadata)
        if not field.is_required():
            optional.append(written)
    extra = {"closed": True} if config.get("extra") == "forbid" else {}
    return _object(described, optional, [], extra)


def _object(
    fields: Mapping[str, Any], optional: Sequence[str] = (), omitted: Sequence[str] = (), extra: Any = None
) -> dict[str, Any]:
    described: dict[str, Any] = {"fields": {name: fields[name] for name in sorted(fields)}}
    if optional:
        described["optional"] = sorted(optional)
    if omitted:
        described["omitted"] = sorted(omitted)
    return {**described, **(extra or {})}


def _limited(described: Any, *sources: Any) -> Any:
    found = {
        limit: _plain(getattr(source, limit))
        for limit in _LIMITS
        for source in sources
        if getattr(source, limit, None) is not None
    }
    return {"limits": found, "type": described} if found else described


def _in_order(options: list[Any]) -> list[Any]:
    return sorted(options, key=lambda option: json.dumps(option, sort_keys=True))


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | int | float) else str(value)


def _qualified(cls: Any) -> str:
    if hasattr(cls, "__qualname__"):
        return f"{cls.__module__}.{cls.__qualname__}"
    return str(cls)


def _of_message(descriptor: Any, stack: Stack) -> Any:
    """Describe a Protobuf message: what its bytes are read by are the fields' numbers."""
    if descriptor.full_name in stack:
        return {"up": len(stack) - stack.index(descriptor.full_name)}
    inner = (*stack, descriptor.full_name)
    fields = {}
    for field in descriptor.fields:
        kind = _of_message(field.message_type, inner) if field.message_type is not None else field.type
        fields[str(field.number)] = [kind, field.name, bool(getattr(field, "is_repeated", False))]
    return {"message": fields}
