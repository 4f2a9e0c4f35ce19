"""What every store must do. A test class inherits ``StoreContract`` and says how to make stores."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.errors import CorruptError, FatalError
from headrace.state.api import Store, StoreFactory, WriteBatch


class StoreContract:
    """Tests of the contract in ``headrace.state.api``.

    Example:
        >>> class TestMine(StoreContract):
        ...     def stores(self):
        ...         return MyStores()
    """

    def stores(self) -> StoreFactory:
        """Return a factory of the stores under test."""
        raise NotImplementedError

    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[Store]:
        """Open an empty store."""
        store = self.stores().open(tmp_path / "a" / "store")
        yield store
        store.close()

    def test_reads_what_was_written(self, store: Store) -> None:
        """A row is found under its key and no other."""
        store.write(WriteBatch.of([(b"a", b"1"), (b"b", b""), (b"", b"empty key")]))
        assert store.get(b"a") == b"1"
        assert store.get(b"b") == b""
        assert store.get(b"") == b"empty key"
        assert store.get(b"c") is None
        assert type(store.get(b"a")) is bytes

    def test_get_many_keeps_order_and_repeats(self, store: Store) -> None:
        """Values come in the order of the keys, None where there is none."""
        store.write(WriteBatch.of([(b"a", b"1"), (b"b", b"2")]))
        assert store.get_many([b"b", b"x", b"a", b"b"]) == [b"2", None, b"1", b"2"]
        assert store.get_many((b"a",)) == [b"1"]
        assert store.get_many([]) == []

    def test_scans_half_open_ranges_in_order_of_unsigned_bytes(self, store: Store) -> None:
        """The start is in the range, the end is not."""
        keys = [b"", b"\0", b"a", b"a\0", b"a\xff", b"b", b"\x7f", b"\x80", b"\xff", b"\xff\xff"]
        store.write(WriteBatch.of([(key, b"v" + key) for key in reversed(keys)]))
        assert list(store.scan(b"")) == [(key, b"v" + key) for key in sorted(keys)]
        assert [key for key, _ in store.scan(b"a", b"b")] == [b"a", b"a\0", b"a\xff"]
        assert [key for key, _ in store.scan(b"\x80")] == [b"\x80", b"\xff", b"\xff\xff"]
        assert list(store.scan(b"b", b"a")) == []
        assert list(store.scan(b"a", b"a")) == []
        assert list(store.scan(b"\xff\xff\xff")) == []

    def test_a_scan_shows_the_time_of_its_call(self, store: Store) -> None:
        """Writes made after the call do not show, even before the first row was taken."""
        rows = [(b"%05d" % i, b"old") for i in range(3000)]
        store.write(WriteBatch.of(rows))
        scan = store.scan(b"")
        later = [(b"00002", b"new"), (b"00002x", b"new"), (b"99999", b"new")]
        changes = WriteBatch.of(later, ranges=[(b"02000", b"03000")], deletes=[b"00001"])
        store.write(changes)
        assert next(scan) == rows[0]
        store.write(WriteBatch(ranges=[(b"", b"\xff")]))
        assert list(scan) == rows[1:]
        assert list(store.scan(b"")) == []

    def test_ranges_go_before_deletes_and_deletes_before_puts(self, store: Store) -> None:
        """A put in a batch survives a delete of its key in the same batch."""
        store.write(WriteBatch.of([(b"a", b"1"), (b"b", b"2"), (b"c", b"3"), (b"d", b"4")]))
        store.write(
            WriteBatch.of([(b"b", b"5"), (b"d", b"6")], ranges=[(b"a", b"c")], deletes=[b"d", b"d", b"nothing"])
        )
        assert list(store.scan(b"")) == [(b"b", b"5"), (b"c", b"3"), (b"d", b"6")]

    def test_the_last_put_of_a_key_wins(self, store: Store) -> None:
        """A batch may name a key twice."""
        store.write(WriteBatch.of([(b"a", b"1"), (b"a", b"2")]))
        assert list(store.scan(b"")) == [(b"a", b"2")]

    def test_empty_batches_and_ranges_do_nothing(self, store: Store) -> None:
        """Neither does a range whose end lies before its start."""
        store.write(WriteBatch.of([(b"a", b"1")]))
        store.write(WriteBatch())
        store.write(WriteBatch(ranges=[(b"a", b"a"), (b"z", b"a")]))
        assert list(store.scan(b"")) == [(b"a", b"1")]

    def test_a_key_comes_back_after_its_range_was_deleted(self, store: Store) -> None:
        """Deleting leaves nothing that hides a later row."""
        for value in (b"1", b"2", b"3"):
            store.write(WriteBatch.of([(b"a1", value)], ranges=[(b"a", b"b")]))
            assert list(store.scan(b"a")) == [(b"a1", value)]

    def test_a_copy_of_a_snapshot_opens_with_its_rows(self, store: Store, tmp_path: Path) -> None:
        """Rows written later are not in it, and it can be opened and continued any number of times."""
        rows = [(b"%05d" % i, b"v%d" % i) for i in range(500)]
        store.write(WriteBatch.of(rows))
        snapshot = tmp_path / "deep" / "snapshot"
        store.snapshot(snapshot)
        store.write(WriteBatch.of([(b"later", b"1")], deletes=[b"00000"]))
        for turn in range(2):
            copy = tmp_path / f"copy{turn}"
            shutil.copytree(snapshot, copy)
            again = self.stores().open(copy)
            assert list(again.scan(b"")) == rows
            again.write(WriteBatch.of([(b"more", b"1")], deletes=[b"00001"]))
            again.snapshot(tmp_path / f"second{turn}")
            again.close()
            second = self.stores().open(tmp_path / f"second{turn}")
            assert list(second.scan(b"")) == [rows[0], *rows[2:], (b"more", b"1")]
            second.close()

    def test_a_snapshot_does_not_change(self, store: Store, tmp_path: Path) -> None:
        """Whatever the store does next, the files keep their bytes."""
        store.write(WriteBatch.of([(b"%05d" % i, b"x" * 50) for i in range(2000)]))
        store.snapshot(tmp_path / "snapshot")
        before = {path.name: path.read_bytes() for path in (tmp_path / "snapshot").iterdir()}
        for _ in range(3):
            store.write(WriteBatch.of([(b"%05d" % i, b"y" * 50) for i in range(2000)], ranges=[(b"", b"01")]))
            store.snapshot(tmp_path / "other")
            shutil.rmtree(tmp_path / "other")
        assert {path.name: path.read_bytes() for path in (tmp_path / "snapshot").iterdir()} == before

    def test_an_empty_store_has_a_snapshot(self, store: Store, tmp_path: Path) -> None:
        """A task without state is checkpointed like any other."""
        store.snapshot(tmp_path / "snapshot")
        again = self.stores().open(tmp_path / "snapshot")
        assert list(again.scan(b"")) == []
        again.close()

    def test_a_snapshot_needs_a_directory_of_its_own(self, store: Store, tmp_path: Path) -> None:
        """An existing directory is refused and left alone."""
        (tmp_path / "file").write_text("mine")
        with pytest.raises(FatalError, match="exists"):
            store.snapshot(tmp_path)
        assert (tmp_path / "file").read_text() == "mine"

    def test_the_size_grows_with_the_rows(self, store: Store) -> None:
        """It need not be exact."""
        before = store.size_bytes()
        store.write(WriteBatch.of([(b"%05d" % i, bytes(range(256)) * 8) for i in range(1000)]))
        assert store.size_bytes() > before + 1_000_000

    def test_closing_twice_is_closing_once(self, store: Store) -> None:
        """A scan that somebody still holds does not stand in the way."""
        store.write(WriteBatch.of([(b"%05d" % i, b"v") for i in range(3000)]))
        scan = store.scan(b"")
        next(scan)
        store.close()
        store.close()

    def test_the_directory_can_be_opened_after_closing(self, tmp_path: Path) -> None:
        """Closing lets go of every lock, even while a scan is not finished."""
        stores = self.stores()
        first = stores.open(tmp_path / "store")
        first.write(WriteBatch.of([(b"%05d" % i, b"v") for i in range(3000)]))
        scan = first.scan(b"")
        next(scan)
        first.close()
        stores.open(tmp_path / "store").close()

    def test_a_flipped_bit_never_shows_another_row(self, store: Store, tmp_path: Path) -> None:
        """It is found when the store is opened or when the damaged rows are read."""
        rows = [(b"%06d" % i, b"%d" % (i * 7919)) for i in range(5000)]
        store.write(WriteBatch.of(rows))
        store.snapshot(tmp_path / "snapshot")
        largest = max((tmp_path / "snapshot").iterdir(), key=lambda path: path.stat().st_size).name
        for turn, share in enumerate((0.02, 0.3, 0.5)):
            copy = tmp_path / f"copy{turn}"
            shutil.copytree(tmp_path / "snapshot", copy)
            data = bytearray((copy / largest).read_bytes())
            data[int(len(data) * share)] ^= 4
            (copy / largest).write_bytes(data)
            with pytest.raises(CorruptError):
                list(self._open(copy).scan(b""))
            with pytest.raises(CorruptError):
                self._open(copy).get_many([key for key, _ in rows])

    def _open(self, directory: Path) -> Store:
        # With a factory of its own, so that no cache hides the damage.
        again = directory.with_name(directory.name + "-again")
        shutil.rmtree(again, ignore_errors=True)
        shutil.copytree(directory, again)
        return self.stores().open(again)
