"""``headrace dead-letter``: records that a topology could not process, and their way back."""

from __future__ import annotations

import sys
from collections import Counter, deque
from collections.abc import Iterator
from enum import StrEnum
from itertools import chain
from typing import Annotated, Any

import msgspec
import typer

from headrace.cli.letters import Done, Letter, done_with, letter_partitions, read_letters, topic_of
from headrace.cli.options import KeySerde, LogOption, ValueSerde, load_settings, opened_log
from headrace.cli.output import moment, note, show_json, show_table
from headrace.cli.rendering import BatchRenderer
from headrace.cli.replaying import Replayed, Selection, preview, replay
from headrace.clock import SystemClock
from headrace.errors import NotFoundError, SettingsError
from headrace.log.api import Log
from headrace.record import Headers, JoinedBytes, RecordBatch, TopicPartition

_WAITING, _REPLAYED, _MADE = "waiting", "replayed", "not replayable"


class Form(StrEnum):
    """How letters are shown."""

    TABLE = "table"
    JSON = "json"


TopologyArgument = Annotated[str, typer.Argument(metavar="TOPOLOGY", help="The topology's name, such as card-spend.")]
FormOption = Annotated[Form, typer.Option("--format", help="A table for people, or JSON for machines.")]
StepOption = Annotated[str | None, typer.Option("--step", metavar="NAME", help="Of this step only.")]


def list_letters(
    topology: TopologyArgument,
    step: StepOption = None,
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="The newest so many of each partition.")] = 50,
    form: FormOption = Form.TABLE,
    log: LogOption = None,
) -> None:
    """List the records that failed, and count them by step and error.

    \b
    headrace dead-letter list card-spend
    headrace dead-letter list card-spend --step payments --format json
    """
    with opened_log(load_settings(log=log), SystemClock()) as opened:
        partitions = letter_partitions(opened, topology)
        done = done_with(opened, topology)
        newest: dict[int, deque[Letter]] = {partition.partition: deque(maxlen=limit) for partition in partitions}
        counts: Counter[tuple[str, str, str]] = Counter()
        for letter in read_letters(opened, partitions):
            if step in (None, letter.step):
                newest[letter.partition].append(letter)
                counts[letter.step, letter.error, _state(letter, done, topology)] += 1
        shown = [_row(letter, _state(letter, done, topology)) for letter in chain.from_iterable(newest.values())]
    summary = [
        {"step": name, "error": error, **{state: counts[name, error, state] for state in (_WAITING, _REPLAYED, _MADE)}}
        for name, error in sorted({(name, error) for name, error, _ in counts})
    ]
    if form is Form.JSON:
        show_json({"topology": topology, "records": shown, "summary": summary})
    elif not summary:
        note(f"there are no dead letters of {topology}{f' from step {step}' if step else ''}")
    else:
        _show_list(topology, shown, summary, counts.total())


def show_letter(
    topology: TopologyArgument,
    partition: Annotated[int | None, typer.Argument(min=0, metavar="PARTITION", help="Of the dead letter.")] = None,
    offset: Annotated[
        int | None, typer.Argument(min=0, metavar="OFFSET", help="Of the dead letter; else the newest one.")
    ] = None,
    value_serde: Annotated[ValueSerde, typer.Option(help="How values were written.")] = ValueSerde.MSGPACK,
    key_serde: Annotated[KeySerde, typer.Option(help="How keys were written.")] = KeySerde.STR,
    form: FormOption = Form.TABLE,
    log: LogOption = None,
) -> None:
    """Show one record that failed: the error, your line, all its headers, key and value.

    \b
    headrace dead-letter show card-spend
    headrace dead-letter show card-spend 0 17
    """
    if (partition is None) != (offset is None):
        raise SettingsError("a dead letter is named by its partition and its offset", remedy="Give both, or neither")
    with opened_log(load_settings(log=log), SystemClock()) as opened:
        letter = _find(opened, topology, partition, offset)
        state = _state(letter, done_with(opened, topology), topology)
    line = _rendered(letter, BatchRenderer(value_serde, key_serde))
    row = {**_row(letter, state), "key": line["key"], "value": line["value"], "headers": line["headers"]}
    if form is Form.JSON:
        show_json(row)
        return
    print(f"{topic_of(topology)}/{letter.partition} offset {letter.offset}: {state}\n")
    said = {
        "error": letter.error, "line": letter.error_at or "-", "step": letter.step, "read from": letter.place,
        "timestamp": moment(letter.timestamp), "attempt": letter.attempt,
    }  # fmt: skip
    for name, text in said.items():
        print(f"{name:<10} {text}")
    print("\nheaders")
    for name, value in line["headers"]:
        print(f"  {name}: {value if isinstance(value, str) else _json(value)}")
    print(f"\nkey\n{_json(line['key'])}\n\nvalue\n{_json(line['value'])}")


