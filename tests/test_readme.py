"""What the README says is so."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")

FENCED = [
    line.strip()
    for block in re.findall(r"^```(?:sh|bash|shell|console)?\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
]
ROWS = [line for line in README.splitlines() if line.lstrip().startswith("|")]
OPTION = r"--[a-z][a-z-]+"


def options_of(command: str = "") -> set[str]:
    """Return the options that the help shows for ``command``, or for any command if it is empty."""
    main = importlib.import_module("headrace.cli.main")
    typer = importlib.import_module("typer.main")
    group = typer.get_command(main.app)
    commands = [group.commands[command]] if command else [group, *group.commands.values()]
    shown = [parameter for one in commands for parameter in one.params if not getattr(parameter, "hidden", False)]
    return {name for parameter in shown for name in [*parameter.opts, *parameter.secondary_opts]} | {"--help"}


def commands_of(line: str) -> list[tuple[str, str]]:
    """Return the commands that ``line`` names, each with what follows it."""
    return re.findall(r"(?<![\w./-])(?:\.venv/bin/)?headrace ([a-z][a-z-]*)((?: [^|`&;]*)?)", line)


def test_ci_runs_the_test_command_of_the_readme() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    in_script = [line for line in script if " -m pytest" in line]
    in_readme = [line for line in FENCED if " -m pytest" in line]
    assert len(in_script) == 1
    assert in_readme in ([], in_script), "README and .ci/run give the same command"


def test_options_in_tables_exist() -> None:
    named = {option for row in ROWS for option in re.findall(OPTION, row)}
    assert not named or not named - options_of(), f"no such options: {sorted(named - options_of())}"


@pytest.mark.parametrize("text", ["tables", "fences"])
def test_commands_exist_with_the_options_beside_them(text: str) -> None:
    for line in {"tables": ROWS, "fences": FENCED}[text]:
        for command, rest in commands_of(line):
            missing = set(re.findall(OPTION, rest)) - options_of(command)
            assert not missing, f"headrace {command} has no {sorted(missing)}"


def test_pages_that_are_linked_exist() -> None:
    links = re.findall(r"\]\((?!https?:|mailto:|#)([^)#\s]+)", README)
    missing = [link for link in links if not (ROOT / link).exists()]
    assert not missing
