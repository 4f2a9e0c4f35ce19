"""Crashes at every call, answers that get lost, and owners that interleave in every way."""

import contextlib
import shutil
import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.checkpoint.checkpoints import Checkpoints
from headrace.checkpoint.restore import DamagedFilesError
from headrace.checkpoint.store import open_objects
from headrace.errors import FencedError, RetriableError

TASK = "0-0"
METHODS = ("create", "upload", "read", "download", "list", "names", "delete")


class Crash(Exception):
    """The process is gone."""


class Wrapped:
    """Passes every call to another checkpoint store through ``around``; a delete of many is many calls."""

    def __init__(self, objects):
        self._objects = objects

    def __getattr__(self, name):
        if name not in METHODS:
            raise AttributeError(name)
        inner = getattr(self._objects, name)
        if name == "delete":
            return lambda paths: [self.around(lambda path=path: inner([path])) for path in paths] and None
        return lambda *args: self.around(lambda: inner(*args))

    def around(self, call):
        raise NotImplementedError


class Failing(Wrapped):
    """Fails at the nth call, before or after it took effect."""

    def __init__(self, objects, nth, after, error):
        super().__init__(objects)
        self.left, self.after, self.error = nth, after, error

    def around(self, call):
        self.left -= 1
        if self.left != 0:
            return call()
        if self.after:
            call()
        raise self.error


def make(directory, files):
    directory.mkdir()
    for name, data in files.items():
        (directory / name).write_bytes(data)
    return directory


STATES = [{"base": b"base", "new": b"%d" % turn} for turn in range(6)]


def start(tmp_path):
    """Return a store with a few checkpoints of epoch 1."""
    objects = open_objects("memory://", {})
    checkpoints = Checkpoints(objects, "t")
    current = checkpoints.claim(TASK, 1, None, 0)
    for turn in range(3):
        current = checkpoints.save(current, make(tmp_path / f"state{turn}", STATES[turn]), {"in/0": turn}, {}, turn)
    return objects, current


def assert_whole(objects, directory):
    """Restore the newest checkpoint and return the turn that it holds."""
    manifest = Checkpoints(objects, "t").newest(TASK)
    Checkpoints(objects, "t").restore(manifest, directory)
    turn = manifest.positions["in/0"]
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == STATES[turn]
    return turn


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("nth", range(1, 15))
def test_a_crash_at_any_call_leaves_the_old_or_the_new_checkpoint(tmp_path, nth, after):
    objects, current = start(tmp_path)
    failing = Checkpoints(Failing(objects, nth, after, Crash()), "t")
    crashed = saved = False
    try:
        current = failing.save(current, make(tmp_path / "state3", STATES[3]), {"in/0": 3}, {}, 3)
        saved = True
        failing.prune(current)
    except Crash:
        crashed = True
    turn = assert_whole(objects, tmp_path / "restored")
    assert turn in ((3,) if saved else (2, 3))
    # The next owner goes on and leaves nothing lying about.
    checkpoints = Checkpoints(objects, "t")
    current = checkpoints.claim(TASK, 2, checkpoints.newest(TASK), 5)
    for turn in (4, 5):
        current = checkpoints.save(current, make(tmp_path / f"state{turn}", STATES[turn]), {"in/0": turn}, {}, 6)
        checkpoints.prune(current)
    checkpoints.sweep(current)
    assert assert_whole(objects, tmp_path / "again") == 5
    named = {ref.object for manifest in checkpoints.manifests(TASK) for ref in manifest.files}
    assert set(objects.list(f"t/{TASK}/files")) == named
    assert len(checkpoints.manifests(TASK)) == 2
    if nth > 13:
        assert not crashed, "more calls than this test knows: raise its range"


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("nth", range(1, 4))
def test_saving_again_after_a_passing_fault_is_right(tmp_path, nth, after):
    objects, current = start(tmp_path)
    checkpoints = Checkpoints(Failing(objects, nth, after, RetriableError("the answer got lost")), "t")
    state = make(tmp_path / "state3", STATES[3])
    try:
        saved = checkpoints.save(current, state, {"in/0": 3}, {}, 3)
    except RetriableError:
        # Meanwhile the owner may prune by what it knows.
        checkpoints.prune(current)
        state = make(tmp_path / "state4", STATES[4])
        saved = checkpoints.save(current, state, {"in/0": 4}, {}, 4)
    assert checkpoints.newest(TASK) == saved
    checkpoints.prune(saved)
    assert assert_whole(objects, tmp_path / "restored") == saved.positions["in/0"]
    assert checkpoints.save(saved, state, saved.positions, {}, 5).number == saved.number + 1


