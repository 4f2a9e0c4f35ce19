"""Style, types and layers, checked by the tools that own them."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PYTHON_FOLDERS = ["src", "tests", "topologies", "bench"]


def run(*command: str) -> None:
    """Run a tool of this environment and show all it said if it fails."""
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if result.returncode:
        pytest.fail(f"{' '.join(command)}\n{result.stdout}{result.stderr}", pytrace=False)


def tool(name: str) -> str:
    path = Path(sys.executable).with_name(name)
    assert path.exists(), f"{name} is not installed beside {sys.executable}: install the extra 'test'"
    return str(path)


def test_ruff_finds_nothing() -> None:
    run(tool("ruff"), "check", "--no-fix", *PYTHON_FOLDERS)


def test_everything_is_formatted() -> None:
    run(tool("ruff"), "format", "--check", *PYTHON_FOLDERS)


def test_types_are_sound() -> None:
    run(tool("mypy"), "--strict", "src", "topologies")


def test_layers_are_kept() -> None:
    run(tool("lint-imports"), "--no-cache")


def test_the_tools_see_the_installed_package() -> None:
    spec = importlib.util.find_spec("headrace")
    assert spec is not None
    assert spec.origin is not None
    assert Path(spec.origin).is_relative_to(ROOT / "src"), "install with 'pip install -e .' to test this checkout"
