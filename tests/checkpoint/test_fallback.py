"""A damaged file costs one checkpoint and no more; manifests that lie elsewhere than they belong are refused."""

import dataclasses

import pytest

from headrace.checkpoint import decide
from headrace.checkpoint.checkpoints import Checkpoints
from headrace.checkpoint.manifest import FileRef, Manifest, encode, manifest_path
from headrace.checkpoint.restore import DamagedFilesError
from headrace.checkpoint.store import open_objects
from headrace.errors import FencedError, InvalidError, RetriableError
from tests.checkpoint.test_faults import Failing, make

TASK = "0-0"


@pytest.fixture
def objects():
    return open_objects("memory://", {})


@pytest.fixture
def checkpoints(objects):
    return Checkpoints(objects, "t")


@pytest.fixture
def state(tmp_path):
    """Write the snapshot of a turn; all turns share the file ``base``."""

    def write(turn, name="state"):
        directory = tmp_path / f"{name}{turn}"
        return directory if directory.exists() else make(directory, {"base": b"base", "new": b"%d" % turn})

    return write


@pytest.fixture
def left_behind(checkpoints, state):
    """What an owner with epoch 1 left: its last manifest, of three that it saved and pruned."""
    current = checkpoints.claim(TASK, 1, None, 0)
    for turn in range(1, 4):
        current = checkpoints.save(current, state(turn), {"in/0": turn}, {"turn": turn}, turn)
        checkpoints.prune(current)
    return current


def own_object(manifest, name="new"):
    return next(ref.object for ref in manifest.files if ref.name == name)


def test_the_one_before_is_continued_under_the_same_epoch(checkpoints, objects, left_behind, state, tmp_path):
    claimed = checkpoints.claim(TASK, 2, left_behind, 4)
    objects.delete([own_object(left_behind)])
    with pytest.raises(DamagedFilesError) as raised:
        checkpoints.restore(claimed, tmp_path / "store")
    assert raised.value.objects == {own_object(left_behind)}
    older = checkpoints.fall_back(claimed, [claimed], 5, raised.value.objects)
    assert (older.epoch, older.number, older.created_ms) == (2, claimed.number + 1, 5)
    assert (older.positions, older.info) == ({"in/0": 2}, {"turn": 2})
    assert checkpoints.newest(TASK) == older
    checkpoints.restore(older, tmp_path / "store")
    assert (tmp_path / "store" / "new").read_bytes() == b"2"
    saved = checkpoints.save(older, state(3, "again"), {"in/0": 3}, {}, 6)
    # The missing object is not taken for one that is there.
    assert own_object(saved) != own_object(left_behind)
    checkpoints.prune(saved)
    assert [manifest.number for manifest in checkpoints.manifests(TASK)] == [older.number, saved.number]
    checkpoints.restore(saved, tmp_path / "end")
    assert (tmp_path / "end" / "new").read_bytes() == b"3"
    checkpoints.sweep(saved)
    assert set(objects.list(f"t/{TASK}/files")) == {ref.object for one in (older, saved) for ref in one.files}


def test_what_needs_the_same_file_is_not_offered(checkpoints, left_behind):
    claimed = checkpoints.claim(TASK, 2, left_behind, 4)
    assert checkpoints.fall_back(claimed, [claimed], 5, {own_object(left_behind, "base")}) is None
    assert checkpoints.newest(TASK) == claimed


def test_nor_is_more_than_one_step_back(checkpoints, left_behind):
    claimed = checkpoints.claim(TASK, 2, left_behind, 4)
    older = checkpoints.fall_back(claimed, [claimed], 5)
    assert checkpoints.fall_back(older, [claimed, older], 6) is None


def test_a_checkpoint_that_an_unfinished_prune_may_be_deleting_is_not_offered(checkpoints, state):
    current = checkpoints.claim(TASK, 1, None, 0)
    for turn in range(1, 5):  # never pruned
        current = checkpoints.save(current, state(turn), {"in/0": turn}, {}, turn)
    claimed = checkpoints.claim(TASK, 2, current, 4)
    older = checkpoints.fall_back(claimed, [claimed], 5)
    assert older.positions == {"in/0": 3}
    assert checkpoints.fall_back(older, [claimed, older], 6) is None


def test_claims_between_do_not_count_as_steps(checkpoints, left_behind):
    claimed = left_behind
    for epoch in (2, 3, 4):  # owners that were gone before they saved anything
        claimed = checkpoints.claim(TASK, epoch, claimed, 4)
    assert checkpoints.fall_back(claimed, [claimed], 5).positions == {"in/0": 2}


def test_a_task_that_saved_nothing_is_not_begun_anew_in_silence(checkpoints, state):
    saved = checkpoints.save(checkpoints.claim(TASK, 1, None, 0), state(1), {"in/0": 1}, {}, 1)
    claimed = checkpoints.claim(TASK, 2, saved, 2)
    assert checkpoints.fall_back(claimed, [claimed], 3) is None


def test_a_damaged_manifest_between_is_stepped_over(checkpoints, objects, left_behind):
    claimed = checkpoints.claim(TASK, 2, left_behind, 4)
    path = manifest_path("t", TASK, left_behind.number)
    objects.delete([path])
    objects.create(path, b"{}")
    assert checkpoints.fall_back(claimed, [claimed], 5).positions == {"in/0": 2}


