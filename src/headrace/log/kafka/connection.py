"""The client: one connection object in a thread and an event loop of its own.

Whoever uses the log blocks on ``call``. What the client has to do all the time (heartbeats, fetching, producing) runs
beside that, so that slow user code costs no membership.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any, TypeVar

from aiokafka.client import AIOKafkaClient
from aiokafka.conn import create_conn
from aiokafka.errors import (
    ClusterAuthorizationFailedError,
    GroupAuthorizationFailedError,
    InconsistentGroupProtocolError,
    InvalidSessionTimeoutError,
    KafkaConnectionError,
    KafkaError,
    SaslAuthenticationFailed,
    TopicAuthorizationFailedError,
    for_code,
)
from aiokafka.protocol.metadata import MetadataRequest

from headrace.errors import FatalError, HeadraceError, InvalidError, RetriableError, SettingsError
from headrace.log.kafka.options import KafkaOptions

_Result = TypeVar("_Result")

TIMEOUT_S = 30.0
"""How long a call may take before it is given up."""
_REQUEST_TIMEOUT_MS = 40_000
"""Longer than anybody waits for the others of a group."""
_RETRY_S = 0.1
_CLOSING_S = 0.02
"""What sockets get to close."""

_DENIED = (
    ClusterAuthorizationFailedError,
    GroupAuthorizationFailedError,
    SaslAuthenticationFailed,
    TopicAuthorizationFailedError,
)


class Connection:
    """A client of one cluster, in its own thread.

    Args:
        servers: ``host:port,...`` to begin with.
        options: How to connect.

    Raises:
        RetriableError: no broker can be reached.
        SettingsError: the brokers refuse the user.
    """

    def __init__(self, servers: str, options: KafkaOptions) -> None:
        self.servers = servers
        self.options = options
        self.arguments = options.client() | {"bootstrap_servers": servers, "request_timeout_ms": _REQUEST_TIMEOUT_MS}
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="headrace-kafka", daemon=True)
        self._thread.start()
        self._closed = False
        self._never: asyncio.Future[None] = self.loop.create_future()
        self._endings: list[Callable[[], Awaitable[None]]] = []
        try:
            self.client: AIOKafkaClient = self.call(self._open())
        except BaseException:
            self._stop()
            raise
        self.at_end(self.client.close)

    async def _open(self) -> AIOKafkaClient:
        client = AIOKafkaClient(**self.arguments)
        try:
            await client.bootstrap()
        except BaseException as error:
            await client.close()
            if isinstance(error, KafkaConnectionError):
                raise await self._unreachable(*client.hosts[0][:2]) from error
            raise
        return client

    async def _unreachable(self, host: str, port: int) -> HeadraceError:
        """Return why nothing can be reached, which the client tells only its own log."""
        arguments = {name: value for name, value in self.arguments.items() if name != "bootstrap_servers"}
        try:
            connection = await create_conn(host, port, **arguments)
        except (TimeoutError, OSError, KafkaError) as error:
            if isinstance(error, _DENIED):
                return self.translated(error)
            why = f": {type(error).__name__}" + (f": {error}" if isinstance(error, OSError) else "")
        else:
            connection.close()
            why = ""
        return RetriableError(
            f"no broker at {self.servers} can be reached{why}",
            remedy="Look at the address, at HEADRACE_KAFKA_SECURITY_PROTOCOL, at the user and at the network",
        )

    def call(self, work: Coroutine[Any, Any, _Result], timeout_s: float = TIMEOUT_S) -> _Result:
        """Run ``work`` in the client's thread and wait for it.

        Raises:
            HeadraceError: what it raised, said in headrace's words.
        """
        if self._thread is threading.current_thread() or not self._thread.is_alive():
            work.close()
            raise FatalError("the log is closed")
        future = asyncio.run_coroutine_threadsafe(work, self.loop)
        try:
            return future.result(timeout_s)
        except (FutureTimeoutError, TimeoutError) as error:
            future.cancel()
            raise RetriableError(
                f"Kafka at {self.servers} did not answer within {timeout_s:.0f} s", remedy="Look at the brokers"
            ) from error
        except KafkaError as error:
            raise self.translated(error) from error

    def soon(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Let the client's thread call ``function``, and do not wait."""
        if not self._closed:
            self.loop.call_soon_threadsafe(function, *arguments)

    def at_end(self, ending: Callable[[], Awaitable[None]]) -> None:
        """Have ``ending`` awaited in the client's thread when the connection is closed; the last one comes first."""
        self._endings.append(ending)

    def close(self) -> None:
        """End everything and stop the thread; idempotent."""
        if self._closed:
            return
        try:
            for ending in reversed(self._endings):
                try:
                    self.call(_awaited(ending))
                except HeadraceError:
                    continue  # the others must be closed as well
        finally:
            self._stop()

    def _stop(self) -> None:
        self._closed = True
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        left = asyncio.all_tasks(self.loop)
        for task in left:
            task.cancel()
        if left:
            self.loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        self.loop.run_until_complete(self.pause(_CLOSING_S))
        self.loop.close()

    def translated(self, error: KafkaError, what: str = "") -> HeadraceError:
        """Return the error of headrace's tree that says what must happen next."""
        told = f"Kafka at {self.servers}{what and f' ({what})'} says {type(error).__name__}"
        if str(error):
            told += f": {error}"
        if isinstance(error, InvalidSessionTimeoutError):
            return SettingsError(
                told,
                remedy="Raise HEADRACE_SESSION_TIMEOUT: brokers take no less than 6s unless they are told otherwise",
            )
        if isinstance(error, InconsistentGroupProtocolError):
            return InvalidError(told, remedy="Another program uses the group: give another one with --group")
        if isinstance(error, _DENIED):
            return SettingsError(told, remedy="Look at HEADRACE_KAFKA_USERNAME, its password, and what it may do")
        return RetriableError(told) if error.retriable else FatalError(told)

    async def send(self, node: int, request: Any, group: Any = 0) -> Any:
        """Send a request to one broker; each ``group`` has a connection of its own.

        Raises:
            KafkaError: it cannot be reached, or does not answer.
        """
        return await self.client.send(node, request, group=group)

    async def send_any(self, request: Any) -> Any:
        """Send a request that any broker can answer.

        Raises:
            KafkaError: none can be reached.
        """
        for broker in self.client.cluster.brokers():
            if await self.client.ready(broker.nodeId):
                return await self.client.send(broker.nodeId, request)
        return await self.client.send(self.client.get_random_node(), request)

    async def metadata(self, topics: list[str] | None) -> Any:
        """Ask what topics there are, all or some, and remember who leads their partitions; makes none."""
        response = await self.send_any(MetadataRequest(topics, allow_auto_topic_creation=False))
        if topics is None:
            self.client.cluster.update_metadata(response)
        return response

    async def pause(self, seconds: float = _RETRY_S) -> None:
        """Let the client's thread do other things for a while."""
        await asyncio.wait([self._never], timeout=seconds)

    async def attempts(self, attempt: Callable[[], Awaitable[_Result]], timeout_s: float = TIMEOUT_S - 5) -> _Result:
        """Make an attempt again and again until what fails does not pass by itself or the time is over.

        Raises:
            KafkaError: the last failure.
        """
        deadline = self.loop.time() + timeout_s
        while True:
            try:
                return await attempt()
            except KafkaError as error:
                if not error.retriable or self.loop.time() > deadline:
                    raise
            await self.pause()


async def _awaited(ending: Callable[[], Awaitable[None]]) -> None:
    await ending()


def check_code(code: int, told: str = "") -> None:
    """Raise what an error code of the protocol means, if it is one.

    Raises:
        KafkaError: it is.
    """
    if code:
        raise for_code(code)(told)
