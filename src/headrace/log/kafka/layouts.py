"""What topics are now, ids included: a metadata request newer than those of the client library.

Kafka has given topics ids since 2.8. Older brokers are asked in the library's way, and nobody knows the ids.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any
from uuid import UUID

from aiokafka.protocol.abstract import AbstractType
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.metadata import MetadataRequest_v5
from aiokafka.protocol.types import Boolean, CompactArray, CompactString, Int16, Int32, Schema, TaggedFields

from headrace.log.api import Layout
from headrace.log.kafka.connection import Connection, check_code

_UNKNOWN_TOPIC = 3
_NO_ID = bytes(16)


class _Id(AbstractType[bytes]):  # type: ignore[misc]
    @classmethod
    def encode(cls, value: bytes) -> bytes:
        return value

    @classmethod
    def decode(cls, data: Any) -> bytes:
        return bytes(data.read(16))


class _Response(Response):  # type: ignore[misc]
    API_KEY = 3
    API_VERSION = 10
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "brokers",
            CompactArray(
                ("node_id", Int32),
                ("host", CompactString()),
                ("port", Int32),
                ("rack", CompactString()),
                ("tags", TaggedFields),
            ),
        ),
        ("cluster_id", CompactString()),
        ("controller_id", Int32),
        (
            "topics",
            CompactArray(
                ("error_code", Int16),
                ("topic", CompactString()),
                ("topic_id", _Id),
                ("is_internal", Boolean),
                (
                    "partitions",
                    CompactArray(
                        ("error_code", Int16),
                        ("partition", Int32),
                        ("leader", Int32),
                        ("leader_epoch", Int32),
                        ("replicas", CompactArray(Int32)),
                        ("isr", CompactArray(Int32)),
                        ("offline_replicas", CompactArray(Int32)),
                        ("tags", TaggedFields),
                    ),
                ),
                ("authorized_operations", Int32),
                ("tags", TaggedFields),
            ),
        ),
        ("authorized_operations", Int32),
        ("tags", TaggedFields),
    )


class _Request_v10(RequestStruct):  # type: ignore[misc]  # as the library calls them
    FLEXIBLE_VERSION = True
    API_KEY = 3
    API_VERSION = 10
    RESPONSE_TYPE = _Response
    SCHEMA = Schema(
        ("topics", CompactArray(("topic_id", _Id), ("name", CompactString()), ("tags", TaggedFields))),
        ("allow_auto_topic_creation", Boolean),
        ("cluster_operations", Boolean),
        ("topic_operations", Boolean),
        ("tags", TaggedFields),
    )


class _Request(Request[MetadataRequest_v5 | _Request_v10]):  # type: ignore[misc]
    API_KEY = 3

    def __init__(self, names: list[str]) -> None:
        self._names = names

    def build(self, request_struct_class: type[Any]) -> Any:
        if request_struct_class is _Request_v10:
            return _Request_v10([(_NO_ID, name, {}) for name in self._names], False, False, False, {})
        return request_struct_class(self._names, False)


async def layouts(connection: Connection, names: Collection[str]) -> dict[str, Layout]:
    """Return what topics are now; one that does not exist is left out, and none is made.

    Raises:
        KafkaError: no broker answers, or one of them may not be looked at.
    """
    if not names:
        return {}

    async def attempt() -> dict[str, Layout]:
        response = await connection.send_any(_Request(sorted(names)))
        newer = response.API_VERSION == _Response.API_VERSION
        found = {}
        for code, name, *fields in response.topics:
            topic_id = fields[0] if newer else _NO_ID
            partitions = fields[2 if newer else 1]
            if code == _UNKNOWN_TOPIC:
                continue
            check_code(code, needs=f"Describe on topic {name!r}")
            found[name] = Layout(len(partitions), "" if topic_id == _NO_ID else str(UUID(bytes=topic_id)))
        return found

    return await connection.attempts(attempt)
