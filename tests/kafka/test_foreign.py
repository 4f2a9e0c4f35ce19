"""Topics and groups that headrace shares with a client of another make, and with Kafka's own tools."""

from __future__ import annotations

import json
import random
import re
import subprocess
from collections.abc import Iterator
from contextlib import closing
from itertools import chain

import msgspec
import pytest

from headrace.clock import SystemClock
from headrace.log.kafka.keys import java_hash
from headrace.log.kafka.log import KafkaLog
from headrace.log.kafka.options import KafkaOptions
from headrace.record import ID_HEADER, JoinedBytes, RecordBatch, TopicPartition
from headrace.serde.primitives import Int
from headrace.testing.conformance.log_support import make_batch, read_all, until
from tests.e2e.harness import HEADRACE, kill_all, wait_for
from tests.e2e.small import found as environment
from tests.e2e.small import module
from tests.kafka import foreign
from tests.kafka.clean import wipe
from tests.kafka.foreign import Row, java
from tests.kafka.site import KafkaSite

PART = TopicPartition("payments", 0)
NOW_MS = 1_700_000_000_000
ROWS = [
    Row(b"k", b"v", NOW_MS, 0, [("h", b"1"), ("h", b"2"), ("empty", b""), ("\u00fc", b"\xff\x00")]),
    Row(None, b"no key", NOW_MS - 1, 0),
    Row(b"gone", None, NOW_MS + 5, 0),
    Row(b"", b"", 1, 0),
    Row(None, None, 2, 0, [("only", b"headers")]),
    Row(b"\x00" * 300, b"x" * 70_000, NOW_MS + 1, 0),
]


@pytest.fixture
def log(kafka: str) -> Iterator[KafkaLog]:
    """Yield a log with the topic ``payments`` of one partition."""
    wipe(kafka)
    log = KafkaLog(f"kafka://{kafka}", clock=SystemClock())
    log.create_topic("payments", 1)
    yield log
    log.close()


def seen(log: KafkaLog, part: TopicPartition = PART):
    """Return what headrace reads: offset, timestamp, key, value and headers of each record."""
    with closing(log.reader(part, 0)) as reader:
        return [
            (record.offset, record.timestamp, record.key, record.value, list(map(tuple, record.headers)))
            for batch in read_all(reader)
            for record in batch.records(*part)
        ]


def seen_by_the_other(kafka: str, topic: str):
    """Return the same as the other client reads it."""
    return [
        (m.offset(), m.timestamp()[1], m.key(), m.value(), [(name, value or b"") for name, value in m.headers() or ()])
        for m in foreign.read(kafka, topic)
    ]


@pytest.mark.parametrize("codec", ["none", "gzip", "snappy", "lz4", "zstd"])
def test_what_it_writes_is_read(kafka: str, log: KafkaLog, codec: str) -> None:
    foreign.write(kafka, "payments", ROWS, compression_type=codec)
    expected = [(i, row.timestamp, row.key, row.value, row.headers) for i, row in enumerate(ROWS)]
    assert seen(log) == expected == seen_by_the_other(kafka, "payments")


def test_its_transactions_count_when_they_are_committed(kafka: str, log: KafkaLog) -> None:
    """Also where records of several producers lie between, and the marks leave gaps."""
    good, bad, plain = ([Row(b"k", value, 1, 0)] * 3 for value in (b"good", b"bad", b"plain"))
    for _ in range(2):
        foreign.transact(kafka, "payments", [good, good], commit=True)
        foreign.transact(kafka, "payments", [bad, bad], commit=False)
        foreign.write(kafka, "payments", plain, compression_type="lz4")
    until(lambda: log.end_offset(PART) == 2 * (4 + 4 + 4 + 4 + 3))
    got = seen(log)
    assert [row[3] for row in got] == [*[b"good"] * 6, *[b"plain"] * 3] * 2
    assert got == seen_by_the_other(kafka, "payments")


def test_the_brokers_time_is_the_records(kafka: str, log: KafkaLog) -> None:
    """Where the topic says so, whatever the producers say."""
    foreign.take_brokers_time(kafka, "payments")
    begun_ms = SystemClock().now_ms()
    foreign.write(kafka, "payments", ROWS)
    log.append(PART, make_batch([b"ours"]))
    times = [row[1] for row in seen(log)]
    assert times == [row[1] for row in seen_by_the_other(kafka, "payments")]
    assert all(begun_ms - 1000 <= at <= SystemClock().now_ms() + 1000 for at in times)


