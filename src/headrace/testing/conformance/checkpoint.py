"""What every checkpoint store must do. A test class inherits ``ObjectsContract`` and says how to open one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from headrace.checkpoint.store import Objects, new_checksum


class ObjectsContract:
    """Tests of the contract ``headrace.checkpoint.store.Objects``."""

    def objects(self, directory: Path) -> Objects:
        """Return an empty checkpoint store; ``directory`` is free for it to use."""
        raise NotImplementedError

    @pytest.fixture
    def opened(self, tmp_path: Path) -> Objects:
        """Open the store under test."""
        return self.objects(tmp_path / "objects")

    def test_reads_what_was_created(self, opened: Objects) -> None:
        """What does not exist reads as None."""
        assert opened.create("a/b/one.json", b"bytes")
        assert opened.read("a/b/one.json") == b"bytes"
        assert type(opened.read("a/b/one.json")) is bytes
        assert opened.read("a/b/two.json") is None
        assert opened.read("nothing/at/all") is None

    def test_creates_once(self, opened: Objects) -> None:
        """The second attempt changes nothing and says so."""
        assert opened.create("a/one", b"first")
        assert not opened.create("a/one", b"second")
        assert opened.read("a/one") == b"first"
        opened.delete(["a/one"])
        assert opened.create("a/one", b"third")
        assert opened.read("a/one") == b"third"

    def test_one_of_many_creators_wins(self, opened: Objects) -> None:
        """This is what decides who owns a task."""
        for turn in range(20):
            with ThreadPoolExecutor(8) as pool:
                won = list(pool.map(lambda i, turn=turn: opened.create(f"a/{turn}", b"%d" % i), range(8)))
            assert won.count(True) == 1
            assert opened.read(f"a/{turn}") == b"%d" % won.index(True)

    @pytest.mark.parametrize("size", [0, 1, 11 * 1024**2])
    def test_files_go_up_and_come_down(self, opened: Objects, tmp_path: Path, size: int) -> None:
        """Whatever their size."""
        data = (bytes(range(256)) * (size // 256 + 1))[:size]
        (tmp_path / "up").write_bytes(data)
        opened.upload("a/file", tmp_path / "up")
        assert opened.read("a/file") == data
        digest = new_checksum()
        digest.update(data)
        assert opened.download("a/file", tmp_path / "down") == (size, digest.hexdigest())
        assert (tmp_path / "down").read_bytes() == data

    def test_uploading_again_replaces(self, opened: Objects, tmp_path: Path) -> None:
        """An upload that was cut short by a crash is simply made again."""
        for data in (b"one", b"another"):
            (tmp_path / "up").write_bytes(data)
            opened.upload("a/file", tmp_path / "up")
            assert opened.read("a/file") == data

    def test_downloading_nothing_makes_no_file(self, opened: Objects, tmp_path: Path) -> None:
        """The caller learns that there is no object."""
        assert opened.download("a/file", tmp_path / "down") is None
        assert not (tmp_path / "down").exists()

    def test_lists_everything_below_a_path(self, opened: Objects) -> None:
        """In order, with sizes, and nothing that only begins alike."""
        paths = [f"t/a/{i:04d}" for i in range(1100)]
        for path in reversed(paths):
            opened.create(path, b"xy")
        opened.create("t/a/deep/er", b"xyz")
        opened.create("t/ab/1", b"")
        assert opened.list("t/a") == {**dict.fromkeys(paths, 2), "t/a/deep/er": 3}
        assert list(opened.list("t/a")) == [*paths, "t/a/deep/er"]
        assert opened.list("t/b") == {}
        assert opened.names("t") == ["a", "ab"]
        assert opened.names("nothing") == []

    def test_what_is_deleted_is_gone(self, opened: Objects) -> None:
        """Deleting what does not exist is no error."""
        for name in "abc":
            opened.create(f"t/{name}", b"")
        opened.delete(["t/a", "t/nothing", "t/c"])
        opened.delete([])
        assert list(opened.list("t")) == ["t/b"]

    def test_names_end_with_their_last_object(self, opened: Objects) -> None:
        """A directory may stay; nobody learns of it."""
        opened.create("t/a/b/one", b"")
        opened.create("t/c/two", b"")
        opened.delete(["t/a/b/one"])
        assert opened.names("t") == ["c"]
        opened.delete(["t/c/two"])
        assert opened.names("t") == opened.names("") == []
        assert opened.create("t/a/b/one", b"")
        assert opened.names("t") == ["a"]
