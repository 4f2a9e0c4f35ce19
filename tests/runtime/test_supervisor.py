"""The supervisor with workers that do what a test wants, in real processes."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.clock import SystemClock
from headrace.errors import FatalError, HeadraceError, RecordError, RetriableError
from headrace.runtime.hosts.status import WorkerStatus
from headrace.runtime.hosts.supervisor import Report, Supervisor, supervise
from headrace.settings import Settings


def work(index: int, report: Report, what: str, folder: str) -> None:
    """Run in the worker's process: say that it runs, and do ``what``."""
    stopped: list[int] = []
    if what == "hang":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    elif what != "deaf":
        signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
    times = len(list(Path(folder).glob(f"{index}-*")))
    Path(folder, f"{index}-{times}").touch()
    if what == "die" or (what == "die-once" and not times):
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "late" and index == 1 and times < 2:
        raise RetriableError("nobody answers")
    report.take(WorkerStatus("running", records_in=(("in", 1 + index),)))
    report.send(("report", report._status, b"# TYPE up gauge\nup 1.0\n", True, True))
    while index and not list(Path(folder).glob("0-*")):
        SystemClock().sleep_ms(5)
    if what == "fail" and index == 1:
        error = RecordError("step 'map' failed", remedy="Fix it")
        error.add_note("the user's lines")
        raise error
    if what == "break" and index == 1:
        raise KeyError("unexpected")
    if what == "linger":
        threading.Thread(target=threading.Event().wait).start()
        return
    while not stopped:
        SystemClock().sleep_ms(5)
    Path(folder, f"drained-{index}").touch()


def statuses(group: Supervisor) -> Iterator[list[WorkerStatus]]:
    group.start()
    return group.run()


def settings(**more: int) -> Settings:
    return Settings(workers=2, **more)  # type: ignore[arg-type]


def run(tmp_path: Path, what: str, stop_when_ready: bool = True, **more: int) -> list[WorkerStatus]:
    last: list[WorkerStatus] = []
    with supervise(work, (what, str(tmp_path)), settings(**more)) as group:
        assert not group.ready()
        for found in statuses(group):
            last = found
            if stop_when_ready and group.ready():
                assert b'up{worker="0"} 1.0' in group.exposition()
                group.stop()
                assert not group.ready()
    return last


def test_workers_report_and_drain_when_told(tmp_path: Path) -> None:
    last = run(tmp_path, "wait")
    assert [status.records_in for status in last] == [(("in", 1),), (("in", 2),)]
    assert sorted(path.name for path in tmp_path.glob("drained-*")) == ["drained-0", "drained-1"]


def test_a_worker_that_dies_is_started_again(tmp_path: Path) -> None:
    run(tmp_path, "die-once")
    assert {path.name for path in tmp_path.iterdir()} == {"0-0", "0-1", "1-0", "1-1", "drained-0", "drained-1"}


def test_a_worker_that_could_not_begin_is_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often: what does not answer may be away for long, and the others go on."""
    monkeypatch.setattr("headrace.runtime.hosts.supervisor._AGAIN_MS", 20)
    run(tmp_path, "late")
    assert {path.name for path in tmp_path.iterdir()} == {"0-0", "1-0", "1-1", "1-2", "drained-0", "drained-1"}


def test_workers_that_die_again_and_again_end_the_run(tmp_path: Path) -> None:
    with pytest.raises(FatalError, match=r"workers died 6 times within a minute.* signal 9"):
        run(tmp_path, "die")


def test_an_error_in_one_drains_the_others_and_comes_with_the_users_lines(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"step 'map' failed\. Fix it") as caught:
        run(tmp_path, "fail", stop_when_ready=False)
    assert caught.value.__notes__ == ["the user's lines"]
    assert (tmp_path / "drained-0").exists()


def test_an_unexpected_error_comes_with_its_traceback(tmp_path: Path) -> None:
    with pytest.raises(HeadraceError, match="worker 1 failed: KeyError") as caught:
        run(tmp_path, "break", stop_when_ready=False)
    assert "test_supervisor.py" in caught.value.__notes__[0]


def test_a_worker_that_does_not_drain_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.runtime.hosts.supervisor._SPARE_MS", 200)
    with pytest.raises(FatalError, match="ended with signal 9 while draining"):
        run(tmp_path, "hang", drain_timeout_ms=100)


def test_a_thread_of_the_users_does_not_keep_a_worker_that_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.runtime.hosts.supervisor._SPARE_MS", 200)
    run(tmp_path, "linger", stop_when_ready=False)


def test_workers_that_were_told_to_stop_before_they_could_hear_it(tmp_path: Path) -> None:
    with supervise(work, ("deaf", str(tmp_path)), settings()) as group:
        running = statuses(group)
        group.stop()
        assert len(list(running)) > 0


def test_a_worker_that_starts_after_the_stop_is_told_as_well(tmp_path: Path) -> None:
    with supervise(work, ("wait", str(tmp_path)), settings()) as group:
        group.stop()
        assert len(list(statuses(group))) > 0
