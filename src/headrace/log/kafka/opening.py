"""Finding a first broker, and saying in time why there is none."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from aiokafka.conn import collect_hosts
from aiokafka.errors import KafkaError

from headrace.errors import HeadraceError, RetriableError
from headrace.log.kafka.refusals import unreachable
from headrace.log.kafka.sessions import Client

_ADDRESS_S = 6.0
"""How long one address may take."""
_ALL_S = 20.0
"""After that no further one is tried."""
_PROBE_S = 2.0


async def opened(arguments: Mapping[str, Any]) -> Client:
    """Return a client that knows the brokers, from the first address that answers.

    Args:
        arguments: Those of the client.

    Raises:
        HeadraceError: there is none; says what is at each address.
    """
    loop = asyncio.get_running_loop()
    end = loop.time() + _ALL_S
    failures: list[HeadraceError] = []
    for host, port, _ in collect_hosts(arguments["bootstrap_servers"]):
        if loop.time() > end:
            failures.append(RetriableError(f"{host}:{port} was not tried any more"))
            continue
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        one = {**arguments, "bootstrap_servers": address}
        client = Client(**one)
        try:
            async with asyncio.timeout(_ADDRESS_S):
                await client.bootstrap()
        except (TimeoutError, KafkaError) as error:
            await client.close()
            failures.append(await _why(host, port, error, one))
        except BaseException:
            await client.close()
            raise
        else:
            return client
    final = [failure for failure in failures if not isinstance(failure, RetriableError)]
    if final or len(failures) == 1:
        raise (final or failures)[0]
    raise RetriableError("; ".join(failure.message for failure in failures), remedy=failures[0].remedy)


async def _why(host: str, port: int, error: Exception, arguments: Mapping[str, Any]) -> HeadraceError:
    if await _speaks_http(host, port):
        return RetriableError(
            f"what answers at {host}:{port} is a web server and no Kafka broker", remedy="Look at the port"
        )
    if isinstance(error, KafkaError) and not isinstance(error.__cause__, TimeoutError):
        return unreachable(error, arguments)
    return RetriableError(
        f"no broker at {host}:{port} can be reached: nothing answers within {_ADDRESS_S:.0f} s",
        remedy="Look at the address, at firewalls or security groups on the way, and at the broker",
    )


async def _speaks_http(host: str, port: int) -> bool:
    try:
        async with asyncio.timeout(_PROBE_S):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(b"HEAD / HTTP/1.0\r\n\r\n")
                return await reader.readexactly(5) == b"HTTP/"
            finally:
                writer.close()
    except (TimeoutError, OSError, EOFError):
        return False
