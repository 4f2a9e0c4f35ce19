"""Transactions: batches for several partitions, which readers of what is committed see together or not at all.

Kafka keeps a producer id for each name of a writer, and raises its epoch when somebody opens the name. That ends the
transaction that was open, and from then on nobody with an earlier epoch can write or commit. With every transaction a
note is committed, as a record of a partition that belongs to the name: whoever opens the name finds there what the
last transaction that counts has said, and so knows which it was, however it ended.

A writer is given up as soon as a request gets no answer, and not only when it is refused. For in the protocol that
aiokafka speaks, the transactions of one epoch look alike, and a request that was taken for lost may reach the brokers
later: it would write into the next transaction, or end it half-way (KIP-890). Who opens the name again has another
epoch, which such a request does not have. For that reason, and as it needs a client of its own for every name,
aiokafka's transactional producer is not used here, but only the requests of its protocol, on connections that all
writers of a process share.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from aiokafka.errors import (
    ConcurrentTransactions,
    CoordinatorNotAvailableError,
    DuplicateSequenceNumber,
    InvalidProducerEpoch,
    InvalidProducerIdMapping,
    InvalidTransactionTimeout,
    InvalidTxnState,
    KafkaError,
    LeaderNotAvailableError,
    NotCoordinatorError,
    OperationNotAttempted,
    OutOfOrderSequenceNumber,
    RequestTimedOutError,
    TransactionalIdAuthorizationFailed,
    UnknownError,
    UnknownProducerId,
    for_code,
)
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.protocol.transaction import AddPartitionsToTxnRequest, EndTxnRequest, InitProducerIdRequest
from aiokafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder

from headrace.clock import Clock
from headrace.errors import FencedError, HeadraceError, InvalidError, RetriableError, SettingsError
from headrace.log.api import Reader
from headrace.log.kafka.codec import Row, is_described, rows, size_bytes
from headrace.log.kafka.connection import Connection
from headrace.log.kafka.coordinator import TRANSACTION, coordinator
from headrace.log.kafka.offsets import EARLIEST, LATEST, READ_UNCOMMITTED, Offsets, leader_of
from headrace.log.kafka.topics import Topics
from headrace.log.kafka.unsent import REFUSED, refusal
from headrace.log.reading import read_to
from headrace.log.slices import BatchPieces
from headrace.record import RecordBatch, TopicPartition

TIMEOUT_MS = 60_000
"""After this long the brokers end a transaction whose writer is gone, if nobody opens its name before that."""
_WRITE_S = 25
"""How long a transaction may take: far less than that."""
_BATCH_BYTES = 1_000_000
_CONNECTION = "transactions"
_BACK = (64, 4096)
"""How far behind the end the last note is looked for first: every transaction takes two offsets."""
_PAUSE_S = 0.02
_FENCED = (47, 90)
_ANEW = (InvalidProducerIdMapping, InvalidTxnState, OutOfOrderSequenceNumber, UnknownError, UnknownProducerId)
"""What another epoch mends; aiokafka does not know the newest of Kafka's errors."""
_CODECS = {
    "none": 0, "gzip": DefaultRecordBatch.CODEC_GZIP, "snappy": DefaultRecordBatch.CODEC_SNAPPY,
    "lz4": DefaultRecordBatch.CODEC_LZ4, "zstd": DefaultRecordBatch.CODEC_ZSTD,
}  # fmt: skip
_Result = TypeVar("_Result")


class _UnansweredError(KafkaError):  # type: ignore[misc]
    """Nobody knows whether a request was carried out, or will be."""


@dataclass(slots=True)
class _Parcel:
    """What becomes one of Kafka's record batches."""

    rows: list[Row]
    size: int