def replay_letters(
    topology: TopologyArgument,
    step: StepOption = None,
    partition: Annotated[
        int | None, typer.Option(min=0, metavar="P", help="Of this partition of the dead letters only.")
    ] = None,
    offset: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="This dead letter only; needs --partition.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="At most so many.")] = None,
    again: Annotated[bool, typer.Option("--again", help="Those too that were replayed before.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask on a terminal.")] = False,
    log: LogOption = None,
) -> None:
    """Send records that failed back to the topics and partitions they were read from.

    Do it when the topology or the data beside it was mended. A record goes as it was, behind everything that came
    since, so it may be late. What was replayed is remembered in the log, by the group TOPOLOGY-dead-letter-replay, and
    not sent again by the next replay. What a window or timer made has no record, and is left out.

    \b
    headrace dead-letter replay card-spend --dry-run
    headrace dead-letter replay card-spend --step payments-map-parse
    """
    if offset is not None and partition is None:
        raise SettingsError("--offset needs --partition", remedy="`headrace dead-letter list` shows both")
    selection = Selection(step, partition, offset, limit, again)
    with opened_log(load_settings(log=log), SystemClock()) as opened:
        if dry_run:
            _tell(preview(opened, topology, selection), topology, selection, "would be replayed")
            return
        if sys.stdin.isatty() and not yes:
            planned = preview(opened, topology, selection)
            if planned.total:
                typer.confirm(f"replay {_records(planned.total)} to {', '.join(sorted(planned.records))}?", abort=True)
        _tell(replay(opened, topology, selection), topology, selection, "replayed")


def _state(letter: Letter, done: dict[TopicPartition, Done], topology: str) -> str:
    if letter.source is None:
        return _MADE
    mark = done.get(TopicPartition(topic_of(topology), letter.partition), Done())
    return _REPLAYED if letter.offset in mark else _WAITING


def _row(letter: Letter, state: str) -> dict[str, Any]:
    source = letter.source
    return {
        "partition": letter.partition,
        "offset": letter.offset,
        "timestamp": letter.timestamp,
        "step": letter.step,
        "topic": None if source is None else source.topic,
        "source_partition": None if source is None else source.partition,
        "source_offset": None if source is None or letter.source_offset is None else int(letter.source_offset),
        "error": letter.error,
        "error_at": letter.error_at,
        "attempt": int(letter.attempt),
        "state": state,
    }


def _show_list(topology: str, shown: list[dict[str, Any]], summary: list[dict[str, Any]], total: int) -> None:
    columns = ["letter", "timestamp", "step", "read from", "error", "attempt", "state"]
    rows = [
        [
            f"{row['partition']} {row['offset']}",
            moment(row["timestamp"]),
            row["step"],
            "-" if row["topic"] is None else f"{row['topic']}/{row['source_partition']} {row['source_offset']}",
            row["error"] if row["error_at"] is None else f"{row['error']} at {row['error_at']}",
            str(row["attempt"]),
            row["state"],
        ]
        for row in shown
    ]
    left_out = f", the newest {len(shown):,}" if len(shown) < total else ""
    show_table(f"{topology}: {_records(total)} failed{left_out}", columns, rows, right=["attempt"])
    print()
    counted = [_WAITING, _REPLAYED, _MADE]
    rows = [[row["step"], row["error"], *(f"{row[state]:,}" for state in counted)] for row in summary]
    show_table("", ["step", "error", *counted], rows, right=counted)


def _find(log: Log, topology: str, partition: int | None, offset: int | None) -> Letter:
    partitions = letter_partitions(log, topology, partition)
    if offset is not None:
        for letter in read_letters(log, partitions, dict.fromkeys(partitions, offset)):
            if letter.offset == offset:
                return letter
            break
        raise NotFoundError(
            f"there is no dead letter at offset {offset} of partition {partition}",
            remedy=f"`headrace dead-letter list {topology}` shows those there are",
        )
    ends = {place: log.end_offset(place) for place in partitions}
    last = {place: end - 1 for place, end in ends.items() if end > log.start_offset(place)}
    newest = list(read_letters(log, list(last), last))
    if not newest:
        raise NotFoundError(f"there are no dead letters of {topology!r}", remedy="Nothing has failed, or all is gone")
    return max(newest, key=lambda letter: (letter.timestamp, letter.partition))


def _rendered(letter: Letter, renderer: BatchRenderer) -> dict[str, Any]:
    headers: list[Headers] = [letter.headers]
    batch = RecordBatch(
        [letter.timestamp], [letter.key], JoinedBytes.of([letter.value]), headers, offsets=[letter.offset]
    )
    line: dict[str, Any] = msgspec.json.decode(renderer.render(batch, letter.partition))
    return line


def _tell(found: Replayed, topology: str, selection: Selection, what: str) -> None:
    if selection.offset is not None and not (found.total or found.made or found.before):
        raise NotFoundError(
            f"there is no dead letter at offset {selection.offset} of partition {selection.partition}",
            remedy=f"`headrace dead-letter list {topology}` shows those there are",
        )
    print(f"{_records(found.total)} {what}")
    if found.records:
        rows = [[topic, f"{count:,}"] for topic, count in sorted(found.records.items())]
        show_table("", ["topic", "records"], rows, right=["records"])
    if found.made:
        note(f"note: {_records(found.made)} left out, which windows or timers made: there is no record to replay")
    if found.before and not found.total:
        note("note: there is nothing that was not replayed before; --again sends it once more")


def _records(count: int) -> str:
    return f"{count:,} record{'s' * (count != 1)}"


def _json(value: Any) -> str:
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()


def commands() -> Iterator[tuple[str, Any]]:
    """Yield the commands of ``headrace dead-letter`` by name."""
    yield "list", list_letters
    yield "show", show_letter
    yield "replay", replay_letters
