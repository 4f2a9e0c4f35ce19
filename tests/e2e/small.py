"""Small topologies, written where a test needs them, and records to put into their topics."""

from __future__ import annotations

import os
import signal
import subprocess
import textwrap
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen
from zlib import crc32

import msgspec

from headrace.record import JoinedBytes, RecordBatch, TopicPartition
from tests.e2e.harness import Site, wait_for

COUNTING = """
from headrace import Topology, agg, tumbling

topology = Topology("counting"{policy})
(
    topology.stream("in", keyed_by="k", time="at")
    .window(tumbling("10ms"))
    .aggregate(n=agg.count(){more})
    .to("out")
)
"""
"""Counts per key and 10 ms."""

Counts = Counter[tuple[str, int]]
"""(key, window start) -> records."""


FAST = {
    "HEADRACE_CHECKPOINT_INTERVAL": "50ms",
    "HEADRACE_HEARTBEAT_INTERVAL": "100ms",
    "HEADRACE_SESSION_TIMEOUT": "1s",
    "HEADRACE_BATCH_RECORDS": "50",
}


def module(site: Site, text: str, name: str = "job") -> str:
    """Write a module that ``headrace run`` finds, and return its name."""
    (site.folder / f"{name}.py").write_text(textwrap.dedent(text))
    return name


def counting(site: Site, policy: str = "", more: str = "") -> str:
    return module(site, COUNTING.format(policy=policy, more=more))


def found(site: Site) -> dict[str, str]:
    """Return the environment in which modules of the site are found."""
    return {"PYTHONPATH": str(site.folder), "PYTHONDONTWRITEBYTECODE": "1"}


def rows(count: int, keys: int = 10, start: int = 0) -> list[dict[str, Any]]:
    """Return records whose times grow by a millisecond each."""
    return [{"k": f"k{i % keys}", "at": i, "i": i} for i in range(start, start + count)]


def put(site: Site, records: Iterable[Mapping[str, Any] | bytes], partitions: int = 1, batch: int = 50) -> None:
    """Append records to the topic ``in`` by their key ``k``; bytes go to partition 0 as they are, keyed ``k0``."""
    log = site.open()
    log.create_topic("in", partitions)
    encode = msgspec.msgpack.encode
    parts: list[list[tuple[int, bytes, bytes]]] = [[] for _ in range(partitions)]
    for record in records:
        if isinstance(record, bytes):
            parts[0].append((0, b"k0", record))
        else:
            key = str(record["k"]).encode()
            parts[crc32(key) % partitions].append((1, key, encode(record)))
    for partition, part in enumerate(parts):
        for first in range(0, len(part), batch):
            stamps, keys, values = zip(*part[first : first + batch], strict=True)
            made = RecordBatch(list(stamps), list(keys), JoinedBytes.of(list(values)))
            log.append(TopicPartition("in", partition), made)
    log.flush()
    log.close()


Row = tuple[str, int, Any]
"""Key, timestamp and value; None as value deletes."""


def put_rows(site: Site, topic: str, rows: Iterable[Row], partitions: int = 1, batch: int = 200) -> None:
    """Append records to a topic by their keys."""
    log = site.open()
    log.create_topic(topic, partitions)
    encode = msgspec.msgpack.encode
    parts: list[list[tuple[int, bytes, bytes | None]]] = [[] for _ in range(partitions)]
    for key, timestamp, value in rows:
        raw = key.encode()
        parts[crc32(raw) % partitions].append((timestamp, raw, None if value is None else encode(value)))
    for partition, part in enumerate(parts):
        for first in range(0, len(part), batch):
            stamps, keys, values = zip(*part[first : first + batch], strict=True)
            made = RecordBatch(list(stamps), list(keys), JoinedBytes.of(list(values)))
            log.append(TopicPartition(topic, partition), made)
    log.flush()
    log.close()


def counts_of(records: Iterable[Mapping[str, Any]]) -> Counts:
    """Return what ``COUNTING`` must find."""
    return Counter((record["k"], record["at"] - record["at"] % 10) for record in records)


def counted(site: Site, topic: str = "out") -> Counts:
    """Return what it found; a window that comes again must come with the same id and result."""
    by_id: dict[bytes, tuple[str, int, int]] = {}
    for record in site.read(topic):
        row = (record.value["key"], record.value["window_start"], record.value["n"])
        assert by_id.setdefault(dict(record.headers)["headrace-id"], row) == row, "one id, two outputs"
    counts: Counts = Counter()
    for key, start, n in by_id.values():
        assert (key, start) not in counts, f"window {key} {start} came under two ids"
        counts[key, start] = n
    return counts


def ask(port: int, path: str) -> tuple[int, str]:
    """Return status and body of one of the worker's endpoints; status 0 if nobody answers."""
    try:
        with urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as error:
        return error.code, error.read().decode()
    except OSError:
        return 0, ""


class Telling:
    """What a process prints, as it prints it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as stream:
            self.lines.extend(iter(stream.readline, ""))

    @property
    def text(self) -> str:
        return "".join(self.lines)

    def wait_for(self, text: str) -> None:
        """Wait until it has said this."""
        wait_for(lambda: text in self.text or self.process.poll() is not None)
        assert text in self.text, self.text

    def until(self, condition: Callable[[], object]) -> None:
        """Wait for something while it runs."""
        wait_for(lambda: condition() or self.process.poll() is not None, 30)
        assert self.process.poll() is None, self.text

    def end(self, timeout_s: float = 30) -> int:
        """Wait for its end and return the exit code."""
        code = self.process.wait(timeout_s)
        self._thread.join()
        return code


Start = Callable[..., Telling]


@contextmanager
def starting(site: Site) -> Iterator[Start]:
    """Give what starts a run, with settings that make haste; all of them end with the block."""
    started: list[Telling] = []

    def begin(name: str, *arguments: str, **environment: str) -> Telling:
        started.append(Telling(site.start("run", name, *arguments, **{**found(site), **FAST, **environment})))
        return started[-1]

    try:
        yield begin
    finally:
        for telling in started:
            with suppress(ProcessLookupError):
                os.killpg(telling.process.pid, signal.SIGKILL)
            telling.end()


def holders(site: Site, group: str) -> dict[str, tuple[str, ...]]:
    """Return what each member of a group holds."""
    log = site.open()
    try:
        return {member.member_id: member.units for member in log.group(group).members()}
    finally:
        log.close()


def objects(site: Site, pattern: str) -> list[Path]:
    """Return files of the checkpoint store, sorted."""
    return sorted((site.folder / "checkpoints").glob(pattern))
