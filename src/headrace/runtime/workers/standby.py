"""Copies of the state of tasks that other workers run, so that a task that comes here has little left to fetch.

A copy follows the task's checkpoints. It is only ever a help: whatever goes wrong with it, a restore fetches what is
missing. It belongs to this process, holds files of one checkpoint, and goes when it is not wanted any more.
"""

from __future__ import annotations

import dataclasses
import logging
import shutil
from collections.abc import Callable, Collection
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event

from headrace.checkpoint.checkpoints import Checkpoints
from headrace.checkpoint.manifest import FileRef, Manifest
from headrace.errors import HeadraceError
from headrace.log.api import Membership
from headrace.runtime.workers.locks import TakeLock, take_lock
from headrace.runtime.workers.parts import Parts

_log = logging.getLogger("headrace")

_RETRY_MS = 500
_LONGEST_RETRY_MS = 30_000
_OVERTAKEN = 5
"""How many checkpoints in a row may go while they are copied. Whatever came is kept, so each leaves less to do; a task
that is faster even so moves all the same, and its restore fetches the rest when it stands still."""
_IMMUTABLE = ".sst"
"""Files that a store never changes once they are written; a running store's others must not be linked."""


@dataclass(slots=True)
class Copy:
    """What this worker has of one task of another."""

    unit: str
    directory: Path
    given_up: Event = field(default_factory=Event)
    """Set when it is not wanted any more, or the task has come."""
    job: Future[Manifest | None] | None = None
    manifest: Manifest | None = None
    """The checkpoint whose files it holds; None before the first."""
    newest: int = 0
    """The number of the newest checkpoint that was seen."""
    next_ms: int = 0
    """When to look for a newer checkpoint."""
    failures: int = 0
    keeps_up: bool = True
    """Whether it had all of a checkpoint before the next one came, or was not tried yet."""


class Copies:
    """Keeps the copies of one worker; used by the worker's own thread.

    Args:
        parts: What the worker works with; without ``parts.copies``, nothing is ever copied.
        member_id: The worker's name in the group.
        home: Tells the directory in which a worker on this machine keeps a task.
    """

    def __init__(self, parts: Parts, member_id: str, home: Callable[[str], Path]) -> None:
        self._parts = parts
        self._home = home
        group = parts.settings.group or parts.plan.graph.name
        self._place = Place(Path(parts.settings.state_dir) / group / "standby", member_id, parts.lock)
        self._copies: dict[str, Copy] = {}
        self._coming: frozenset[str] = frozenset()

    def want(self, units: Collection[str], coming: Collection[str], kept: Collection[str]) -> None:
        """Say what should be copied.

        Args:
            units: Of these tasks there should be copies.
            coming: These of them are about to come here, so they are copied at once and before all others, which
                wait until the moves are over.
            kept: The copies of these are still needed, by a restore.
        """
        if self._parts.copies is None:
            return
        now_ms = self._parts.clock.monotonic_ms()
        for unit in sorted(units):
            if unit not in self._copies or self._copies[unit].given_up.is_set():
                later_ms = now_ms + self._parts.settings.checkpoint_interval_ms
                self._copies[unit] = Copy(unit, self._place.directory / unit, next_ms=later_ms)
            if unit in coming and self._copies[unit].manifest is None and not self._copies[unit].failures:
                self._copies[unit].next_ms = min(self._copies[unit].next_ms, now_ms)
        self._coming = frozenset(coming)
        for unit, copy in list(self._copies.items()):
            if unit in units:
                continue
            copy.given_up.set()
            if unit not in kept and (copy.job is None or copy.job.done()):
                del self._copies[unit]
                self._parts.metrics.forget_copy(self._parts.plan.graph.name, unit)
                self._parts.copies.submit(shutil.rmtree, copy.directory, ignore_errors=True)

    def turn(self, membership: Membership) -> None:
        """Take in what has been copied, and look for newer checkpoints where it is time; does not block."""
        if self._parts.copies is None or not self._copies:
            return
        now_ms = self._parts.clock.monotonic_ms()
        for copy in self._copies.values():
            if copy.job is not None and copy.job.done():
                self._collect(copy, copy.job, now_ms)
            if self._coming and copy.unit not in self._coming:
                continue
            if copy.job is None and now_ms >= copy.next_ms and not copy.given_up.is_set():
                follow = Following(self._parts.checkpoints, self._place, copy, self._home(copy.unit), membership)
                copy.job = self._parts.copies.submit(follow)

    def of(self, unit: str) -> list[Path]:
        """Return the directories in which a restore of this task may find files."""
        copy = self._copies.get(unit)
        return [] if copy is None else [copy.directory]

    def close(self) -> None:
        """Delete every copy."""
        for copy in self._copies.values():
            copy.given_up.set()
        self._copies.clear()
        self._place.close()

    def _collect(self, copy: Copy, job: Future[Manifest | None], now_ms: int) -> None:
        copy.job = None
        metrics = self._parts.metrics.copy(self._parts.plan.graph.name, copy.unit)
        try:
            copy.manifest = job.result()
        except (HeadraceError, OSError) as error:
            if not copy.failures:
                _log.warning("the copy of task %s stays behind and is tried again: %s", copy.unit, error)
            copy.next_ms = now_ms + min(_RETRY_MS << min(copy.failures, 10), _LONGEST_RETRY_MS)
            copy.failures += 1
        else:
            copy.failures = 0
            copy.next_ms = now_ms + self._parts.settings.checkpoint_interval_ms
        held = copy.manifest
        if held is not None:
            age_ms = self._parts.clock.now_ms() - held.created_ms
            metrics.followed(held.size_bytes, max(0, copy.newest - held.number), max(0, age_ms) / 1000)