@pytest.mark.parametrize("nth", range(1, 6))
def test_a_claim_that_failed_half_way_is_never_two_owners(tmp_path, nth):
    objects, current = start(tmp_path)
    checkpoints = Checkpoints(objects, "t")
    try:
        Checkpoints(Failing(objects, nth, True, RetriableError("lost")), "t").claim(TASK, 2, current, 5)
    except RetriableError:
        newest = checkpoints.newest(TASK)
        if newest.epoch == 2:
            with pytest.raises(FencedError):
                checkpoints.claim(TASK, 2, newest, 6)
        checkpoints.claim(TASK, 3, newest, 6)
    assert assert_whole(objects, tmp_path / "restored") == 2


class Stepped(Wrapped):
    """Lets every call wait until the test allows it, which may take the answer away."""

    def __init__(self, objects):
        super().__init__(objects)
        self.changed = threading.Condition()
        self.waiting = self.allowed = self.running = 0
        self.finished = self.lossy = False

    def around(self, call):
        with self.changed:
            self.waiting += 1
            self.changed.notify_all()
            self.changed.wait_for(lambda: self.allowed)
            self.allowed -= 1
            self.waiting -= 1
            self.running += 1
            lost = self.lossy
        try:
            found = call()
            if lost:
                raise RetriableError("the answer got lost")
            return found
        finally:
            with self.changed:
                self.running -= 1
                self.changed.notify_all()

    def step(self, lossy=False):
        """Let one call through and wait until the next one stands at the gate; return False if there is none."""
        with self.changed:
            assert self.changed.wait_for(lambda: self.waiting or self.finished, 10)
            if self.finished:
                return False
            self.lossy = lossy
            self.allowed += 1
            self.changed.notify_all()
            assert self.changed.wait_for(lambda: not self.allowed and not self.running, 10)
            assert self.changed.wait_for(lambda: self.waiting or self.finished, 10)
            return True

    def finish(self):
        with self.changed:
            self.finished = True
            self.changed.notify_all()


