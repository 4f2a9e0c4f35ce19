"""``headrace produce``: every line arrives, and a bad one is named."""

import base64
import io
import signal
from zlib import crc32

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.cli.encoding import LineEncoder, timestamps_of
from headrace.cli.lines import Stop, chunks
from headrace.cli.options import ValueSerde
from headrace.cli.partitioning import TopicWriter
from headrace.clock import SystemClock
from headrace.errors import RecordError
from headrace.log.memory import MemoryLog
from headrace.record import TopicPartition

PAYMENTS = [{"id": f"t{i}", "customer": f"c{i % 7}", "at": 1_700_000_000_000 + i} for i in range(100)]


def lines(values) -> bytes:
    return msgspec.json.Encoder().encode_lines(values)


def test_keyed_records_go_to_the_partition_of_their_key(headrace):
    ran = headrace("produce", "payments", "--key", "customer", "--time", "at", stdin=lines(PAYMENTS))
    assert (ran.code, ran.out) == (0, "")
    assert ran.err.startswith("100 records to payments (4 partitions) in ")
    found = headrace("consume", "payments").records
    assert sorted(record["value"]["id"] for record in found) == sorted(payment["id"] for payment in PAYMENTS)
    for record in found:
        assert record["key"] == record["value"]["customer"]
        assert record["timestamp"] == record["value"]["at"]
        assert record["partition"] == crc32(record["key"].encode()) % 4
    for partition in range(4):
        order = [int(record["value"]["id"][1:]) for record in found if record["partition"] == partition]
        assert order == sorted(order)


def test_records_without_keys_are_dealt_out_in_blocks(headrace):
    headrace("produce", "p", "--batch", "10", "--partitions", "5", stdin=lines(PAYMENTS))
    found = headrace("consume", "p").records
    assert {record["key"] for record in found} == {None}
    assert [sum(r["partition"] == p for r in found) for p in range(5)] == [20] * 5
    before = SystemClock().now_ms()
    assert all(before - 60_000 < record["timestamp"] <= before for record in found)


GOOD = {"str": '"x"', "bytes": '{"b": {"base64": "eA=="}}', "int": '{"b": 17}', "--time": '{"b": 17}'}
"""A line that is right for the last option."""


@pytest.mark.parametrize(
    ("line", "options", "told"),
    [
        ("{", [], "is not JSON"),
        ("nonsense-4711", [], "is not JSON"),
        ("{} {}", [], "is not JSON"),
        ('{"a": 1}', ["--key", "b"], "has no field 'b'"),
        ("[4711]", ["--key", "b"], "is not an object"),
        ("null", ["--key", "b"], "is not an object"),
        ('{"b": 4711}', ["--key", "b"], "--key-serde int"),
        ('{"b": null}', ["--key", "b"], "is not text"),
        ('{"b": "4711"}', ["--key", "b", "--key-serde", "int"], "whole number"),
        ('{"b": null}', ["--key", "b", "--key-serde", "int"], "whole number"),
        ('{"b": 4711e70}', ["--key", "b", "--key-serde", "int"], "whole number"),
        ('{"b": "4711"}', ["--key", "b", "--key-serde", "bytes"], "base64"),
        ('{"b": {"base64": "4711*"}}', ["--key", "b", "--key-serde", "bytes"], "not base64"),
        ('{"b": -4711}', ["--time", "b"], "before 1970"),
        ('{"b": 1700000000000000}', ["--time", "b"], "microseconds"),
        ('{"b": 7258118400000}', ["--time", "b"], "beyond the year 2199"),
        ('{"b": 4711.5}', ["--time", "b"], "whole milliseconds"),
        ('{"b": true}', ["--time", "b"], "whole milliseconds"),
        ('{"b": "2023-11-14T22:13:20"}', ["--time", "b"], "no time zone"),
        ('{"b": "around 4711"}', ["--time", "b"], "no ISO-8601 time"),
        ("47114711471147114711471147114711", [], "cannot be written"),
        ("4711", ["--value-serde", "str"], "cannot be written"),
        ('"4711"', ["--value-serde", "bytes"], "base64"),
    ],
)
def test_a_bad_line_is_named_and_what_was_before_it_is_kept(headrace, line, options, told):
    good = GOOD.get(options[-1] if options else "", GOOD["--time"] if "--time" in options else '{"b": "x"}')
    if options[-2:] == ["--value-serde", "bytes"]:
        good = '{"base64": ""}'
    ran = headrace("produce", "p", *options, stdin=f"{good}\n\n{good}\n{line}\n{good}\n")
    assert ran.code == 1
    err = " ".join(ran.err.split())
    assert err.startswith("error: line 4 of standard input")
    assert told in err
    assert "2 records before it written to p" in err
    assert "4711" not in ran.err.replace("line 4", "")
    assert len(headrace("consume", "p").records) == 2


def test_times_may_be_iso_texts_with_a_zone(headrace):
    times = ["2023-11-14T22:13:20Z", "2023-11-14T23:13:20.5+01:00", 1_700_000_000_001]
    headrace("produce", "p", "--time", "at", "--partitions", "1", stdin=lines([{"at": at} for at in times]))
    found = [record["timestamp"] for record in headrace("consume", "p").records]
    assert found == [1_700_000_000_000, 1_700_000_000_500, 1_700_000_000_001]


def test_whole_numbers_do_not_pass_through_floats():
    assert list(timestamps_of([1_700_000_000_003, "2023-11-14T22:13:20.123Z"])) == [
        1_700_000_000_003,
        1_700_000_000_123,
    ]


