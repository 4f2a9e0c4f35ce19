"""Bytes that other systems write: values and headers that make no sense fail alone, whatever stands in them."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Any
from uuid import UUID

import msgspec
import pydantic
import pytest
from hypothesis import given

from headrace import Topology
from headrace.checkpoint.manifest import FileRef, Manifest
from headrace.checkpoint.manifest import decode as decode_manifest
from headrace.checkpoint.manifest import encode as encode_manifest
from headrace.cli.letters import Done, Letter
from headrace.errors import CorruptError, FatalError, InvalidError, RecordError
from headrace.log.api import Committed
from headrace.operators.sketches import Digest, Distinct
from headrace.record import JoinedBytes
from headrace.runtime.tasks.failures import ATTEMPT_HEADER, LETTER_HEADERS
from headrace.serde.avro import Avro
from headrace.serde.json import Json
from headrace.serde.msgpack import Msgpack
from headrace.serde.primitives import Float, Int, Str, Uuid
from headrace.serde.protobuf import Protobuf
from headrace.serde.tuples import Tuple
from headrace.testing.driver import TopologyTestDriver
from tests.fuzz.damage import damaged, examples, outcome, seeds, within
from tests.serde.messages import Line, Order


class Payment(msgspec.Struct):
    customer: str
    total: float
    tags: dict[str, list[int]] = {}


@dataclass
class Click:
    page: str
    at: int | None


class Model(pydantic.BaseModel):
    name: str
    numbers: list[int]


PAYMENT: Any = {"customer": "ann", "total": 9.5, "tags": {"a": [1, 2]}, "price": None}
SCHEMA = {
    "type": "record", "name": "Payment", "fields": [
        {"name": "customer", "type": "string"}, {"name": "total", "type": "double"},
        {"name": "tags", "type": {"type": "map", "values": {"type": "array", "items": "long"}}},
        {"name": "at", "type": ["null", {"type": "long", "logicalType": "timestamp-millis"}], "default": None},
        {"name": "price", "type": ["null", {"type": "bytes", "logicalType": "decimal", "precision": 9}]},
        {"name": "next", "type": ["null", "Payment"], "default": None},
    ],
}  # fmt: skip
ORDER = Order(id="a", total=1.5, lines=[Line(article="b", amount=3)], tags={"x": 9})
SERDES: list[tuple[Any, list[Any]]] = [
    (Msgpack(), [PAYMENT, [1, None, "x"], 5, b"bytes", 1.5]), (Msgpack(Payment), [Payment("ann", 9.5, {"a": [1]})]),
    (Msgpack(Click), [Click("/", 5)]), (Msgpack(Model), [Model(name="x", numbers=[1, 2])]),
    (Json(), [PAYMENT, [1, None, "x"]]), (Json(Payment), [Payment("ann", 9.5, {})]),
    (Json(Model), [Model(name="x", numbers=[1])]), (Str(), ["text", "\u00fc"]), (Int(), [5, -1]), (Float(), [1.5]),
    (Uuid(), [UUID(int=5)]), (Tuple(tuple[str, int, UUID]), [("a", 5, UUID(int=7))]),
    (Avro(SCHEMA), [PAYMENT]), (Avro(SCHEMA, wire="confluent", schema_id=7), [PAYMENT]),
    (Protobuf(Order), [ORDER]), (Protobuf(Order, wire="confluent", schema_id=7), [ORDER]),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(SERDES)), ids=[f"{i}-{serde.name}" for i, (serde, _) in enumerate(SERDES)])
@examples(150)
@given(rng=seeds)
def test_a_value_is_read_or_refused(number: int, rng: Random) -> None:
    serde, values = SERDES[number]
    good = serde.encode_many(values)
    data = damaged(rng, rng.choice(good), good)
    with within(5):
        found, told = outcome(lambda: serde.decode(data), Exception)
        assert "MemoryError" not in told
        if not told:
            assert repr(serde.decode_many(JoinedBytes.of([data, good[0]]))[0]) == repr(found)


@examples(60)
@given(seeds)
def test_bad_values_and_headers_in_a_topology_are_skipped_or_kept_and_nothing_else(rng: Random) -> None:
    topology = Topology("fuzzed", on_error=rng.choice(["skip", "dead-letter"]))
    serde = rng.choice([None, Payment, Json(), Json(Payment), Avro(SCHEMA), Protobuf(Order)])
    topology.stream("in", value=serde).map(lambda value: "x").to("out", value=str)
    driver = TopologyTestDriver(topology)
    good: Any = Msgpack().encode_many([PAYMENT]) + Json().encode_many([PAYMENT]) + Avro(SCHEMA).encode_many([PAYMENT])
    (place,) = [place for place in driver._sent if place.topic == "in"]
    sent = driver._sent[place]
    for _ in range(9):
        sent.values.append(None if rng.random() < 0.05 else damaged(rng, rng.choice(good), good))
        sent.timestamps.append(rng.choice([0, 5, -1, 2**63 - 1, -(2**63), 10**12]))
        sent.keys.append(rng.choice([None, b"", b"k"]))
        name = rng.choice([ATTEMPT_HEADER, "x", *sorted(LETTER_HEADERS)])
        sent.headers.append(((name, rng.choice([b"7", b"9" * 5000, b"\xb2", b"-1", rng.randbytes(4)])),))
    with within(10):
        driver._settle()
    assert len(driver.read("out")) + sum(driver.skipped.values()) + sum(driver.dead_letters.values()) == 9


@examples(400)
@given(seeds)
def test_a_manifest_is_what_was_written_or_damaged(rng: Random) -> None:
    good = [
        encode_manifest(Manifest("t", f"in-{n}", n, n, 5, (FileRef("a", "t/in/files/1-ab", 5, "ab"),) * n, {"in/0": n}))
        for n in range(3)
    ]
    data = damaged(rng, rng.choice(good), good)
    with within(5):
        found, told = outcome(lambda: decode_manifest(data, "here"), CorruptError, FatalError, InvalidError)
    assert "here" in told if told else encode_manifest(found) in good


@examples(200)
@given(seeds)
def test_the_headers_of_a_dead_letter_say_something_or_nothing(rng: Random) -> None:
    strange = [b"9" * 5000, b"\xc2\xb2", b"-5", b"", b"7", "\u0663".encode(), rng.randbytes(6), b"\xff"]
    letter = Letter(0, 1, 2, None, None, tuple((name, rng.choice(strange)) for name in sorted(LETTER_HEADERS)))
    assert letter.attempt.isdecimal()
    assert letter.source is None or letter.source.partition >= 0
    assert letter.place
    assert letter.source_offset is None or int(letter.source_offset) >= 0
    assert letter.own_headers()


@examples(200)
@given(seeds)
def test_what_a_replay_committed_is_read_or_damaged(rng: Random) -> None:
    data = damaged(rng, b"1 5-7 9 12-99", [b"1", b"2 4", b"1 3"])
    try:
        Done.parse(Committed(4, data.decode(errors="replace")))
    except CorruptError:
        pass


@pytest.mark.parametrize("kind", [Distinct, Digest])
@examples(150)
@given(rng=seeds)
def test_a_sketch_never_reaches_the_library_damaged(kind: Any, rng: Random) -> None:
    good = _SKETCHES[kind]
    data = damaged(rng, rng.choice(good), good)
    if data[:1] == b"\x01":
        return  # version 1 had no checksum
    try:
        found = kind.from_bytes(data)
    except ValueError:
        return
    # The library may write the same sketch in another order.
    assert any(data.startswith(whole) or data == whole for whole in good), found


def _sketches() -> dict[Any, list[bytes]]:
    import datasketches

    distinct, digest = [], []
    for count in (1, 30, 3000):
        one = Distinct(datasketches.hll_sketch(10, datasketches.tgt_hll_type.HLL_4))
        other = Digest(datasketches.tdigest_double(50), [])
        for n in range(count):
            one.add(n)
            other.add(float(n))
        distinct.append(one.to_bytes())
        digest.append(other.to_bytes())
    return {Distinct: distinct, Digest: digest}


_SKETCHES = _sketches()


def test_a_record_error_is_no_crash() -> None:
    topology = Topology("stops")
    topology.stream("in").to("out")
    driver = TopologyTestDriver(topology)
    (place,) = [place for place in driver._sent if place.topic == "in"]
    sent = driver._sent[place]
    sent.values, sent.timestamps, sent.keys, sent.headers = [b"\x91" * 100_000], [5], [None], [()]
    with pytest.raises(RecordError):
        driver._settle()