class KafkaWriter:
    """See ``log.api.Writer``.

    Args:
        connection: To the cluster.
        topics: Its topics.
        offsets: Asks the leaders of partitions.
        reader: Reads a partition from an offset on.
        name: That of the writer; Kafka calls it transactional id.
        notes: The partition that belongs to it.
        clock: Dates the notes.

    Raises:
        NotFoundError: there is no such partition.
        FatalError: the user may not do it.
        RetriableError: the brokers do not answer.
    """

    def __init__(
        self, connection: Connection, topics: Topics, offsets: Offsets, reader: Callable[[TopicPartition, int], Reader],
        name: str, notes: TopicPartition, clock: Clock,
    ) -> None:  # fmt: skip
        self.note: bytes | None = None
        self._connection = connection
        self._topics = topics
        self._name = name
        self._notes = notes
        self._clock = clock
        self._codec = _CODECS[connection.options.compression]
        self._node: int | None = None
        self._producer, self._epoch = -1, -1
        self._sequences: dict[TopicPartition, int] = defaultdict(int)
        self._call(self._open())
        end = self._call(self._settled(offsets))
        self.note = self._last_note(reader, connection.call(offsets.at(notes, EARLIEST)), end)

    def write(self, appends: Sequence[tuple[TopicPartition, RecordBatch]], note: bytes) -> None:
        """Commit batches and a note as one."""
        parcels: dict[TopicPartition, deque[_Parcel]] = {}
        for partition, batch in appends:
            _pack(parcels.setdefault(partition, deque()), partition, batch)
        own: list[Row] = [(self._clock.now_ms(), self._name.encode(), note, [])]
        parcels.setdefault(self._notes, deque()).append(_Parcel(own, len(note)))
        self._call(self._write(parcels))
        self.note = note

    # --- what follows but for the last runs in the client's thread

    async def _open(self) -> None:
        request = InitProducerIdRequest(self._name, TIMEOUT_MS)

        async def attempt() -> Any:
            try:
                return await self._ask(request, lambda answer: [answer.error_code])
            except _UnansweredError as error:  # at worst this gets an epoch that is fenced already
                raise RequestTimedOutError(str(error)) from error

        response = await self._until(attempt)
        self._producer, self._epoch = response.producer_id, response.producer_epoch

    async def _settled(self, offsets: Offsets) -> int:
        """Return the end of the notes, once no transaction lies before it that is not finished."""
        end = await offsets.at(self._notes, LATEST, READ_UNCOMMITTED)

        async def attempt() -> int:
            if await offsets.at(self._notes, LATEST) < end:
                raise ConcurrentTransactions
            return end

        return await self._until(attempt)

    async def _write(self, parcels: dict[TopicPartition, deque[_Parcel]]) -> None:
        for partition in parcels:
            await self._topics.check(partition)
        await self._ask(
            AddPartitionsToTxnRequest(self._name, self._producer, self._epoch, _by_topic(parcels)),
            lambda answer: [code for _, partitions in answer.errors for _, code in partitions],
        )
        while any(parcels.values()):
            turn = {partition: waiting.popleft() for partition, waiting in parcels.items() if waiting}
            await self._produce({partition: self._encoded(partition, parcel) for partition, parcel in turn.items()})
            for partition, parcel in turn.items():
                self._sequences[partition] = (self._sequences[partition] + len(parcel.rows)) % 2**31
        await self._ask(
            EndTxnRequest(self._name, self._producer, self._epoch, True), lambda answer: [answer.error_code]
        )

    def _encoded(self, partition: TopicPartition, parcel: _Parcel) -> bytes:
        builder = DefaultRecordBatchBuilder(
            2, self._codec, 1, self._producer, self._epoch, self._sequences[partition], 2 * _BATCH_BYTES
        )
        for place, (timestamp, key, value, headers) in enumerate(parcel.rows):
            added = builder.append(place, timestamp, key, value, headers)
            assert added is not None
        return bytes(builder.build())

    async def _produce(self, batches: dict[TopicPartition, bytes]) -> None:
        """Send one batch to each of some partitions, again and again until every leader has taken its."""
        left = dict(batches)

        async def attempt() -> None:
            by_leader: dict[int, list[TopicPartition]] = {}
            for partition in left:
                leader = leader_of(self._connection, partition)
                if leader is None:
                    await self._connection.metadata(None)
                    raise LeaderNotAvailableError
                by_leader.setdefault(leader, []).append(partition)
            sent = [self._deliver(leader, left, partitions) for leader, partitions in by_leader.items()]
            for outcome in await asyncio.gather(*sent, return_exceptions=True):
                if isinstance(outcome, BaseException):
                    raise outcome

        await self._until(attempt)

    async def _deliver(self, leader: int, left: dict[TopicPartition, bytes], partitions: list[TopicPartition]) -> None:
        topics: dict[str, list[tuple[int, bytes]]] = {}
        for partition in partitions:
            topics.setdefault(partition.topic, []).append((partition.partition, left[partition]))
        request = ProduceRequest(self._name, -1, round(_WRITE_S * 1000), list(topics.items()))
        failed: KafkaError | None = None
        response = await self._send(leader, request)
        for topic, answers in response.topics:
            for number, code, *_ in answers:
                partition = TopicPartition(topic, number)
                if code in REFUSED:
                    batch = left[partition]
                    raise await refusal(self._connection, self._topics, partition, batch, len(batch), for_code(code)())
                if code and for_code(code) is not DuplicateSequenceNumber:
                    failed = self._failure(code)
                else:
                    del left[partition]
        if failed is not None:
            if getattr(failed, "invalid_metadata", False):
                await self._connection.metadata(None)
            raise failed

    async def _ask(self, request: Any, codes: Callable[[Any], list[int]]) -> Any:
        """Ask the broker that looks after the writer until it has done what was asked."""

        async def attempt() -> Any:
            if self._node is None:
                self._node = await coordinator(self._connection, self._name, TRANSACTION)
            response = await self._send(self._node, request)
            failures = [self._failure(code) for code in codes(response) if code]
            for failure in sorted(failures, key=lambda error: isinstance(error, OperationNotAttempted)):
                if isinstance(failure, NotCoordinatorError | CoordinatorNotAvailableError):
                    self._node = None
                raise failure
            return response

        return await self._until(attempt)

    async def _send(self, node: int, request: Any) -> Any:
        try:
            return await self._connection.send(node, request, group=_CONNECTION)
        except KafkaError as error:
            self._node = None
            raise _UnansweredError(type(error).__name__) from error

    async def _until(self, attempt: Callable[[], Awaitable[_Result]]) -> _Result:
        deadline = self._connection.loop.time() + _WRITE_S
        while True:
            try:
                return await attempt()
            except KafkaError as error:
                if not (error.retriable or isinstance(error, ConcurrentTransactions)):
                    raise
                if self._connection.loop.time() > deadline:
                    raise RequestTimedOutError(f"{type(error).__name__} for {_WRITE_S} s") from error
            await self._connection.pause(_PAUSE_S)

    def _failure(self, code: int) -> KafkaError:
        error: KafkaError = InvalidProducerEpoch() if code in _FENCED else for_code(code)()
        return error

    def _call(self, work: Any) -> Any:
        """Run work in the client's thread; say what its failure means for the writer."""
        return self._connection.call(self._told(work), TIMEOUT_MS / 1000)

    async def _told(self, work: Awaitable[_Result]) -> _Result:
        try:
            return await work
        except KafkaError as error:
            raise self._meaning(error) from error

    def _meaning(self, error: KafkaError) -> HeadraceError:
        told = f"the transactions of {self._name}"
        if isinstance(error, InvalidProducerEpoch):
            return FencedError(f"{told} were opened again, or one of them took longer than {TIMEOUT_MS // 1000} s")
        if isinstance(error, _UnansweredError):
            return RetriableError(f"{told} must be opened again: a broker did not answer ({error})")
        if isinstance(error, _ANEW):
            return RetriableError(f"{told} must be opened again: the brokers say {type(error).__name__}")
        if isinstance(error, TransactionalIdAuthorizationFailed):
            error = TransactionalIdAuthorizationFailed(f"Write on transactional id {self._name!r}")
        if isinstance(error, InvalidTransactionTimeout):
            return SettingsError(
                f"{told} are refused by the brokers",
                remedy=f"Set transaction.max.timeout.ms of the brokers to {TIMEOUT_MS} or more",
            )
        return self._connection.translated(error, told)

    def _last_note(self, reader: Callable[[TopicPartition, int], Reader], first: int, end: int) -> bytes | None:
        """Return the last note that counts, None if there is none; in the caller's thread."""
        for start in sorted({max(first, end - back) for back in (*_BACK, end)}, reverse=True):
            found = None
            notes = reader(self._notes, start)
            try:
                for batch in read_to(notes, end, _BACK[-1]):
                    found = batch.values.split()[-1]
            finally:
                notes.close()
            if found is not None:
                return found
        return None


