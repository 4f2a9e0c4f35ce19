"""Pydantic models: their own rules for aliases and JSON, errors without data, models inside other types."""

import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import PurePosixPath
from typing import Any, Literal
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import (
    AliasChoices,
    AliasPath,
    BaseModel,
    ConfigDict,
    Field,
    HttpUrl,
    RootModel,
    computed_field,
    field_validator,
)  # fmt: skip

from headrace import Json, Msgpack, TopologyError
from headrace.record import JoinedBytes
from headrace.serde.api import serde_for
from headrace.serde.hooks import to_plain
from headrace.serde.schema import schema_of


class Colour(Enum):
    RED = "red"


class Stop(BaseModel):
    place: str
    at: datetime


class Trip(BaseModel):
    model_config = ConfigDict(extra="forbid")
    id: UUID
    stops: list[Stop] = []
    price: Decimal = Decimal(0)
    took: timedelta | None = None
    tags: set[str] = set()
    by_name: dict[str, int] = {}
    colour: Colour = Colour.RED
    site: HttpUrl | None = None
    host: ipaddress.IPv4Address | None = None
    path: PurePosixPath = PurePosixPath("/")
    kind: Literal["a", "b"] = "a"
    raw: bytes = b""
    user: str = Field("", alias="userName")

    @computed_field  # type: ignore[prop-decorator]
    @property
    def count(self) -> int:
        return len(self.stops)


TRIP = Trip(
    id=UUID(int=5), stops=[Stop(place="x", at=datetime(2024, 1, 1, 5, tzinfo=UTC))], price=Decimal("1.10"),
    took=timedelta(minutes=90), tags={"a"}, by_name={"k": 3}, site=HttpUrl("https://x.org/a"),
    host=ipaddress.IPv4Address("10.0.0.1"), path=PurePosixPath("/a/b"), raw=b"bytes", userName="ann",
)  # fmt: skip


@pytest.mark.parametrize("serde", [Msgpack(Trip), Json(Trip)], ids=lambda serde: serde.name)
def test_every_type_of_field_comes_back(serde: Any) -> None:
    column = [TRIP, None, Trip(id=UUID(int=6))]
    encoded = serde.encode_many(column)
    assert serde.decode_many(JoinedBytes.of(encoded)) == column
    assert serde.decode_many(JoinedBytes.of([encoded[0], encoded[2]])) == [column[0], column[2]]
    assert serde.decode(encoded[0]) == TRIP


def test_bytes_that_are_no_text_come_back_from_messagepack() -> None:
    serde = Msgpack(Trip)
    trip = Trip(id=UUID(int=5), raw=b"\xff\x00")
    assert serde.decode(serde.encode_many([trip])[0]) == trip


def test_the_bytes_are_those_of_the_aliases() -> None:
    class Small(BaseModel):
        user: str = Field(alias="userName")

    assert Msgpack(Small).encode_many([Small(userName="a")]) == [b"\x81\xa8userName\xa1a"]
    assert Json(Small).encode_many([Small(userName="a")]) == [b'{"userName":"a"}']
    assert Msgpack().encode_many([Small(userName="a")]) == [b"\x81\xa8userName\xa1a"]
    assert Json().encode_many([Small(userName="a")]) == [b'{"userName":"a"}']
    for data in (b'{"userName":"a"}', b'{"user":"a"}'):
        assert Json(Small).decode(data) == Small(userName="a")


def test_a_field_that_is_read_by_other_names_than_it_is_written_by() -> None:
    class Reads(BaseModel):
        user: str = Field(validation_alias=AliasChoices("userName", AliasPath("names", 0)))

    for serde in (Msgpack(Reads), Json(Reads)):
        assert serde.decode(serde.encode_many([Reads(userName="a")])[0]).user == "a"

    class Writes(BaseModel):
        user: str = Field(serialization_alias="userName")

    for make in (lambda: Msgpack(Writes), lambda: Json(Writes)):
        with pytest.raises(TypeError, match="'user' is written by the alias 'userName'"):
            make()
    with pytest.raises(TopologyError, match="value cannot be Writes: its field 'user'"):
        serde_for(Writes, "value")


@dataclass
class Envelope:
    number: int
    trip: Trip
    others: list[Stop]


@pytest.mark.parametrize("make", [Msgpack, Json])
def test_models_inside_other_types(make: Any) -> None:
    serde = make(Envelope)
    envelope = Envelope(1, TRIP, TRIP.stops)
    assert serde.decode(serde.encode_many([envelope])[0]) == envelope
    pair = make(tuple[int, Trip | None])
    assert pair.decode_many(JoinedBytes.of(pair.encode_many([(1, TRIP), (2, None)]))) == [(1, TRIP), (2, None)]


