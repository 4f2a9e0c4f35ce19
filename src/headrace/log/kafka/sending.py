"""Sending batches: built in the thread that appends them, sent one after the other in the client's thread.

Each partition has a queue of Kafka's record batches. What is appended while one of them is under way joins the last
one that waits, so that many small batches leave together without anybody having to wait for a timer.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
from collections import deque
from concurrent.futures import Future
from concurrent.futures import wait as wait_for_all
from dataclasses import dataclass, field, replace
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from headrace.errors import FatalError, HeadraceError, NotFoundError, RetriableError
from headrace.log.kafka.codec import is_described, rows, size_bytes
from headrace.log.kafka.connection import Connection
from headrace.log.kafka.sessions import keep_sessions
from headrace.log.kafka.topics import Topics
from headrace.log.kafka.unsent import refusal, what_waits
from headrace.log.limits import too_large
from headrace.log.slices import BatchPieces
from headrace.record import RecordBatch, TopicPartition

_log = logging.getLogger("headrace")

_BATCH_BYTES = 1_000_000
"""A little less than the largest batch that brokers take unless they are told otherwise."""
_WAITING_BYTES = 64 * 1024 * 1024
"""How much may wait to be acknowledged."""
_ROOM_S = 5
"""How long an append waits for room."""
_FLUSH_S = 30
_ANSWER_MS = 20_000
"""How long a broker may take to acknowledge something before it is sent again."""
_LOOK_S = 2
"""How long a batch is under way before somebody looks whether its topic is still there."""


@dataclass(slots=True, eq=False)
class _Parcel:
    """One of Kafka's record batches."""

    builder: Any
    size: int = 0
    """At most what its records take."""
    count: int = 0
    sent: Future[int] = field(default_factory=Future)
    """Its first offset."""


