"""Making a broker as good as new between tests."""

import asyncio

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.protocol.admin import DeleteGroupsRequest
from aiokafka.protocol.metadata import MetadataRequest


def wipe(address: str) -> None:
    """Delete every topic and every group of a broker, and wait until they are gone."""
    asyncio.run(_wipe(address))


async def _wipe(address: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=address)
    await admin.start()
    try:
        groups = [name for name, _ in await admin.list_consumer_groups()]
        if groups:
            node = await admin.find_coordinator(groups[0])
            while any(code not in (0, 69) for _, code in await _delete(admin, node, groups)):
                await asyncio.sleep(0.05)
        topics = await _topics(admin)
        if topics:
            await admin.delete_topics(topics)
            while await _topics(admin):
                await asyncio.sleep(0.02)
    finally:
        await admin.close()


async def _delete(admin, node, groups):
    return (await admin._send_request(DeleteGroupsRequest(groups), node)).results


async def _topics(admin):
    response = await admin._send_request(MetadataRequest(None))
    return [name for _, name, internal, _ in response.topics if not internal]
