"""Fixtures for tests of logs."""

from pathlib import Path

import pytest


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Where a log is to be, which is not there yet."""
    return tmp_path / "log"
