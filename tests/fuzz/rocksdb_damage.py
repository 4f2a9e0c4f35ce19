"""Damages the files of RocksDB stores and reads them; a script of its own, for what it finds could end a process.

``python tests/fuzz/rocksdb_damage.py SEED EXAMPLES``

Files with rows, and the pointer to the manifest, have their own checksums, and no damage in them may pass. RocksDB's
manifest is another matter: it takes damage in it for a torn tail, and then reads an older state, or loops for ever. A
checkpoint has a checksum of every file, which a restore looks at before a store is opened; that is tested with it.
"""

import resource
import shutil
import sys
import tempfile
from pathlib import Path
from random import Random

from headrace.errors import HeadraceError
from headrace.state.api import WriteBatch
from headrace.state.rocksdb import RocksStores

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.fuzz.damage import damaged, within

ROWS = {b"%05d" % n: b"v%d" % n * 20 for n in range(3000)}
MEMORY_BYTES = 2 * 1024**3


def make(directory: Path) -> Path:
    """Write a store of several files and return a snapshot of it."""
    store = RocksStores(8 * 1024**2).open(directory / "store")
    for part in range(3):
        store.write(WriteBatch.of(sorted(ROWS.items())[part * 1000 : part * 1000 + 1000]))
        store.snapshot(directory / f"{part}")
    store.close()
    return directory / "2"


def check(stores: RocksStores, directory: Path) -> None:
    """Open and read a store; what is not an error of the project's own must be the rows."""
    try:
        store = stores.open(directory)
    except HeadraceError:
        return
    try:
        assert dict(store.scan(b"")) == ROWS
        assert store.get_many(sorted(ROWS)) == [ROWS[key] for key in sorted(ROWS)]
        store.write(WriteBatch.of([(b"new", b"row")]))
        assert store.get(b"new") == b"row"
    except HeadraceError:
        pass
    finally:
        store.close()


def main(seed: int, count: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    rng = Random(seed)
    with tempfile.TemporaryDirectory() as name:
        good = make(Path(name))
        names = sorted(path.name for path in good.iterdir() if not path.name.startswith("MANIFEST"))
        contents = [(good / name).read_bytes() for name in names]
        stores = RocksStores(8 * 1024**2)
        for _ in range(count):
            directory = Path(name, "damaged")
            shutil.copytree(good, directory)
            chosen = rng.choice(names)
            (directory / chosen).write_bytes(damaged(rng, (good / chosen).read_bytes(), contents))
            print(chosen, end=" ", flush=True)  # what was at hand if the process ends here
            with within(10):
                check(stores, directory)
            shutil.rmtree(directory)
    print(f"\n{count} examples")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