@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_what_headrace_writes_is_read(kafka: str, codec: str, log: KafkaLog) -> None:
    batch = RecordBatch(
        [row.timestamp for row in ROWS], [row.key for row in ROWS], JoinedBytes.of([row.value for row in ROWS]),
        [tuple((name, value or b"") for name, value in row.headers) for row in ROWS],
    )  # fmt: skip
    with closing(KafkaLog(log.url, clock=SystemClock(), options=KafkaOptions(compression=codec))) as writer:
        writer.append(PART, batch)
        writer.send(PART, batch)
        writer.flush()
    expected = [(i, row.timestamp, row.key, row.value, row.headers) for i, row in enumerate([*ROWS, *ROWS])]
    assert seen_by_the_other(kafka, "payments") == expected


def some_keys() -> list[bytes]:
    """Return bytes of every length up to 64, text, and numbers as they are written by default."""
    rng = random.Random(3)
    texts = ["k\u00fcnde", "\u5ba2\u6237-7", "\U0001f600" * 3, "a\u0000b", " ", "customer-1"]
    numbers = [0, 1, -1, -2, 255, -129, 2**31, -(2**31) - 1, 2**63 - 1, -(2**63)]
    return [
        *(rng.randbytes(length) for length in range(65) for _ in range(3)),
        *(bytes([255]) * length for length in range(1, 9)),
        *(text.encode() for text in texts),
        *(key for key in Int().encode_many(numbers) if key is not None),
    ]


def test_each_key_lies_where_it_puts_it(kafka: str, log: KafkaLog) -> None:
    log.create_topic("wide", 48)
    keys = some_keys()
    written = foreign.write(kafka, "wide", [Row(key, b"v") for key in keys])
    assert [place.partition for place in written] == [log.hash_key(key) % 48 for key in keys]


def test_each_key_lies_where_java_puts_it(kafka: str, log: KafkaLog) -> None:
    log.create_topic("wide", 48)
    keys = ["k\u00fcnde", "\u5ba2\u6237-7", *(f"customer-{i}" for i in range(200))]
    java(
        "ConsoleProducer", "--bootstrap-server", kafka, "--topic", "wide", "--property", "parse.key=true", "--property",
        "key.separator=:", stdin="".join(f"{key}:v\n" for key in keys),
    )  # fmt: skip
    found = {(m.key().decode(), m.partition()) for m in foreign.read(kafka, "wide")}
    assert found == {(key, log.hash_key(key.encode()) % 48) for key in keys}


def test_what_the_command_produces(kafka: str, site: KafkaSite) -> None:
    """Keys lie where the other client puts them, and times and values are what was said."""
    lines = [{"k": f"customer-{i}", "n": i, "at": NOW_MS + i} for i in range(200)]
    subprocess.run(
        [HEADRACE, "produce", "lines", "--key", "k", "--time", "at", "--partitions", "5", "--value-serde", "json"],
        env=site.environment(), input="".join(json.dumps(line) + "\n" for line in lines), text=True, check=True,
    )  # fmt: skip
    found = list(foreign.read(kafka, "lines"))
    assert sorted((json.loads(m.value()) for m in found), key=lambda line: line["n"]) == lines
    assert all((m.key().decode(), m.timestamp()) == ((v := json.loads(m.value()))["k"], (1, v["at"])) for m in found)
    ours = {m.key(): m.partition() for m in found}
    theirs = foreign.write(kafka, "lines", [Row(key, b"v") for key in ours])
    assert [place.partition for place in theirs] == list(ours.values())


def test_repeats_of_a_result_can_be_told_by_its_id(kafka: str, site: KafkaSite) -> None:
    """Whoever keeps the ids that it has seen, which are the same each time, sees each result once."""
    encode = msgspec.msgpack.encode
    lines = [
        {"transaction_id": f"t{i}", "customer_id": f"c{i % 7}", "total": 1.5, "at": NOW_MS + i} for i in range(100)
    ]
    with closing(site.open()) as log:
        log.create_topic("payments", 3)
    rows = [Row(line["customer_id"].encode(), encode(line), line["at"]) for line in lines]
    # By its own hash: where a topic meets no other, any will do that keeps the records of a key together.
    places = foreign.write(kafka, "payments", rows, partitioner="consistent_random")
    assert any(place.partition != java_hash(row.key) % 3 for place, row in zip(places, rows, strict=True))
    for group in ("once", "again"):  # which begins where the first one did
        site.run("run", "topologies.card_spend", "--until-end", "--group", group)
    found = list(foreign.read(kafka, "spend-per-minute"))
    assert all([name for name, _ in m.headers()] == [ID_HEADER] for m in found)
    ids = [dict(m.headers())[ID_HEADER] for m in found]
    assert len(ids) == 2 * len(set(ids)) == 14
    by_id = {id_: (m.partition(), m.key(), m.value(), m.timestamp()) for id_, m in zip(ids, found, strict=True)}
    assert all(by_id[id_][1:] == (m.key(), m.value(), m.timestamp()) for id_, m in zip(ids, found, strict=True))
    assert {key.decode(): msgspec.msgpack.decode(v)["payments"] for _, key, v, _ in by_id.values()} == {
        f"c{i}": sum(row["customer_id"] == f"c{i}" for row in lines) for i in range(7)
    }
    assert all(re.fullmatch(rb"card-spend/[^/]+-to-spend-per-minute/payments-[0-2]/[0-9]+", id_) for id_ in ids)


