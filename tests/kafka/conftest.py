"""The broker that the tests in this folder share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kafka.broker import REMEDY, NoBroker, broker, has_java
from tests.kafka.clean import wipe
from tests.kafka.cluster import Cluster
from tests.kafka.secured import SecureBroker
from tests.kafka.site import KafkaSite


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


@pytest.fixture
def site(tmp_path: Path, kafka: str) -> KafkaSite:
    """Return a folder and the broker, both empty."""
    wipe(kafka)
    return KafkaSite(tmp_path, kafka)


@pytest.fixture(scope="session")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureBroker]:
    """Yield a real broker whose listeners want this and that; it can only be had with Java on the machine."""
    if not has_java():
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(f"there is no secure broker. {REMEDY}")
    started = SecureBroker(tmp_path_factory.mktemp("secure"))
    try:
        yield started
    finally:
        started.close()


@pytest.fixture(scope="session")
def brokers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Yield three brokers, which tests take as ``cluster``."""
    if not has_java():
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(f"there are no three brokers. {REMEDY}")
    brokers = Cluster(tmp_path_factory.mktemp("cluster"))
    try:
        brokers.start()
        yield brokers
    finally:
        brokers.close()


@pytest.fixture
def cluster(brokers: Cluster) -> Cluster:
    """Return three brokers that run, can be reached, and are empty; the test may kill them and cut the ways to them."""
    brokers.mend()
    wipe(brokers.near)
    return brokers
