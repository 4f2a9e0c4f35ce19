import itertools
from urllib.parse import urlsplit

import pytest

from tests.s3 import servers

_numbers = itertools.count()


@pytest.fixture(scope="session")
def server():
    with servers.moto() as url:
        yield url


@pytest.fixture
def prefix():
    return f"p{next(_numbers)}"


@pytest.fixture(scope="session")
def proxied(server):
    with servers.faulty(urlsplit(server).port) as found:
        yield found


@pytest.fixture
def proxy(proxied):
    """The URL of the proxy, and its script, empty."""
    proxied[1].clear()
    yield proxied
    proxied[1].clear()
