"""What stands in Kafka's topics beside headrace's own batches, and what Kafka refuses."""

from __future__ import annotations

import asyncio

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from headrace.clock import SystemClock
from headrace.errors import FatalError, HeadraceError, InvalidError, NotFoundError, RetriableError, SettingsError
from headrace.log.api import TopicConfig
from headrace.log.kafka.keys import java_hash
from headrace.log.kafka.log import KafkaLog
from headrace.log.kafka.options import KafkaOptions, servers_of
from headrace.log.kafka.security import client_arguments
from headrace.record import Origin, Progress, TopicPartition
from headrace.runtime.workers.bounds import Bounds
from headrace.testing.conformance.log_support import make_batch, read_all, read_next, until, values_of
from tests.kafka.clean import alter, wipe

PART = TopicPartition("payments", 0)


@pytest.fixture
def log(kafka):
    wipe(kafka)
    log = KafkaLog(f"kafka://{kafka}", clock=SystemClock())
    log.create_topic("payments", 1)
    yield log
    log.close()


def foreign(address, work, **options):
    """Let ``work`` use another program's producer."""

    async def run():
        producer = AIOKafkaProducer(bootstrap_servers=address, **options)
        await producer.start()
        try:
            await work(producer)
        finally:
            await producer.stop()

    asyncio.run(run())


def test_transactions(kafka, log):
    """What was given up is not delivered, marks take offsets, and readers get to the end all the same."""

    async def work(producer):
        for value, good in ((b"a", True), (b"b", False), (b"c", True), (b"d", False)):
            await producer.begin_transaction()
            await producer.send_and_wait("payments", value, partition=0)
            await (producer.commit_transaction() if good else producer.abort_transaction())

    foreign(kafka, work, transactional_id="t")
    until(lambda: log.end_offset(PART) == 8)
    reader = log.reader(PART, 0)
    batches = read_all(reader)
    assert values_of(batches) == [b"a", b"c"]
    assert [offset for batch in batches for offset in batch.offsets] == [0, 4]
    assert (reader.position, reader.end_offset()) == (8, 8)
    assert Bounds({PART: 8}).left(PART, reader.position) == 0
    reader.close()


def test_an_open_transaction_is_the_end(kafka, log):
    seen = []

    async def work(producer):
        await producer.begin_transaction()
        await producer.send_and_wait("payments", b"a", partition=0)
        reader = await asyncio.to_thread(log.reader, PART, 0)
        seen.append((await asyncio.to_thread(log.end_offset, PART), reader.read(1), reader.end_offset()))
        reader.close()
        await producer.commit_transaction()

    foreign(kafka, work, transactional_id="u")
    assert seen == [(0, None, 0)]


@pytest.mark.parametrize("codec", ["gzip", "lz4", "snappy", "zstd"])
def test_records_of_other_programs(kafka, log, codec):
    async def work(producer):
        await producer.send_and_wait("payments", None, b"gone", partition=0, timestamp_ms=5)
        headers = [("h", b"1"), ("n", None)]
        await producer.send_and_wait("payments", b"v", None, partition=0, timestamp_ms=7, headers=headers)

    foreign(kafka, work, compression_type=codec)
    reader = log.reader(PART, 0)
    (got,) = read_all(reader)
    reader.close()
    assert (list(got.keys), got.values.split(), list(got.timestamps)) == ([b"gone", None], [None, b"v"], [5, 7])
    assert list(got.headers) == [(), (("h", b"1"), ("n", b""))]


def test_other_programs_see_plain_records(kafka, log):
    """Sinks' records carry their id as a header, and nothing else."""
    log.append(PART, make_batch([b"v", None], headers=[(("h", b"1"),), ()], origin=Origin("t/s/in-0", [3, 9])))

    async def read():
        consumer = AIOKafkaConsumer("payments", bootstrap_servers=kafka, auto_offset_reset="earliest")
        await consumer.start()
        try:
            return [await consumer.getone() for _ in range(2)]
        finally:
            await consumer.stop()

    one, two = asyncio.run(read())
    assert (one.key, one.value, one.timestamp) == (b"k0", b"v", 1000)
    assert one.headers == (("h", b"1"), ("headrace-id", b"t/s/in-0/3"))
    assert (two.value, two.headers) == (None, (("headrace-id", b"t/s/in-0/9"),))


