"""Who looks after a group, or after the transactions of a name."""

from __future__ import annotations

from aiokafka.protocol.coordination import FindCoordinatorRequest

from headrace.log.kafka.connection import Connection, check_code

GROUP, TRANSACTION = 0, 1


async def coordinator(connection: Connection, name: str, kind: int = GROUP) -> int:
    """Return the broker that looks after a group, or after what else has that name.

    Raises:
        KafkaError: there is none at the moment.
    """
    response = await connection.send_any(FindCoordinatorRequest(name, kind))
    needs = f"Write on transactional id {name!r}" if kind else f"Read on group {name!r}"
    check_code(response.error_code, needs=needs)
    if connection.client.cluster.broker_metadata(response.coordinator_id) is None:
        await connection.metadata(None)
    return int(response.coordinator_id)
