"""Running the topologies over a log on disk: to check what they write, and to measure how fast they are."""

from __future__ import annotations

import resource
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

import msgspec

from bench.nexmark.comparing import topology_of
from bench.nexmark.events import Nexmark, side_input
from headrace import run
from headrace.clock import SystemClock
from headrace.log.embedded.log import EmbeddedLog
from headrace.record import JoinedBytes, RecordBatch, TopicPartition
from headrace.serde.primitives import Int
from headrace.topology.graph import Source

KEYS = {"persons": "id", "auctions": "id", "bids": "auction", "side_input": "key"}
"""The topics, and the field that is the key of each."""

EPOCHS = 2000
"""How many are written at a time: batches of a few thousand bids for each of four partitions."""


class Result(msgspec.Struct, frozen=True):
    """How a run went."""

    events: int
    """How many events the query had to read."""
    rows: int
    """How many records its topic has got."""
    seconds: float
    rss_mb: float
    """The most memory that this process ever had."""

    @property
    def events_per_s(self) -> float:
        return self.events / self.seconds


def fill(directory: Path, site: Nexmark, partitions: int = 4) -> None:
    """Write the events and the side input to a new log."""
    log = EmbeddedLog(directory, clock=SystemClock())
    for topic in KEYS:
        log.create_topic(topic, partitions)
    _append(log, "side_input", side_input(), partitions)
    for batch in site.batches(EPOCHS):
        _append(log, "persons", batch.persons, partitions)
        _append(log, "auctions", batch.auctions, partitions)
        _append(log, "bids", batch.bids, partitions)
    log.flush()
    log.close()


def _append(log: EmbeddedLog, topic: str, events: Sequence[Any], partitions: int) -> None:
    encode = msgspec.msgpack.Encoder().encode
    keys = Int().encode_many([getattr(event, KEYS[topic]) for event in events])
    of_partition: dict[int, list[Any]] = defaultdict(list)
    for key, event in zip(keys, events, strict=True):
        of_partition[crc32(key or b"") % partitions].append((getattr(event, "date_time", 0), key, encode(event)))
    for number, records in of_partition.items():
        timestamps, some_keys, values = map(list, zip(*records, strict=True))
        log.append(TopicPartition(topic, number), RecordBatch(timestamps, some_keys, JoinedBytes.of(values)))


def run_query(number: int, log: Path) -> Result:
    """Run a query with one worker to the end of its input. It writes to its topic in that log."""
    topics = {node.topic for node in topology_of(number).graph().nodes if isinstance(node, Source)}
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        status = run(
            topology_of(number), log=str(log), checkpoints=f"{folder}/checkpoints", state_dir=f"{folder}/state",
            until_end=True, metrics_port=0,
        )  # fmt: skip
        seconds = time.perf_counter() - began
    events = records_of(log, topics - {"side_input"})
    if (status.records_in, status.late, status.errors) != (events, 0, 0):
        raise RuntimeError(f"query {number} read {status.records_in} of {events} events: {status}")
    rss_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return Result(events, records_of(log, {f"q{number}"}), seconds, rss_mb)


def run_on_a_copy(number: int, log: Path) -> Result:
    """Do the same and leave the log as it was."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "log")
        shutil.copytree(log, copy)
        return run_query(number, copy)


def records_of(directory: Path, topics: set[str]) -> int:
    """Return how many records topics have."""
    log = EmbeddedLog(directory, clock=SystemClock())
    known = log.topics()
    partitions = [TopicPartition(topic, number) for topic in topics for number in range(known[topic].partitions)]
    ends = sum(map(log.end_offset, partitions))
    log.close()
    return ends


def written(number: int, directory: Path) -> Iterator[tuple[bytes | None, Any]]:
    """Yield the keys and values that a query has written."""
    decode = msgspec.msgpack.Decoder().decode
    topic = f"q{number}"
    log = EmbeddedLog(directory, clock=SystemClock())
    for partition in range(log.topics()[topic].partitions):
        reader = log.reader(TopicPartition(topic, partition), 0)
        while (batch := reader.read(4096)) is not None:
            if not batch.control:
                values = batch.values.split()
                yield from zip(batch.keys, [None if v is None else decode(v) for v in values], strict=True)
        reader.close()
    log.close()
