"""What ``--help`` teaches, and what it costs."""

import dataclasses
import importlib.metadata
import subprocess
import sys

import pytest

from headrace.cli.options import option_of
from headrace.settings import Settings, variable_of

COMMANDS = [
    "demo", "run", "simulate", "plan", "rescale", "describe", "produce", "consume", "topics", "groups", "checkpoints",
    "dead-letter",
]  # fmt: skip
LETTERS = ["list", "show", "replay"]


def test_every_command_is_listed(headrace):
    ran = headrace("--help")
    assert ran.code == 0
    listed = [line.split()[0] for line in ran.out.partition("Commands:")[2].splitlines() if line.strip()]
    assert listed == COMMANDS
    assert "..." not in ran.out.replace("ARGS]...", "")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_shows_an_example(headrace, command):
    ran = headrace(command, "--help")
    assert ran.code == 0
    assert f"\n  headrace {command}" in ran.out


@pytest.mark.parametrize("command", LETTERS)
def test_every_command_for_dead_letters_shows_an_example(headrace, command):
    assert f"\n  headrace dead-letter {command} card-spend" in headrace("dead-letter", command, "--help").out
    assert command in headrace("dead-letter", "--help").out.partition("Commands:")[2].split()


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Settings)])
def test_every_setting_is_an_option_of_run_that_names_its_variable(headrace, field):
    text = headrace("run", "--help").out
    assert f"  {option_of(field)} " in text
    assert f"[{variable_of(field)}" in text


def test_the_version(headrace):
    ran = headrace("--version")
    assert (ran.code, ran.out) == (0, f"headrace {importlib.metadata.version('headrace')}\n")


@pytest.mark.parametrize("arguments", [["nonsense"], ["run"], ["topics", "--nonsense"], ["demo", "--payments", "0"]])
def test_wrong_use_has_exit_code_two(headrace, arguments):
    ran = headrace(*arguments)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err


def test_help_imports_nothing_heavy():
    heavy = ["aiokafka", "aiohttp", "asyncio", "duckdb", "obstore", "prometheus_client", "rich", "rocksdict", "sqlite3"]
    code = (
        "import sys\n"
        "sys.argv = ['headrace', '--help']\n"
        "from headrace.cli.main import main\n"
        "try: main()\n"
        f"except SystemExit: print('LOADED', sorted(set({heavy}) & set(sys.modules)))\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "LOADED []"
