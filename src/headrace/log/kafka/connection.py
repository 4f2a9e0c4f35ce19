"""The client: one connection object in a thread and an event loop of its own.

Whoever uses the log blocks on ``call``. What the client has to do all the time (heartbeats, fetching, producing) runs
beside that, so that slow user code costs no membership.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any, TypeVar

from aiokafka.errors import (
    InconsistentGroupProtocolError,
    InvalidSessionTimeoutError,
    KafkaConnectionError,
    KafkaError,
    LeaderNotAvailableError,
    NodeNotReadyError,
    RequestTimedOutError,
    for_code,
)
from aiokafka.protocol.metadata import MetadataRequest

from headrace.clock import SystemClock
from headrace.errors import FatalError, HeadraceError, InvalidError, RetriableError, SettingsError
from headrace.log.kafka.opening import opened
from headrace.log.kafka.options import KafkaOptions
from headrace.log.kafka.refusals import DENIED, is_refusal, refused
from headrace.log.kafka.security import client_arguments
from headrace.log.kafka.silence import Silence

_Result = TypeVar("_Result")
_log = logging.getLogger("headrace")

TIMEOUT_S = 30.0
"""How long a call may take before it is given up."""
ANSWER_S = 10.0
"""How long an answer may take that waits for nobody."""
JOIN_S = 40.0
"""Longer than anybody waits for the others of a group."""
_REQUEST_TIMEOUT_MS = 60_000
"""Longer than any of these: whoever asks knows better how long it may take."""
_UNREACHABLE = (KafkaConnectionError, NodeNotReadyError, RequestTimedOutError)
_LEADING = frozenset({9, 74, 75, 78})
"""Codes that aiokafka does not know, or takes for final, and that pass while leadership moves: a replica is not there,
one side does not know the leader's epoch yet (two), a new leader does not give away an offset yet."""
_RETRY_S = 0.1
_ENDING_S = 5.0
"""What is still under way gets to end; what hangs is left."""
_CLOSING_S = 0.02
"""What sockets get to close."""


class Connection:
    """A client of one cluster, in its own thread.

    Args:
        servers: ``host:port,...`` to begin with.
        options: How to connect.

    Raises:
        RetriableError: no broker can be reached.
        FatalError: the brokers refuse the user, or are not who they should be.
        SettingsError: the options cannot be used.
    """

    def __init__(self, servers: str, options: KafkaOptions) -> None:
        self.servers = servers
        self.options = options
        self.arguments = client_arguments(options, servers, SystemClock()) | {"request_timeout_ms": _REQUEST_TIMEOUT_MS}
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="headrace-kafka", daemon=True)
        self._thread.start()
        self._closed = False
        self._never: asyncio.Future[None] = self.loop.create_future()
        self._endings: list[Callable[[], Awaitable[None]]] = []
        self._silence = Silence()
        self._learning: asyncio.Task[None] | None = None
        self._learners: list[Callable[[Any], None]] = []
        try:
            self.client = self.call(opened(self.arguments))
        except BaseException:
            self._stop()
            raise
        self.client.cluster.add_listener(self._learnt)
        self.at_end(self.client.close)

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
            self.loop.run_until_complete(asyncio.wait(left, timeout=_ENDING_S))
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
        if is_refusal(error):
            return refused(error, self.arguments, what)
        return RetriableError(told) if error.retriable else FatalError(told)

    async def send(self, node: int, request: Any, group: Any = 0, timeout_s: float = ANSWER_S) -> Any:
        """Send a request to one broker.

        Args:
            node: The broker's id.
            request: What to ask.
            group: Requests of one group share a connection, and wait for each other.
            timeout_s: How long the answer may take. Then the connection is closed, and the next request makes another.

        Raises:
            KafkaError: it cannot be reached, or does not answer.
        """
        begun = self.loop.time()
        try:
            async with asyncio.timeout(timeout_s):
                response = await self.client.send(node, request, group=group)
        except TimeoutError as error:
            self.client.drop(node, group)
            if self._silence.was_heard(node, begun + timeout_s / 2):
                _log.warning(
                    "a connection to Kafka's broker %d gave no answer for %.0f s, and others do: it is made anew",
                    node, timeout_s,
                )  # fmt: skip
            else:
                self._missed(node, f"no answer within {timeout_s:.0f} s")
            raise RequestTimedOutError(f"broker {node} gave no answer within {timeout_s:.0f} s") from error
        except NodeNotReadyError as error:
            if not self._silence.was_heard(node, begun):  # on another connection
                self._missed(node, str(error))
            raise
        self._silence.heard(node, self.loop.time())
        return response

    async def send_any(self, request: Any) -> Any:
        """Send a request that any broker can answer; who was silent is asked last.

        If none answers, the first addresses may lead to others.

        Raises:
            KafkaError: none can be reached.
        """
        try:
            return await self._send_known(request)
        except _UNREACHABLE:
            if not await self.client.rebootstrap(self.servers):
                raise
        _log.warning("none of Kafka's brokers that were known answers; %s leads to others", self.servers)
        return await self._send_known(request)

    async def _send_known(self, request: Any) -> Any:
        failure: KafkaError = NodeNotReadyError("no broker is known")
        for node in self._silence.order(broker.nodeId for broker in self.client.cluster.brokers()):
            try:
                return await self.send(node, request)
            except _UNREACHABLE as error:
                failure = error
        raise failure

    async def metadata(self, topics: list[str] | None) -> Any:
        """Ask what topics there are, all or some, and remember who leads their partitions; makes none."""
        response = await self.send_any(MetadataRequest(topics, allow_auto_topic_creation=False))
        if topics is None:
            for learn in (self.client.cluster.update_metadata, *self._learners):
                learn(response)
        return response

    def learn_soon(self) -> None:
        """Ask who leads what, beside everything else."""
        if self._learning is None or self._learning.done():
            self._learning = self.loop.create_task(self._learn())

    def also(self, learn: Callable[[Any], None]) -> None:
        """Have ``learn`` called with every answer that says who leads what."""
        self._learners.append(learn)

    async def _learn(self) -> None:
        try:
            await self.metadata(None)
        except KafkaError as error:
            _log.debug("who leads what could not be asked: %r", error)

    def _learnt(self, cluster: Any) -> None:
        self._silence.there({broker.nodeId for broker in cluster.brokers()})

    def _missed(self, node: int, why: str) -> None:
        broker = self.client.cluster.broker_metadata(node)
        if broker is not None:  # otherwise it was said that it is gone
            self._silence.missed(node, f"{broker.host}:{broker.port}", why, self.loop.time())

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


def check_code(code: int, told: str = "", *, needs: str = "") -> None:
    """Raise what an error code of the protocol means, if it is one.

    Args:
        code: The code; 0 is none.
        told: What the broker said of it.
        needs: What the client must be allowed to do, such as ``Read on topic 'payments'``.

    Raises:
        KafkaError: it is.
    """
    if code:
        kind = error_of(code)
        raise kind(needs if needs and issubclass(kind, DENIED) else told)


def error_of(code: int) -> type[KafkaError]:
    """Return what an error code of the protocol means."""
    kind: type[KafkaError] = LeaderNotAvailableError if code in _LEADING else for_code(code)
    return kind
