"""Fetching ahead: what readers will ask for next is here before they do.

For each broker one request is under way, which names every partition that its readers have room for; the broker
answers as soon as it has something. Bytes stay as they came until a reader, in its own thread, takes them apart.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from aiokafka.errors import (
    KafkaError,
    NotLeaderForPartitionError,
    OffsetOutOfRangeError,
    UnknownTopicOrPartitionError,
    for_code,
)
from aiokafka.protocol.fetch import FetchRequest

from headrace.errors import HeadraceError, NotFoundError
from headrace.log.kafka.connection import Connection
from headrace.log.kafka.offsets import EARLIEST, LATEST, READ_COMMITTED, Offsets, leader_of
from headrace.log.kafka.topics import Topics
from headrace.record import TopicPartition

_log = logging.getLogger("headrace")

_WAIT_MS = 200
"""How long a broker waits for records before it answers that there are none."""
_AHEAD_BYTES = 4 * 1024 * 1024
"""How much of a partition may wait for its reader."""
_PARTITION_BYTES = 1024 * 1024
_RESPONSE_BYTES = 16 * 1024 * 1024
_RETRY_S = 0.2


class Chunk(NamedTuple):
    """Record batches as a broker sent them."""

    raw: bytes
    position: int
    """Where the reader was to go on; they may begin before."""
    aborted: list[tuple[int, int]]
    """Producer and first offset of transactions in it that were given up."""


@dataclass(slots=True, eq=False)
class Feed:
    """What is fetched for one reader. The client's thread appends chunks, the reader takes them."""

    partition: TopicPartition
    position: int
    """The next offset to fetch."""
    end: int
    lane: int
    chunks: deque[Chunk] = field(default_factory=deque)
    fetched_bytes: int = 0
    """Changed by the client's thread only."""
    taken_bytes: int = 0
    """Changed by the reader only."""
    error: HeadraceError | None = None
    closed: bool = False
    not_before: float = 0
    heard: float = 0
    """When the broker answered last, by the loop's clock."""

    def hungry(self, now: float) -> bool:
        """Return whether more should be fetched."""
        room = self.fetched_bytes - self.taken_bytes < _AHEAD_BYTES
        return room and self.error is None and not self.closed and now >= self.not_before


