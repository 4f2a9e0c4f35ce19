"""What becomes of records that fail in a task: it stops, leaves them out, or keeps them aside as dead letters. Pure.

A dead letter is the input record as it is in the log, with headers that say what failed where. Its position, which
stands in its ``headrace-id``, is the offset of that record, so that a repeat after a crash has the same id whatever
else happened. What the passing of time made comes from no one record: it is written as MessagePack, numbered by step.
"""

from __future__ import annotations

import traceback
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from headrace.errors import RecordError
from headrace.operators.api import Batch
from headrace.operators.retrying import FinalPolicy
from headrace.record import Headers, JoinedBytes, Origin, RecordBatch, TopicPartition
from headrace.runtime.tasks.edges import Append
from headrace.runtime.tasks.tally import Tally
from headrace.serde.msgpack import Msgpack
from headrace.topology.plan import TaskId

ERROR_HEADER = "headrace-error"
"""The type of what was raised, and its message where that names no data."""
ERROR_AT_HEADER = "headrace-error-at"
"""The user's file and line that raised it; missing if none did."""
STEP_HEADER = "headrace-step"
TOPIC_HEADER = "headrace-topic"
"""The topic that the record was read from; missing for what time made."""
PARTITION_HEADER = "headrace-partition"
OFFSET_HEADER = "headrace-offset"
ATTEMPT_HEADER = "headrace-attempt"
"""How often the record has failed: 1, and one more each time it was replayed in vain."""
TRIES_HEADER = "headrace-tries"
"""How many calls were made, where the step has a retry policy."""
MADE_HEADER = "headrace-made"
"""``time`` if the value was made by the passing of time, so that there is no record to replay."""

LETTER_HEADERS = frozenset(
    [
        ERROR_HEADER, ERROR_AT_HEADER, STEP_HEADER, TOPIC_HEADER, PARTITION_HEADER, OFFSET_HEADER, ATTEMPT_HEADER,
        TRIES_HEADER, MADE_HEADER,
    ]
)  # fmt: skip
"""The headers that a dead letter has beside those of its record."""

_PACKAGE = __file__.removesuffix("runtime/tasks/failures.py")
_LIBRARY = traceback.__file__.removesuffix("traceback.py")
_PACKAGES = "/site-packages/"


class Failure(NamedTuple):
    """One record that a step failed on."""

    step: str
    policy: FinalPolicy
    error: Exception
    offset: int = -1
    """Of the input record; -1 if time made it."""
    made: Batch | None = None
    """What time made and the step failed on; None if the step failed while it made something."""
    tries: int | None = None
    """How many calls were made, if more than one might have been."""
    cause: str = "event time"
    """What passed when the step failed while it made something."""


class Failures:
    """Deals with what fails in one task.

    Args:
        topology: The name of the topology.
        task: The id of the task.
        where: The input that is worked on before there was any.
        letters: The topic of dead letters and how many partitions it has; None if no step of the task writes any.
    """

    def __init__(self, topology: str, task: TaskId, where: TopicPartition, letters: tuple[str, int] | None) -> None:
        self.tally = Tally()
        self._where = where
        self._letters = None if letters is None else DeadLetters(topology, str(task), *letters)

    def take_input(self, partition: TopicPartition, records: RecordBatch) -> None:
        """Learn what is worked on from now on."""
        self._where = partition
        if self._letters is not None:
            self._letters.take_input(partition, records)

    def fail(self, failure: Failure, watermark: int) -> None:
        """Deal with one record that failed.

        Args:
            failure: What failed.
            watermark: That of the task.

        Raises:
            RecordError: the policy is to stop.
        """
        if failure.policy == "skip":
            self.tally.errors[failure.step] += 1
        elif failure.policy == "dead-letter":
            assert self._letters is not None, "the plan knows which steps write dead letters"
            if self._letters.add(failure, watermark):
                self.tally.dead_letters[failure.step] += 1
        else:
            raise self._stop(failure) from failure.error

    def pack(self) -> list[Append]:
        """Return the dead letters since the last call, as appends."""
        return [] if self._letters is None else self._letters.pack()

    def sequences(self) -> dict[str, int]:
        """Return the next positions, for the checkpoint."""
        return {} if self._letters is None else dict(self._letters.sequences)

    def restore(self, sequences: Mapping[str, int]) -> None:
        """Take the positions that a checkpoint kept; some are not dead letters'."""
        if self._letters is not None:
            self._letters.restore(sequences)

    def _stop(self, failure: Failure) -> RecordError:
        if failure.offset >= 0:
            place = f"the record at partition {self._where}, offset {failure.offset}"
        elif failure.made is None:
            place = f"what {failure.cause} made in it, in the task of partition {self._where}"
        else:
            place = f"what time made before it, in the task of partition {self._where}"
        tried = "" if failure.tries is None else f" {failure.tries} time{'s' * (failure.tries != 1)}"
        error = RecordError(
            f"step {failure.step!r} failed{tried} on {place}: {describe_failure(failure.error)}",
            remedy="Fix the step or the data and start again; nothing is lost. "
            'on_error="skip" leaves such records out, on_error="dead-letter" keeps them in a topic of their own',
        )
        if frames := user_frames(failure.error):
            listed = "".join(["Traceback (most recent call last):\n", *traceback.format_list(frames)])
            error.add_note(listed.rstrip())
        return error


