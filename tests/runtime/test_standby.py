"""Tasks move when their next worker has their state; standby copies follow checkpoints."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from headrace.checkpoint.checkpoints import Checkpoints
from headrace.checkpoint.store import Digest, Objects, open_objects
from headrace.log.memory import MemoryLog
from headrace.runtime.workers.lifecycle import Phase
from headrace.runtime.workers.standby import Copy, Following
from headrace.runtime.workers.standby import Place as Directory
from headrace.runtime.workers.worker import Worker
from tests.runtime.workers import Clock, Place, committed, rows


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    made.copies = ThreadPoolExecutor(1)
    yield made
    made.close()


def worker(place: Place, name: str, **settings: Any) -> Worker:
    """Return a worker with a disk of its own."""
    return place.worker(name, state_dir=str(place.folder / name), **settings)


def running(worker: Worker) -> list[str]:
    return sorted(slot.lease.unit for slot in worker.slots() if slot.phase is Phase.RUNNING)


def copied(place: Place, name: str) -> dict[str, set[str]]:
    """Return the files of the copies that a worker keeps."""
    units: dict[str, set[str]] = {}
    # Folders come and go meanwhile, those of files that arrive above all.
    with suppress(FileNotFoundError):
        for copy in (place.folder / name / "counting" / "standby" / name).iterdir():
            if "." not in copy.name and (files := {path.name for path in copy.iterdir()}):
                units[copy.name] = files
    return units


def newest(place: Place, unit: str) -> set[str]:
    manifest = place.checkpoints.newest(unit)
    assert manifest is not None
    return {ref.name for ref in manifest.files}


def drain(place: Place, *workers: Worker) -> None:
    for worker in workers:
        worker.drain()
    place.run(*workers, until=lambda: all(worker.done for worker in workers))


def test_a_task_goes_on_until_its_next_worker_has_its_state(place: Place) -> None:
    place.put(0, rows(0, 95))
    place.put(1, rows(500, 595))
    first = worker(place, "a", checkpoint_interval_ms=1_000_000)
    place.run(first, until=lambda: len(running(first)) == 2)
    second = worker(place, "b", checkpoint_interval_ms=1_000_000)
    # The next worker has joined, but makes no turns: it copies nothing yet.
    begun_ms = place.clock.ms
    place.run(first, until=lambda: place.clock.ms > begun_ms + 5_000)
    assert len(running(first)) == 2
    assert first.totals.records_in["in"] == 190
    assert committed(place) == 0, "nothing was told to leave"
    place.run(first, second, until=lambda: len(running(first)) == len(running(second)) == 1)
    assert committed(place) == 95
    drain(place, first, second)
    assert place.counted() == dict.fromkeys([*range(0, 90, 10), *range(500, 590, 10)], 10)


def test_a_task_does_not_wait_for_ever(place: Place) -> None:
    first = worker(place, "a", handoff_timeout_ms=3_000)
    place.run(first, until=lambda: len(running(first)) == 2)
    membership = place.log.group("counting").join(
        "b", {slot.lease.unit: [] for slot in first.slots()}, lambda m, u, h: dict.fromkeys(u, "b"),
        session_timeout_ms=100_000,
    )  # fmt: skip
    begun_ms = place.clock.ms
    place.run(first, until=lambda: membership.poll().leases)
    assert 3_000 <= place.clock.ms - begun_ms < 6_000
    membership.leave()
    first.close()


def test_a_worker_that_stops_hands_over_to_one_that_has_copied(place: Place) -> None:
    place.put(0, rows(0, 95))
    first, second = worker(place, "a"), worker(place, "b")
    place.run(first, second, until=lambda: len(running(first)) == len(running(second)) == 1 and committed(place) == 95)
    (moving,) = running(first)
    first.drain()
    assert running(first) == [moving], "it goes on while the other copies"
    place.run(first, second, until=lambda: first.done)
    place.run(second, until=lambda: len(running(second)) == 2)
    place.put(0, rows(95, 131))
    place.run(second, until=lambda: committed(place) == 131)
    place.run(second, until=lambda: not copied(place, "b"))
    drain(place, second)
    assert place.counted() == dict.fromkeys(range(0, 130, 10), 10)


def test_a_standby_copy_follows_and_is_all_that_a_takeover_needs(place: Place) -> None:
    place.put(0, rows(0, 95))
    place.put(1, rows(0, 95))
    first = worker(place, "a", standby_copies=1)
    second = worker(place, "b", standby_copies=1)
    place.run(first, second, until=lambda: len(running(first)) == len(running(second)) == 1)
    (lost,), (kept,) = running(first), running(second)
    place.put(0, rows(95, 120))
    place.put(1, rows(95, 120))
    place.run(first, second, until=lambda: committed(place) == 240)
    place.run(
        first, second, until=lambda: (
            copied(place, "b").get(lost) == newest(place, lost) and copied(place, "a").get(kept) == newest(place, kept)
        ),
    )  # fmt: skip
    assert copied(place, "a").keys() == {kept}
    shown = second._parts.metrics.exposition().decode()
    assert f'headrace_standby_lag_checkpoints{{task="{lost}",topology="counting"}} 0.0' in shown
    # What is not in the copy could not be fetched.
    for path in (place.folder / "checkpoints" / "counting" / lost / "files").iterdir():
        path.unlink()
    first.close()
    place.run(second, until=lambda: running(second) == sorted([lost, kept]))
    place.run(second, until=lambda: not copied(place, "b"))
    assert "headrace_standby_bytes{" not in second._parts.metrics.exposition().decode()
    place.put(0, rows(120, 131))
    place.put(1, rows(120, 131))
    place.run(second, until=lambda: committed(place) == 262)
    drain(place, second)


def test_a_copy_whose_checkpoint_vanishes_takes_the_next_one(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    place.put(0, rows(0, 95))
    first = worker(place, "a", standby_copies=1)
    place.run(first, until=lambda: committed(place) == 95)
    files = place.folder / "checkpoints" / "counting"
    hidden = place.folder / "hidden"
    shutil.copytree(files, hidden)
    for path in files.glob("*/files/*"):
        path.unlink()
    second = worker(place, "b", standby_copies=1)
    place.run(first, second, until=lambda: "stays behind" in caplog.text)
    assert "in-0" in running(first)
    shutil.copytree(hidden, files, dirs_exist_ok=True)
    place.run(first, second, until=lambda: len(running(first)) == len(running(second)) == 1)
    assert not first.done
    drain(place, first, second)


def test_a_copy_that_broke_off_goes_on_with_a_file_that_it_has_linked(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    patient = {"checkpoint_interval_ms": 1_000_000, "handoff_timeout_ms": 10_000_000}
    # Both workers are on one machine, so what is there and what has arrived are two names of one file.
    place.put(0, rows(0, 95))
    place.put(1, rows(0, 95))
    first = place.worker("a", **patient)
    place.run(first, until=lambda: len(running(first)) == 2 and first.totals.records_in["in"] == 190)
    drain(place, first)
    first = place.worker("a", **patient)
    place.run(first, until=lambda: len(running(first)) == 2)
    # Of each task the file is away that is fetched last.
    away = {}
    for manifest in filter(None, map(place.checkpoints.newest, place.checkpoints.tasks())):
        last = place.folder / "checkpoints" / manifest.files[-1].object
        assert not manifest.files[-1].name.endswith(".sst")
        away[last] = last.rename(place.folder / manifest.task)
    assert len(away) == 2
    second = place.worker("b", **patient)
    place.run(first, second, until=lambda: "stays behind" in caplog.text)
    for last, hidden in away.items():
        hidden.rename(last)
    place.run(first, second, until=lambda: len(running(first)) == len(running(second)) == 1)
    drain(place, first, second)


class Hurried:
    """A checkpoint store whose task saves new checkpoints while one of its files is fetched, so that the rest is gone.

    Args:
        objects: The store.
        save: Saves one more checkpoint.
        times: How often.
    """

    def __init__(self, objects: Objects, save: Callable[[], None], times: int) -> None:
        self._objects = objects
        self._save = save
        self._left = times
        self.downloads: Counter[str] = Counter()
        """By name, how often a file was fetched or should have been."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._objects, name)

    def download(self, path: str, file: Path, new_digest: Callable[[], Digest]) -> tuple[int, str] | None:
        got = self._objects.download(path, file, new_digest)
        self.downloads["kept" if got is not None and file.read_bytes() == b"kept" else "new"] += 1
        if self._left > 0:
            self._left -= 1
            for _ in range(3):  # of which two are kept
                self._save()
        return got


