"""``headrace produce``: lines of JSON into the log."""

from __future__ import annotations

import signal
import sys
from typing import Annotated, BinaryIO

import typer

from headrace.cli.encoding import LineEncoder
from headrace.cli.failures import INTERRUPTED
from headrace.cli.lines import Stop, chunks, stopping
from headrace.cli.options import FsyncOption, KeySerde, LogOption, ValueSerde, load_settings, opened_log
from headrace.cli.output import LiveLine, duration, note, rate
from headrace.cli.partitioning import TopicWriter
from headrace.clock import Clock, SystemClock
from headrace.errors import HeadraceError, InvalidError
from headrace.log.api import Log, TopicInfo

DEFAULT_PARTITIONS = 4
"""Partitions of a topic that a command makes."""

_LINGER_MS = 100


def produce(
    topic: Annotated[str, typer.Argument(metavar="TOPIC", help="Where the records go; made if it does not exist.")],
    key: Annotated[str | None, typer.Option(metavar="FIELD", help="The field that is the record's key.")] = None,
    time: Annotated[
        str | None,
        typer.Option(metavar="FIELD", help="The field that is the record's time: ms since the epoch or ISO-8601; "
                     "else now."),
    ] = None,
    partitions: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Partitions of a new topic; default 4.", show_default=False)
    ] = None,
    value_serde: Annotated[ValueSerde, typer.Option(help="How values are written.")] = ValueSerde.MSGPACK,
    key_serde: Annotated[KeySerde, typer.Option(help="How keys are written.")] = KeySerde.STR,
    batch: Annotated[int, typer.Option(min=1, metavar="N", help="Records appended to a partition at once.")] = 4096,
    log: LogOption = None,
    fsync: FsyncOption = None,
) -> None:  # fmt: skip
    """Write lines of JSON from standard input into the log.

    Records with one key go to one partition; records without keys are dealt out in blocks. A bad line ends the
    command with its number, after everything before it was written.

    \b
    headrace produce payments --key customer_id --time at < payments.ndjson
    """
    encoder = LineEncoder(key, time, value_serde, key_serde)
    clock = SystemClock()
    with opened_log(load_settings(log=log, fsync=fsync), clock, existing=False) as opened:
        found = ensure_topic(opened, topic, partitions)
        encoder.largest_bytes = found.max_record_bytes
        writer = TopicWriter(opened, topic, found.partitions, batch, first=clock.now_ms())
        if sys.stdin.isatty():
            note("type lines of JSON; Ctrl-D ends")
        begun_ms = clock.monotonic_ms()
        with stopping() as stop:
            try:
                write_lines(sys.stdin.buffer, encoder, writer, opened, clock, stop)
            except HeadraceError as error:
                raise type(error)(
                    f"{error.message} ({_records(writer.written)} before it written to {topic})", remedy=error.remedy
                ) from None
        elapsed_ms = clock.monotonic_ms() - begun_ms
        count = f"{found.partitions} partition{'s' * (found.partitions != 1)}"
        note(f"{_records(writer.written)} to {topic} ({count}) in {duration(elapsed_ms)}")
    if stop:
        raise typer.Exit(INTERRUPTED if stop.signal == signal.SIGINT else 128 + stop.signal)


def ensure_topic(log: Log, topic: str, partitions: int | None) -> TopicInfo:
    """Return a topic, made with ``partitions`` or four if it does not exist.

    Raises:
        InvalidError: it exists with another number of partitions, or cannot be made.
    """
    existing = log.topics().get(topic)
    if existing is not None and partitions is not None and existing.partitions != partitions:
        raise InvalidError(
            f"topic {topic} exists with {existing.partitions} partitions, and --partitions asks for {partitions}",
            remedy="Leave --partitions out, or write to another topic",
        )
    return existing or log.create_topic(topic, partitions or DEFAULT_PARTITIONS)


def write_lines(
    stream: BinaryIO, encoder: LineEncoder, writer: TopicWriter, log: Log, clock: Clock, stop: Stop
) -> None:
    """Write every line of ``stream``, in bulk where they come fast and at once where they come slowly.

    Raises:
        RecordError: a line is bad; everything before it was written.
    """
    live = LiveLine(clock)
    begun_ms = flushed_ms = clock.monotonic_ms()
    line_number = 0
    try:
        for chunk in chunks(stream, stop, _LINGER_MS):
            if chunk:
                _write_chunk(chunk, line_number, encoder, writer, clock.now_ms())
                line_number += chunk.count(b"\n")
            now_ms = clock.monotonic_ms()
            if not chunk or now_ms - flushed_ms > 10 * _LINGER_MS:
                # Whoever types or trickles lines sees them arrive.
                writer.flush()
                flushed_ms = now_ms
            if not chunk:
                log.flush()
            live.show(f"{_records(writer.written)}, {rate(writer.written, now_ms - begun_ms)}")
    finally:
        live.clear()
        writer.flush()
        log.flush()


def _write_chunk(chunk: bytes, line_number: int, encoder: LineEncoder, writer: TopicWriter, now_ms: int) -> None:
    try:
        columns = encoder.encode(chunk, now_ms)
    except Exception:  # noqa: BLE001  # a line can be bad in many ways, and the slow way says how
        for number, line in enumerate(chunk.split(b"\n"), line_number + 1):
            found = encoder.encode_line(line, number, now_ms)
            if found is not None:
                writer.add(*found, len(line))
    else:
        writer.add(*columns, len(chunk))


def _records(count: int) -> str:
    return f"{count:,} record{'s' * (count != 1)}"