def test_keys_go_where_java_sends_them(kafka, log):
    log.create_topic("wide", 7)

    async def work(producer):
        for i in range(50):
            sent = await producer.send_and_wait("wide", b"v", b"customer-%d" % i)
            assert sent.partition == log.hash_key(b"customer-%d" % i) % 7

    foreign(kafka, work)
    # From the tests of Kafka's own Utils.murmur2.
    assert java_hash(b"21") == -973932308 & 0x7FFFFFFF
    assert java_hash(b"foobar") == -790332482 & 0x7FFFFFFF
    assert java_hash(b"a-little-bit-longer-string") == -1486304829 & 0x7FFFFFFF


def test_a_batch_larger_than_kafka_takes_is_split(log):
    values = [b"%07d" % i * 100 for i in range(5000)]
    progress = Progress(9, False, -1)
    log.append(PART, make_batch(values, origin=Origin("s", range(5000)), progress=progress))
    reader = log.reader(PART, 0)
    batches = read_all(reader)
    reader.close()
    assert values_of(batches) == values
    assert len(batches) > 3
    assert [batch.progress for batch in batches] == [None] * (len(batches) - 1) + [progress]
    assert [at for batch in batches for at in batch.origin.positions] == list(range(5000))


def test_a_record_larger_than_its_topic_takes_is_refused(log):
    """That does no harm to what comes before and behind it."""
    log.send(PART, make_batch([b"a"]))
    with pytest.raises(InvalidError, match=r"payments/0 is larger.* about 1,500,162 bytes, and at most 1,048,588"):
        log.append(PART, make_batch([b"x" * 1_500_000]))
    log.append(PART, make_batch([b"b"]))
    log.flush()
    reader = log.reader(PART, 0)
    assert values_of(read_all(reader)) == [b"a", b"b"]
    reader.close()


def test_what_a_topic_takes_counts_for_batches(kafka, log):
    """Many small records fit into a topic that takes little, and one large one into a topic that takes much."""
    for name, most in (("narrow", 10_000), ("roomy", 5_000_000)):
        log.create_topic(name, 1)
        alter(kafka, name, "max.message.bytes", most)
    log.topics()  # looks what they take
    log.append(TopicPartition("narrow", 0), make_batch([b"x" * 1000] * 100))
    large = [b"x" * 4_000_000, b"y", b"z" * 4_000_000]
    log.append(TopicPartition("roomy", 0), make_batch(large))
    log.flush()
    for name, values in (("narrow", [b"x" * 1000] * 100), ("roomy", large)):
        reader = log.reader(TopicPartition(name, 0), 0)
        assert values_of(read_all(reader)) == values
        reader.close()


def test_brokers_that_take_less_than_they_said(kafka, log):
    log.append(PART, make_batch([b"a"]))
    alter(kafka, "payments", "max.message.bytes", 1000)
    with pytest.raises(InvalidError, match=r"payments/0, as they are too large: 1 of at most 2162 bytes"):
        log.append(PART, make_batch([b"x" * 2000]))
    with pytest.raises(InvalidError, match="payments/0"):
        log.flush()


def test_records_without_keys_where_brokers_keep_the_newest_of_each(kafka, log):
    alter(kafka, "payments", "cleanup.policy", "compact")
    with pytest.raises(FatalError, match=r"payments/0: 2 of them have no key, and topic payments keeps.*key_by"):
        log.append(PART, make_batch([b"a", b"b", b"c"], keys=[b"k", None, None]))


def test_large_records_of_two_partitions_come_in_turns(kafka, log):
    """Each is larger than what is asked for at once, so that an answer holds one of them.

    Readers that take them faster than they come keep all partitions hungry, and none may go hungry for another.
    """
    log.create_topic("wide", 2)
    alter(kafka, "wide", "max.message.bytes", 5_000_000)
    parts = [TopicPartition("wide", number) for number in range(2)]
    for part in parts:
        for i in range(8):
            log.append(part, make_batch([b"%d" % i * 3_000_000]))
    readers = [log.reader(part, 0) for part in parts]

    def read():
        for reader in readers:
            reader.read(1)
        first, second = sorted(reader.position for reader in readers)
        assert second - first <= 2
        return first == 8

    until(read)
    for reader in readers:
        reader.close()


