"""A store on disk: RocksDB through rocksdict, which no other module imports.

Nothing is written ahead: a snapshot is the only thing that outlives a crash, so a write-ahead log would be written
twice and read never.
"""

from __future__ import annotations

import logging
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from itertools import islice, starmap
from pathlib import Path
from typing import Any, NoReturn

import rocksdict

from headrace.errors import CorruptError, FatalError, RetriableError
from headrace.state import api
from headrace.state.memory import make_snapshot_directory

_log = logging.getLogger("headrace")

_WRITE_BUFFER_BYTES = 8 * 1024**2
_ARENA_BLOCK_BYTES = 256 * 1024
_BLOCK_BYTES = 8 * 1024
_BLOOM_BITS = 10
_MEMTABLE_BLOOM_SHARE = 0.05
_MAX_OPEN_FILES = 256
_RUNS = 8
_MERGED_RUNS = 4
_SURPLUS_PERCENT = 100
_FIRST_ROWS = 16
_NEXT_ROWS = 1024


class RocksStores:
    """Opens RocksDB stores that share one block cache, to which their write buffers are charged as well.

    Args:
        block_cache_bytes: Memory for blocks, indexes, filters and write buffers of all stores together.
    """

    def __init__(self, block_cache_bytes: int) -> None:
        self._cache = rocksdict.Cache(block_cache_bytes)
        self._buffers = rocksdict.WriteBufferManager.new_write_buffer_manager_with_cache(
            max(block_cache_bytes // 2, 1024**2), False, self._cache
        )

    def open(self, directory: Path) -> RocksStore:
        """Open the store in ``directory``, which is made if it does not exist.

        Raises:
            CorruptError: the files make no sense.
            FatalError: another process has the store open.
        """
        try:
            directory.mkdir(parents=True, exist_ok=True)
            # Options given as the database's only are dropped for column families that exist already.
            options = self._options()
            db = rocksdict.Rdict(str(directory), options, column_families={"default": options})
        except Exception as error:  # noqa: BLE001 - rocksdict raises nothing more exact
            _raise(error, directory, opening=True)
        return RocksStore(db, directory)

    def _options(self) -> rocksdict.Options:
        table = rocksdict.BlockBasedOptions()
        table.set_block_cache(self._cache)
        table.set_block_size(_BLOCK_BYTES)
        table.set_bloom_filter(_BLOOM_BITS, False)
        table.set_format_version(5)
        table.set_cache_index_and_filter_blocks(True)
        table.set_pin_l0_filter_and_index_blocks_in_cache(True)
        options = rocksdict.Options(raw_mode=True)
        options.create_if_missing(True)
        options.set_block_based_table_factory(table)
        options.set_write_buffer_manager(self._buffers)
        options.set_write_buffer_size(_WRITE_BUFFER_BYTES)
        options.set_arena_block_size(_ARENA_BLOCK_BYTES)
        options.set_memtable_prefix_bloom_ratio(_MEMTABLE_BLOOM_SHARE)
        options.set_memtable_whole_key_filtering(True)
        options.set_compression_type(rocksdict.DBCompressionType.lz4())
        options.set_max_open_files(_MAX_OPEN_FILES)
        options.set_max_background_jobs(2)
        _merge_rarely(options)
        options.set_keep_log_file_num(2)
        options.set_max_log_file_size(1024**2)
        options.set_stats_dump_period_sec(0)
        options.set_stats_persist_period_sec(0)
        return options


def _merge_rarely(options: rocksdict.Options) -> None:
    """Keep several sorted runs, and merge them when there are many of about one size.

    What a merge writes, the next checkpoint uploads. With levels, which is the default, a change of one key in a
    hundred makes RocksDB write much of the state again every few checkpoints; in this way it is a few times what
    changed. The price is that a read may have to look into more runs, and that a state may take twice its size.
    """
    merging = rocksdict.UniversalCompactOptions()
    merging.size_ratio = 1
    merging.min_merge_width = _MERGED_RUNS
    merging.max_size_amplification_percent = _SURPLUS_PERCENT
    options.set_compaction_style(rocksdict.DBCompactionStyle.universal())
    options.set_universal_compaction_options(merging)
    options.set_level_zero_file_num_compaction_trigger(_RUNS)
    # Runs may have to wait for a merge of larger ones.
    options.set_level_zero_slowdown_writes_trigger(5 * _RUNS)
    options.set_level_zero_stop_writes_trigger(8 * _RUNS)


class RocksStore:
    """One RocksDB database."""

    def __init__(self, db: rocksdict.Rdict, directory: Path) -> None:
        self._db = db
        self._directory = directory
        self._unlogged = rocksdict.WriteOptions()
        # The stub declares a method; it is an attribute.
        self._unlogged.disable_wal = True  # type: ignore[assignment, method-assign]
        self._scans: weakref.WeakSet[Generator[tuple[bytes, bytes], None, None]] = weakref.WeakSet()
        self._closed = False

    def get(self, key: bytes) -> bytes | None:
        """Return the value of ``key``, or None."""
        return self._call(self._db.get, key)  # type: ignore[no-any-return]

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the values of ``keys`` in their order, None where there is none; one call for all of them."""
        return self._call(self._db.get, keys if isinstance(keys, list) else list(keys))  # type: ignore[no-any-return]

    def scan(self, start: bytes, end: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
        """Yield rows with ``start <= key < end`` in key order, as of the time of the call."""
        if end is not None and end <= start:
            return iter(())
        bounds = rocksdict.ReadOptions()
        if end is not None:
            bounds.set_iterate_upper_bound(end)
        scan = self._rows(self._call(self._db.items, False, start, bounds), start, bounds)
        self._scans.add(scan)
        return scan

    def write(self, batch: api.WriteBatch) -> None:
        """Apply ``batch`` as one.

        Raises:
            RetriableError: the disk is full; nothing of the batch was applied.
        """
        rows = rocksdict.WriteBatch(raw_mode=True)
        deque(starmap(rows.delete_range, [(start, end) for start, end in batch.ranges if start < end]), 0)
        deque(map(rows.delete, batch.deletes), 0)
        deque(map(rows.put, batch.keys, batch.values), 0)
        self._call(self._db.write, rows, self._unlogged)

    def snapshot(self, directory: Path) -> None:
        """Write an image as of now into ``directory``: hard links to the files that never change, copies of others."""
        make_snapshot_directory(directory)
        directory.rmdir()
        self._call(lambda: rocksdict.Checkpoint(self._db).create_checkpoint(str(directory)))

    def size_bytes(self) -> int:
        """Return the bytes of the live files and of the write buffers."""
        return sum(
            self._call(self._db.property_int_value, f"rocksdb.{name}") or 0
            for name in ("live-sst-files-size", "size-all-mem-tables")
        )

    def close(self) -> None:
        """Release the files; a scan that was not finished ends."""
        if self._closed:
            return
        self._closed = True
        # An iterator that somebody still holds would keep the lock.
        for scan in list(self._scans):
            scan.close()
        try:
            self._db.close()
        except Exception as error:  # noqa: BLE001 - rocksdict raises nothing more exact
            # It is closed, but its buffers could not be written before; nobody needs them.
            _log.warning("closing the store in %s: %s", self._directory, error)

    def _rows(
        self, items: Iterator[Any], start: bytes, bounds: rocksdict.ReadOptions
    ) -> Generator[tuple[bytes, bytes], None, None]:
        size, last = _FIRST_ROWS, start
        while chunk := list(islice(items, size)):
            yield from chunk
            last, size = chunk[-1][0], _NEXT_ROWS
        self._check_end(last, bounds)

    def _check_end(self, last: bytes, bounds: rocksdict.ReadOptions) -> None:
        """Raise if the rows ended at ``last`` only because what follows is damaged, which rocksdict hides."""

        def step_over_the_end() -> None:
            rows = self._db.iter(bounds)
            rows.seek(last)
            rows.status()
            if rows.valid():
                rows.next()
            rows.status()

        self._call(step_over_the_end)

    def _call(self, work: Callable[..., Any], *args: Any) -> Any:
        try:
            return work(*args)
        except Exception as error:  # noqa: BLE001 - rocksdict raises nothing more exact
            _raise(error, self._directory)


def _raise(error: Exception, directory: Path, *, opening: bool = False) -> NoReturn:
    text = str(error).strip()
    where = f"the store in {directory}"
    if isinstance(error, rocksdict.DbClosedError):
        raise FatalError(f"{where} was used after it was closed") from error
    if "No space left" in text or "Disk quota exceeded" in text:
        raise RetriableError(
            f"the disk is full under {where}", remedy="Free space, or put HEADRACE_STATE_DIR on a larger disk"
        ) from error
    if "/LOCK:" in text:
        raise FatalError(
            f"{where} is open elsewhere",
            remedy="Stop the other worker, or give each worker a HEADRACE_STATE_DIR of its own",
        ) from error
    missing = opening and "No such file" in text
    if missing or "Corruption" in text:
        raise CorruptError(f"{where} is damaged: {text}", remedy="Delete it; the checkpoint has it all") from error
    raise FatalError(
        f"{where} failed: {text}", remedy="Look at the disk and at the permissions of HEADRACE_STATE_DIR"
    ) from error
