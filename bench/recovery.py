"""How long a task takes to come back, against copying its files.

State of a given size is written to RocksDB and checkpointed to a directory. Then, in turns, the files of the
checkpoint are copied with ``shutil.copytree``, the task is restored with nothing on its disk (cold), and restored with
what it had there before (warm). Each time everything stands in the page cache, as just written: this measures the
program and not the disk.

``python -m bench.recovery --size 1GB``
"""

import argparse
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path

from headrace.checkpoint.checkpoints import Checkpoints
from headrace.checkpoint.manifest import Manifest
from headrace.checkpoint.store import open_objects
from headrace.log.api import Lease
from headrace.runtime.workers.recovery import restore
from headrace.settings import size_bytes
from headrace.state.api import WriteBatch
from headrace.state.rocksdb import RocksStores

MOST_OF_A_COPY = 1.5
"""What a cold restore may take, in times of a copy."""

_ROW_BYTES = 1024
_ROWS = 8192


@dataclass(frozen=True)
class Result:
    """Medians, in seconds."""

    size_bytes: int
    files: int
    copy_s: float
    cold_s: float
    warm_s: float


def fill(directory: Path, size: int, seed: int = 0) -> None:
    """Write rows that do not compress into a store, and a snapshot of it beside it."""
    rng = random.Random(seed)
    store = RocksStores(64 * 1024**2).open(directory / "db")
    for first in range(0, size // _ROW_BYTES, _ROWS):
        batch = WriteBatch()
        for number in range(first, min(first + _ROWS, size // _ROW_BYTES)):
            batch.put(b"%012d" % number, rng.randbytes(_ROW_BYTES - 12))
        store.write(batch)
    store.snapshot(directory / "snapshot")
    store.close()


def measure(directory: Path, size: int, rounds: int = 5) -> Result:
    """Copy and restore in turns; the state and its checkpoint are made first, outside the measured time."""
    directory.mkdir(parents=True, exist_ok=True)
    fill(directory, size)
    checkpoints = Checkpoints(open_objects(str(directory / "checkpoints"), {}), "bench")
    home = directory / "home" / "in-0"
    claimed = restore(checkpoints, Lease("in-0", 1), home, _now_ms).manifest
    manifest = checkpoints.save(claimed, directory / "snapshot", {"in/0": 1}, {}, _now_ms())
    shutil.rmtree(directory / "db")
    times: dict[str, list[float]] = {"copy": [], "cold": [], "warm": []}
    epochs = count(2)
    for _ in range(rounds):
        shutil.rmtree(home, ignore_errors=True)
        times["copy"].append(_timed(lambda: shutil.copytree(directory / "snapshot", directory / "copy")))
        shutil.rmtree(directory / "copy")
        for name, fetched in (("cold", manifest.size_bytes), ("warm", 0)):
            lease = Lease("in-0", next(epochs))
            times[name].append(_timed(partial(_restore, checkpoints, lease, home, manifest, fetched)))
    copy, cold, warm = (statistics.median(times[name]) for name in ("copy", "cold", "warm"))
    return Result(manifest.size_bytes, len(manifest.files), copy, cold, warm)


def _restore(checkpoints: Checkpoints, lease: Lease, home: Path, saved: Manifest, fetched: int) -> None:
    restored = restore(checkpoints, lease, home, _now_ms)
    if restored.manifest.files != saved.files or restored.fetched_bytes != fetched:
        raise RuntimeError(f"restored {restored.manifest} with {restored.fetched_bytes} bytes fetched")


def _timed(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure how long a task takes to come back.")
    parser.add_argument("--size", default="256MB", help="of its state")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dir", type=Path, help="where; else a temporary directory")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.dir) as directory:
        result = measure(Path(directory), size_bytes(given.size, "--size"), given.rounds)
    megabytes = result.size_bytes / 1024**2
    print(f"{megabytes:,.0f} MB in {result.files} files")
    for name, seconds in (("copy", result.copy_s), ("cold", result.cold_s), ("warm", result.warm_s)):
        print(f"{name}: {seconds:.3f} s, {megabytes / seconds:,.0f} MB/s, {seconds / result.copy_s:.2f} of a copy")
    if result.cold_s > MOST_OF_A_COPY * result.copy_s:
        sys.exit(f"a cold restore took more than {MOST_OF_A_COPY} times a copy")


if __name__ == "__main__":
    main()