@pytest.mark.parametrize(
    ("serde", "values"),
    [
        ("msgpack", [{"a": [1, 2.5, None, "ü"]}, 3, "x", True, None]),
        ("json", [{"a": [1, 2.5, None, "ü"]}, 3, "x", False, None]),
        ("str", ["", "text", "ü\n", None]),
        ("bytes", [{"base64": base64.b64encode(bytes(range(256))).decode()}, {"base64": ""}, None]),
    ],
)
def test_what_is_produced_is_what_is_consumed(headrace, serde, values):
    headrace("produce", "p", "--partitions", "1", "--value-serde", serde, stdin=lines(values))
    assert [r["value"] for r in headrace("consume", "p", "--value-serde", serde).records] == values


def test_keys_of_all_kinds_come_back(headrace):
    for serde, key in [("str", "ü"), ("int", -5), ("bytes", {"base64": "/w=="})]:
        headrace("produce", f"t-{serde}", "--key", "k", "--key-serde", serde, stdin=lines([{"k": key}]))
        found = headrace("consume", f"t-{serde}", "--key-serde", serde).records
        assert [record["key"] for record in found] == [key]


def test_the_topic_keeps_its_partitions(headrace):
    headrace("produce", "p", "--partitions", "3", stdin="1\n")
    assert headrace("produce", "p", stdin="2\n").code == 0
    ran = headrace("produce", "p", "--partitions", "5", stdin="3\n")
    assert ran.code == 2
    assert "exists with 3 partitions" in ran.err
    assert len(headrace("consume", "p").records) == 2


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["p", "--log", "memory://"], "lives and dies with one process"),
        (["not a topic"], "cannot be the name of a topic"),
        (["p", "--key", "k", "--value-serde", "str"], "no fields"),
        (["p", "--time", "t", "--value-serde", "bytes"], "no fields"),
        (["p", "--partitions", "0"], "--partitions"),
        (["p", "--key-serde", "float"], "--key-serde"),
        ([], "TOPIC"),
    ],
)
def test_wrong_use_has_exit_code_two(headrace, arguments, told):
    ran = headrace("produce", *arguments, stdin='"x"\n')
    assert ran.code == 2
    assert told in " ".join(ran.err.split())


def test_the_end_of_input_needs_no_newline_and_lines_may_end_as_on_windows(headrace):
    headrace("produce", "p", "--partitions", "1", stdin=b'\n{"a":1}\r\n  \n{"a":2}')
    assert [record["value"]["a"] for record in headrace("consume", "p").records] == [1, 2]


def test_nothing_is_nothing(headrace):
    ran = headrace("produce", "p")
    assert ran.code == 0
    assert "0 records to p" in ran.err


@given(st.lists(st.binary(max_size=20).map(lambda data: data.replace(b"\n", b"")), max_size=30), st.data())
def test_chunks_are_whole_lines_however_they_were_read(texts, data):
    stream = b"\n".join(texts)

    class Pieces(io.BytesIO):
        def read1(self, size=-1):
            return super().read(data.draw(st.integers(1, 50)))

    found = list(chunks(Pieces(stream), Stop(), 1))
    assert b"".join(found) == stream
    assert all(chunk.endswith(b"\n") for chunk in found[:-1])


def test_chunks_stop_when_they_are_told_to():
    stop = Stop()
    stop.set(signal.SIGTERM, None)
    assert list(chunks(io.BytesIO(b"1\n2\n"), stop, 1)) == []


@given(
    st.lists(st.dictionaries(st.sampled_from("ab"), st.integers(-5, 5) | st.text(max_size=3)), max_size=20),
    st.sampled_from([ValueSerde.MSGPACK, ValueSerde.JSON]),
)
def test_bulk_and_line_by_line_say_the_same(values, serde):
    encoder = LineEncoder(key="a", time="b", value_serde=serde)
    chunk = lines(values)
    one_by_one = []
    failed = False
    for number, line in enumerate(chunk.split(b"\n"), 1):
        try:
            columns = encoder.encode_line(line, number, 0)
        except RecordError:
            failed = True
            break
        if columns is not None:
            one_by_one.append(tuple(column[0] for column in columns))
    if failed:
        with pytest.raises((KeyError, TypeError, ValueError)):
            encoder.encode(chunk, 0)
    else:
        assert list(zip(*encoder.encode(chunk, 0), strict=True)) == one_by_one


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 30)), max_size=20), st.integers(1, 10), st.integers(1, 5))
def test_a_writer_loses_nothing(rounds, batch, partitions):
    log = MemoryLog(SystemClock())
    log.create_topic("t", partitions)
    writer = TopicWriter(log, "t", partitions, batch)
    count = 0
    for keyed, size in rounds:
        values = [b"%d" % number for number in range(count, count + size)]
        writer.add([1] * size, values if keyed else None, values, 1)
        count += size
    writer.flush()
    assert writer.written == count
    found = []
    for number in range(partitions):
        reader = log.reader(TopicPartition("t", number), 0)
        while (read := reader.read(1000)) is not None:
            assert len(read) <= batch
            found += read.values.split()
    assert sorted(map(int, found)) == list(range(count))


def test_lines_that_trickle_arrive_at_once_and_ctrl_c_loses_none(headrace, start):
    headrace("produce", "p", "--partitions", "1")
    producer = start("produce", "p")
    consumer = start("consume", "p", "--follow")
    for number in range(3):
        producer.stdin.write(b"%d\n" % number)
        producer.stdin.flush()
        assert msgspec.json.decode(consumer.stdout.readline())["value"] == number
    producer.stdin.write(b"4")  # not a whole line
    producer.stdin.flush()
    producer.send_signal(signal.SIGINT)
    assert producer.wait(10) == 130
    assert b"3 records to p" in producer.stderr.read()
    consumer.send_signal(signal.SIGINT)
    assert consumer.wait(10) == 0
    assert (consumer.stdout.read(), consumer.stderr.read()) == (b"", b"")