class Ids(RootModel[list[int]]):
    """A model that is not an object."""


@given(column=st.lists(st.builds(Ids, st.lists(st.integers(-(2**63), 2**63 - 1)))))
def test_root_models(column: list[Ids]) -> None:
    for serde in (Msgpack(Ids), Json(Ids)):
        assert serde.decode_many(JoinedBytes.of(serde.encode_many(column))) == column


class Strict(BaseModel):
    model_config = ConfigDict(strict=True)
    at: datetime
    id: str


def test_strict_models() -> None:
    value = Strict(at=datetime(2024, 1, 1, tzinfo=UTC), id="a")
    for serde in (Msgpack(Strict), Json(Strict)):
        assert serde.decode(serde.encode_many([value])[0]) == value
    with pytest.raises(ValueError, match=r"not a Strict: id \(string_type\)"):
        Json(Strict).decode(b'{"at": "2024-01-01T00:00:00Z", "id": 5}')


class Picky(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str
    parts: dict[str, int] = {}
    lines: list[Stop] = []
    one: int | list[int] = 0

    @field_validator("name")
    @classmethod
    def check(cls, name: str) -> str:
        if name == "secret":
            raise ValueError(f"{name} must not be told")
        if name == "odd":
            raise LookupError("secret")
        return name


WRONG = [
    ({"name": "secret"}, r"not a Picky: name \(value_error\)$"),
    ({"name": "odd"}, "not a Picky: LookupError$"),
    ({"name": "a", "parts": {"secret": "secret"}}, r"not a Picky: parts\.\.\.\. \(int_parsing\)$"),
    ({"name": "a", "secret": 5}, r"not a Picky: \.\.\. \(extra_forbidden\)$"),
    ({"name": "a", "lines": [{"place": 5}]},
     r"not a Picky: lines\.\.\.\.\.place \(string_type\), lines\.\.\.\.\.at \(missing\)$"),
    ({"name": 1, "parts": 1, "lines": 1, "one": "secret"}, r"parts \(dict_type\), lines \(list_type\) and 2 more$"),
    ("secret", r"not a Picky: model_(attributes_)?type$"),
]  # fmt: skip


@pytest.mark.parametrize(("value", "said"), WRONG)
def test_errors_name_fields_and_no_data(value: Any, said: str) -> None:
    packed, text = msgspec.msgpack.encode(value), msgspec.json.encode(value)
    for read in (
        lambda: Msgpack(Picky).decode(packed),
        lambda: Msgpack(Picky).decode_many(JoinedBytes.of([packed, packed])),
        lambda: Json(Picky).decode(text),
        lambda: Json(Picky).decode_many(JoinedBytes.of([text])),
    ):
        with pytest.raises(ValueError, match=said) as failed:
            read()
        assert "secret" not in str(failed.value)
        assert failed.value.__suppress_context__


def test_a_model_with_values_of_other_types_is_not_written() -> None:
    broken = Stop.model_construct(place=5, at="secret")
    for serde in (Msgpack(Stop), Json(Stop), Msgpack()):
        with pytest.raises(TypeError, match="a Stop holds a value of another type") as failed:
            serde.encode_many([broken])
        assert "secret" not in str(failed.value)


class Vector:
    """A user's class that knows its own bytes."""

    def __init__(self, *parts: int) -> None:
        self.parts = parts

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vector) and other.parts == self.parts

    __hash__ = None  # type: ignore[assignment]

    def to_bytes(self) -> bytes:
        return bytes(self.parts)

    @classmethod
    def from_bytes(cls, data: bytes) -> "Vector":
        if b"\xff" in data:
            raise LookupError("secret")
        return cls(*data)


@pytest.mark.parametrize("make", [Msgpack, Json])
def test_a_class_that_knows_its_own_bytes(make: Any) -> None:
    serde = make(dict[str, Vector])
    value = {"a": Vector(1, 2)}
    assert serde.decode(serde.encode_many([value])[0]) == value
    assert schema_of(Vector) == {"class": f"{__name__}.Vector"}
    for wrong in ([1], 5, Vector(255)):
        (data,) = make().encode_many([{"a": wrong}])
        with pytest.raises(msgspec.ValidationError, match=r"`Vector`.* - at `\$\[\.\.\.\]`") as failed:
            serde.decode(data)
        assert "secret" not in str(failed.value)


def test_other_classes_are_not_written() -> None:
    with pytest.raises(TypeError, match="objects of type object"):
        Msgpack().encode_many([{"a": object()}])
    with pytest.raises(TypeError, match="objects of type complex"):
        to_plain(1j)