@pytest.mark.parametrize(("times", "whole"), [(3, True), (1_000, False)])
def test_a_copy_that_is_overtaken_takes_the_next_checkpoint_and_holds_up_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, times: int, whole: bool
) -> None:
    """A task may checkpoint faster than it can be copied."""
    objects = open_objects("memory://", {})
    owner = Checkpoints(objects, "t")
    state = tmp_path / "state"
    state.mkdir()
    (state / "000001.sst").write_bytes(b"kept")
    saved = [owner.claim("a", 1, None, 0)]

    def save() -> None:
        for name in ("CURRENT", "MANIFEST"):
            (state / name).write_bytes(b"%d %b" % (len(saved), name.encode()))
        saved.append(owner.save(saved[-1], state, {}, {}, 0))
        owner.prune(saved[-1])

    save()
    group = MemoryLog(Clock()).group("t")
    settings = {"session_timeout_ms": 1_000_000, "handoff_timeout_ms": 1_000_000}
    holder = group.join("holder", {"a": []}, lambda members, units, _: dict.fromkeys(units, members[-1]), **settings)
    assert holder.poll().leases
    comes = group.join("next", {"a": []}, lambda members, units, _: dict.fromkeys(units, members[-1]), **settings)
    assert comes.poll().incoming == holder.poll().outgoing == {"a"}
    assert not holder.poll().revoked
    hurried = Hurried(objects, save, times)
    copy = Copy("a", tmp_path / "copies" / "a")
    place = Directory(tmp_path / "copies", "next")
    follow = Following(Checkpoints(hurried, "t", threads=1), place, copy, tmp_path / "home", comes)
    assert (follow() == saved[-1]) is whole
    if whole:
        assert {path.name: path.read_bytes() for path in copy.directory.iterdir()} == {
            path.name: path.read_bytes() for path in state.iterdir()
        }
    assert hurried.downloads["kept"] == 1, "what has come is kept"
    assert holder.poll().revoked == {"a"}
    follow()
    assert caplog.text.count("faster than it can be copied") == (not whole), "it is said once"
    place.close()


def test_what_a_worker_that_died_left_is_deleted_and_nothing_else(tmp_path: Path) -> None:
    living, dead, newcomer = (Directory(tmp_path, name) for name in "abc")
    living.make(living.directory / "in-0")
    (tmp_path / "b" / "in-0").mkdir(parents=True)
    (tmp_path / "b.lock").touch()
    newcomer.make(newcomer.directory / "in-1")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "a.lock", "c", "c.lock"]
    living.close()
    newcomer.close()
    dead.close()
    assert list(tmp_path.iterdir()) == []
