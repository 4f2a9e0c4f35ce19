"""Descriptions of types: equal for equal bytes, and what may change between them."""

import enum
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Literal, NamedTuple, NotRequired, Optional, TypedDict
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field

from headrace import Json, Msgpack
from headrace.serde.evolution import unreadable
from headrace.serde.primitives import Bytes, Float, Int, Str, Uuid
from headrace.serde.schema import schema_of


class Payment(msgspec.Struct):
    id: str
    total: float | None = None


@dataclass
class PaymentData:
    total: float | None = field(default=None, kw_only=True)
    id: str


class PaymentDict(TypedDict):
    id: str
    total: NotRequired[float | None]


class PaymentModel(BaseModel):
    total: Optional[float] = None  # noqa: UP045  # older spellings are the same type
    id: str


class Node(msgspec.Struct):
    value: int
    children: "list[Node]" = []


class Tree(BaseModel):
    value: int
    children: "list[Tree]" = []


class Pair(NamedTuple):
    a: int
    b: str = ""


class Row(msgspec.Struct, array_like=True):
    a: int
    b: str = ""


class Tagged(msgspec.Struct, tag="t", rename="camel", forbid_unknown_fields=True):
    some_field: int


class Sparse(msgspec.Struct, omit_defaults=True):
    a: int = 0


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Closed(BaseModel):
    model_config = ConfigDict(extra="forbid")
    size: int = Field(ge=0, alias="Size")


PAYMENT = {"fields": {"id": "str", "total": {"any_of": ["float", "null"]}}, "optional": ["total"]}
NODE = {"fields": {"children": {"array": {"up": 1}}, "value": "int"}, "optional": ["children"]}

DESCRIPTIONS = [
    (None, None), (Any, None), (dict, None), (object, None), (int, "int"), (str, "str"), (bytes, "bytes"),
    (UUID, "uuid"), (Decimal, "decimal"), (datetime, "datetime"), (float | None, {"any_of": ["float", "null"]}),
    (list, {"array": None}), (list[int], {"array": "int"}), (set[int], {"array": "int"}),
    (tuple[int, ...], {"array": "int"}), (tuple[int, str], {"items": ["int", "str"]}),
    (dict[str, int], {"map": ["str", "int"]}), (Literal["b", "a", 1], {"one_of": ["a", "b", 1]}),
    (Colour, {"one_of": ["blue", "red"]}), (Payment, PAYMENT), (PaymentData, PAYMENT), (PaymentModel, PAYMENT),
    (PaymentDict, {**PAYMENT, "omitted": ["total"]}), (Node, NODE), (Tree, NODE),
    (Pair, {"items": ["int", "str"], "names": ["a", "b"], "required": 1}),
    (Row, {"items": ["int", "str"], "names": ["a", "b"], "required": 1}),
    (Tagged, {"fields": {"someField": "int"}, "tag": ["type", "t"], "closed": True}),
    (Sparse, {"fields": {"a": "int"}, "optional": ["a"], "omitted": ["a"]}),
    (Annotated[int, msgspec.Meta(ge=0)], {"limits": {"ge": 0}, "type": "int"}),
    (Closed, {"fields": {"Size": {"limits": {"ge": 0}, "type": "int"}}, "closed": True}),
    (Msgpack(), None), (Json(), None), (Msgpack(Payment), PAYMENT), (Json(PaymentModel), PAYMENT),
    (Str(), "str"), (Int(), "int"), (Bytes(), "bytes"), (Float(), "float"), (Uuid(), "uuid"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "described"), DESCRIPTIONS, ids=lambda value: re.sub(" at 0x[0-9a-f]+", "", str(value))
)
def test_what_a_type_is_described_as(kind: Any, described: Any) -> None:
    found = schema_of(kind)
    assert found == described
    assert json.loads(json.dumps(found)) == found
    assert unreadable(found, schema_of(kind)) == []


def test_a_description_is_the_same_in_every_process() -> None:
    code = "import json, tests.serde.test_schema as t; print(json.dumps([t.schema_of(k) for k, _ in t.DESCRIPTIONS]))"
    said = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert said == {json.dumps([schema_of(kind) for kind, _ in DESCRIPTIONS]) + "\n"}


