"""Fetching that hangs or fails: it begins anew or is told to readers, and never is there silence."""

from __future__ import annotations

import asyncio
from contextlib import closing

import pytest
from aiokafka.conn import AIOKafkaConnection
from aiokafka.protocol.fetch import FetchRequest

from headrace.errors import FatalError
from headrace.log.kafka import fetching
from headrace.record import TopicPartition
from headrace.testing.conformance.log_support import make_batch, values_of
from tests.e2e.harness import wait_for
from tests.kafka.test_cluster import leaders, opened

PARTS = [TopicPartition("payments", number) for number in range(3)]


@pytest.fixture
def writer(cluster):
    with closing(opened(cluster.near)) as log:
        log.create_topic("payments", 3)
        yield log


class Following:
    """Readers of all partitions, one of which waits for what is written next."""

    def __init__(self, writer, log):
        self._writer = writer
        self._readers = {partition: log.reader(partition, 0) for partition in PARTS}

    def follow(self, partition, value):
        """Write a record, and wait until it is the next one that is read."""
        self._writer.append(partition, make_batch([value]))
        batch = wait_for(lambda: self._readers[partition].read(10))
        assert values_of([batch]) == [value]


def test_a_connection_that_is_silent_for_good(cluster, writer, monkeypatch, caplog):
    monkeypatch.setattr(fetching, "_ANSWER_S", 1.0)
    with closing(opened(cluster.far)) as log:
        following = Following(writer, log)
        for partition in PARTS:
            following.follow(partition, b"a")
        led = dict(zip(PARTS, leaders(writer), strict=True))
        victim = PARTS[0]
        proxy = cluster.proxies[led[victim]]
        proxy.silence()
        wait_for(lambda: proxy.silenced)
        for partition in PARTS:
            if led[partition] != led[victim]:
                following.follow(partition, b"b")  # others go on
        following.follow(victim, b"b")
        following.follow(victim, b"c")
        said = [record for record in caplog.records if "no answer" in record.getMessage()]
        assert [record.args[0] for record in said] == [led[victim]]
    assert proxy.silenced == 1


def test_fetching_that_hangs(cluster, writer, monkeypatch, caplog):
    monkeypatch.setattr(fetching, "_STUCK_S", 1.0)
    send, hung, end = AIOKafkaConnection.send, [], asyncio.Event()

    async def hang(connection):
        hung.append(connection)
        while not end.is_set():
            try:
                await end.wait()
            except asyncio.CancelledError:
                continue  # as code that is really stuck

    def sending(connection, request, expect_response=True):
        if isinstance(request, FetchRequest) and not hung:
            return hang(connection)
        return send(connection, request, expect_response)

    with closing(opened(cluster.near)) as log:
        following = Following(writer, log)
        following.follow(PARTS[0], b"a")
        monkeypatch.setattr(AIOKafkaConnection, "send", sending)
        wait_for(lambda: hung)
        for partition in PARTS:
            following.follow(partition, b"b")
        said = [record for record in caplog.records if "begins anew" in record.getMessage()]
        assert len(said) == 1
        log._connection.soon(end.set)


def test_fetching_that_fails(cluster, writer, monkeypatch):
    def build(request, kind):
        raise ValueError("a fault of the library")

    with closing(opened(cluster.near)) as log:
        following = Following(writer, log)
        following.follow(PARTS[0], b"a")
        monkeypatch.setattr(FetchRequest, "build", build)
        following.follow(PARTS[0], b"b")  # with the request that is under way
        with pytest.raises(FatalError, match="a fault of the library"):
            following.follow(PARTS[0], b"c")


def test_a_watch_that_fails(cluster, writer, monkeypatch):
    """Nobody would look after what hangs any more."""
    monkeypatch.setattr(fetching, "_LOOK_S", "a fault")
    with (
        closing(opened(cluster.near)) as log,
        closing(log.reader(PARTS[0], 0)) as reader,
        pytest.raises(FatalError, match="fetching from Kafka failed"),
    ):
        wait_for(lambda: reader.read(1))
