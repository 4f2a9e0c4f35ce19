"""The broker that the tests in this folder share."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.kafka.broker import NoBroker, broker


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Yield ``host:port`` of a real broker; without one the test is skipped on a laptop and fails where CI=true."""
    opened = broker(tmp_path_factory.mktemp("kafka"))
    try:
        address = opened.__enter__()
    except NoBroker as error:
        if os.environ.get("CI") == "true":
            pytest.fail(str(error))
        pytest.skip(str(error))
    try:
        yield address
    finally:
        opened.__exit__(None, None, None)
