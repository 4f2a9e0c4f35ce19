"""Fetching ahead: what readers will ask for next is here before they do.

For each broker one request is under way, which names every partition that its readers have room for; the broker
answers as soon as it has something. Bytes stay as they came until a reader, in its own thread, takes them apart.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Coroutine
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from aiokafka.errors import (
    KafkaError,
    OffsetOutOfRangeError,
    RequestTimedOutError,
    UnknownTopicOrPartitionError,
)
from aiokafka.protocol.fetch import FetchRequest

from headrace.errors import FatalError, HeadraceError, NotFoundError
from headrace.log.kafka.connection import Connection, check_code, error_of
from headrace.log.kafka.offsets import EARLIEST, LATEST, READ_COMMITTED, Offsets, leader_of
from headrace.log.kafka.replicas import Replicas
from headrace.log.kafka.topics import Topics
from headrace.record import TopicPartition

_log = logging.getLogger("headrace")

_WAIT_MS = 200
"""How long a broker waits for records before it answers that there are none."""
_ANSWER_S = 15.0
"""How long an answer may take; then the next one goes over another connection, and less is asked for."""
_LOOK_S = 1.0
"""How often it is looked whether anything hangs."""
_SLOW_S = 3.0
"""An answer that takes longer may be that of a broker that leads no more."""
_STUCK_S = 45.0
"""What takes longer hangs: everything in it ends before."""
_AHEAD_BYTES = 4 * 1024 * 1024
"""How much of a partition may wait for its reader."""
_PARTITION_BYTES = 1024 * 1024
_RESPONSE_BYTES = 16 * 1024 * 1024
_RETRY_S = 0.2
_PASSING = frozenset({-1, 2, 8})
"""Codes that pass by themselves, other than aiokafka says: an error of the broker, damage on the way, no broker."""
_FIELDS_BEFORE_RACKS = 5
_NO_NODE = -1


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
    served: float = 0
    """When it sent records last."""

    def hungry(self, now: float) -> bool:
        """Return whether more should be fetched."""
        room = self.fetched_bytes - self.taken_bytes < _AHEAD_BYTES
        return room and self.error is None and not self.closed and now >= self.not_before


class _Way(NamedTuple):
    """Where a request goes; one is under way at a time."""

    node: int
    lane: int
    rack: str

    @property
    def connection(self) -> str:
        """The connection that it has to itself."""
        return f"fetch-{self.lane}-{self.rack}"


class _Trip(NamedTuple):
    """A request that is under way."""

    task: asyncio.Task[None]
    begun: float


class Fetcher:
    """Fetches for all readers of a log; everything but ``wake`` belongs to the client's thread."""

    def __init__(self, connection: Connection, topics: Topics, offsets: Offsets) -> None:
        self._connection = connection
        self._topics = topics
        self._offsets = offsets
        self._replicas = Replicas(connection.options.rack)
        self._feeds: list[Feed] = []
        self._under_way: dict[_Way, _Trip] = {}
        self._beside: set[asyncio.Task[None]] = set()
        """What else is done for feeds, and the watch."""
        self._careful: set[int] = set()
        """Brokers that did not answer in time, so that less is asked of them."""

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
        if not self._feeds and not self._beside:
            self._do(self._watch())
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
        tasks = [*(trip.task for trip in self._under_way.values()), *self._beside]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _turn(self) -> None:
        now = self._connection.loop.time()
        wanted: dict[_Way, list[Feed]] = {}
        for feed in self._feeds:
            if not feed.hungry(now):
                continue
            leader = leader_of(self._connection, feed.partition)
            if leader is None:
                self._put_off(feed)
                self._connection.learn_soon()
            else:
                node, rack = self._replicas.where(feed.partition, leader, now)
                wanted.setdefault(_Way(node, feed.lane, rack), []).append(feed)
        for way, feeds in wanted.items():
            if way not in self._under_way:
                task = self._connection.loop.create_task(self._fetch(way, feeds))
                task.add_done_callback(partial(self._ended, feeds))
                self._under_way[way] = _Trip(task, now)

    def _do(self, work: Coroutine[Any, Any, None], feed: Feed | None = None) -> None:
        """Do something beside the requests, for all feeds or for one, for which nothing is fetched meanwhile."""
        task = self._connection.loop.create_task(work)
        self._beside.add(task)
        task.add_done_callback(self._beside.discard)
        task.add_done_callback(partial(self._ended, None if feed is None else [feed]))
        if feed is not None:
            feed.not_before = math.inf
            task.add_done_callback(lambda _: self._put_off(feed))

    def _ended(self, feeds: list[Feed] | None, task: asyncio.Task[None]) -> None:
        """Tell readers if what was done for them has failed: nobody else would."""
        error = None if task.cancelled() else task.exception()
        if error is None:
            return
        told = error if isinstance(error, HeadraceError) else FatalError(f"fetching from Kafka failed: {error!r}")
        for feed in self._feeds if feeds is None else feeds:
            feed.error = feed.error or told

    async def _watch(self) -> None:
        """Begin anew what hangs, and what should have begun and did not."""
        while True:
            await self._connection.pause(_LOOK_S)
            now = self._connection.loop.time()
            for way, trip in list(self._under_way.items()):
                if now - trip.begun >= _STUCK_S:
                    _log.warning(
                        "fetching from Kafka's broker %d hung for %.0f s: its connection is closed, and it begins anew",
                        way.node, now - trip.begun,
                    )  # fmt: skip
                    del self._under_way[way]
                    trip.task.cancel()
                    self._connection.client.drop(way.node, way.connection)
                elif now - trip.begun >= _SLOW_S:
                    self._connection.learn_soon()  # the partitions may be led by another broker
            self._turn()

    async def _fetch(self, way: _Way, feeds: list[Feed]) -> None:
        try:
            await self._ask(way, feeds)
            self._careful.discard(way.node)
        except KafkaError as error:
            if isinstance(error, RequestTimedOutError):
                self._careful.add(way.node)
            if not error.retriable and getattr(error, "errno", None) not in _PASSING:
                raise self._connection.translated(error) from error
            now = self._connection.loop.time()
            self._connection.learn_soon()
            for feed in feeds:
                self._replicas.failed(feed.partition, way.node, now)
                self._put_off(feed)
        finally:
            trip = self._under_way.get(way)
            if trip is not None and trip.task is asyncio.current_task():
                del self._under_way[way]
        self._turn()

    async def _ask(self, way: _Way, feeds: list[Feed]) -> None:
        topics: dict[str, list[tuple[int, int, int]]] = {}
        # The broker fills its answer in this order: who got something longest ago goes first.
        feeds = sorted(feeds, key=lambda feed: feed.served)
        asked = {}
        for feed in feeds:
            asked[feed.partition] = feed, feed.position
            topics.setdefault(feed.partition.topic, []).append(
                (feed.partition.partition, feed.position, _PARTITION_BYTES)
            )
        size = _PARTITION_BYTES if way.node in self._careful else _RESPONSE_BYTES
        request = FetchRequest(_WAIT_MS, 1, size, READ_COMMITTED, list(topics.items()), way.rack)
        response = await self._connection.send(way.node, request, way.connection, _ANSWER_S)
        check_code(getattr(response, "error_code", 0))
        for topic, partitions in response.topics:
            for number, code, *fields in partitions:
                feed, position = asked[TopicPartition(topic, number)]
                if feed.closed or feed.position != position:
                    continue  # it was fetched from another broker meanwhile
                if code:
                    self._failed(feed, code, way.node)
                else:
                    self._take(feed, fields, way.node)
        if response.throttle_time_ms:
            for feed in feeds:
                self._put_off(
                    feed, max(response.throttle_time_ms / 1000, feed.not_before - self._connection.loop.time())
                )

    def _take(self, feed: Feed, fields: list[Any], node: int) -> None:
        end, stable, aborted, raw = fields[0], fields[1], fields[3], fields[-1]
        now = self._connection.loop.time()
        feed.end = max(end if stable < 0 else stable, feed.end)
        feed.heard = now
        if len(fields) > _FIELDS_BEFORE_RACKS and fields[4] not in (_NO_NODE, node):
            self._replicas.named(feed.partition, fields[4], now)
        if not raw:
            return
        position = _next_position(raw)
        if position is None:
            return
        feed.served = now
        feed.chunks.append(Chunk(raw, feed.position, list(aborted or ())))
        feed.fetched_bytes += len(raw)
        feed.position = max(position, feed.position)

    def _failed(self, feed: Feed, code: int, node: int) -> None:
        self._put_off(feed)
        kind = error_of(code)
        if node != leader_of(self._connection, feed.partition):
            # Only leaders know what the log is.
            self._replicas.failed(feed.partition, node, self._connection.loop.time())
            self._connection.learn_soon()
        elif kind is OffsetOutOfRangeError:
            self._do(self._out_of_range(feed), feed)
        elif kind is UnknownTopicOrPartitionError:
            self._do(self._unknown(feed), feed)
        elif kind.retriable or code in _PASSING:
            self._connection.learn_soon()
        else:
            feed.error = self._connection.translated(
                kind(f"Read on topic {feed.partition.topic!r}"), f"{feed.partition}, offset {feed.position}"
            )

    async def _unknown(self, feed: Feed) -> None:
        try:
            await self._topics.confirm(feed.partition)
        except KafkaError as error:
            _log.debug("whether %s exists could not be asked: %r", feed.partition, error)

    async def _out_of_range(self, feed: Feed) -> None:
        try:
            start = await self._offsets.at(feed.partition, EARLIEST)
            end = await self._offsets.at(feed.partition, LATEST)
        except KafkaError as error:
            _log.debug("where %s begins could not be asked: %r", feed.partition, error)
            return
        if feed.position < start:
            topic, number = feed.partition
            raise NotFoundError(
                f"offset {feed.position} of topic {topic}, partition {number} is no longer kept; "
                f"kept are {start} to {end}",
                remedy=f"Start again at {start}",
            )
        if end < feed.position <= feed.end:  # it went so far before
            raise NotFoundError(
                f"partition {feed.partition} went to offset {feed.end}, and ends at {end} now: it lost records, or was "
                "deleted and made again",
                remedy="Find out which; unclean.leader.election.enable lets brokers lose records",
            )

    def _put_off(self, feed: Feed, seconds: float = _RETRY_S) -> None:
        if feed.closed:
            return
        feed.not_before = self._connection.loop.time() + seconds
        if seconds < math.inf:
            self._connection.loop.call_later(seconds, self._turn)


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
