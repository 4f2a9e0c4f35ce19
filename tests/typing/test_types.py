"""The types of the language, checked by mypy: what is right passes, and every ignored line is really an error."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CHECKED = [Path("tests", "typing", name) for name in ("language.py", "mistakes.py")]


def test_the_types_of_the_language() -> None:
    mypy = Path(sys.executable).with_name("mypy")
    assert mypy.exists(), f"mypy is not installed beside {sys.executable}: install the extra 'test'"
    command = [str(mypy), "--strict", "--warn-unused-ignores", *map(str, CHECKED)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if result.returncode:
        pytest.fail(f"{' '.join(command)}\n{result.stdout}{result.stderr}", pytrace=False)