class DeadLetters:
    """Writes records that failed to the topology's topic for them.

    Args:
        topology: The name of the topology.
        task: The id of the task.
        topic: Where to.
        partitions: How many it has; a record goes to that of its own number, so that those of one stay in order.
    """

    def __init__(self, topology: str, task: str, topic: str, partitions: int) -> None:
        self.sequences: dict[str, int] = {}
        """The next positions of what time made, by source."""
        self._topology = topology
        self._task = task
        self._topic = topic
        self._partitions = partitions
        self._number = int(task.rpartition("-")[2])
        self._input: tuple[TopicPartition, RecordBatch] | None = None
        self._values: list[bytes | None] | None = None
        """Those of the input batch, once one was needed."""
        self._read: dict[str, dict[int, Headers]] = {}
        """For each step the records of the input batch that it failed on, by offset, with what to say of them."""
        self._made: dict[str, list[tuple[int, bytes | None, bytes, Headers]]] = {}
        """For each step what time made: timestamp, key, value, headers."""

    def take_input(self, partition: TopicPartition, records: RecordBatch) -> None:
        """Learn what the offsets of the next failures mean."""
        self._input = partition, records
        self._values = None

    def add(self, failure: Failure, watermark: int) -> bool:
        """Keep one record for the next ``pack``; return False if it is there already, for the same step."""
        said = _said(failure)
        if failure.offset < 0:
            self._made.setdefault(failure.step, []).append(_made(failure.made, watermark, said))
            return True
        letters = self._read.setdefault(failure.step, {})
        if failure.offset in letters:
            return False
        letters[failure.offset] = said
        return True

    def pack(self) -> list[Append]:
        """Return what was kept, as appends."""
        appends = [self._pack_read(step, letters) for step, letters in self._read.items()]
        appends += [self._pack_made(step, letters) for step, letters in self._made.items()]
        self._read, self._made = {}, {}
        return appends

    def restore(self, sequences: Mapping[str, int]) -> None:
        """Take the positions that a checkpoint kept; some are not dead letters'."""
        self.sequences = {source: n for source, n in sequences.items() if is_letters(source)}

    def _pack_read(self, step: str, letters: dict[int, Headers]) -> Append:
        assert self._input is not None
        partition, records = self._input
        if self._values is None:
            self._values = records.values.split()
        offsets = sorted(letters)
        rows = [bisect_left(records.offsets, offset) for offset in offsets]
        headers = []
        for offset, row in zip(offsets, rows, strict=True):
            place: Headers = (
                (TOPIC_HEADER, partition.topic.encode()),
                (PARTITION_HEADER, b"%d" % partition.partition),
                (OFFSET_HEADER, b"%d" % offset),
            )
            headers.append(_with_letter(records.headers[row] if records.headers else (), letters[offset] + place))
        batch = RecordBatch(
            [records.timestamps[row] for row in rows],
            [records.keys[row] for row in rows],
            JoinedBytes.of([self._values[row] for row in rows]),
            headers,
            Origin(f"{self._source(step)}/{partition.topic}/{partition.partition}", offsets),
        )
        return TopicPartition(self._topic, partition.partition % self._partitions), batch

    def _pack_made(self, step: str, letters: Sequence[tuple[int, bytes | None, bytes, Headers]]) -> Append:
        timestamps, keys, values, headers = zip(*letters, strict=True)
        source = f"{self._source(step)}{_TIME}"
        start = self.sequences.get(source, 0)
        self.sequences[source] = start + len(letters)
        positions = range(start, start + len(letters))
        batch = RecordBatch(timestamps, keys, JoinedBytes.of(values), headers, Origin(source, positions))
        return TopicPartition(self._topic, self._number % self._partitions), batch

    def _source(self, step: str) -> str:
        return f"{self._topology}/{step}/{self._task}{_LETTERS}"


