"""``headrace consume``: what is in a topic, whatever it is."""

import msgspec
import pytest

from headrace.cli.consume import parse_start, partitions_of, read_batches
from headrace.cli.options import KeySerde, ValueSerde
from headrace.cli.rendering import BatchRenderer
from headrace.errors import NotFoundError
from headrace.record import JoinedBytes, Origin, Progress, RecordBatch, TopicPartition, control_batch

PART = TopicPartition("p", 0)


@pytest.fixture
def filled(headrace, log):
    """Ten records in each of two partitions, one a second."""
    log.create_topic("p", 2)
    for number in range(2):
        values = [msgspec.msgpack.encode({"n": 10 * number + i}) for i in range(10)]
        times = [1_700_000_000_000 + 1000 * i for i in range(10)]
        log.append(TopicPartition("p", number), RecordBatch(times, [b"k"] * 10, JoinedBytes.of(values)))
    return headrace


def numbers(ran) -> list[int]:
    assert ran.code == 0, ran.err
    return [record["value"]["n"] for record in ran.records]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], list(range(20))),
        (["--limit", "3"], [0, 1, 2]),
        (["--limit", "12"], list(range(12))),
        (["--limit", "0"], []),
        (["--partition", "1"], list(range(10, 20))),
        (["--from", "7"], [7, 8, 9, 17, 18, 19]),
        (["--from", "-2"], [8, 9, 18, 19]),
        (["--from", "-100", "--partition", "0"], list(range(10))),
        (["--from", "end"], []),
        (["--from", "start", "--limit", "1"], [0]),
        (["--from", "99"], []),
        (["--from", "2023-11-14T22:13:28Z"], [8, 9, 18, 19]),
        (["--from", "2023-11-14T23:13:28.001+01:00"], [9, 19]),
        (["--from", "1h"], []),
    ],
)
def test_where_to_begin_and_end(filled, arguments, expected):
    assert numbers(filled("consume", "p", *arguments)) == expected


def test_a_time_ago(log):
    log.create_topic("p", 1)
    log.append(PART, RecordBatch([1000, 2000, 3000], [None] * 3, JoinedBytes.of([b"\x01"] * 3)))
    assert parse_start("1s", 3000)(log, PART) == 1
    assert parse_start("500ms", 3000)(log, PART) == 2


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["q"], "topics there: p"),
        (["p", "--partition", "2"], "has no partition 2"),
        (["p", "--from", "yesterday"], "ISO-8601"),
        (["p", "--from", "2023-11-14T22:13:28"], "time zone"),
        (["p", "--limit", "-1"], "--limit"),
        (["p", "--log", "elsewhere"], "no log in elsewhere"),
        (["p", "--log", "kafka://host"], "kafka://host:port"),
    ],
)
def test_wrong_use_has_exit_code_two(filled, arguments, told):
    ran = filled("consume", *arguments)
    assert (ran.code, ran.out) == (2, "")
    assert told in " ".join(ran.err.split())


def test_reading_makes_no_log(headrace, tmp_path):
    for command in (["consume", "p"], ["topics"], ["groups"], ["checkpoints"]):
        assert headrace(*command).code == 2
    assert list(tmp_path.iterdir()) == []


def rendered(batch: RecordBatch, *arguments) -> list[dict]:
    return [msgspec.json.decode(line) for line in BatchRenderer(*arguments).render(batch, 3).splitlines()]


def batch_of(values, keys=None, **rest) -> RecordBatch:
    size = len(values)
    return RecordBatch([7] * size, keys or [None] * size, JoinedBytes.of(values), offsets=range(5, 5 + size), **rest)


def test_a_line_has_everything():
    headers = [(("a", b"x"), ("a", b"\xff"))]
    origin = Origin("top/step/0", [42])
    assert rendered(batch_of([b"\x01"], [b"k"], headers=headers, origin=origin)) == [
        {
            "key": "k",
            "value": 1,
            "timestamp": 7,
            "partition": 3,
            "offset": 5,
            "headers": [["a", "x"], ["a", {"base64": "/w=="}], ["headrace-id", "top/step/0/42"]],
        }
    ]


