"""Fixtures that every test may use."""

import os
import shutil
import subprocess
from collections.abc import Callable

import pytest


@pytest.fixture(scope="session")
def promtool() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run promtool; without it the test is skipped on a laptop and fails where CI=true."""
    path = shutil.which("promtool")
    if path is None:
        remedy = "promtool is not on PATH: install it with 'apt-get install --no-install-recommends prometheus'"
        if os.environ.get("CI") == "true":
            pytest.fail(remedy)
        pytest.skip(remedy)

    def run(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run([path, *arguments], input=stdin, capture_output=True, text=True, check=False)

    return run
