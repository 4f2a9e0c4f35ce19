"""Fixtures for the command line: in this process for most of it, in one of its own where signals and pipes matter."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from headrace.cli.main import app
from headrace.clock import SystemClock
from headrace.log.embedded.log import EmbeddedLog


class Ran:
    """What a command said, and its exit code."""

    def __init__(self, result) -> None:
        self.code = result.exit_code
        self.out = result.stdout
        self.err = result.stderr
        self.exception = result.exception

    @property
    def records(self) -> list[dict]:
        return [msgspec.json.decode(line) for line in self.out.splitlines()]

    @property
    def json(self):
        return msgspec.json.decode(self.out)


Headrace = Callable[..., Ran]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("HEADRACE_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def headrace() -> Headrace:
    """Run a command in this process, in an empty folder."""

    def run(*arguments: str | Path, stdin: str | bytes = b"") -> Ran:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Ran(result)

    return run


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen]]:
    """Start a command in a process of its own, with pipes; it ends with the test."""
    started: list[subprocess.Popen] = []

    def begin(*arguments: str) -> subprocess.Popen:
        command = [sys.executable, "-c", "from headrace.cli.main import main; main()", *arguments]
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe)
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            stream.close()


@pytest.fixture
def log(tmp_path: Path) -> Iterator[EmbeddedLog]:
    """The log that commands use in this test's folder."""
    opened = EmbeddedLog(tmp_path / ".headrace" / "log", clock=SystemClock(), fsync="never")
    yield opened
    opened.close()


def until(seen: Callable[[], bool]) -> None:
    """Wait for something that another process does."""
    for _ in range(600):
        if seen():
            return
        threading.Event().wait(0.1)
    raise AssertionError("it does not come to that")
