"""The stores keep the contract."""

import subprocess
import sys
from pathlib import Path

import pytest
import rocksdict

from headrace.errors import CorruptError, FatalError, RetriableError
from headrace.state import rocksdb
from headrace.state.api import StoreFactory, WriteBatch
from headrace.state.memory import MemoryStores, decode_snapshot, encode_snapshot
from headrace.state.rocksdb import RocksStores
from headrace.testing.conformance.store import StoreContract

GOLDEN = Path(__file__).parent / "golden"
MB = 1024**2


class TestMemoryStore(StoreContract):
    def stores(self) -> StoreFactory:
        return MemoryStores()


class TestRocksStore(StoreContract):
    def stores(self) -> StoreFactory:
        return RocksStores(8 * MB)


def test_rocksdb_options_hold_after_reopening(tmp_path):
    directory = tmp_path / "store"
    RocksStores(8 * MB).open(directory).close()
    # A store that was made with other options must not bring them back.
    rocksdict.Rdict.destroy(str(directory))
    options = rocksdict.Options(raw_mode=True)
    options.set_write_buffer_size(77 * MB)
    rocksdict.Rdict(str(directory), options).close()
    RocksStores(8 * MB).open(directory).close()
    latest = max(directory.glob("OPTIONS-*"))
    text = latest.read_text()
    assert f"write_buffer_size={rocksdb._WRITE_BUFFER_BYTES}" in text
    assert "compression=kLZ4Compression" in text
    assert "filter_policy=bloomfilter" in text
    assert "cache_index_and_filter_blocks=true" in text
    assert f"max_open_files={rocksdb._MAX_OPEN_FILES}" in text


def test_rocksdb_writes_no_log_ahead(tmp_path):
    store = RocksStores(8 * MB).open(tmp_path / "store")
    store.write(WriteBatch.of([(b"%d" % i, b"v" * 100) for i in range(1000)]))
    assert sum(path.stat().st_size for path in (tmp_path / "store").glob("*.log")) == 0
    store.close()


def test_rocksdb_stores_share_memory(tmp_path):
    stores = RocksStores(8 * MB)
    opened = [stores.open(tmp_path / str(i)) for i in range(3)]
    before = stores._buffers.get_usage()
    for store in opened:
        store.write(WriteBatch.of([(b"%d" % i, b"v" * 100) for i in range(5000)]))
    assert stores._buffers.get_usage() > before + 1_500_000
    assert stores._cache.get_usage() > 1_500_000
    for store in opened:
        store.close()


def test_rocksdb_snapshot_links_what_does_not_change(tmp_path):
    store = RocksStores(8 * MB).open(tmp_path / "store")
    store.write(WriteBatch.of([(b"%d" % i, b"v" * 100) for i in range(1000)]))
    store.snapshot(tmp_path / "one")
    store.write(WriteBatch.of([(b"x%d" % i, b"v" * 100) for i in range(1000)]))
    store.snapshot(tmp_path / "two")
    first, second = ({path.name: path.stat().st_ino for path in (tmp_path / d).glob("*.sst")} for d in ("one", "two"))
    assert first
    assert first.items() < second.items()
    store.close()


def test_rocksdb_names_the_directory_that_is_open_elsewhere(tmp_path):
    store = RocksStores(8 * MB).open(tmp_path / "store")
    with pytest.raises(FatalError, match=r"store.* is open elsewhere.*HEADRACE_STATE_DIR"):
        RocksStores(8 * MB).open(tmp_path / "store")
    script = (
        "import sys, pathlib\n"
        "from headrace.state.rocksdb import RocksStores\n"
        "try: RocksStores(8 << 20).open(pathlib.Path(sys.argv[1]))\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "store")]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "FatalError" in shown.stdout
    assert "open elsewhere" in shown.stdout
    store.close()


def test_rocksdb_misses_a_file(tmp_path):
    store = RocksStores(8 * MB).open(tmp_path / "store")
    store.write(WriteBatch.of([(b"%d" % i, b"v" * 100) for i in range(1000)]))
    store.snapshot(tmp_path / "snapshot")
    store.close()
    next((tmp_path / "snapshot").glob("*.sst")).unlink()
    with pytest.raises(CorruptError, match="snapshot is damaged"):
        RocksStores(8 * MB).open(tmp_path / "snapshot")


@pytest.mark.parametrize("name", ["CURRENT", "MANIFEST"])
def test_rocksdb_finds_damaged_metadata(tmp_path, name):
    store = RocksStores(8 * MB).open(tmp_path / "store")
    store.write(WriteBatch.of([(b"a", b"v")]))
    store.snapshot(tmp_path / "snapshot")
    store.close()
    path = next((tmp_path / "snapshot").glob(f"{name}*"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptError):
        RocksStores(8 * MB).open(tmp_path / "snapshot")


def test_rocksdb_reports_a_directory_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FatalError, match="HEADRACE_STATE_DIR"):
        RocksStores(8 * MB).open(tmp_path / "file" / "store")


def test_rocksdb_use_after_close_is_an_error(tmp_path):
    store = RocksStores(8 * MB).open(tmp_path / "store")
    store.close()
    with pytest.raises(FatalError, match="after it was closed"):
        store.get(b"a")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("IO error: No space left on device: While appending to file: /x/000012.sst", RetriableError),
        ("Corruption: block checksum mismatch: stored = 1, computed = 2", CorruptError),
        ("IO error: While lock file: /x/LOCK: Resource temporarily unavailable", FatalError),
        ("IO error: Input/output error", FatalError),
    ],
)
def test_rocksdb_errors_are_named_by_what_to_do(text, kind):
    with pytest.raises(kind, match="/x"):
        rocksdb._raise(Exception(text), Path("/x"))


def test_memory_snapshot_v1_is_still_read():
    rows = {b"": b"", b"a": b"1", b"b\0": b"\xff" * 300}
    golden = (GOLDEN / "memory_snapshot_v1.bin").read_bytes()
    assert decode_snapshot(golden, "golden") == rows
    assert encode_snapshot(sorted(rows.items())) == golden


def test_memory_snapshot_finds_every_flipped_byte_and_cut():
    data = encode_snapshot([(b"a", b"1"), (b"b", b"22")])
    for i in range(len(data)):
        damaged = bytearray(data)
        damaged[i] ^= 1
        with pytest.raises((CorruptError, FatalError)):
            decode_snapshot(bytes(damaged), "here")
        with pytest.raises(CorruptError, match="here"):
            decode_snapshot(data[:i], "here")


def test_memory_snapshot_of_a_later_version_says_so():
    data = bytearray(encode_snapshot([]))
    data[4] = 2
    with pytest.raises(FatalError, match="version 2"):
        decode_snapshot(bytes(data), "here")
