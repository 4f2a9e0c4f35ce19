"""Making a broker as good as new between tests."""

import asyncio

from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.protocol.admin import DeleteGroupsRequest
from aiokafka.protocol.metadata import MetadataRequest


def wipe(address: str) -> None:
    """Delete every topic and every group of a broker, and wait until they are gone."""
    asyncio.run(_wipe(address))


def alter(address: str, topic: str, setting: str, value: object) -> None:
    """Change one setting of a topic, and forget the others that it was made with."""
    asyncio.run(_with_admin(address, lambda admin: _alter(admin, topic, {setting: str(value)})))


def shorten(address: str, topic: str, partition: int, before: int) -> None:
    """Delete the records before an offset."""
    asyncio.run(_with_admin(address, lambda admin: _shorten(admin, TopicPartition(topic, partition), before)))


async def _with_admin(address, work):
    admin = AIOKafkaAdminClient(bootstrap_servers=address)
    await admin.start()
    try:
        await work(admin)
    finally:
        await admin.close()


async def _alter(admin, topic, settings):
    await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, configs=settings)])


async def _shorten(admin, partition, before):
    await admin.delete_records({partition: RecordsToDelete(before_offset=before)})


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
