"""What is installed and shipped."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LOCKS = {"all": ROOT / "requirements.lock", "runtime": ROOT / "docker" / "requirements.lock"}


def entries(lock: Path) -> dict[tuple[str, str], set[str]]:
    """Return the hashes of every name and version in ``lock``."""
    found: dict[tuple[str, str], set[str]] = {}
    for block in re.split(r"\n(?=[a-z])", lock.read_text(encoding="utf-8")):
        if match := re.match(r"([a-z0-9-]+)==([^\s;]+)", block):
            found[match[1], match[2]] = set(re.findall(r"--hash=sha256:([0-9a-f]{64})\b", block))
    return found


@pytest.mark.parametrize("lock", LOCKS.values(), ids=LOCKS)
def test_a_lock_names_no_host(lock: Path) -> None:
    text = lock.read_text(encoding="utf-8")
    assert not re.search(r"https?:|//|--(extra-)?index-url|--find-links|\.(org|com|io|net|dev)\b", text)


@pytest.mark.parametrize("lock", LOCKS.values(), ids=LOCKS)
def test_a_lock_tells_how_to_make_it_and_pins_with_hashes(lock: Path) -> None:
    text = lock.read_text(encoding="utf-8")
    assert re.search(rf"^# +uv pip compile .*pyproject\.toml -o {lock.relative_to(ROOT)}$", text, re.MULTILINE)
    assert entries(lock)
    assert all(entries(lock).values()), "every pin has hashes"


@pytest.mark.parametrize("kind", LOCKS)
def test_a_lock_satisfies_the_declared_dependencies(kind: str) -> None:
    extras = PROJECT["optional-dependencies"].values() if kind == "all" else []
    declared = [Requirement(text) for text in [*PROJECT["dependencies"], *(text for extra in extras for text in extra)]]
    pinned = entries(LOCKS[kind])
    for requirement in declared:
        versions = [version for name, version in pinned if name == canonicalize_name(requirement.name)]
        assert versions, f"{requirement.name} is missing: make {LOCKS[kind].name} again"
        assert all(version in requirement.specifier for version in versions), requirement


def test_the_image_runs_what_the_tests_ran() -> None:
    everything = entries(LOCKS["all"])
    for pin, hashes in entries(LOCKS["runtime"]).items():
        assert everything.get(pin) == hashes, pin


def test_the_demo_is_the_topology_that_is_shown() -> None:
    shown, run = ROOT / "topologies" / "card_spend.py", ROOT / "src" / "headrace" / "demo" / "card_spend.py"
    assert shown.read_bytes() == run.read_bytes()
