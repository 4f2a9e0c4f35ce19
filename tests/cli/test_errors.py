"""What a person sees when something goes wrong, and the exit codes."""

import runpy
import signal
import subprocess
import sys

import pytest

from headrace.cli.failures import exit_code, paragraph, show_error
from headrace.errors import CorruptError, FatalError, InvalidError, NotFoundError, RecordError, SettingsError


@pytest.mark.parametrize(
    ("error", "running", "code"),
    [
        (SettingsError("x"), False, 2),
        (NotFoundError("x"), False, 2),
        (InvalidError("x"), True, 1),
        (RecordError("x"), False, 1),
        (FatalError("x"), False, 1),
        (CorruptError("x"), True, 1),
    ],
)
def test_exit_codes(error, running, code):
    assert exit_code(error, running=running) == code


def test_a_long_error_is_one_wrapped_paragraph_that_ends():
    text = paragraph(NotFoundError("there is no topic " + "payments-" * 5 + " in it" * 20, remedy="Create it"), 100)
    first, *rest = text.splitlines()
    assert first.startswith("error: there is no topic payments-payments-")
    assert rest
    assert all(line.startswith("  ") for line in rest)
    assert " ".join(text.split()).endswith("in it. Create it.")


def test_a_list_of_faults_stays_a_list():
    assert paragraph(InvalidError("two faults:\n  - one\n  - two"), 100).splitlines()[1:] == ["  - one", "  - two."]


def test_notes_come_first_and_replace_the_traceback_of_the_cause(capsys):
    error = RecordError("step 'map' failed on p/0, offset 7")
    error.add_note("Traceback of the user's")
    error.__cause__ = ValueError("customer 4711")
    show_error(error)
    assert capsys.readouterr().err == "Traceback of the user's\nerror: step 'map' failed on p/0, offset 7.\n"


def test_the_cause_is_shown_without_frames_of_headrace_and_without_what_it_says(tmp_path, capsys):
    module = tmp_path / "users.py"
    module.write_text("def fail(value):\n    raise ValueError(value)\n")
    fail = runpy.run_path(str(module))["fail"]
    from headrace.operators.selectors import select

    number = 4711
    try:
        select(fail, [f"customer {number}"])
    except ValueError as cause:
        error = RecordError("step failed")
        error.__cause__ = cause
    show_error(error)
    told = capsys.readouterr().err
    assert f'File "{module}", line 2, in fail' in told
    assert "selectors.py" not in told
    assert "4711" not in told


def test_unexpected_errors_show_a_traceback(log):
    code = (
        "import headrace.cli.consume as consume\n"
        "def fail(*_): raise ZeroDivisionError\n"
        "consume.parse_start = fail\n"
        "from headrace.cli.main import main\n"
        "main()\n"
    )
    command = [sys.executable, "-c", code, "consume", "p"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert ran.stderr.startswith("Traceback (most recent call last)")
    assert ran.stderr.rstrip().endswith("ZeroDivisionError")


def test_ctrl_c_is_quiet(log):
    log.create_topic("p", 1)
    code = (
        "import os, signal\n"
        "import headrace.cli.consume as consume\n"
        "consume.parse_start = lambda *_: os.kill(os.getpid(), signal.SIGINT)\n"
        "from headrace.cli.main import main\n"
        "main()\n"
    )
    ran = subprocess.run([sys.executable, "-c", code, "consume", "p"], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (128 + signal.SIGINT, "", "")


def test_a_crash_of_native_code_says_where(tmp_path):
    (tmp_path / "crashing.py").write_text("import ctypes\n\n\ndef crash():\n    ctypes.string_at(0)\n\n\ncrash()\n")
    code = "from headrace.cli.main import main\nmain()\n"
    ran = subprocess.run(
        [sys.executable, "-c", code, "describe", "crashing"],
        capture_output=True, text=True, check=False, cwd=tmp_path, timeout=60,
    )  # fmt: skip
    assert ran.returncode == -signal.SIGSEGV
    assert "Segmentation fault" in ran.stderr
    assert 'crashing.py", line 5 in crash' in ran.stderr