def test_a_later_owner_fences(checkpoints, left_behind):
    claimed = checkpoints.claim(TASK, 2, left_behind, 4)
    checkpoints.claim(TASK, 3, claimed, 5)
    with pytest.raises(FencedError):
        checkpoints.fall_back(claimed, [claimed], 6)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("nth", range(1, 7))
def test_an_answer_that_is_lost_does_no_harm(objects, checkpoints, left_behind, tmp_path, nth, after):
    claimed = checkpoints.claim(TASK, 2, left_behind, 4)
    failing = Checkpoints(Failing(objects, nth, after, RetriableError("lost")), "t")
    try:
        older = failing.fall_back(claimed, [claimed], 5)
    except RetriableError:
        older = failing.fall_back(claimed, [claimed], 6)
    assert checkpoints.newest(TASK) == older
    assert (older.epoch, older.positions) == (2, {"in/0": 2})
    checkpoints.restore(older, tmp_path / "store")


def test_files_of_saves_that_failed_do_not_pile_up(objects, left_behind, state):
    current = left_behind
    checkpoints = Checkpoints(objects, "t")
    for turn in range(4, 12):
        failing = Failing(objects, 2, False, RetriableError("full"))
        checkpoints._objects = failing  # the upload works, the manifest does not
        with pytest.raises(RetriableError):
            checkpoints.save(current, state(turn), {"in/0": turn}, {}, turn)
        checkpoints._objects = objects
        current = checkpoints.save(current, state(turn, "again"), {"in/0": turn}, {}, turn)
        checkpoints.prune(current)
    named = {ref.object for one in checkpoints.manifests(TASK) for ref in one.files}
    assert set(objects.list(f"t/{TASK}/files")) == named


@pytest.mark.parametrize("nth", range(1, 12))
@pytest.mark.parametrize("after", [False, True])
def test_a_prune_that_failed_is_ended_by_the_next(objects, left_behind, state, nth, after):
    current = left_behind
    checkpoints = Checkpoints(objects, "t")
    for turn in (4, 5):
        current = checkpoints.save(current, state(turn), {"in/0": turn}, {}, turn)
    checkpoints._objects = Failing(objects, nth, after, RetriableError("cut"))
    try:
        checkpoints.prune(current)
    except RetriableError:
        pass
    checkpoints._objects = objects
    checkpoints.prune(checkpoints.save(current, state(6), {"in/0": 6}, {}, 6))
    named = {ref.object for one in checkpoints.manifests(TASK) for ref in one.files}
    assert set(objects.list(f"t/{TASK}/files")) == named


def test_bytes_that_come_back_get_a_path_of_their_own(checkpoints, tmp_path):
    """So that a delete which the store carries out late cannot take them."""
    current = checkpoints.claim(TASK, 1, None, 0)
    seen = []
    for turn, data in enumerate((b"a", b"b", b"a", b"b")):
        current = checkpoints.save(current, make(tmp_path / str(turn), {"f": data}), {"in/0": turn}, {}, turn)
        seen.append(own_object(current, "f"))
    assert len(set(seen)) == 4


@pytest.mark.parametrize("change", [{"topology": "other"}, {"task": "0-1"}, {"number": 9}])
def test_a_manifest_from_elsewhere_is_refused(checkpoints, objects, left_behind, state, change):
    path = manifest_path("t", TASK, left_behind.number + 1)
    foreign = dataclasses.replace(left_behind, **{"number": left_behind.number + 1, **change})
    objects.create(path, encode(foreign))
    for call in (
        lambda: checkpoints.newest(TASK),
        lambda: checkpoints.save(left_behind, state(4), {"in/0": 4}, {}, 0),
        lambda: checkpoints.prune(left_behind),
        lambda: checkpoints.claim(TASK, 2, left_behind, 0),
    ):
        with pytest.raises(InvalidError, match="belongs elsewhere"):
            call()
    objects.delete([path])
    assert checkpoints.newest(TASK) == left_behind


def test_a_manifest_that_names_files_of_others_is_refused(checkpoints, objects, left_behind):
    theirs = FileRef("new", "other/0-0/files/0000000001-" + "0" * 32, 1, "0" * 32)
    changed = dataclasses.replace(left_behind, number=left_behind.number + 1, files=(theirs,))
    objects.create(manifest_path("t", TASK, changed.number), encode(changed))
    with pytest.raises(InvalidError, match="a file of another task: other/0-0"):
        checkpoints.newest(TASK)


def test_two_topologies_share_a_place(objects, state):
    one, other = Checkpoints(objects, "one"), Checkpoints(objects, "other")
    first = one.save(one.claim(TASK, 1, None, 0), state(1), {"in/0": 1}, {}, 1)
    second = other.save(other.claim(TASK, 7, None, 0), state(2), {"in/0": 2}, {}, 1)
    other.sweep(other.claim(TASK, 8, second, 2))
    assert one.newest(TASK) == first
    assert one.prune(first) == 0
    assert (one.tasks(), other.tasks()) == ([TASK], [TASK])


def test_what_is_gone_again_is_neither_ours_nor_a_fence():
    assert decide.taken(1, 5, False, None) == decide.Vanished()
    assert decide.taken(1, 5, False, Manifest("t", TASK, 1, 5, 0)) == decide.Write(6)
    assert decide.taken(1, 5, False, Manifest("t", TASK, 2, 5, 0)) == decide.Fenced(5)
    assert decide.taken(1, 5, False, decide.Damage.DAMAGED) == decide.Fenced(5)
    assert decide.taken(1, 5, True, Manifest("t", TASK, 1, 5, 0)) == decide.Written()
