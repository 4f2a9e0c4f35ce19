"""Avro: plain and Confluent's frame, schemas from everywhere, resolution, and what is refused."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypedDict
from uuid import UUID

import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace import Avro, RetriableError, SchemaRegistry, SettingsError, TopologyError
from headrace.record import JoinedBytes
from headrace.serde.evolution import unreadable
from headrace.serde.schema import schema_of

ORDER = {
    "type": "record", "name": "Order", "namespace": "shop",
    "fields": [
        {"name": "id", "type": "string"},
        {"name": "total", "type": "double"},
        {"name": "lines", "type": {"type": "array", "items": "long"}},
        {"name": "note", "type": ["null", "string"], "default": None},
    ],
}  # fmt: skip
OLD = {"type": "record", "name": "Order", "namespace": "shop",
       "fields": [{"name": "id", "type": "string"}, {"name": "total", "type": "int"}]}  # fmt: skip
READER = {**ORDER, "fields": [field if field["name"] != "lines" else {**field, "default": []}
                              for field in ORDER["fields"]]}  # type: ignore[index]  # fmt: skip


class Order(msgspec.Struct):
    id: str
    total: float
    lines: list[int]
    note: str | None = None


@dataclass
class OrderData:
    id: str
    total: float
    lines: list[int]
    note: str | None = None


class OrderDict(TypedDict):
    id: str
    total: float
    lines: list[int]
    note: str | None


class OrderModel(pydantic.BaseModel):
    id: str
    total: float
    lines: list[int]
    note: str | None = None


fields = {
    "id": st.text(), "total": st.floats(allow_nan=False), "lines": st.lists(st.integers(-(2**63), 2**63 - 1)),
    "note": st.none() | st.text(),
}  # fmt: skip
SERDES: list[tuple[Any, Any]] = [
    (Avro(ORDER), st.fixed_dictionaries(fields)),
    (Avro(json.dumps(ORDER), wire="confluent", schema_id=9), st.fixed_dictionaries(fields)),
    (Avro(ORDER, Order), st.builds(Order, **fields)),
    (Avro(ORDER, OrderData), st.builds(OrderData, **fields)),
    (Avro(ORDER, OrderDict), st.fixed_dictionaries(fields)),
    (Avro(ORDER, OrderModel), st.builds(OrderModel, **fields)),
    (Avro("long"), st.integers(-(2**63), 2**63 - 1)),
    (Avro('"bytes"'), st.binary()),
]


@pytest.mark.parametrize(("serde", "values"), SERDES, ids=[serde.name for serde, _ in SERDES])
@given(data=st.data())
def test_a_column_comes_back(serde: Any, values: Any, data: st.DataObject) -> None:
    column = data.draw(st.lists(st.none() | values, max_size=5))
    encoded = serde.encode_many(column)
    assert [value is None for value in encoded] == [value is None for value in column]
    assert serde.decode_many(JoinedBytes.of(encoded)) == column
    assert [serde.decode(value) for value in encoded] == column
    internal = serde.internal
    assert internal.decode_many(JoinedBytes.of(internal.encode_many(column))) == column


ROW = {"id": "a", "total": 1.5, "lines": [1, -1], "note": None}
BODY = b"\x02a\x00\x00\x00\x00\x00\x00\xf8?\x04\x02\x01\x00\x00"


def test_the_bytes_are_those_of_avro_and_confluent() -> None:
    assert Avro(ORDER).encode_many([ROW]) == [BODY]
    assert Avro(ORDER, wire="confluent", schema_id=258).encode_many([ROW]) == [b"\x00\x00\x00\x01\x02" + BODY]


def test_logical_types_are_objects() -> None:
    schema = {"type": "record", "name": "R", "fields": [
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        {"name": "uuid", "type": {"type": "string", "logicalType": "uuid"}},
        {"name": "price", "type": {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2}},
    ]}  # fmt: skip

    class Row(msgspec.Struct):
        at: datetime
        uuid: UUID
        price: Decimal

    row = {"at": datetime(2024, 1, 2, tzinfo=UTC), "uuid": UUID(int=7), "price": Decimal("1.25")}
    (data,) = Avro(schema).encode_many([row])
    assert Avro(schema).decode(data) == row
    assert Avro(schema, Row).decode(data) == Row(**row)  # type: ignore[arg-type]
    assert Avro(schema, Row).encode_many([Row(**row)]) == [data]  # type: ignore[arg-type]


def test_a_file_and_the_files_it_refers_to(tmp_path: Path) -> None:
    (tmp_path / "shop.Line.avsc").write_text('{"type": "record", "name": "shop.Line", "fields": []}')
    outer = {"type": "record", "name": "shop.Cart", "fields": [{"name": "line", "type": "shop.Line"}]}
    path = tmp_path / "shop.Cart.avsc"
    path.write_text(json.dumps(outer))
    for given_ in (path, str(path)):
        assert Avro(given_).decode(b"") == {"line": {}}


def test_old_values_are_read_by_their_writers_schema() -> None:
    registry = {1: OLD, 2: json.dumps(ORDER)}
    serde = Avro(READER, OrderModel, wire="confluent", registry=registry, schema_id=3)
    old = b"\0\0\0\0\x01" + b"\x02a\x04"
    new = b"\0\0\0\0\x02" + BODY
    assert serde.decode_many(JoinedBytes.of([old, None, new])) == [
        OrderModel(id="a", total=2.0, lines=[]), None, OrderModel(id="a", total=1.5, lines=[1, -1]),
    ]  # fmt: skip
    assert Avro(wire="confluent", registry=registry).decode(old) == {"id": "a", "total": 2}
    assert serde.decode(serde.encode_many([OrderModel(id="a", total=1, lines=[])])[0]).total == 1


def test_an_unknown_id_is_the_records_fault() -> None:
    with pytest.raises(ValueError, match="schema id 5"):
        Avro(ORDER, wire="confluent", registry={1: OLD}).decode(b"\0\0\0\0\x05" + BODY)
    with pytest.raises(ValueError, match="schema id 5"):
        Avro(ORDER, wire="confluent", schema_id=1).decode(b"\0\0\0\0\x05" + BODY)


DAMAGED = [
    (Avro(ORDER), b""), (Avro(ORDER), b"\x7fsecret"), (Avro(ORDER), b"\x02\xff" + BODY[2:]),
    (Avro(ORDER), BODY + b"secret"), (Avro(ORDER), BODY[:-1] + b"\x09"), (Avro(ORDER, Order), BODY[:-1]),
    (Avro(ORDER, wire="confluent", schema_id=1), BODY), (Avro(ORDER, wire="confluent", schema_id=1), b"\0\0"),
    (Avro("string"), b"\x0csecre"),
]  # fmt: skip


@pytest.mark.parametrize(("serde", "value"), DAMAGED)
def test_damaged_bytes_are_refused_and_not_shown(serde: Any, value: bytes) -> None:
    with pytest.raises(ValueError, match=r"Avro schema|confluent") as failed:
        serde.decode(value)
    assert "secret" not in str(failed.value)
    for column in ([value], [None, value], [value, value]):
        with pytest.raises(ValueError, match=r"Avro schema|confluent"):
            serde.decode_many(JoinedBytes.of(column))


@given(st.binary(max_size=40))
def test_random_bytes_are_read_or_refused(value: bytes) -> None:
    try:
        found = Avro(ORDER).decode(value)
    except ValueError:
        return
    assert found.keys() == ROW.keys()


def test_a_type_that_does_not_fit_says_where() -> None:
    class Other(msgspec.Struct):
        id: int

    with pytest.raises(msgspec.ValidationError, match=r"Expected `int`, got `str` - at `\$.id`"):
        Avro(ORDER, Other).decode(BODY)

    class Model(pydantic.BaseModel):
        id: int

    for read in (lambda: Avro(ORDER, Model).decode(b"\x0csecret" + BODY[2:]),
                 lambda: Avro(ORDER, Model).decode_many(JoinedBytes.of([b"\x0csecret" + BODY[2:]]))):  # fmt: skip
        with pytest.raises(ValueError, match=r"not a Model: id \(int_parsing\)$"):
            read()


@pytest.mark.parametrize("wrong", [{"id": "secret"}, {**ROW, "total": "secret"}, {**ROW, "note": 5}, 5, "secret"])
def test_values_that_do_not_fit_are_refused_and_not_shown(wrong: Any) -> None:
    with pytest.raises(ValueError, match="not a value of the Avro schema") as failed:
        Avro(ORDER).encode_many([wrong])
    assert "secret" not in str(failed.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "needs a schema"),
        ({"schema": {"type": "nothing"}}, "no Avro schema"),
        ({"schema": "{"}, "cannot be read"),
        ({"schema": "absent.avsc"}, "cannot be read"),
        ({"schema": 5}, "no Avro schema"),
        ({"schema": "string", "wire": "framed"}, "must be"),
        ({"schema": "string", "schema_id": 5}, 'Add wire="confluent"'),
        ({"schema": "string", "registry": {}}, 'needs wire="confluent"'),
        ({"schema": "string", "wire": "confluent"}, "needs registry="),
        ({"schema": "string", "wire": "confluent", "registry": "http://x"}, "must be a mapping"),
        ({"schema": "string", "wire": "confluent", "schema_id": True}, "32 bits"),
        ({"wire": "confluent", "schema_id": 5}, "no schema"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(TopologyError, match=said):
        Avro(**options)


def test_what_can_only_be_read_says_so() -> None:
    for serde in (Avro(ORDER, wire="confluent", registry={}), Avro(wire="confluent", registry={})):
        assert serde.unwritable
        with pytest.raises(TopologyError, match=serde.unwritable):
            serde.encode_many([ROW])


def test_the_description_is_that_of_the_schema_and_the_type() -> None:
    documented = {**ORDER, "doc": "An order."}
    assert schema_of(Avro(documented, Order)) == schema_of(Avro(ORDER, OrderData))
    assert unreadable(schema_of(Avro(OLD)), schema_of(Avro(ORDER))) == ["it has another Avro schema"]
    assert unreadable(schema_of(Avro(ORDER, Order)), schema_of(Avro(documented))) == []
    assert json.loads(json.dumps(schema_of(Avro(ORDER, Order)))) == schema_of(Avro(ORDER, Order))


ANSWERS: dict[str, tuple[int, Any]] = {
    "/schemas/ids/1": (200, {"schema": json.dumps(OLD)}),
    "/schemas/ids/2": (200, {
        "schema": '{"type": "record", "name": "Cart", "fields": [{"name": "order", "type": "shop.Order"}]}',
        "schemaType": "AVRO", "references": [{"name": "shop.Order", "subject": "a/b", "version": 3}],
    }),
    "/subjects/a%2Fb/versions/3": (200, {"schema": json.dumps(OLD), "version": 3}),
    "/schemas/ids/3": (200, {"schema": "syntax", "schemaType": "PROTOBUF"}),
    "/schemas/ids/4": (500, {}),
    "/schemas/ids/5": (401, {}),
    "/schemas/ids/6": (200, []),
    "/schemas/ids/7": (200, None),
}  # fmt: skip


@pytest.fixture
def registry() -> Iterator[tuple[str, list[Any]]]:
    """Yield the address of a registry and the requests that it got."""
    requests: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append((self.path, self.headers.get("Authorization")))
            status, answer = ANSWERS.get(self.path, (404, {}))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(b"{" if answer is None else json.dumps(answer).encode())

        def log_message(self, *args: Any) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", requests
        server.shutdown()
        thread.join()


def test_a_schema_is_fetched_once(registry: tuple[str, list[Any]]) -> None:
    url, requests = registry
    serde = Avro(READER, Order, wire="confluent", registry=SchemaRegistry(url + "/", auth=("me", "word")))
    old = b"\0\0\0\0\x01\x02a\x04"
    assert serde.decode_many(JoinedBytes.of([old, old])) == [Order("a", 2.0, [])] * 2
    assert requests == [("/schemas/ids/1", "Basic bWU6d29yZA==")]


def test_a_schema_that_refers_to_others(registry: tuple[str, list[Any]]) -> None:
    serde = Avro(wire="confluent", registry=SchemaRegistry(registry[0]))
    assert serde.decode(b"\0\0\0\0\x02\x02a\x04") == {"order": {"id": "a", "total": 2}}


@pytest.mark.parametrize(
    ("schema_id", "error", "said"),
    [(3, ValueError, "not an Avro schema"), (4, RetriableError, "answered 500"), (5, RetriableError, "Check auth="),
     (6, RetriableError, "without a schema"), (7, RetriableError, "cannot be read"), (8, ValueError, "/schemas/ids/8")],
)  # fmt: skip
def test_whose_fault_it_is(registry: tuple[str, list[Any]], schema_id: int, error: Any, said: str) -> None:
    serde = Avro(wire="confluent", registry=SchemaRegistry(registry[0], auth=("me", "secret")))
    with pytest.raises(error, match=said) as failed:
        serde.decode(b"\0\0\0\0" + bytes([schema_id]))
    assert "secret" not in str(failed.value)


def test_a_registry_that_is_not_there_may_come_back() -> None:
    with pytest.raises(RetriableError, match="cannot be read"):
        SchemaRegistry("http://127.0.0.1:1", timeout="1s").avro(1)


@pytest.mark.parametrize(
    "options", [{"url": "registry:8081"}, {"url": "ftp://x"}, {"url": "http://me:word@x"},
                {"url": "http://x", "timeout": "0s"}, {"url": "http://x", "timeout": "soon"}],
)  # fmt: skip
def test_an_address_that_is_none_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match="SchemaRegistry") as failed:
        SchemaRegistry(**options)
    assert "word" not in str(failed.value).split("Give")[0].replace("password", "")


def test_without_fastavro_it_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['fastavro'] = None\n"
        "from headrace import Avro, TopologyError\n"
        "try: Avro('string')\n"
        "except TopologyError as error: print(error)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert 'pip install "headrace[avro]"' in said
