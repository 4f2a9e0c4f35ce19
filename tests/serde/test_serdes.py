"""Serdes: what goes in comes out, None stays None, and damaged bytes are refused without being shown."""

from dataclasses import dataclass
from typing import Any, TypedDict
from uuid import UUID

import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace import Json, Msgpack, TopologyError
from headrace.record import JoinedBytes
from headrace.serde.api import Serde, serde_for
from headrace.serde.primitives import Bytes, Float, Int, Str, Uuid
from headrace.serde.tuples import Tuple


class Payment(msgspec.Struct):
    id: str
    total: float


@dataclass
class Visit:
    page: str
    seconds: int


class Row(TypedDict):
    name: str
    number: int


class Rider(pydantic.BaseModel):
    name: str
    number: int


longs = st.integers(-(2**63), 2**63 - 1)
plain = st.recursive(
    st.one_of(st.none(), st.booleans(), longs, st.floats(allow_nan=False), st.text()),
    lambda parts: st.one_of(st.lists(parts, max_size=3), st.dictionaries(st.text(), parts, max_size=3)),
    max_leaves=8,
)
payments = st.builds(Payment, st.text(), st.floats(allow_nan=False))
visits = st.builds(Visit, st.text(), longs)
riders = st.builds(Rider, name=st.text(), number=longs)
finite = st.floats(allow_nan=False, allow_infinity=False)

SERDES: list[tuple[Serde[Any], Any]] = [
    (Bytes(), st.binary()),
    (Str(), st.text()),
    (Int(), longs),
    (Float(), st.floats(allow_nan=False) | st.integers(-9, 9)),
    (Uuid(), st.uuids()),
    (Tuple(tuple[int, str, bytes, bool, UUID]), st.tuples(longs, st.text(), st.binary(), st.booleans(), st.uuids())),
    (Msgpack(), plain | st.binary()),
    (Msgpack(Payment), payments),
    (Msgpack(Visit), visits),
    (Msgpack(Row), st.fixed_dictionaries({"name": st.text(), "number": longs})),
    (Msgpack(Rider), riders),
    (Msgpack(list[Payment]), st.lists(payments, max_size=3)),
    (Json(), plain.filter(lambda v: "inf" not in repr(v))),
    (Json(Payment), st.builds(Payment, st.text(), finite)),
    (Json(Visit), visits),
    (Json(Row), st.fixed_dictionaries({"name": st.text(), "number": longs})),
    (Json(Rider), riders),
]
each = pytest.mark.parametrize(("serde", "values"), SERDES, ids=[serde.name for serde, _ in SERDES])


@each
@given(data=st.data())
def test_a_column_comes_back(serde: Serde[Any], values: Any, data: st.DataObject) -> None:
    column = data.draw(st.lists(st.none() | values, max_size=6))
    encoded = serde.encode_many(column)
    assert [value is None for value in encoded] == [value is None for value in column]
    assert serde.decode_many(JoinedBytes.of(encoded)) == column
    assert [serde.decode(value) for value in encoded] == column


@each
def test_nothing_stays_nothing(serde: Serde[Any], values: Any) -> None:
    assert serde.decode(None) is None
    assert serde.encode_many([]) == []
    assert serde.decode_many(JoinedBytes.of([])) == []
    assert serde.decode_many(JoinedBytes.of(serde.encode_many([None, None]))) == [None, None]


DAMAGED = [
    (Str(), b"\xffsecret"), (Int(), b"secret"), (Msgpack(), b"\xc1secret"), (Msgpack(), b""),
    (Msgpack(Payment), b"\x81\xa2id\x05"), (Msgpack(Payment), b"\xa6secret"), (Json(), b'{"secret'), (Json(), b""),
    (Float(), b"secret"), (Uuid(), b"secret"), (Uuid(), b"secret" * 6),
    (Uuid(), b"secret00-0000-0000-0000-000000000000"),
    (Tuple(tuple[str]), b"\x92\xa6secret\xa6secret"), (Tuple(tuple[str]), b"\x91\xc1secret"),
    (Tuple(tuple[str]), b""), (Uuid(), b"\xff" * 36), (Uuid(), b"00000000-00000000-0000-0000-00000000"),
    (Msgpack(Rider), b"\x81\xa4name\x05"), (Msgpack(Rider), b"\xa6secret"), (Msgpack(Rider), b"\xc1"),
    (Json(Rider), b'{"secret'), (Json(Rider), b'{"name": "secret", "number": "secret"}'), (Json(Rider), b""),
    (Json(Payment), b'{"id": "secret", "total": "secret"}'), (Msgpack(), b"\x01\x02"), (Json(), b"1 2"),
]  # fmt: skip


@pytest.mark.parametrize(("serde", "value"), DAMAGED)
def test_damaged_bytes_are_refused_and_not_shown(serde: Serde[Any], value: bytes) -> None:
    examples: dict[Any, Any] = {Int: 7, Float: 7, Uuid: UUID(int=7), Tuple: ("x",)}
    (good,) = serde.encode_many([examples.get(type(serde), "x")])
    with pytest.raises(Exception) as failed:  # noqa: PT011  # each serde has its own errors
        serde.decode(value)
    assert "secret" not in str(failed.value)
    for column in ([value], [good, value], [value, good]):
        with pytest.raises(type(failed.value)):
            serde.decode_many(JoinedBytes.of(column))