class Owner:
    """A worker that believes to own the task, does again what failed, and notes what it was promised."""

    def __init__(self, objects, epoch, directory, log, bases, current=None, spoilt=()):
        self.gate = Stepped(objects)
        self.checkpoints = Checkpoints(self.gate, "t", threads=1)
        self.epoch, self.directory, self.log, self.current = epoch, directory, log, current
        self.bases, self.spoilt = bases, spoilt
        self.snapshots = 0
        self.error = None
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        try:
            if self.current is None:
                self.take_over()
            for turn in range(3):
                self.current = self.until_it_works(lambda turn=turn: self.save(turn))
                self.log.append(("saved", self.epoch, self.current.number))
                # What fails here is ended by the next one, or by the next owner.
                with contextlib.suppress(RetriableError):
                    self.checkpoints.prune(self.current)
        except FencedError:
            self.log.append(("fenced", self.epoch, 0))
        except BaseException as error:  # noqa: BLE001 - raised again by the test
            self.error = error
        finally:
            self.gate.finish()

    def save(self, turn):
        self.snapshots += 1
        state = make(
            self.directory / f"{self.epoch}-{self.snapshots}",
            # The same bytes as other owners write, bytes that come back, and bytes of this attempt only.
            {"base": b"base", "even": b"%d" % (turn % 2), "own": b"%d-%d" % (self.epoch, self.snapshots)},
        )
        return self.checkpoints.save(self.current, state, {"in/0": self.snapshots}, {}, 0)

    def until_it_works(self, work):
        while True:
            try:
                return work()
            except RetriableError:
                continue

    def take_over(self):
        while self.current is None:
            self.until_it_works(self.claim)
        failed, damaged = [], set()
        while True:
            try:
                self.until_it_works(
                    lambda: self.checkpoints.restore(self.current, self.directory / f"restored{self.epoch}")
                )
                break
            except DamagedFilesError as error:
                failed.append(self.current)
                damaged |= error.objects
                if not damaged & self.spoilt:
                    # Only a later owner may have taken the files away.
                    newest = self.until_it_works(lambda: self.checkpoints.newest(TASK))
                    assert newest.epoch > self.epoch
                    raise FencedError("too late") from None
                older = self.until_it_works(
                    lambda: self.checkpoints.fall_back(self.current, failed, 0, damaged)  # noqa: B023
                )
                assert older is not None
                self.current = older
                self.log.append(("fell back", self.epoch, older.number))
        with contextlib.suppress(RetriableError):
            self.checkpoints.sweep(self.current)

    def claim(self):
        base = self.checkpoints.newest(TASK)
        if base.epoch == self.epoch:
            self.current = base  # the answer to the claim got lost
        else:
            self.current = self.checkpoints.claim(TASK, self.epoch, base, 0)
        self.log.append(("claimed", self.epoch, self.current.number))
        self.bases[self.current.number] = self.current.number - 1 if base.epoch == self.epoch else base.number


def assert_nothing_is_lost(objects, spoilt):
    newest = Checkpoints(objects, "t").newest(TASK)
    there = set(objects.list(f"t/{TASK}/files"))
    assert {ref.object for ref in newest.files} - spoilt <= there
    return newest


def leftovers(objects):
    """Return the files that no manifest names."""
    named = {ref.object for manifest in Checkpoints(objects, "t").manifests(TASK) for ref in manifest.files}
    return set(objects.list(f"t/{TASK}/files")) - named


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(1, 6), st.booleans()), min_size=20, max_size=60), st.booleans()
)
def test_owners_that_interleave_lose_nothing(schedule, spoil):
    directory = Path(tempfile.mkdtemp())
    try:
        objects, current = start(directory)
        log, bases = [], {}
        Checkpoints(objects, "t").prune(current)
        spoilt = set()
        if spoil:
            before = Checkpoints(objects, "t").manifests(TASK)[-2]
            spoilt = {ref.object for ref in current.files} - {ref.object for ref in before.files}
            objects.delete(sorted(spoilt))
        owners = [
            Owner(objects, 1, directory, log, bases, current),
            Owner(objects, 2, directory, log, bases, spoilt=spoilt),
            Owner(objects, 3, directory, log, bases, spoilt=spoilt),
        ]
        for who, calls, lossy in [*schedule, (0, 10**6, False), (1, 10**6, False), (2, 10**6, False)]:
            for left in reversed(range(calls)):
                if not owners[who].gate.step(lossy and not left):
                    break
                assert_nothing_is_lost(objects, spoilt)
        for owner in owners:
            owner.thread.join(10)
            if owner.error is not None:
                raise owner.error
        newest = assert_nothing_is_lost(objects, spoilt)
        Checkpoints(objects, "t").restore(newest, directory / "end")
        # What one owner was told is committed, every later owner continues.
        commits = [(number, epoch) for what, epoch, number in log if what != "fenced"]
        assert len({number for number, _ in commits}) == len(commits)
        epochs = [epoch for _, epoch in sorted(commits)]
        assert epochs == sorted(epochs)
        assert newest.number == max(commits)[0]
        for claimed, base in bases.items():
            assert base >= max([current.number, *(number for number, _ in commits if number < claimed)])
        # Whoever comes next leaves nothing lying about.
        checkpoints = Checkpoints(objects, "t")
        checkpoints.sweep(checkpoints.claim(TASK, 9, newest, 0))
        assert leftovers(objects) == set()
    finally:
        shutil.rmtree(directory)
