"""S3 keeps the contract of checkpoint stores, spoken to over the wire."""

import pytest

from headrace.testing.conformance.checkpoint import ObjectsContract
from tests.s3 import servers


class TestS3(ObjectsContract):
    @pytest.fixture(autouse=True)
    def url(self, server, prefix):
        self.server, self.prefix = server, prefix

    def objects(self, directory):
        return servers.opened(self.server, self.prefix, servers.Patience())