class Fetcher:
    """Fetches for all readers of a log; everything but ``wake`` belongs to the client's thread."""

    def __init__(self, connection: Connection, topics: Topics, offsets: Offsets) -> None:
        self._connection = connection
        self._topics = topics
        self._offsets = offsets
        self._feeds: list[Feed] = []
        self._under_way: dict[tuple[int, int], asyncio.Task[None]] = {}
        self._silent: set[int] = set()
        """Brokers that did not answer the last time."""

    async def open(self, partition: TopicPartition, position: int) -> Feed:
        """Begin to fetch a partition.

        Raises:
            NotFoundError: it does not exist.
        """
        end = await self._offsets.at(partition, LATEST)
        # A request can name a partition once, so readers of one partition are served by requests of their own.
        taken = {feed.lane for feed in self._feeds if feed.partition == partition}
        lane = next(lane for lane in range(len(taken) + 1) if lane not in taken)
        feed = Feed(partition, position, end, lane, heard=self._connection.loop.time())
        self._feeds.append(feed)
        self._turn()
        return feed

    def exchange(self, old: Feed, new: Feed) -> None:
        """Fetch for a reader from elsewhere."""
        old.closed = True
        self._feeds = [new if feed is old else feed for feed in self._feeds]
        self._turn()

    def drop(self, feed: Feed) -> None:
        """Fetch no more for a reader."""
        feed.closed = True
        self._feeds = [other for other in self._feeds if other is not feed]

    def wake(self) -> None:
        """Look again who needs something; from any thread."""
        self._connection.soon(self._turn)

    async def close(self) -> None:
        """End the requests that are under way."""
        self._feeds = []
        for task in self._under_way.values():
            task.cancel()
        await asyncio.gather(*self._under_way.values(), return_exceptions=True)

    def _turn(self) -> None:
        now = self._connection.loop.time()
        wanted: dict[tuple[int, int], list[Feed]] = {}
        for feed in self._feeds:
            if not feed.hungry(now):
                continue
            leader = leader_of(self._connection, feed.partition)
            if leader is None:
                self._put_off(feed)
                self._connection.client.force_metadata_update()
            else:
                wanted.setdefault((leader, feed.lane), []).append(feed)
        for way, feeds in wanted.items():
            if way not in self._under_way:
                self._under_way[way] = self._connection.loop.create_task(self._fetch(way, feeds))

    async def _fetch(self, way: tuple[int, int], feeds: list[Feed]) -> None:
        try:
            await self._ask(way, feeds)
            if way[0] in self._silent:
                self._silent.discard(way[0])
                _log.warning("Kafka's broker %d answers again", way[0])
        except KafkaError as error:
            if way[0] not in self._silent:
                self._silent.add(way[0])
                _log.warning("Kafka's broker %d does not answer and is asked again and again: %r", way[0], error)
            self._connection.client.force_metadata_update()
            for feed in feeds:
                self._put_off(feed)
        finally:
            del self._under_way[way]
        self._turn()

    async def _ask(self, way: tuple[int, int], feeds: list[Feed]) -> None:
        topics: dict[str, list[tuple[int, int, int]]] = {}
        # The broker fills its answer in this order: whoever has least goes first.
        feeds = sorted(feeds, key=lambda feed: feed.fetched_bytes - feed.taken_bytes)
        for feed in feeds:
            topics.setdefault(feed.partition.topic, []).append(
                (feed.partition.partition, feed.position, _PARTITION_BYTES)
            )
        request = FetchRequest(_WAIT_MS, 1, _RESPONSE_BYTES, READ_COMMITTED, list(topics.items()))
        response = await self._connection.send(way[0], request, group=f"fetch-{way[1]}")
        of = {feed.partition: feed for feed in feeds}
        for topic, partitions in response.topics:
            for number, code, *fields in partitions:
                feed = of[TopicPartition(topic, number)]
                if feed.closed:
                    continue
                if code:
                    await self._failed(feed, for_code(code))
                else:
                    self._take(feed, fields)

    def _take(self, feed: Feed, fields: list[Any]) -> None:
        end, stable, aborted, raw = fields[0], fields[1], fields[3], fields[-1]
        feed.end = max(end if stable < 0 else stable, feed.end)
        feed.heard = self._connection.loop.time()
        if not raw:
            return
        position = _next_position(raw)
        if position is None:
            return
        feed.chunks.append(Chunk(raw, feed.position, list(aborted or ())))
        feed.fetched_bytes += len(raw)
        feed.position = max(position, feed.position)

    async def _failed(self, feed: Feed, kind: type[KafkaError]) -> None:
        self._put_off(feed)
        if kind is OffsetOutOfRangeError:
            await self._out_of_range(feed)
        elif kind is UnknownTopicOrPartitionError:
            self._topics.forget(feed.partition.topic)
            try:
                await self._topics.check(feed.partition)
            except NotFoundError as error:
                feed.error = error
        elif kind.retriable or kind is NotLeaderForPartitionError:
            self._connection.client.force_metadata_update()
        else:
            feed.error = self._connection.translated(kind(), f"{feed.partition}, offset {feed.position}")

    async def _out_of_range(self, feed: Feed) -> None:
        start = await self._offsets.at(feed.partition, EARLIEST)
        end = await self._offsets.at(feed.partition, LATEST)
        if feed.position < start:
            topic, number = feed.partition
            feed.error = NotFoundError(
                f"offset {feed.position} of topic {topic}, partition {number} is no longer kept; "
                f"kept are {start} to {end}",
                remedy=f"Start again at {start}",
            )

    def _put_off(self, feed: Feed) -> None:
        feed.not_before = self._connection.loop.time() + _RETRY_S
        self._connection.loop.call_later(_RETRY_S, self._turn)


def _next_position(raw: bytes) -> int | None:
    """Return the offset behind the last whole record batch, None if there is no whole one."""
    at, position = 0, None
    while at + 61 <= len(raw):
        length = int.from_bytes(raw[at + 8 : at + 12], "big")
        if at + 12 + length > len(raw):
            break
        last = int.from_bytes(raw[at + 23 : at + 27], "big") if raw[at + 16] >= 2 else 0
        position = int.from_bytes(raw[at : at + 8], "big") + last + 1
        at += 12 + length
    return position
