"""``headrace consume``: records of a topic as lines of JSON."""

from __future__ import annotations

import re
import select
import sys
import threading
from collections.abc import Callable, Generator
from datetime import timedelta
from typing import Annotated, BinaryIO

import typer

from headrace.cli.encoding import parse_time
from headrace.cli.options import KeySerde, LogOption, ValueSerde, load_settings, opened_log
from headrace.cli.output import note
from headrace.cli.rendering import BatchRenderer
from headrace.clock import Clock, SystemClock
from headrace.errors import NotFoundError, SettingsError
from headrace.log.api import Log, Reader
from headrace.record import RecordBatch, TopicPartition
from headrace.settings import duration_ms

_BATCH_RECORDS = 8192
_POLL_MS = (10, 200)
"""How long to wait for new records at first, and at most."""

StartOffset = Callable[[Log, TopicPartition], int]
"""Where to begin in a partition."""


def consume(
    topic: Annotated[str, typer.Argument(metavar="TOPIC", help="What to read.")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Wait for new records until Ctrl-C.")] = False,
    start: Annotated[
        str,
        typer.Option("--from", metavar="OFFSET|TIME|start|end", help="Where to begin in each partition: an offset "
                     "(-10 is ten before the end), an ISO-8601 time, or a time ago such as 15m."),
    ] = "start",
    limit: Annotated[int | None, typer.Option(min=0, metavar="N", help="Stop after so many records.")] = None,
    partition: Annotated[int | None, typer.Option(min=0, metavar="P", help="This partition only.")] = None,
    value_serde: Annotated[ValueSerde, typer.Option(help="How values were written.")] = ValueSerde.MSGPACK,
    key_serde: Annotated[KeySerde, typer.Option(help="How keys were written.")] = KeySerde.STR,
    log: LogOption = None,
) -> None:  # fmt: skip
    """Print the records of a topic as lines of JSON.

    A line has key, value, timestamp, partition, offset and headers. What does not decode appears as {"base64": ...}.
    Records of one partition come in their order, partitions in turn.

    \b
    headrace consume spend-per-minute --limit 5
    headrace consume alerts --follow --from end | jq .value
    """
    clock = SystemClock()
    start_offset = parse_start(start, clock.now_ms())
    renderer = BatchRenderer(value_serde, key_serde)
    with opened_log(load_settings(log=log), clock) as opened:
        partitions = partitions_of(opened, topic, partition)
        out = sys.stdout.buffer
        batches = read_batches(opened, partitions, start_offset, limit)
        try:
            wait = _Waiting(clock, out)
            for batch, number in batches:
                if batch is not None:
                    out.write(renderer.render(batch, number))
                    out.flush()
                    wait.reset()
                elif not follow or not wait.more():
                    break
        except KeyboardInterrupt:
            if not follow:
                raise
        finally:
            batches.close()


def parse_start(text: str, now_ms: int) -> StartOffset:
    """Return what ``--from`` means.

    Raises:
        SettingsError: it is none of what it may be.
    """
    if text == "start":
        return lambda log, partition: log.start_offset(partition)
    if text == "end":
        return lambda log, partition: log.end_offset(partition)
    if re.fullmatch(r"-?\d+", text):
        offset = int(text)
        return lambda log, partition: max(
            offset if not text.startswith("-") else log.end_offset(partition) + offset, log.start_offset(partition)
        )
    try:
        if re.fullmatch(r"\d+(\.\d+)?(ms|s|m|h|d)", text):
            moment_ms = now_ms - duration_ms(timedelta(milliseconds=duration_ms(text)))
        else:
            moment_ms = parse_time(text)
    except ValueError as error:
        raise SettingsError(
            f"--from {text!r} {error}",
            remedy='Give an offset, "start", "end", a time such as 2023-11-14T22:13:20Z, or a time ago such as 15m',
        ) from None
    return lambda log, partition: log.offset_at(partition, moment_ms)


def partitions_of(log: Log, topic: str, only: int | None = None) -> list[TopicPartition]:
    """Return the partitions of a topic, or the one that was asked for.

    Raises:
        NotFoundError: there is no such topic or partition; the message names the topics that there are.
    """
    topics = log.topics()
    if topic not in topics:
        log.layout([topic])  # says more, if it is only hidden from this user
        there = ", ".join(name for name in topics) or "none"
        raise NotFoundError(
            f"there is no topic {topic!r} in the log {log.url}", remedy=f"Check its name; topics there: {there}"
        )
    count = topics[topic].partitions
    if only is not None and only >= count:
        raise NotFoundError(
            f"topic {topic!r} has no partition {only}: it has {count}", remedy=f"Use a partition from 0 to {count - 1}"
        )
    return [TopicPartition(topic, number) for number in (range(count) if only is None else [only])]


def read_batches(
    log: Log, partitions: list[TopicPartition], start_offset: StartOffset, limit: int | None = None
) -> Generator[tuple[RecordBatch | None, int]]:
    """Yield batches, one of each partition in turn, with their partitions.

    Args:
        log: To read.
        partitions: Of one topic.
        start_offset: Where to begin.
        limit: Ends it after so many records.

    Yields:
        A batch and its partition; None whenever all partitions were read to their end.
    """
    readers = {partition: log.reader(partition, start_offset(log, partition)) for partition in partitions}
    left = limit
    patience = threading.Event()
    try:
        while left is None or left > 0:
            found = behind = False
            for partition, reader in readers.items():
                batch = _read(log, partition, reader, _BATCH_RECORDS if left is None else min(left, _BATCH_RECORDS))
                if batch is None:
                    behind = behind or reader.position < reader.end_offset()
                    continue
                found = True
                if batch.control:
                    continue
                yield batch, partition.partition
                if left is not None:
                    left -= len(batch)
                    if not left:
                        return
            if behind and not found:
                patience.wait(_POLL_MS[0] / 1000)  # it is there, and on its way
            elif not found:
                yield None, -1
    finally:
        for reader in readers.values():
            reader.close()


def _read(log: Log, partition: TopicPartition, reader: Reader, most: int) -> RecordBatch | None:
    while True:
        try:
            return reader.read(most)
        except NotFoundError:
            kept = log.start_offset(partition)
            if kept <= reader.position:
                raise
            note(f"note: {partition} keeps nothing before offset {kept}; skipped from {reader.position}")
            reader.position = kept


class _Waiting:
    """Waits for new records, longer and longer, for as long as somebody reads what is printed."""

    def __init__(self, clock: Clock, out: BinaryIO) -> None:
        self._clock = clock
        self._wait_ms = _POLL_MS[0]
        self._poll = _closed_poll(out)

    def reset(self) -> None:
        """Begin with short waits again."""
        self._wait_ms = _POLL_MS[0]

    def more(self) -> bool:
        """Wait; False if nobody reads any more."""
        if self._poll is None:
            self._clock.sleep_ms(self._wait_ms)
        elif self._poll.poll(self._wait_ms):
            return False
        self._wait_ms = min(2 * self._wait_ms, _POLL_MS[1])
        return True


def _closed_poll(out: BinaryIO) -> select.poll | None:
    """Return what becomes ready when the reading end of a pipe closes; None where that cannot be asked."""
    try:
        descriptor = out.fileno()
    except (AttributeError, OSError):
        return None
    poll = select.poll()
    poll.register(descriptor, 0)
    return poll
