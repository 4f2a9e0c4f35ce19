"""Protobuf: Confluent's frame byte for byte, equal bytes for equal messages, and what is refused."""

import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace import Protobuf, TopologyError
from headrace.record import JoinedBytes
from headrace.serde.evolution import unreadable
from headrace.serde.msgpack import Msgpack
from headrace.serde.schema import schema_of
from tests.serde.messages import Empty, Field, Line, Order, classes, make_pool

text = st.text(st.characters(codec="utf-8"), max_size=8)
lines = st.builds(Line, article=text, amount=st.integers(-(2**31), 2**31 - 1))
orders = st.builds(
    Order, id=text, total=st.floats(allow_nan=False), lines=st.lists(lines, max_size=3),
    tags=st.dictionaries(text, st.integers(-(2**63), 2**63 - 1), max_size=3),
)  # fmt: skip

SERDES: list[Any] = [Protobuf(Order), Protobuf(Order, wire="confluent", schema_id=7)]


@pytest.mark.parametrize("serde", SERDES, ids=lambda serde: serde.name)
@given(column=st.lists(st.none() | orders, max_size=5))
def test_a_column_comes_back(serde: Any, column: list[Any]) -> None:
    encoded = serde.encode_many(column)
    assert serde.decode_many(JoinedBytes.of(encoded)) == column
    assert [serde.decode(value) for value in encoded] == column
    internal = serde.internal
    assert internal.decode_many(JoinedBytes.of(internal.encode_many(column))) == column


@given(tags=st.dictionaries(text, st.integers(0, 9), min_size=2))
def test_equal_messages_are_equal_bytes(tags: dict[str, int]) -> None:
    one, other = Order(tags=tags), Order(tags=dict(reversed(tags.items())))
    assert Protobuf(Order).encode_many([one]) == Protobuf(Order).encode_many([other])


GOLDEN = [
    (Order(id="a", total=1.0), b"\n\x01a\x11\x00\x00\x00\x00\x00\x00\xf0?", b"\x00\x00\x00\x01\x02\x02\x02"),
    (Empty(), b"", b"\x00\x00\x00\x01\x02\x00"),
    (Line(article="b"), b"\n\x01b", b"\x00\x00\x00\x01\x02\x04\x02\x00"),
]


@pytest.mark.parametrize(("message", "body", "header"), GOLDEN)
def test_the_bytes_are_those_of_confluent(message: Any, body: bytes, header: bytes) -> None:
    framed: Any = Protobuf(type(message), wire="confluent", schema_id=258)
    assert Protobuf(type(message)).encode_many([message]) == [body]
    assert framed.encode_many([message]) == [header + body]
    assert framed.decode(header + body) == message


def test_the_first_message_of_a_file_may_say_so_in_full() -> None:
    assert Protobuf(Empty, wire="confluent").decode(b"\x00\x00\x00\x00\x01\x02\x00") == Empty()


DAMAGED = [
    (SERDES[0], b"\x0a\x7fsecret"),
    (SERDES[0], b"\x0a\x02\xff\xff"),
    (SERDES[1], b""),
    (SERDES[1], b"\x00\x00\x00"),
    (SERDES[1], b"\x01\x00\x00\x00\x07\x02\x02"),
    (SERDES[1], b"\x00\x00\x00\x00\x07\x02\x04secret"),
    (SERDES[1], b"\x00\x00\x00\x00\x07\x02\x02\x0a\x7fsecret"),
]


@pytest.mark.parametrize(("serde", "value"), DAMAGED)
def test_damaged_bytes_are_refused_and_not_shown(serde: Any, value: bytes) -> None:
    with pytest.raises(ValueError, match=r"Order|confluent") as failed:
        serde.decode(value)
    assert "secret" not in str(failed.value)
    with pytest.raises(ValueError, match=r"Order|confluent"):
        serde.decode_many(JoinedBytes.of([value]))


def test_other_values_are_refused() -> None:
    with pytest.raises(TypeError, match="expected Order, got dict"):
        SERDES[0].encode_many([{"id": "a"}])
    with pytest.raises(TypeError, match="expected Order, got Line"):
        SERDES[0].encode_many([Line()])


@pytest.mark.parametrize(
    ("arguments", "options", "said"),
    [
        ((dict,), {}, "message class"),
        ((Order(),), {}, "message class"),
        ((Order,), {"wire": "framed"}, "must be"),
        ((Order,), {"schema_id": 3}, 'Add wire="confluent"'),
        ((Order,), {"wire": "confluent", "schema_id": -1}, "32 bits"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: Any, options: Any, said: str) -> None:
    with pytest.raises(TopologyError, match=said):
        Protobuf(*arguments, **options)


def test_without_an_id_confluent_messages_can_only_be_read() -> None:
    serde = Protobuf(Order, wire="confluent")
    assert "schema_id=" in serde.unwritable
    with pytest.raises(TopologyError, match="schema_id="):
        serde.encode_many([Order()])


def test_a_message_may_stand_in_messagepack() -> None:
    serde = Msgpack(tuple[int, Order])
    row = (1, Order(id="a", lines=[Line(amount=2)]))
    assert serde.decode(serde.encode_many([row])[0]) == row


def test_the_schema_is_that_of_the_numbers() -> None:
    again = classes(make_pool())[1]
    other = classes(make_pool(text=Field.TYPE_BYTES))[1]
    assert schema_of(Protobuf(again)) == schema_of(Protobuf(Order)) == schema_of(Order)
    assert unreadable(schema_of(Order), schema_of(other)) == ["field 'id' is of another type"]


def test_without_protobuf_it_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['google.protobuf.message'] = None\n"
        "from headrace import Protobuf, TopologyError\n"
        "try: Protobuf(dict)\n"
        "except TopologyError as error: print(error)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert 'pip install "headrace[protobuf]"' in said
