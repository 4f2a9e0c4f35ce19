"""Who looks after a group."""

from __future__ import annotations

from aiokafka.protocol.coordination import FindCoordinatorRequest

from headrace.log.kafka.connection import Connection, check_code


async def coordinator(connection: Connection, group: str) -> int:
    """Return the broker that looks after a group.

    Raises:
        KafkaError: there is none at the moment.
    """
    response = await connection.send_any(FindCoordinatorRequest(group, 0))
    check_code(response.error_code)
    if connection.client.cluster.broker_metadata(response.coordinator_id) is None:
        await connection.metadata(None)
    return int(response.coordinator_id)