@pytest.mark.parametrize(
    "odd",
    [
        b"\xc1",  # no MessagePack
        b"\x01\x01",  # two values
        b"",
        b"\xa1\xff",  # text that is not UTF-8
        b"\x81\x90\x01",  # a map with a list as its key
        b"\xd4\x05\x00",  # an extension
    ],
)
def test_one_odd_value_hides_nothing_else(odd):
    lines = rendered(batch_of([b"\x01", odd, None, b"\x02"]))
    assert [line["value"] for line in lines][0::3] == [1, 2]
    assert lines[2]["value"] is None
    assert msgspec.convert(lines[1]["value"], dict[str, bytes]) == {"base64": odd}


def test_values_are_read_as_they_were_written():
    assert rendered(batch_of([b'{"a": 1}', b"{"]), ValueSerde.JSON)[0]["value"] == {"a": 1}
    assert rendered(batch_of([b"text", b"\xff"]), ValueSerde.STR)[0]["value"] == "text"
    assert rendered(batch_of([b"\xff", None]), ValueSerde.BYTES)[0]["value"] == {"base64": "/w=="}


def test_json_objects_are_known_without_being_told():
    batch = batch_of([b'{"a": 1}', b"[1, 2]", b"{not json", b"\x81\xa1a\x02"])
    values = [line["value"] for line in rendered(batch)]
    assert values == [{"a": 1}, [1, 2], {"base64": "e25vdCBqc29u"}, {"a": 2}]


def test_keys_are_read_as_they_were_written():
    keys = [None, b"k", b"\xff", b"\0\0\0\5"]
    values = [b"\x01"] * 4
    odd = {"base64": "/w=="}
    assert [line["key"] for line in rendered(batch_of(values, keys))] == [None, "k", odd, "\0\0\0\5"]
    assert [line["key"] for line in rendered(batch_of(values, keys), ValueSerde.MSGPACK, KeySerde.INT)] == [
        None, {"base64": "aw=="}, odd, 5,
    ]  # fmt: skip
    found = rendered(batch_of(values, keys), ValueSerde.MSGPACK, KeySerde.BYTES)
    assert [line["key"] for line in found][:3] == [None, {"base64": "aw=="}, odd]


def test_control_batches_are_not_records(log, headrace):
    log.create_topic("p", 1)
    log.append(PART, control_batch(Progress(5, False, -1)))
    log.append(PART, batch_of([b"\x01"]))
    assert [record["offset"] for record in headrace("consume", "p", "--limit", "1").records] == [1]


def test_what_retention_took_away_is_skipped_and_said(log, capsys):
    class Retired:
        position = 0

        def read(self, most):
            if self.position < 4:
                raise NotFoundError("gone")

        def end_offset(self):
            return 4

        def close(self):
            self.closed = True

    class Kept:
        def reader(self, partition, offset):
            return Retired()

        def start_offset(self, partition):
            return 4

    batches = read_batches(Kept(), [PART], lambda log, partition: 0)
    assert next(batches) == (None, -1)
    batches.close()
    assert "keeps nothing before offset 4; skipped from 0" in capsys.readouterr().err


def test_the_partitions_of_a_topic(log):
    log.create_topic("p", 3)
    assert [part.partition for part in partitions_of(log, "p")] == [0, 1, 2]
    assert partitions_of(log, "p", 2) == [TopicPartition("p", 2)]


def test_a_closed_pipe_is_no_error(log, start):
    log.create_topic("p", 1)
    for _ in range(20):
        log.append(PART, batch_of([b"\x01"] * 4096))
    process = start("consume", "p")
    assert process.stdout.readline().startswith(b'{"key":null,')
    process.stdout.close()
    assert process.wait(10) == 0
    assert process.stderr.read() == b""


def test_following_ends_when_nobody_reads_any_more(log, start):
    log.create_topic("p", 1)
    log.append(PART, batch_of([b"\x01"]))
    process = start("consume", "p", "--follow")
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(10) == 0
    assert process.stderr.read() == b""