def test_an_empty_value_is_not_hidden_by_a_neighbour_that_holds_two() -> None:
    with pytest.raises(msgspec.DecodeError):
        Msgpack().decode_many(JoinedBytes.of([b"\x01\x02", b""]))


def test_whole_numbers_of_four_bytes_are_read() -> None:
    assert Int().decode(b"\xff\xff\xff\xfe") == -2


@pytest.mark.parametrize(
    ("serde", "value"),
    [
        (Str(), 5),
        (Str(), b"x"),
        (Bytes(), "x"),
        (Int(), "5"),
        (Int(), True),
        (Int(), 1.0),
        (Float(), "5"),
        (Float(), True),
        (Uuid(), "00000000-0000-0000-0000-000000000000"),
        (Tuple(tuple[str]), "x"),
        (Tuple(tuple[str]), ["x"]),
    ],
)
def test_values_of_another_type_are_refused(serde: Serde[Any], value: Any) -> None:
    with pytest.raises(TypeError, match="expected"):
        serde.encode_many([value])


@pytest.mark.parametrize("value", [("5", "a"), (5, b"a"), (5,), (5, "a", 0), (True, "a"), (5.0, "a"), (2**70, "a")])
def test_so_are_tuples_with_other_parts(value: Any) -> None:
    with pytest.raises((ValueError, OverflowError)):
        Tuple(tuple[int, str]).encode_many([(1, "a"), value])


@pytest.mark.parametrize("kind", [tuple, tuple[()], tuple[str, ...], tuple[str, float], tuple[str, list[str]]])
def test_tuples_whose_bytes_could_differ_are_not_taken(kind: Any) -> None:
    with pytest.raises(TypeError, match="its parts are not each one of str, int"):
        Tuple(kind)


def test_a_number_that_is_too_long_is_refused() -> None:
    with pytest.raises(ValueError, match="64 bits"):
        Int().encode_many([2**63])
    with pytest.raises(ValueError, match="a float can hold"):
        Float().encode_many([10**400])


KAFKA: list[tuple[Serde[Any], Any, bytes]] = [
    (Int(), 258, b"\0\0\0\0\0\0\x01\x02"),
    (Float(), -1.5, b"\xbf\xf8\0\0\0\0\0\0"),
    (Float(), 2, b"\x40\0\0\0\0\0\0\0"),
    (Uuid(), UUID("0e984725-c51c-4bf4-9960-e1c80e27aba0"), b"0e984725-c51c-4bf4-9960-e1c80e27aba0"),
]


@pytest.mark.parametrize(("serde", "value", "data"), KAFKA)
def test_the_bytes_are_those_of_kafkas_serializers(serde: Serde[Any], value: Any, data: bytes) -> None:
    assert serde.encode_many([value]) == [data]
    assert serde.decode(data) == value


def test_what_else_kafkas_serializers_write_is_read() -> None:
    assert Float().decode(b"\xbf\xc0\0\0") == -1.5
    assert Float().decode_many(JoinedBytes.of([b"\xbf\xc0\0\0", b"\xbf\xf8\0\0\0\0\0\0"])) == [-1.5, -1.5]
    assert Uuid().decode(b"0E984725-C51C-4BF4-9960-E1C80E27ABA0") == UUID("0e984725-c51c-4bf4-9960-e1c80e27aba0")


def test_numbers_that_equal_nothing_come_back() -> None:
    column = [float("nan"), float("inf"), -0.0]
    assert repr(Float().decode_many(JoinedBytes.of(Float().encode_many(column)))) == repr(column)


@pytest.mark.parametrize(
    ("given_", "name"),
    [(None, "msgpack"), (dict, "msgpack[dict]"), (bytes, "bytes"), (str, "str"), (int, "int"),
     (float, "float"), (UUID, "uuid"), (Rider, "msgpack[Rider]"), (Json(Rider), "json[Rider]"),
     (Json(list[Payment] | None), "json[list"),
     (Payment, "msgpack[Payment]"), (Visit, "msgpack[Visit]"), (Row, "msgpack[Row]"),
     (Json(Payment), "json[Payment]"), (Str(), "str")],
)  # fmt: skip
def test_what_a_type_means(given_: Any, name: str) -> None:
    assert serde_for(given_, "value").name.startswith(name)


class Custom:
    def __init__(self, number: int) -> None:
        self.number = number


@pytest.mark.parametrize("wrong", [5, "Payment", Payment("a", 1.0), [Payment], Custom, Rider(name="a", number=1)])
def test_what_means_nothing_is_refused(wrong: Any) -> None:
    with pytest.raises(TopologyError, match=r"value of stream\('x'\)"):
        serde_for(wrong, "value of stream('x')")
