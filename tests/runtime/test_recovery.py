"""Claiming a task and fetching its last checkpoint, with what others left behind or still use."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.checkpoint.checkpoints import Checkpoints
from headrace.checkpoint.manifest import Manifest
from headrace.checkpoint.store import open_objects
from headrace.errors import CorruptError, FencedError, InvalidError, SettingsError
from headrace.log.api import Lease
from headrace.runtime.workers.recovery import keep, kept_directory, restore, snapshot_directory
from headrace.runtime.workers.setbacks import FORGOTTEN_MS, Setback, Way, next_way


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(open_objects(str(tmp_path / "checkpoints"), {}), "t")


def lease(epoch: int) -> Lease:
    return Lease("in-0", epoch)


def now() -> int:
    return 7


def save(checkpoints: Checkpoints, tmp_path: Path, previous: Manifest, position: int) -> Manifest:
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir(exist_ok=True)
    (snapshot / "rows").write_text(f"rows up to {position}")
    (snapshot / "same").write_text("the same in all")
    return checkpoints.save(previous, snapshot, {"in/0": position}, {"finished": -1}, 7)


def test_a_task_without_a_checkpoint_is_claimed(checkpoints: Checkpoints, tmp_path: Path) -> None:
    restored = restore(checkpoints, lease(1), tmp_path / "home", now)
    assert restored.manifest.epoch == 1
    assert (restored.fetched_bytes, restored.problems) == (0, ())
    assert not restored.directory.exists()


def test_the_last_checkpoint_is_fetched_and_unchanged_files_are_not(checkpoints: Checkpoints, tmp_path: Path) -> None:
    home = tmp_path / "home"
    first = save(checkpoints, tmp_path, restore(checkpoints, lease(1), home, now).manifest, 10)
    second = restore(checkpoints, lease(2), home, now)
    assert second.manifest.positions == {"in/0": 10}
    assert (second.directory / "rows").read_text() == "rows up to 10"
    assert second.fetched_bytes == first.size_bytes
    save(checkpoints, tmp_path, second.manifest, 200)
    third = restore(checkpoints, lease(3), home, now)
    assert (third.directory / "rows").read_text() == "rows up to 200"
    assert third.fetched_bytes == len("rows up to 200")
    assert not second.directory.exists()


def test_the_same_lease_continues_its_own_checkpoint(checkpoints: Checkpoints, tmp_path: Path) -> None:
    own = save(checkpoints, tmp_path, restore(checkpoints, lease(1), tmp_path / "home", now).manifest, 10)
    assert restore(checkpoints, lease(1), tmp_path / "home", now).manifest == own


def test_what_crashes_left_is_deleted_and_what_a_later_owner_uses_is_not(
    checkpoints: Checkpoints, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    save(checkpoints, tmp_path, restore(checkpoints, lease(1), home, now).manifest, 10)
    half_restored = home / "0000000001-0000000009" / "db.restoring"
    half_restored.mkdir(parents=True)
    left = snapshot_directory(home, lease(1))
    left.mkdir()
    later = home / "0000000009-0000000001" / "db"
    later.mkdir(parents=True)
    (later / "rows").write_text("in use")
    restored = restore(checkpoints, lease(2), home, now)
    kept = kept_directory(snapshot_directory(home, lease(2)))
    assert {path.name for path in home.iterdir()} == {restored.directory.parent.name, later.parent.name, kept.name}
    assert (later / "rows").read_text() == "in use"


def test_a_damaged_manifest_is_passed_over(checkpoints: Checkpoints, tmp_path: Path) -> None:
    first = save(checkpoints, tmp_path, restore(checkpoints, lease(1), tmp_path / "home", now).manifest, 10)
    second = save(checkpoints, tmp_path, first, 20)
    path = tmp_path / "checkpoints" / "t" / "in-0" / "manifests" / f"{second.number:010d}.json"
    path.write_text("damage")
    restored = restore(checkpoints, lease(2), tmp_path / "home", now)
    assert restored.manifest.positions == {"in/0": 10}
    assert restored.manifest.number > second.number
    assert len(restored.problems) == 1


def test_a_lost_file_without_another_checkpoint_is_an_error_that_says_which(
    checkpoints: Checkpoints, tmp_path: Path
) -> None:
    saved = save(checkpoints, tmp_path, restore(checkpoints, lease(1), tmp_path / "home", now).manifest, 10)
    (tmp_path / "checkpoints" / saved.files[0].object).unlink()
    with pytest.raises(CorruptError, match=f"{saved.files[0].object}. There is no other checkpoint"):
        restore(checkpoints, lease(2), tmp_path / "home", now)


def saved_twice(checkpoints: Checkpoints, tmp_path: Path) -> tuple[Manifest, Manifest]:
    first = save(checkpoints, tmp_path, restore(checkpoints, lease(1), tmp_path / "home", now).manifest, 10)
    return first, save(checkpoints, tmp_path, first, 20)


@pytest.mark.parametrize("damage", ["missing", "changed", "short"])
def test_a_damaged_file_goes_back_to_the_checkpoint_before_and_says_so(
    checkpoints: Checkpoints, tmp_path: Path, damage: str
) -> None:
    first, second = saved_twice(checkpoints, tmp_path)
    (ref,) = set(second.files) - set(first.files)
    path = tmp_path / "checkpoints" / ref.object
    data = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(data[:-1] + (b"!" if damage == "changed" else b""))
    restored = restore(checkpoints, lease(2), tmp_path / "other", now)
    assert restored.fallbacks == 1
    assert restored.manifest.positions == {"in/0": 10}
    assert (restored.directory / "rows").read_text() == "rows up to 10"
    (problem,) = restored.problems
    assert ref.object in problem
    third = save(checkpoints, tmp_path, restored.manifest, 30)
    assert restore(checkpoints, lease(3), tmp_path / "other", now).manifest.files == third.files


def test_state_that_proved_damaged_is_fetched_or_comes_from_the_checkpoint_before(
    checkpoints: Checkpoints, tmp_path: Path
) -> None:
    _, second = saved_twice(checkpoints, tmp_path)
    home = tmp_path / "home"
    assert restore(checkpoints, lease(2), home, now).manifest.files == second.files
    assert restore(checkpoints, lease(2), home, now).fetched_bytes == 0
    fetched = restore(checkpoints, lease(2), home, now, setback=Setback(Way.FETCH))
    assert (fetched.reused_bytes, fetched.fetched_bytes) == (0, second.size_bytes)
    back = Setback(Way.FALL_BACK, (fetched.manifest,))
    for _ in range(2):  # a restore that fails half-way is repeated and goes back no further
        restored = restore(checkpoints, lease(2), home, now, setback=back)
        assert restored.manifest.positions == {"in/0": 10}
        assert restored.reused_bytes == 0
    with pytest.raises(CorruptError, match="There is no other checkpoint"):
        restore(checkpoints, lease(2), home, now, setback=Setback(Way.FALL_BACK, (fetched.manifest, restored.manifest)))


def test_a_warm_restart_takes_the_kept_snapshot_and_fetches_what_is_damaged_there(
    checkpoints: Checkpoints, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    first = restore(checkpoints, lease(1), home, now)
    snapshot = snapshot_directory(home, lease(1))
    snapshot.mkdir()
    (snapshot / "rows").write_text("rows up to 20")
    (snapshot / "same").write_text("the same in all")
    saved = checkpoints.save(first.manifest, snapshot, {"in/0": 20}, {"finished": -1}, 7)
    keep(snapshot)
    assert not snapshot.exists()
    # The store has changed since, as stores do.
    (home / "0000000001-0000000001" / "db").mkdir()
    again = restore(checkpoints, lease(2), home, now)
    assert (again.reused_bytes, again.fetched_bytes) == (saved.size_bytes, 0)
    kept = kept_directory(snapshot_directory(home, lease(2)))
    (kept / "rows").unlink()
    (kept / "rows").write_text("rows up to 2!")
    for path in again.directory.iterdir():
        path.unlink()
    once_more = restore(checkpoints, lease(3), home, now)
    assert (once_more.directory / "rows").read_text() == "rows up to 20"
    assert once_more.fetched_bytes == len("rows up to 20")


def test_files_of_a_restore_that_was_killed_are_not_fetched_again(checkpoints: Checkpoints, tmp_path: Path) -> None:
    home = tmp_path / "home"
    saved = save(checkpoints, tmp_path, restore(checkpoints, lease(1), home, now).manifest, 10)
    half = home / "0000000001-0000000001" / "db.restoring"
    half.mkdir(parents=True)
    (half / "rows").write_text("rows up")
    (half / "same").write_text("the same in all")
    restored = restore(checkpoints, lease(2), home, now)
    assert (restored.reused_bytes, restored.fetched_bytes) == (len("the same in all"), len("rows up to 10"))
    assert restored.manifest.files == saved.files


def test_the_same_lease_fetches_nothing_twice(checkpoints: Checkpoints, tmp_path: Path) -> None:
    home = tmp_path / "home"
    save(checkpoints, tmp_path, restore(checkpoints, lease(1), home, now).manifest, 10)
    first = restore(checkpoints, lease(2), home, now)
    second = restore(checkpoints, lease(2), home, now)
    assert second.fetched_bytes == 0
    assert second.directory != first.directory
    assert not first.directory.exists()


def test_what_was_tried_is_not_tried_again_within_a_while() -> None:
    assert next_way(Way.REUSE, local=True, worked_ms=0) is Way.FETCH
    assert next_way(Way.REUSE, local=False, worked_ms=0) is Way.FALL_BACK
    assert next_way(Way.FETCH, local=False, worked_ms=0) is Way.FALL_BACK
    assert next_way(Way.FALL_BACK, local=False, worked_ms=FORGOTTEN_MS - 1) is Way.GIVE_UP
    assert {next_way(way, local=False, worked_ms=FORGOTTEN_MS) for way in Way} == {Way.FETCH}


def test_checkpoints_of_a_log_that_is_ahead_are_refused(checkpoints: Checkpoints, tmp_path: Path) -> None:
    save(checkpoints, tmp_path, restore(checkpoints, lease(5), tmp_path / "home", now).manifest, 10)
    with pytest.raises(InvalidError, match="has only reached 2: the checkpoints belong to another log"):
        restore(checkpoints, lease(2), tmp_path / "home", now)


@pytest.mark.parametrize("place", ["home", "."])
def test_a_home_that_cannot_be_written(checkpoints: Checkpoints, tmp_path: Path, place: str) -> None:
    home = tmp_path / "state" / "in-0"
    blocked = (tmp_path / "state" / place.replace("home", "in-0")) if place != "." else tmp_path / "state"
    blocked.parent.mkdir(parents=True, exist_ok=True)
    blocked.write_text("a file stands here")
    with pytest.raises(SettingsError, match=f"the state of task in-0 cannot be written to {home}.*HEADRACE_STATE_DIR"):
        restore(checkpoints, lease(1), home, now)


def test_a_restore_can_be_given_up(checkpoints: Checkpoints, tmp_path: Path) -> None:
    save(checkpoints, tmp_path, restore(checkpoints, lease(1), tmp_path / "home", now).manifest, 10)

    def give_up(done: int, total: int) -> None:
        raise FencedError("given up")

    with pytest.raises(FencedError, match="given up"):
        restore(checkpoints, lease(2), tmp_path / "home", now, give_up)
    again = restore(checkpoints, lease(2), tmp_path / "home", now)
    assert (again.directory / "rows").read_text() == "rows up to 10"


def test_checkpoints_of_another_log_are_refused(checkpoints: Checkpoints, tmp_path: Path) -> None:
    claimed = restore(checkpoints, lease(1), tmp_path / "home", now, None, "this").manifest
    checkpoints.save(claimed, _snapshot(tmp_path), {"in/0": 10}, {"log": "this"}, 7)
    with pytest.raises(InvalidError, match="task in-0 belongs to another log"):
        restore(checkpoints, lease(2), tmp_path / "home", now, None, "other")
    again = restore(checkpoints, lease(2), tmp_path / "home", now, None, "this")
    assert again.manifest.positions == {"in/0": 10}


def test_checkpoints_that_cannot_be_read_are_not_taken_for_none(checkpoints: Checkpoints, tmp_path: Path) -> None:
    restore(checkpoints, lease(1), tmp_path / "home", now)
    for path in (tmp_path / "checkpoints").rglob("*.json"):
        path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(CorruptError, match="in-0 has checkpoints, but none that can be read"):
        restore(checkpoints, lease(2), tmp_path / "home", now)


def _snapshot(tmp_path: Path) -> Path:
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir(exist_ok=True)
    (snapshot / "rows").write_text("rows")
    return snapshot