class Sender:
    """Sends batches, and knows what is not acknowledged yet. ``send`` and ``flush`` are for any thread."""

    def __init__(self, connection: Connection, topics: Topics) -> None:
        self._connection = connection
        self._topics = topics
        self._changed = threading.Condition()
        self._queues: dict[TopicPartition, deque[_Parcel]] = {}
        """What waits; a partition has a queue as long as something of it waits or is under way."""
        self._under_way: dict[TopicPartition, _Parcel] = {}
        self._looks: dict[TopicPartition, asyncio.Task[None]] = {}
        """Whether topics are still there to which something has been under way for long."""
        self._waiting_bytes = 0
        self._failure: HeadraceError | None = None
        self._opening = threading.Lock()
        self._opened: AIOKafkaProducer | None = None

    @property
    def _producer(self) -> AIOKafkaProducer:
        """Opened when it is first needed: who only reads may not be allowed to open one."""
        if self._opened is None:
            with self._opening:
                if self._opened is None:
                    self._opened = self._connection.call(self._open())
        return self._opened

    async def _open(self) -> AIOKafkaProducer:
        codec = self._connection.options.compression
        arguments = self._connection.arguments | {"request_timeout_ms": _ANSWER_MS}
        metadata = await self._connection.metadata(None)
        # Twice the size: the builder also refuses what is only nearly too large.
        producer = AIOKafkaProducer(
            **arguments, acks="all", enable_idempotence=True, max_batch_size=2 * _BATCH_BYTES,
            max_request_size=2 * _BATCH_BYTES, compression_type=None if codec == "none" else codec,
        )  # fmt: skip
        keep_sessions(producer, arguments, metadata)
        # What has no leader waits for one, as it does for a leader that cannot be reached.
        producer._message_accumulator._batch_ttl = math.inf
        self._connection.also(producer.client.cluster.update_metadata)
        # It asks for topics by name, which makes one that was deleted; who asks for all of them makes none.
        refresh = producer.client._metadata_update
        producer.client._metadata_update = lambda cluster, _: refresh(cluster, None)
        try:
            await producer.start()
        except BaseException:
            await producer.stop()
            raise
        self._connection.at_end(self._close)
        return producer

    async def _close(self) -> None:
        if self._failure is not None:
            await self._producer._sender.close()  # nobody waits for what it still has, which may never go
        await self._producer.stop()

    def send(self, partition: TopicPartition, batch: RecordBatch) -> list[Future[int]]:
        """Have a batch sent behind what was sent before; return what will be the offset of the first of each part.

        A batch is one part, unless it is larger than what Kafka takes as one.

        Raises:
            InvalidError: a record is larger than Kafka takes.
            RetriableError: the brokers do not take what waits already.
            FatalError: something sent before is lost.
        """
        return self._send(partition, batch, is_described(batch))

    def _send(self, partition: TopicPartition, batch: RecordBatch, described: bool) -> list[Future[int]]:
        size = size_bytes(batch, described=described)
        largest = self._topics.largest(partition.topic)
        if largest is None:
            largest = self._connection.call(self._topics.learn_largest(partition.topic))
        most = min(_BATCH_BYTES, largest)
        if size > most and len(batch) > 1:
            share = max(1, len(batch) * most // (2 * size))
            pieces = BatchPieces(replace(batch, offsets=range(len(batch))), 0)
            sent = []
            while not pieces.exhausted:
                sent += self._send(partition, pieces.take(share), described)
            return sent
        if size > largest and size > (largest := self._connection.call(self._topics.learn_largest(partition.topic))):
            raise too_large(f"a record for {partition}", size, partition.topic, largest)
        create_batch = self._producer.create_batch
        with self._changed:
            self._wait_for_room()
            queue = self._queues.get(partition)
            fresh = queue is None
            if queue is None:
                queue = self._queues[partition] = deque()
            if not queue or queue[-1].size + size > most:
                queue.append(_Parcel(create_batch()))
            parcel = queue[-1]
            first = parcel.count
            append = parcel.builder.append
            for timestamp, key, value, headers in rows(batch, described=described):
                added = append(timestamp=timestamp, key=key, value=value, headers=headers)
                assert added is not None
            parcel.count += len(batch)
            parcel.size += size
            self._waiting_bytes += size
        if fresh:
            self._connection.soon(self._start, partition)
        return [parcel.sent if not first else _shifted(parcel.sent, first)]

    def flush(self) -> None:
        """Wait until everything sent before is acknowledged.

        Raises:
            NotFoundError: a topic was deleted.
            RetriableError: the brokers do not acknowledge it; it will be sent all the same.
            FatalError: something is lost.
        """
        with self._changed:
            parcels = [*self._under_way.values(), *(parcel for queue in self._queues.values() for parcel in queue)]
        _, waiting = wait_for_all([parcel.sent for parcel in parcels], timeout=_FLUSH_S)
        with self._changed:
            if self._failure is not None:
                raise self._failure
        if waiting:
            late = list(self._under_way)
            for partition in late:
                self._topics.forget(partition.topic)
                self._connection.call(self._topics.check(partition))
            why = self._connection.call(what_waits(self._connection, self._topics, late))
            raise RetriableError(
                f"the brokers did not acknowledge what was sent within {_FLUSH_S} s{why and ': '}{why}",
                remedy="Look at the brokers; it stays sent, and goes on when they take it",
            )

    def _wait_for_room(self) -> None:
        if self._waiting_bytes > _WAITING_BYTES:
            self._changed.wait_for(lambda: self._waiting_bytes <= _WAITING_BYTES or self._failure is not None, _ROOM_S)
        if self._failure is not None:
            raise self._failure
        if self._waiting_bytes > _WAITING_BYTES:
            raise RetriableError(f"{self._waiting_bytes} bytes wait for Kafka to take them")

    def _start(self, partition: TopicPartition) -> None:
        task = self._connection.loop.create_task(self._drain(partition))
        task.add_done_callback(self._ended)

    def _ended(self, task: Any) -> None:
        if not task.cancelled() and task.exception() is not None:
            self._lose(FatalError(f"sending to Kafka failed: {task.exception()!r}"))

    async def _drain(self, partition: TopicPartition) -> None:
        while True:
            with self._changed:
                queue = self._queues[partition]
                if not queue:
                    del self._queues[partition]
                    return
                parcel = self._under_way[partition] = queue.popleft()
            try:
                await self._learn(partition)
                future = await self._producer.send_batch(parcel.builder, partition.topic, partition=partition.partition)
                offset = await self._acknowledged(partition, future)
            except (KafkaError, AssertionError, NotFoundError) as error:
                batch = bytes(parcel.builder._build())
                told = await refusal(self._connection, self._topics, partition, batch, parcel.size, error)
                self._failed(partition, parcel, told)
                return
            with self._changed:
                del self._under_way[partition]
                self._waiting_bytes -= parcel.size
                self._changed.notify_all()
            parcel.sent.set_result(offset)

    async def _learn(self, partition: TopicPartition) -> None:
        """Have the producer look again if it does not know the partition.

        Raises:
            NotFoundError: there is none.
        """
        known = self._producer.client.cluster.partitions_for_topic(partition.topic)
        if not known or partition.partition not in known:
            try:
                await self._topics.confirm(partition)
            except KafkaError:
                return  # nobody answers: the producer waits until somebody does
            await self._producer.client.force_metadata_update()

    async def _acknowledged(self, partition: TopicPartition, future: asyncio.Future[Any]) -> int:
        """Wait until a batch is acknowledged, and return its offset.

        Raises:
            NotFoundError: its topic was deleted; the library would try for ever.
        """
        while not (await asyncio.wait([future], timeout=_LOOK_S))[0]:
            look = self._looks.get(partition)
            if look is None or look.done():
                look = self._looks[partition] = self._connection.loop.create_task(self._topics.confirm(partition))
            await asyncio.wait([future, look], return_when=asyncio.FIRST_COMPLETED)
            if look.done() and isinstance(look.exception(), NotFoundError) and not future.done():
                look.result()
        return int((await future).offset)

    def _failed(self, partition: TopicPartition, parcel: _Parcel, told: HeadraceError) -> None:
        """Give up what waits for a partition."""
        with self._changed:
            lost = [parcel, *self._queues.pop(partition, ())]
            self._under_way.pop(partition, None)
            self._waiting_bytes -= sum(one.size for one in lost)
        self._lose(told)
        for one in lost:
            one.sent.set_exception(told)

    def _lose(self, error: HeadraceError) -> None:
        with self._changed:
            self._failure = self._failure or error
            self._changed.notify_all()


def _shifted(sent: Future[int], by: int) -> Future[int]:
    shifted: Future[int] = Future()

    def done(future: Future[int]) -> None:
        error = future.exception()
        if error is not None:
            shifted.set_exception(error)
        else:
            shifted.set_result(future.result() + by)

    sent.add_done_callback(done)
    return shifted