_LETTERS = "/dead-letter"
_LONG = 19
"""Digits of a number that is no count of attempts, but what somebody wrote into a header."""
_TIME = "/time"


def is_letters(source: str) -> bool:
    """Return whether a sequence of positions is that of dead letters that time made."""
    return source.endswith(_LETTERS + _TIME)


def _said(failure: Failure) -> Headers:
    what, at = _what_and_where(failure.error)
    said: Headers = ((ERROR_HEADER, what.encode()),)
    if at:
        said += ((ERROR_AT_HEADER, at.encode()),)
    said += ((STEP_HEADER, failure.step.encode()),)
    if failure.tries is not None:
        said += ((TRIES_HEADER, b"%d" % failure.tries),)
    return said


def _with_letter(headers: Headers, letter: Headers) -> Headers:
    """Add what is to be said to a record's headers; those of an earlier letter go, but it counts."""
    earlier = [value for name, value in headers if name == ATTEMPT_HEADER]
    attempt = int(earlier[-1]) + 1 if earlier and earlier[-1].isdigit() and len(earlier[-1]) < _LONG else 1
    own = tuple(header for header in headers if header[0] not in LETTER_HEADERS)
    return (*own, *letter, (ATTEMPT_HEADER, b"%d" % attempt))


def _made(batch: Batch | None, watermark: int, said: Headers) -> tuple[int, bytes | None, bytes, Headers]:
    marked = (*said, (ATTEMPT_HEADER, b"1"), (MADE_HEADER, b"time"))
    if batch is None:
        return max(0, watermark), None, b"", marked
    try:
        (value,) = Msgpack().encode_many(batch.values)
    except Exception:  # noqa: BLE001  # a value of any type, which is only to be shown
        value = b""
    own = batch.headers[0] if batch.headers else ()
    return batch.timestamps[0], batch.keys[0], value or b"", (*own, *marked)


def user_frames(error: Exception) -> list[traceback.FrameSummary]:
    """Return the frames of an error that are not this package's own."""
    frames = traceback.extract_tb(error.__traceback__)
    return [f for f in frames if not f.filename.startswith((_PACKAGE, "<headrace"))]


def describe_failure(error: Exception) -> str:
    """Say what was raised and at which line of the user's, without what the user's exception says: it may hold data.

    Messages of decoding errors and of this package name fields and types only, and are kept.
    """
    what, at = _what_and_where(error)
    return f"{what} at {at}" if at else what


def _what_and_where(error: Exception) -> tuple[str, str]:
    frames = user_frames(error)
    if frames:
        frames = [f for f in frames if not f.filename.startswith(_LIBRARY) and _PACKAGES not in f.filename] or frames
        return type(error).__name__, f"{frames[-1].filename}:{frames[-1].lineno}"
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return (f"{type(error).__name__}: {text}" if text and _names_no_data(error) else type(error).__name__), ""


def _names_no_data(error: Exception) -> bool:
    """Return whether the message of an error that no line of the user's raised speaks of fields and types only.

    A builtin that the user passed as a function, such as ``int``, says in its own what it could not take.
    """
    frames = traceback.extract_tb(error.__traceback__)
    if type(error).__module__ == "msgspec" or (frames and (frames[-1].line or "").startswith("raise ")):
        return True
    return isinstance(error, TypeError | AttributeError) or (
        isinstance(error, KeyError) and bool(frames) and frames[-1].filename.startswith("<headrace")
    )