def test_times_that_the_brokers_refuse(kafka, log):
    alter(kafka, "payments", "message.timestamp.before.max.ms", 1000)
    with pytest.raises(FatalError, match=r"refuse the time of records for payments/0: they are of 1970.*before.max.ms"):
        log.append(PART, make_batch([b"a"], start_ms=5))


def test_a_topic_made_without_a_config_keeps_its_records(kafka, log):
    """Retention goes by event time: results of a replay would be gone at once."""
    assert log.topics()["payments"].config.retention_ms is None
    assert not log.topics()["payments"].by_event_time
    alter(kafka, "payments", "retention.ms", 604_800_000)
    assert log.topics()["payments"].by_event_time
    alter(kafka, "payments", "message.timestamp.type", "LogAppendTime")
    assert not log.topics()["payments"].by_event_time


def test_a_log_that_became_shorter(kafka, log):
    """A reader that was further is told so, and does not wait until the log has grown that far again."""
    log.append(PART, make_batch([b"a", b"b", b"c"]))
    reader = log.reader(PART, 0)
    assert len(read_all(reader)) == 1
    log.delete_topic("payments")
    log.create_topic("payments", 1)
    log.append(PART, make_batch([b"d"]))
    with pytest.raises(NotFoundError, match=r"went to offset 3, and ends at|was deleted while it was in use"):
        until(lambda: reader.read(1))
    reader.close()


def test_the_producer_makes_no_topic_by_asking_for_it(log):
    log.append(PART, make_batch([b"a"]))
    client = log._sender._producer.client

    async def ask():
        await client.add_topic("nothing")

    log._connection.call(ask())
    log.create_topic("then", 1)  # comes behind what the broker would have made of the question
    assert list(log.topics()) == ["payments", "then"]


def test_a_topic_that_is_deleted_while_it_is_written(kafka, log):
    """Brokers make topics that are named here; a writer must not let them, nor wait for long."""
    log.append(PART, make_batch([b"a"]))
    wipe(kafka)
    with pytest.raises(NotFoundError, match="payments was deleted while it was in use"):
        until(lambda: log.send(PART, make_batch([b"b"])) or log.flush())
    log.close()
    again = KafkaLog(f"kafka://{kafka}", clock=SystemClock())
    assert list(again.topics()) == []
    again.close()


def test_event_time_may_lie_ahead(log):
    log.append(PART, make_batch([b"v"], start_ms=7_000_000_000_000))
    assert log.offset_at(PART, 6_000_000_000_000) == 0


def test_many_small_batches_leave_together(log):
    for i in range(2000):
        log.send(PART, make_batch([b"%d" % i]))
    log.flush()
    reader = log.reader(PART, 0)
    batches = read_all(reader, 5000)
    reader.close()
    assert values_of(batches) == [b"%d" % i for i in range(2000)]
    assert len(batches) < 500


def test_readers_begin_where_they_are_told_to(log):
    """However fast the first records come: they may be here before the reader is."""
    for turn in range(30):
        for i in range(1000):
            log.send(PART, make_batch([b"%d-%d" % (turn, i)]))
        log.flush()
        reader = log.reader(PART, turn * 1000)
        assert values_of(read_all(reader)) == [b"%d-%d" % (turn, i) for i in range(1000)]
        reader.close()


def test_two_readers_of_one_partition(log):
    one, two = log.reader(PART, 0), log.reader(PART, 1)
    log.append(PART, make_batch([b"a", b"b"]))
    until(lambda: one.end_offset() == two.end_offset() == 2)
    assert values_of(read_all(one)) == [b"a", b"b"]
    assert values_of(read_all(two)) == [b"b"]
    one.close()
    two.close()


