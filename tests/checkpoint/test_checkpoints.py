"""Saving, claiming, pruning and restoring, one owner after another."""

import pytest

from headrace.checkpoint.checkpoints import Checkpoints
from headrace.checkpoint.manifest import manifest_path
from headrace.checkpoint.store import open_objects
from headrace.errors import CorruptError, FatalError, FencedError, RetriableError

TASK = "0-3"


@pytest.fixture(params=["memory", "directory"])
def objects(request, tmp_path):
    return open_objects("memory://" if request.param == "memory" else str(tmp_path / "objects"), {})


@pytest.fixture
def checkpoints(objects):
    return Checkpoints(objects, "spend")


@pytest.fixture
def snapshot(tmp_path):
    """Write files into a new directory; those named before keep their inode, as hard links do."""
    made = []

    def make(files):
        directory = tmp_path / f"snapshot{len(made)}"
        directory.mkdir()
        for name, data in files.items():
            for earlier in made:
                if (earlier / name).exists() and (earlier / name).read_bytes() == data:
                    (directory / name).hardlink_to(earlier / name)
                    break
            else:
                (directory / name).write_bytes(data)
        made.append(directory)
        return directory

    return make


def read_back(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_a_checkpoint_comes_back_as_it_was(checkpoints, snapshot, tmp_path):
    assert checkpoints.newest(TASK) is None
    claimed = checkpoints.claim(TASK, 3, None, 100)
    assert (claimed.epoch, claimed.number, claimed.files) == (3, 1, ())
    files = {"1.sst": b"one" * 1000, "2.sst": b"two", "CURRENT": b"1.sst", "LOG": b""}
    saved = checkpoints.save(claimed, snapshot(files), {"payments/3": 17}, {"watermark": 5}, 200)
    newest = checkpoints.newest(TASK)
    assert newest == saved
    assert (newest.epoch, newest.number, newest.created_ms) == (3, 2, 200)
    assert (newest.positions, newest.info) == ({"payments/3": 17}, {"watermark": 5})
    assert newest.size_bytes == sum(map(len, files.values()))
    progress = []
    stats = checkpoints.restore(newest, tmp_path / "store", on_progress=lambda *done: progress.append(done))
    assert read_back(tmp_path / "store") == files
    assert (stats.files, stats.fetched_files, stats.fetched_bytes, stats.reused_bytes) == (4, 4, 3008, 0)
    assert progress[-1] == (3008, 3008)
    assert len(progress) == 4
    assert checkpoints.tasks() == [TASK]
    assert checkpoints.total_bytes(TASK) == checkpoints.total_bytes() > 3008


def test_a_task_without_state_has_checkpoints_too(checkpoints, snapshot, tmp_path):
    saved = checkpoints.save(checkpoints.claim(TASK, 1, None, 0), snapshot({}), {"a/0": 1}, {}, 1)
    checkpoints.restore(saved, tmp_path / "store")
    assert read_back(tmp_path / "store") == {}


class Counting:
    """Notes the calls of another checkpoint store."""

    def __init__(self, objects):
        self.objects = objects
        self.calls = []

    def __getattr__(self, name):
        def call(*args):
            self.calls.append((name, *args))
            return getattr(self.objects, name)(*args)

        return call

    def uploaded(self):
        found = [str(call[2].name) for call in self.calls if call[0] == "upload"]
        self.calls.clear()
        return found


def test_only_what_is_new_is_uploaded_and_read(objects, snapshot, monkeypatch):
    counting = Counting(objects)
    checkpoints = Checkpoints(counting, "spend")
    read = []
    original = checkpoints._checksums.of.__globals__["file_checksum"]
    monkeypatch.setitem(
        checkpoints._checksums.of.__globals__, "file_checksum", lambda path: read.append(path.name) or original(path)
    )
    first = checkpoints.save(checkpoints.claim(TASK, 1, None, 0), snapshot({"1": b"a" * 9, "C": b"1"}), {}, {}, 1)
    assert sorted(counting.uploaded()) == ["1", "C"]
    second = checkpoints.save(first, snapshot({"1": b"a" * 9, "2": b"b", "C": b"2"}), {}, {}, 2)
    assert sorted(counting.uploaded()) == ["2", "C"]
    assert sorted(read) == ["1", "2", "C", "C"]
    third = checkpoints.save(second, snapshot({"9": b"a" * 9, "2": b"b", "C": b"2"}), {}, {}, 3)
    assert counting.uploaded() == []
    assert {ref.name: ref.object for ref in third.files}["9"] == {ref.name: ref.object for ref in first.files}["1"]


def test_after_a_restart_nothing_is_uploaded_or_read_again(objects, snapshot, tmp_path, monkeypatch):
    files = {"1": b"a" * 9, "2": b"b"}
    first = Checkpoints(objects, "spend")
    saved = first.save(first.claim(TASK, 1, None, 0), snapshot(files), {}, {}, 1)
    counting = Counting(objects)
    later = Checkpoints(counting, "spend")
    claimed = later.claim(TASK, 2, saved, 2)
    later.restore(claimed, tmp_path / "store")
    read = []
    of = later._checksums.of.__globals__
    original = of["file_checksum"]
    monkeypatch.setitem(of, "file_checksum", lambda path: read.append(path.name) or original(path))
    again = tmp_path / "again"
    again.mkdir()
    for name in files:
        (again / name).hardlink_to(tmp_path / "store" / name)
    (again / "3").write_bytes(b"c")
    later.save(claimed, again, {}, {}, 3)
    assert counting.uploaded() == ["3"]
    assert read == ["3"]


def test_files_with_the_same_bytes_are_one_object(objects, snapshot):
    counting = Counting(objects)
    checkpoints = Checkpoints(counting, "spend")
    saved = checkpoints.save(checkpoints.claim(TASK, 1, None, 0), snapshot({"1": b"a", "2": b"a"}), {}, {}, 1)
    assert len(counting.uploaded()) == 1
    assert len({ref.object for ref in saved.files}) == 1


def test_a_new_owner_continues_and_shuts_the_old_one_out(checkpoints, snapshot, tmp_path):
    old = checkpoints.save(
        checkpoints.claim(TASK, 1, None, 0), snapshot({"1": b"a", "2": b"b"}), {"t/0": 5}, {"i": 1}, 1
    )
    new = checkpoints.claim(TASK, 2, checkpoints.newest(TASK), 2)
    assert (new.files, new.positions, new.info) == (old.files, old.positions, old.info)
    assert checkpoints.newest(TASK) == new
    with pytest.raises(FencedError, match=f"task {TASK} of topology spend has another owner"):
        checkpoints.save(old, snapshot({"3": b"c"}), {}, {}, 3)
    with pytest.raises(FencedError):
        checkpoints.prune(old)
    with pytest.raises(FencedError):
        checkpoints.sweep(old)
    assert checkpoints.newest(TASK) == new
    later = checkpoints.save(new, snapshot({"1": b"a", "4": b"d"}), {}, {}, 4)
    checkpoints.prune(later)
    checkpoints.restore(later, tmp_path / "store")
    assert read_back(tmp_path / "store") == {"1": b"a", "4": b"d"}


@pytest.mark.parametrize("epoch", [1, 2])
def test_an_epoch_must_be_the_highest(checkpoints, epoch):
    base = checkpoints.claim(TASK, 1, None, 0)
    checkpoints.claim(TASK, 2, base, 0)
    for known in (base, None, checkpoints.newest(TASK)):
        with pytest.raises(FencedError):
            checkpoints.claim(TASK, epoch, known, 0)


def test_a_claim_must_continue_the_newest(checkpoints, snapshot):
    base = checkpoints.claim(TASK, 1, None, 0)
    checkpoints.save(base, snapshot({}), {}, {}, 1)
    for known in (base, None):
        with pytest.raises(RetriableError, match="checkpoint 2 of task 0-3"):
            checkpoints.claim(TASK, 2, known, 2)
    assert checkpoints.claim(TASK, 2, checkpoints.newest(TASK), 2).number == 3


def test_an_owner_of_the_past_finds_that_its_number_was_pruned(checkpoints, snapshot):
    old = checkpoints.claim(TASK, 1, None, 0)
    new = checkpoints.claim(TASK, 2, old, 0)
    for turn in range(4):
        new = checkpoints.save(new, snapshot({"1": b"%d" % turn}), {}, {}, turn)
        checkpoints.prune(new)
    assert [manifest.number for manifest in checkpoints.manifests(TASK)] == [5, 6]
    with pytest.raises(FencedError):
        checkpoints.save(old, snapshot({"1": b"zombie"}), {}, {}, 9)
    with pytest.raises(FencedError):
        checkpoints.claim(TASK, 2, old, 9)
    assert checkpoints.newest(TASK) == new
    checkpoints.prune(checkpoints.save(new, snapshot({"1": b"x"}), {}, {}, 10))
    assert [manifest.number for manifest in checkpoints.manifests(TASK)] == [6, 7]


def test_pruning_keeps_what_is_named(checkpoints, objects, snapshot, tmp_path):
    current = checkpoints.claim(TASK, 1, None, 0)
    kept = []
    for turn in range(6):
        current = checkpoints.save(current, snapshot({"base": b"b" * 50, "new": b"%d" % turn}), {}, {}, turn)
        kept.append(current)
        checkpoints.prune(current, keep=3)
    assert checkpoints.manifests(TASK) == kept[-3:]
    for manifest in kept[-3:]:
        checkpoints.restore(manifest, tmp_path / str(manifest.number))
    files = {ref.object for manifest in kept[-3:] for ref in manifest.files}
    assert set(objects.list(f"spend/{TASK}/files")) == files
    assert checkpoints.prune(current, keep=3) == 0
    assert checkpoints.prune(current, keep=1) == 4


def test_what_others_put_there_is_left_alone(checkpoints, objects, snapshot):
    objects.create(f"spend/{TASK}/files/notes", b"")
    objects.create(f"spend/{TASK}/manifests/notes", b"")
    current = checkpoints.claim(TASK, 1, None, 0)
    for turn in range(4):
        current = checkpoints.save(current, snapshot({"new": b"%d" % turn}), {}, {}, turn)
        checkpoints.prune(current)
    checkpoints.sweep(checkpoints.claim(TASK, 2, current, 0))
    assert objects.read(f"spend/{TASK}/files/notes") == b""
    assert objects.read(f"spend/{TASK}/manifests/notes") == b""


def test_a_new_owner_sweeps_what_the_old_one_left(checkpoints, objects, snapshot):
    old = checkpoints.save(checkpoints.claim(TASK, 1, None, 0), snapshot({"1": b"a"}), {}, {}, 1)
    new = checkpoints.claim(TASK, 2, old, 2)
    with pytest.raises(FencedError):
        checkpoints.save(old, snapshot({"2": b"orphan"}), {}, {}, 3)
    assert len(objects.list(f"spend/{TASK}/files")) == 2
    assert checkpoints.sweep(new) == 1
    assert set(objects.list(f"spend/{TASK}/files")) == {ref.object for ref in new.files}


def damage(objects, path, place=None):
    data = bytearray(objects.read(path))
    data[len(data) // 2 if place is None else place] ^= 1
    objects.delete([path])
    objects.create(path, bytes(data))


def test_a_damaged_manifest_is_passed_over_and_reported(checkpoints, objects, snapshot, tmp_path):
    first = checkpoints.save(checkpoints.claim(TASK, 1, None, 0), snapshot({"1": b"a"}), {}, {}, 1)
    second = checkpoints.save(first, snapshot({"1": b"b"}), {}, {}, 2)
    checkpoints.prune(second)
    path = manifest_path("spend", TASK, second.number)
    damage(objects, path)
    problems = []
    assert checkpoints.newest(TASK, problems) == first
    assert problems == [f"the manifest {path} is damaged and was passed over"]
    assert checkpoints.sweep(checkpoints.claim(TASK, 2, first, 3)) == 0
    claimed = checkpoints.newest(TASK)
    assert (claimed.epoch, claimed.number, claimed.files) == (2, 4, first.files)
    with pytest.raises(FencedError):
        checkpoints.save(second, snapshot({"1": b"c"}), {}, {}, 4)
    for turn in range(3):
        claimed = checkpoints.save(claimed, snapshot({"1": b"%d" % turn}), {}, {}, 5)
        checkpoints.prune(claimed)
    assert len(objects.list(f"spend/{TASK}/manifests")) == 2
    checkpoints.restore(claimed, tmp_path / "store")


def test_nothing_but_damage_is_reported_as_nothing(checkpoints, objects):
    checkpoints.claim(TASK, 1, None, 0)
    damage(objects, manifest_path("spend", TASK, 1))
    problems = []
    assert checkpoints.newest(TASK, problems) is None
    assert len(problems) == 1
    assert checkpoints.manifests(TASK) == []


def test_a_flipped_bit_in_a_file_is_found(checkpoints, objects, snapshot, tmp_path):
    saved = checkpoints.save(checkpoints.claim(TASK, 1, None, 0), snapshot({"1": b"a" * 20, "2": b"b"}), {}, {}, 1)
    for ref in saved.files:
        for place in range(0, ref.size, 7):
            damage(objects, ref.object, place)
            (tmp_path / "store").mkdir(exist_ok=True)
            (tmp_path / "store" / "mine").write_text("")
            with pytest.raises(CorruptError, match=f"checkpoint 2 of task 0-3 .*{ref.object}"):
                checkpoints.restore(saved, tmp_path / "store")
            # What was there stays until the new state is whole.
            assert (tmp_path / "store" / "mine").exists()
            damage(objects, ref.object, place)
    checkpoints.restore(saved, tmp_path / "store")
    assert sorted(read_back(tmp_path / "store")) == ["1", "2"]


def test_a_missing_file_is_named(checkpoints, objects, snapshot, tmp_path):
    saved = checkpoints.save(checkpoints.claim(TASK, 1, None, 0), snapshot({"1": b"a"}), {}, {}, 1)
    objects.delete([saved.files[0].object])
    with pytest.raises(CorruptError, match=f"lacks the object {saved.files[0].object}"):
        checkpoints.restore(saved, tmp_path / "store")
    assert not list(tmp_path.glob("store*"))


def test_unchanged_local_files_are_linked(checkpoints, snapshot, tmp_path):
    files = {"1": b"a" * 100, "2": b"b" * 50, "3": b"c" * 10}
    saved = checkpoints.save(checkpoints.claim(TASK, 1, None, 0), snapshot(files), {}, {}, 1)
    local = tmp_path / "store"
    local.mkdir()
    (local / "1").write_bytes(files["1"])
    (local / "2").write_bytes(b"x" * 50)
    (local / "else").write_bytes(b"x")
    inode = (local / "1").stat().st_ino
    stats = checkpoints.restore(saved, local, reuse=[local])
    assert read_back(local) == files
    assert (local / "1").stat().st_ino == inode
    assert (stats.fetched_files, stats.fetched_bytes, stats.reused_bytes) == (2, 60, 100)


@pytest.mark.parametrize("crc32c", [True, False])
def test_a_damaged_local_file_is_fetched_with_and_without_a_crc(checkpoints, snapshot, tmp_path, crc32c):
    import dataclasses

    import msgspec

    files = {"1": b"a" * 100, "2": b"b" * 50}
    saved = checkpoints.save(checkpoints.claim(TASK, 1, None, 0), snapshot(files), {}, {}, 1)
    assert all(ref.crc32c for ref in saved.files)
    if not crc32c:  # as earlier versions wrote it
        refs = tuple(msgspec.structs.replace(ref, crc32c="") for ref in saved.files)
        saved = dataclasses.replace(saved, files=refs)
    for name in ("old", "older"):
        (tmp_path / name).mkdir()
    (tmp_path / "old" / "1").write_bytes(b"a" * 99 + b"b")
    (tmp_path / "older" / "2").write_bytes(files["2"])
    stats = checkpoints.restore(saved, tmp_path / "store", [tmp_path / "old", tmp_path / "older", tmp_path / "none"])
    assert read_back(tmp_path / "store") == files
    assert (stats.fetched_files, stats.fetched_bytes, stats.reused_bytes) == (1, 100, 50)


def test_a_name_that_leads_elsewhere_is_refused(checkpoints, snapshot, tmp_path):
    import dataclasses

    import msgspec

    saved = checkpoints.save(checkpoints.claim(TASK, 1, None, 0), snapshot({"1": b"a"}), {}, {}, 1)
    for name in ("../escaped", "/escaped", "a/b", ".."):
        evil = dataclasses.replace(saved, files=(msgspec.structs.replace(saved.files[0], name=name),))
        with pytest.raises((CorruptError, FatalError)):
            checkpoints.restore(evil, tmp_path / "deep" / "store")
    assert not list(tmp_path.rglob("escaped"))


def test_local_faults_name_the_directory(checkpoints, snapshot, tmp_path):
    saved = checkpoints.save(checkpoints.claim(TASK, 1, None, 0), snapshot({"1": b"a"}), {}, {}, 1)
    (tmp_path / "file").write_text("")
    with pytest.raises(FatalError, match="HEADRACE_STATE_DIR"):
        checkpoints.restore(saved, tmp_path / "file" / "store")
    with pytest.raises(FatalError, match="nothing"):
        checkpoints.save(saved, tmp_path / "nothing", {}, {}, 2)