JOINED = """
from headrace import Topology

topology = Topology("joined")
names = topology.table("names", value=str)
topology.stream("visits", keyed_by="k", time="at").join(names, combine=lambda visit, name: name).to("named")
"""


@pytest.mark.parametrize("partitioner", ["murmur2_random", "consistent_random"])
def test_topics_that_meet_must_be_placed_alike(kafka: str, site: KafkaSite, partitioner: str) -> None:
    """Otherwise most would find nothing in the other topic, and nobody would be told."""
    with closing(site.open()) as log:
        for topic in ("names", "visits"):
            log.create_topic(topic, 4)
    keys = [f"c{n}" for n in range(200)]
    encode = msgspec.msgpack.encode
    foreign.write(kafka, "names", [Row(key.encode(), key.encode(), 1) for key in keys])
    visits = [Row(key.encode(), encode({"k": key, "at": 5}), 5) for key in keys]
    foreign.write(kafka, "visits", visits, partitioner=partitioner)
    process = site.start("run", module(site, JOINED), "--until-end", **environment(site))
    output, _ = process.communicate(timeout=60)
    if partitioner == "murmur2_random":
        assert process.returncode == 0, output
        assert sorted(record.value for record in site.read("named")) == sorted(keys)
        return
    assert process.returncode == 1
    assert "keys of topic visits lie in other partitions than the same keys of topic names" in output
    assert "murmur2_random" in output


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_its_groups_are_shown(kafka: str, site: KafkaSite, protocol: str) -> None:
    with closing(site.open()) as log:
        log.create_topic("payments", 2)
        foreign.write(kafka, "payments", [Row(b"k", b"v", 1, 0)] * 5)
        with foreign.member(kafka, "theirs", "payments", protocol) as client:
            wait_for(lambda: len(client.assignment()) == 2)
            client.commit(offsets=[foreign.TopicPartition("payments", 0, 3)], asynchronous=False)
            (shown,) = json.loads(site.run("groups", "--json"))
            assert (shown["group"], shown["lag"]) == ("theirs", 2)
            # How brokers are asked about members of the new protocol, the library does not know.
            assert [member["units"] for member in shown["members"]] == (
                [["payments/0", "payments/1"]] if protocol == "classic" else []
            )


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_its_group_is_refused(kafka: str, site: KafkaSite, protocol: str) -> None:
    with closing(site.open()) as log:
        log.create_topic("payments", 2)
        with foreign.member(kafka, "card-spend", "payments", protocol):
            process = site.start("run", "topologies.card_spend")
            try:
                output, _ = process.communicate(timeout=60)
            finally:
                kill_all(process)
            assert process.returncode == 1
            assert "nother program uses the group" in output


def test_it_and_kafkas_tools_see_headraces_group(kafka: str, site: KafkaSite) -> None:
    with closing(site.open()) as log:
        log.create_topic("payments", 3)
        rows = [{"transaction_id": f"t{i}", "customer_id": f"c{i % 7}", "total": 1.5, "at": NOW_MS} for i in range(70)]
        foreign.write(kafka, "payments", [Row(r["customer_id"].encode(), msgspec.msgpack.encode(r)) for r in rows])
        process = site.start("run", "topologies.card_spend", HEADRACE_CHECKPOINT_INTERVAL="100ms")
        try:
            wait_for(lambda: sum(at.offset for at in log.group("card-spend").committed().values()) == 70)
            ours = log.group("card-spend")
            state, members = foreign.described(kafka, "card-spend")
            assert state == "STABLE"
            assert sorted(chain.from_iterable(members.values())) == [("payments", number) for number in range(3)]
            assert foreign.committed(kafka, "card-spend") == {
                (place.topic, place.partition): at.offset for place, at in ours.committed().items()
            }
            read = [at.offset for at in ours.committed().values()]
        finally:
            kill_all(process)
        foreign.write(kafka, "payments", [Row(b"c0", b"later", 1, number) for number in range(3)] * 2)
        said = java(
            "consumer.group.ConsumerGroupCommand", "--bootstrap-server", kafka, "--describe", "--group", "card-spend"
        )
        lags = [line.split()[:6] for line in said.splitlines() if line.startswith("card-spend")]
    assert sorted(lags) == [["card-spend", "payments", str(n), *map(str, (at, at + 2, 2))] for n, at in enumerate(read)]
