"""How much a checkpoint uploads when one key in a hundred changed.

A store is filled with random rows, and then, again and again, one key in a hundred, anywhere in it, gets a new value
and a checkpoint is saved to a directory, pruned, and measured: the bytes of the files that went up, against the bytes
of the state. RocksDB merges files in between as it does in a worker; what it wrote again counts for the checkpoint
that follows. Reads are measured at the end, when there are several runs to look into.

``python -m bench.checkpoints --state-mb 1024 --rounds 20``
"""

from __future__ import annotations

import argparse
import random
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from headrace.checkpoint.checkpoints import Checkpoints
from headrace.checkpoint.store import open_objects
from headrace.state.api import WriteBatch
from headrace.state.keys import encode_time, store_prefix
from headrace.state.rocksdb import RocksStore, RocksStores

VALUE_BYTES = 100
ROW_BYTES = VALUE_BYTES + 10
BATCH = 50_000
LOOKUPS = 20_000


class Values:
    """Random bytes, so that compression gains nothing."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.pool = self.random.randbytes(1 << 22)

    def one(self) -> bytes:
        start = self.random.randrange(len(self.pool) - VALUE_BYTES)
        return self.pool[start : start + VALUE_BYTES]


def key(number: int) -> bytes:
    return store_prefix(1) + encode_time(number)


def write(store: RocksStore, numbers, values: Values) -> None:
    batch = WriteBatch()
    for number in numbers:
        batch.put(key(number), values.one())
    store.write(batch)


def settle(store: RocksStore) -> None:
    """Wait until no merge has run for a while: a worker has ten seconds between two checkpoints."""
    quiet = 0
    while quiet < 4:
        time.sleep(0.05)
        quiet = 0 if store._db.property_int_value("rocksdb.num-running-compactions") else quiet + 1


class Owner:
    """Saves checkpoints of a store, and says what each uploaded."""

    def __init__(self, store: RocksStore, folder: Path) -> None:
        self.store, self.folder = store, folder
        self.checkpoints = Checkpoints(open_objects(str(folder / "checkpoints"), {}), "bench")
        self.current = self.checkpoints.claim("rows-0", 1, None, 0)

    def save(self) -> tuple[int, int, float]:
        began = time.perf_counter()
        snapshot = self.folder / "snapshot"
        self.store.snapshot(snapshot)
        before = {ref.object for ref in self.current.files}
        self.current = self.checkpoints.save(self.current, snapshot, {"rows/0": 1}, {}, 0)
        shutil.rmtree(snapshot)
        self.checkpoints.prune(self.current)
        uploaded = sum(ref.size for ref in self.current.files if ref.object not in before)
        return uploaded, self.current.size_bytes, time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description="What a checkpoint uploads when one key in a hundred changed.")
    parser.add_argument("--state-mb", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--changed", type=float, default=0.01, help="share of the keys that change between checkpoints")
    parser.add_argument("--block-cache-mb", type=int, default=64)
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="headrace-bench-"))
    try:
        store = RocksStores(given.block_cache_mb * 1024**2).open(folder / "db")
        measure(given, store, folder)
        store.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def measure(given: argparse.Namespace, store: RocksStore, folder: Path) -> None:
    values = Values(1)
    count = given.state_mb * 1024**2 // ROW_BYTES
    for start in range(0, count, BATCH):
        write(store, range(start, min(start + BATCH, count)), values)
    owner = Owner(store, folder)
    settle(store)
    uploaded, size, seconds = owner.save()
    print(f"{count:,} rows; first checkpoint {uploaded / 1024**2:,.0f} MB in {seconds:.1f} s")
    settle(store)
    owner.save()
    shares, times = [], []
    for _ in range(given.rounds):
        write(store, sorted(values.random.sample(range(count), int(count * given.changed))), values)
        settle(store)
        uploaded, size, seconds = owner.save()
        settle(store)
        shares.append(uploaded / size)
        times.append(seconds)
    listed = " ".join(f"{share:.1%}" for share in shares)
    print(f"uploaded by each checkpoint: {listed}")
    print(
        f"median {statistics.median(shares):.1%}, mean {statistics.mean(shares):.1%}, most {max(shares):.1%}; "
        f"at most 5% in {sum(share <= 0.05 for share in shares)} of {len(shares)}; "
        f"median time {statistics.median(times):.2f} s; state now {size / 1024**2:,.0f} MB"
    )
    keys = [key(values.random.randrange(count)) for _ in range(LOOKUPS)]
    began = time.perf_counter()
    for start in range(0, LOOKUPS, 1000):
        store.get_many(keys[start : start + 1000])
    print(f"lookup {(time.perf_counter() - began) / LOOKUPS * 1e6:.1f} us")


if __name__ == "__main__":
    main()