class Following:
    """A job that brings one copy up to date.

    Args:
        checkpoints: Those of the topology.
        place: Where copies are.
        copy: The copy.
        home: Where workers on this machine keep the task: files that are there already are linked.
        membership: Is told that there is a copy.
    """

    def __init__(self, checkpoints: Checkpoints, place: Place, copy: Copy, home: Path, membership: Membership) -> None:
        self._checkpoints = checkpoints
        self._place = place
        self._copy = copy
        self._home = home
        self._membership = membership

    def __call__(self) -> Manifest | None:
        """Fetch what the newest checkpoint has and the copy has not, and delete what it has not any more.

        Returns:
            The checkpoint whose files the copy holds now, or held before if it was given up or could not keep up; None
            if there is none.
        """
        copy = self._copy
        newest = self._checkpoints.newest(copy.unit)
        for _ in range(_OVERTAKEN):
            if newest is not None:
                copy.newest = newest.number
            try:
                if newest is not None and not self._bring(newest):
                    return copy.manifest
            except (HeadraceError, OSError):
                tried, newest = newest, self._checkpoints.newest(copy.unit)
                if newest == tried:
                    raise
            else:
                copy.keeps_up = True
                self._membership.copied(copy.unit)
                return newest
        if copy.keeps_up:
            copy.keeps_up = False
            _log.warning(
                "task %s checkpoints faster than it can be copied: what the copy lacks is fetched when the task comes",
                copy.unit,
            )
        self._membership.copied(copy.unit)
        return copy.manifest

    def _bring(self, manifest: Manifest) -> bool:
        copy = self._copy
        self._place.make(copy.directory)
        held = {} if copy.manifest is None else {ref.name: ref for ref in copy.manifest.files}
        for ref in manifest.files:
            if copy.given_up.is_set():
                return False
            known = held.get(ref.name)
            same = known is not None and (known.size, known.checksum) == (ref.size, ref.checksum)
            if not same or not (copy.directory / ref.name).exists():
                self._fetch(manifest, ref)
        names = {ref.name for ref in manifest.files}
        for path in list(copy.directory.iterdir()):
            # A restore that has begun may be using what an older checkpoint has.
            if path.name not in names and not copy.given_up.is_set():
                path.unlink()
        return True

    def _fetch(self, manifest: Manifest, ref: FileRef) -> None:
        """Bring one file, whole or not at all."""
        directory = self._copy.directory
        reuse = [directory]
        if ref.name.endswith(_IMMUTABLE):
            reuse += sorted(self._home.glob("*/db"))
        arriving = directory.with_name(directory.name + ".arriving")
        self._checkpoints.restore(dataclasses.replace(manifest, files=(ref,)), arriving, reuse)
        (arriving / ref.name).replace(directory / ref.name)
        # Where both were names of one file already, renaming does nothing, says POSIX.
        (arriving / ref.name).unlink(missing_ok=True)
        arriving.rmdir()


class Place:
    """The directory of one worker's copies, and the lock that shows that the worker lives.

    Args:
        root: The directory of all workers' copies on this machine.
        member_id: Of the worker.
        take: Takes locks.
    """

    def __init__(self, root: Path, member_id: str, take: TakeLock = take_lock) -> None:
        self.directory = root / member_id
        self._lock = root / f"{member_id}.lock"
        self._take = take
        self._release: Callable[[], None] | None = None

    def make(self, directory: Path) -> None:
        """Make a directory in this one; the first time, delete what workers that died left beside it."""
        if self._release is None:
            self._lock.parent.mkdir(parents=True, exist_ok=True)
            while (release := self._take(self._lock, wait=True)) is None:
                pass
            self._release = release
            self._sweep()
        directory.mkdir(parents=True, exist_ok=True)

    def close(self) -> None:
        """Delete it."""
        shutil.rmtree(self.directory, ignore_errors=True)
        if self._release is not None:
            with suppress(OSError):
                self._lock.unlink()
            self._release()
            self._release = None

    def _sweep(self) -> None:
        for left in sorted(self._lock.parent.iterdir()):
            if left == self.directory or not left.is_dir():
                continue
            lock = left.with_name(left.name + ".lock")
            release = self._take(lock, wait=False)
            if release is not None:
                shutil.rmtree(left, ignore_errors=True)
                lock.unlink(missing_ok=True)
                release()
