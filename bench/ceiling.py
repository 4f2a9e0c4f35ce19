"""The yardstick: what a straight-line Python program reaches on the job that the benchmark gives to headrace.

The job: card payments in four partitions keyed by customer, spend and number of payments per customer and minute. The
program reads framed batches (CRC-32C, msgpack columns), decodes typed values, adds up in one dict per window, closes
windows by watermark, writes the results as framed batches and checkpoints the open windows to RocksDB. It has no
graph, groups, metrics, deduplication or recovery: a framework cannot be faster, and the share it reaches is its price.

``python -m bench.ceiling --records 1000000``
"""

import argparse
import resource
import shutil
import struct
import sys
import tempfile
import time
import zlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import google_crc32c
import msgpack
import msgspec
from rocksdict import Checkpoint, Options, Rdict, WriteBatch, WriteOptions

from headrace.demo.payments import Payments

PARTITIONS = 4
BATCH = 4096
WINDOW_MS = 60_000
HELD_BACK_MS = 5_000 + 10_000
"""Out-of-orderness and lateness: how far behind the highest timestamp a window closes."""

HEAD = struct.Struct("<III")
WINDOW_KEY = struct.Struct(">Q")


class Payment(msgspec.Struct):
    transaction_id: str
    customer_id: str
    total: float
    at: int


@dataclass(frozen=True)
class Result:
    """What a run reached."""

    events_per_s: float
    rows: int
    rss_mb: float
    checkpoints: int


Windows = dict[int, dict[bytes, list[float]]]


def write_frame(file: BinaryIO, timestamps: list[int], keys: list[bytes], values: list[bytes]) -> None:
    body = msgpack.packb((timestamps, keys, values))
    file.write(HEAD.pack(len(body), google_crc32c.value(body), len(keys)))
    file.write(body)


def read_frames(path: Path) -> Iterator[tuple[list[int], list[bytes], list[bytes]]]:
    with path.open("rb") as file:
        while head := file.read(HEAD.size):
            length, checksum, _ = HEAD.unpack(head)
            body = file.read(length)
            if google_crc32c.value(body) != checksum:
                raise ValueError(f"{path} is damaged")
            yield msgpack.unpackb(body)


def write_input(directory: Path, records: int) -> list[Path]:
    """Write the payments as partitions, each batch as large as a reader takes."""
    paths = [directory / f"payments-{records}-{partition}.log" for partition in range(PARTITIONS)]
    if all(path.exists() for path in paths):
        return paths
    encode = msgspec.msgpack.Encoder().encode
    waiting: list[list[tuple[int, bytes, bytes]]] = [[] for _ in paths]
    files = [path.open("wb") for path in paths]
    for batch in Payments(count=records).batches():
        for payment in batch:
            key = payment["customer_id"].encode()
            waiting[zlib.crc32(key) % PARTITIONS].append((payment["at"], key, encode(payment)))
        for file, rows in zip(files, waiting, strict=True):
            while len(rows) >= BATCH:
                write_frame(file, *map(list, zip(*rows[:BATCH], strict=True)))
                del rows[:BATCH]
    for file, rows in zip(files, waiting, strict=True):
        if rows:
            write_frame(file, *map(list, zip(*rows, strict=True)))
        file.close()
    return paths


@dataclass
class Job:
    """One partition's windows, and where their results and checkpoints go."""

    output: BinaryIO
    directory: Path
    checkpoint_interval_s: float
    windows: Windows = field(default_factory=lambda: defaultdict(dict))
    highest: int = 0
    rows: int = 0
    checkpoints: int = 0
    last: float = field(default_factory=time.perf_counter)

    def run(self, path: Path) -> None:
        """Process a partition to its end and close what is open."""
        decode = msgspec.msgpack.Decoder(list[Payment]).decode
        store = open_store(self.directory / "state" / path.stem)
        for _, keys, values in read_frames(path):
            payments = decode(b"\xdd" + struct.pack(">I", len(values)) + b"".join(values))
            self.add(keys, payments)
            self.close(self.highest - HELD_BACK_MS)
            if time.perf_counter() - self.last > self.checkpoint_interval_s:
                self.checkpoint(store)
        self.close(sys.maxsize)
        self.checkpoint(store)
        store.close()

    def add(self, keys: list[bytes], payments: list[Payment]) -> None:
        windows = self.windows
        for key, payment in zip(keys, payments, strict=True):
            at = payment.at
            window = windows[at - at % WINDOW_MS]
            try:
                row = window[key]
            except KeyError:
                window[key] = [payment.total, 1]
            else:
                row[0] += payment.total
                row[1] += 1
        highest = max(payment.at for payment in payments)
        self.highest = max(self.highest, highest)

    def close(self, watermark: int) -> None:
        encode = msgspec.msgpack.Encoder().encode
        for start in sorted(start for start in self.windows if start + WINDOW_MS <= watermark):
            window = self.windows.pop(start)
            end = start + WINDOW_MS
            values = [
                encode({
                    "key": key.decode(), "window_start": start, "window_end": end, "total": total, "payments": payments,
                })
                for key, (total, payments) in window.items()
            ]  # fmt: skip
            write_frame(self.output, [end - 1] * len(values), list(window), values)
            self.rows += len(values)

    def checkpoint(self, store: Rdict) -> None:
        encode = msgspec.msgpack.Encoder().encode
        batch = WriteBatch(raw_mode=True)
        for start, window in self.windows.items():
            prefix = WINDOW_KEY.pack(start)
            for key in sorted(window):
                batch.put(prefix + key, encode(window[key]))
        store.write(batch)
        target = self.directory / "checkpoint"
        shutil.rmtree(target, ignore_errors=True)
        Checkpoint(store).create_checkpoint(str(target))
        self.checkpoints += 1
        self.last = time.perf_counter()


def open_store(path: Path) -> Rdict:
    shutil.rmtree(path, ignore_errors=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    store = Rdict(str(path), options)
    writing = WriteOptions()
    writing.disable_wal = True  # type: ignore[assignment, method-assign]
    store.set_write_options(writing)
    return store


def run(directory: Path, records: int, checkpoint_interval_s: float = 1.0) -> Result:
    """Do the job in ``directory`` and say how fast; the input is written first, outside the measured time."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = write_input(directory, records)
    rows = checkpoints = 0
    begin = time.perf_counter()
    with (directory / "results.log").open("wb") as output:
        for path in paths:
            job = Job(output, directory, checkpoint_interval_s)
            job.run(path)
            rows, checkpoints = rows + job.rows, checkpoints + job.checkpoints
    elapsed = time.perf_counter() - begin
    rss_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024**2 if sys.platform == "darwin" else 1024)
    return Result(records / elapsed, rows, rss_mb, checkpoints)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure a straight-line program on the benchmark's job.")
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--checkpoint-interval", type=float, default=1.0, help="seconds")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        result = run(Path(directory), given.records, given.checkpoint_interval)
    print(
        f"{result.events_per_s:,.0f} events/s, {result.rows:,} rows, {result.checkpoints} checkpoints, "
        f"{result.rss_mb:.0f} MB"
    )


if __name__ == "__main__":
    main()