def struct(name: str = "S", **fields: Any) -> Any:
    options = {key: fields.pop(key) for key in list(fields) if key in ("tag", "array_like", "forbid_unknown_fields")}
    made = [(key, *kind) if isinstance(kind, tuple) else (key, kind) for key, kind in fields.items()]
    return msgspec.defstruct(name, made, kw_only=True, **options)


CHANGES = [
    (struct(a=int), struct(a=float), []),
    (struct(a=float), struct(a=int), ["field 'a' was float and is int"]),
    (struct(a=int), struct(a=int | None), []),
    (struct(a=int | None), struct(a=int), ["field 'a' was int or null and is int"]),
    (struct(a=int | str), struct(a=str | int | None), []),
    (struct(a=int | None), struct(a=str | None), ["field 'a' was int or null and is null or str"]),
    (struct(a=int), struct(a=int, b=str), ["field 'b' is new and has no default"]),
    (struct(a=int), struct(a=int, b=(str, "")), []),
    (struct(a=int, b=str), struct(a=int), []),
    (struct(a=int, b=str), struct(a=int, forbid_unknown_fields=True), ["field 'b' is gone, and no others are allowed"]),
    (Sparse, struct(a=int), ["field 'a' was not always written and has no default"]),
    (Sparse, struct(a=(int, 0)), []),
    (struct(a=struct(b=int)), struct(a=struct(b=str)), ["field 'b' of field 'a' was int and is str"]),
    (struct(a=list[int]), struct(a=list[str]), ["the items of field 'a' was int and is str"]),
    (struct(a=dict[str, int]), struct(a=dict[int, int]), ["the keys of field 'a' was str and is int"]),
    (struct(a=dict[str, int]), struct(a=int), ["field 'a' was a dict and is int"]),
    (struct(a=int, tag="x"), struct(a=int, tag="y"), ["it has another tag"]),
    (struct(a=int, tag="x"), struct(a=int), []),
    (struct(a=int), Any, []),
    (Any, struct(a=int), ["it was untyped and is an object"]),
    (Colour, Literal["red"], ["it may no longer be 'blue'"]),
    (Colour, str, []),
    (Colour, int, ["it was one of certain values and is int"]),
    (struct(a=int, b=int, array_like=True), struct(b=int, a=int, array_like=True),
     ["it has its fields at other places"]),
    (struct(a=int, array_like=True), struct(a=int, b=int, array_like=True), ["it has another number of items"]),
    (struct(a=int, array_like=True), struct(a=int, b=(int, 0), array_like=True), []),
    (tuple[int, int], tuple[int, int, int], ["it has another number of items"]),
    (tuple[int, int], list[float], []),
    (Annotated[int, msgspec.Meta(ge=0)], int, []),
    (int, Annotated[int, msgspec.Meta(ge=0)], ["it was int and is limited int"]),
    (Annotated[int, msgspec.Meta(ge=0)], Annotated[int, msgspec.Meta(ge=5)], ["it has other limits"]),
    (Node, Tree, []),
    (Node, Payment, ["field 'id' is new and has no default"]),
    (Payment, PaymentModel, []),
]  # fmt: skip


@pytest.mark.parametrize(("before", "after", "said"), CHANGES)
def test_what_may_change(before: Any, after: Any, said: list[str]) -> None:
    assert unreadable(schema_of(before), schema_of(after)) == said


KINDS: list[Any] = [int, float, str, int | None, list[int], dict[str, int], Literal["a"], Any]
fields_of = st.dictionaries(
    st.sampled_from("abc"), st.tuples(st.sampled_from(range(len(KINDS))), st.booleans()), max_size=3
)
EXAMPLES: list[Any] = [5, 1.5, "x", None, [5], {"k": 5}, "a", b"x"]


def default_of(i: int) -> Any:
    return msgspec.field(default_factory=lambda: EXAMPLES[i])


@given(old=fields_of, new=fields_of)
def test_what_is_called_readable_is_read(old: dict[str, Any], new: dict[str, Any]) -> None:
    def made(fields: dict[str, Any]) -> Any:
        return struct(**{k: (KINDS[i], default_of(i)) if default else KINDS[i] for k, (i, default) in fields.items()})

    before, after = made(old), made(new)
    (data,) = Msgpack(before).encode_many([before(**{key: EXAMPLES[i] for key, (i, _) in old.items()})])
    if not unreadable(schema_of(before), schema_of(after)):
        Msgpack(after).decode(data)
    if schema_of(before) == schema_of(after):
        assert not unreadable(schema_of(before), schema_of(after))