def _pack(parcels: deque[_Parcel], partition: TopicPartition, batch: RecordBatch) -> None:
    """Put the records of a batch behind those that wait for the partition."""
    for piece, size, described in _pieces(partition, batch, is_described(batch)):
        found = list(rows(piece, described=described))
        if parcels and parcels[-1].size + size <= _BATCH_BYTES:
            parcels[-1].rows += found
            parcels[-1].size += size
        else:
            parcels.append(_Parcel(found, size))


def _pieces(partition: TopicPartition, batch: RecordBatch, described: bool) -> Iterator[tuple[RecordBatch, int, bool]]:
    size = size_bytes(batch, described=described)
    if size > _BATCH_BYTES and len(batch) > 1:
        share = max(1, len(batch) * _BATCH_BYTES // (2 * size))
        pieces = BatchPieces(replace(batch, offsets=range(len(batch))), 0)
        while not pieces.exhausted:
            yield from _pieces(partition, pieces.take(share), described)
        return
    if size > 2 * _BATCH_BYTES:
        raise InvalidError(f"a record for {partition} is larger than Kafka takes: about {size} bytes")
    if len(batch):
        yield batch, size, described


def _by_topic(partitions: Iterable[TopicPartition]) -> list[tuple[str, list[int]]]:
    topics: dict[str, list[int]] = {}
    for topic, number in partitions:
        topics.setdefault(topic, []).append(number)
    return list(topics.items())