def test_a_position_that_is_trimmed_away_or_lies_ahead(log):
    log.append(PART, make_batch([b"a", b"b", b"c"]))
    log.trim(PART, 2)
    assert log.start_offset(PART) == 2
    reader = log.reader(PART, 0)
    with pytest.raises(NotFoundError, match="kept are 2 to 3"):
        until(lambda: reader.read(1))
    reader.position = 2
    assert values_of(read_all(reader)) == [b"c"]
    reader.position = 5
    assert read_next(reader) is None
    log.append(PART, make_batch([b"d", b"e", b"f"]))
    until(lambda: reader.end_offset() == 6)
    assert values_of(read_all(reader)) == [b"f"]
    reader.close()


def test_what_a_topic_keeps(log):
    config = TopicConfig(retention_ms=None, retention_bytes=5_000_000, segment_bytes=2_000_000, compact=True)
    assert log.create_topic("table", 2, config).config == config
    assert log.topics()["table"].config == config


def test_names_that_do_not_exist_are_not_made(kafka, log):
    """Brokers may make a topic when it is mentioned; headrace must not let them."""
    batch = make_batch([b"x"])
    for call in (log.end_offset, log.start_offset, lambda p: log.reader(p, 0), lambda p: log.send(p, batch)):
        with pytest.raises(NotFoundError):
            call(TopicPartition("nothing", 0))
    assert list(log.topics()) == ["payments"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"security_protocol": "TLS"}, "SECURITY_PROTOCOL"),
        ({"sasl_mechanism": "PLAIN"}, "SASL_MECHANISM"),
        ({"security_protocol": "SASL_SSL"}, "SASL_MECHANISM"),
        ({"security_protocol": "SASL_SSL", "sasl_mechanism": "PLAIN", "username": "u"}, "PASSWORD_FILE"),
        ({"security_protocol": "SASL_PLAINTEXT", "sasl_mechanism": "AWS_MSK_IAM"}, "SASL_SSL"),
        ({"compression": "zip"}, "COMPRESSION"),
    ],
)
def test_options_that_do_not_fit(options, told):
    with pytest.raises(SettingsError, match=told):
        KafkaOptions(**options)


def test_options_come_from_the_environment():
    given = {"HEADRACE_KAFKA_COMPRESSION": "gzip", "HEADRACE_KAFKA_REPLICATION": "2", "HEADRACE_KAFKA_INSTANCE_ID": "s"}
    assert KafkaOptions.load(given, 3) == KafkaOptions(compression="gzip", replication=2, instance_id="s-3")
    assert KafkaOptions.load({"HEADRACE_KAFKA_USERNAME": ""}) == KafkaOptions()
    with pytest.raises(SettingsError, match="REPLICATION"):
        KafkaOptions.load({"HEADRACE_KAFKA_REPLICATION": "two"})


def test_files_of_options(tmp_path):
    given = {"security_protocol": "SASL_PLAINTEXT", "sasl_mechanism": "SCRAM-SHA-512", "username": "u"}
    secret = tmp_path / "secret"
    with pytest.raises(SettingsError, match="PASSWORD_FILE"):
        client_arguments(KafkaOptions(**given, password_file=str(secret)), "a:1", SystemClock())
    secret.write_text("pass word\n")
    arguments = client_arguments(KafkaOptions(**given, password_file=str(secret)), "a:1", SystemClock())
    assert arguments["sasl_plain_password"] == "pass word"
    assert "pass word" not in repr(KafkaOptions(**given, password="pass word"))
    with pytest.raises(SettingsError, match="CA_FILE"):
        client_arguments(KafkaOptions(security_protocol="SSL", ca_file=str(tmp_path / "none")), "a:1", SystemClock())


@pytest.mark.parametrize(
    "url", ["kafka://", "kafka://host", "kafka://host:x", "kafka://user:pw@host:9092", "kafka://a:1,b"]
)
def test_addresses_that_are_none(url):
    with pytest.raises(SettingsError, match="kafka://host:port"):
        servers_of(url)


def test_nobody_there():
    with pytest.raises(RetriableError, match="can be reached"):
        KafkaLog("kafka://127.0.0.1:1", clock=SystemClock())


def test_a_closed_log_says_so(kafka):
    log = KafkaLog(f"kafka://{kafka}", clock=SystemClock())
    log.close()
    log.close()
    with pytest.raises(HeadraceError, match="closed"):
        log.topics()
