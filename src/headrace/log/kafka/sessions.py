"""Connections that outlive their sessions.

Brokers may let what somebody proved count for a while only (``connections.max.reauth.ms``, or as long as a token
counts), and end a connection at the first request that comes later, without having looked at it. aiokafka does not
prove it again. So this does: on the same connection, shortly before the session ends, ahead of the next request
(KIP-368). Nothing is lost by it, and nobody has to connect anew.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.client import AIOKafkaClient
from aiokafka.conn import AIOKafkaConnection, CloseReason, OAuthAuthenticator, collect_hosts
from aiokafka.errors import (
    IllegalSaslStateError,
    KafkaConnectionError,
    KafkaError,
    NodeNotReadyError,
    SaslAuthenticationFailed,
    StaleMetadata,
    UnsupportedSaslMechanismError,
)
from aiokafka.protocol.admin import SaslAuthenticateRequest, SaslAuthenticateRequest_v0, SaslAuthenticateRequest_v1
from aiokafka.protocol.metadata import MetadataRequest

from headrace.errors import FatalError, HeadraceError

_log = logging.getLogger("headrace")

REFUSED = (IllegalSaslStateError, SaslAuthenticationFailed, UnsupportedSaslMechanismError)
"""The brokers do not take what somebody proves with."""
_FAULTS = (OSError, TimeoutError, ValueError, KafkaError, HeadraceError)
"""What connecting ends with if it does not succeed."""
_LAST_SHARE = 0.95
"""Then the next request waits for the token that it is renewed with."""
_SHARE = 0.8
"""Of a session's life; then it is renewed before the next request."""
_MAX_IDLE_MS = 540_000
_PAUSES_S = (0.1, 1.0)
"""The first and the longest time that a broker that cannot be reached is left in peace."""
_REFUSED_PAUSES_S = (1.0, 10.0)
_CONNECT_S = 6.0
"""How long a connection may take to be made, and a first question to be answered."""
_REFUSED_S = 30
"""How long refusals may last: under load, brokers say it of what they take a moment later."""


class Session(AIOKafkaConnection):  # type: ignore[misc]
    """A connection that knows how long its session lasts, and renews it."""

    _begun = 0.0
    _life_s = 0.0
    """0: without end."""
    _fetching: asyncio.Task[str] | None = None
    """The next token."""

    def send(self, request: Any, expect_response: bool = True) -> Awaitable[Any]:
        """Send a request and return what will be its response."""
        sent: Awaitable[Any] = super().send(request, expect_response)
        return self._note(sent) if isinstance(request, SaslAuthenticateRequest) else sent

    async def _note(self, sent: Awaitable[Any]) -> Any:
        begun = asyncio.get_running_loop().time()
        response = await sent
        self._begun, self._life_s = begun, getattr(response, "session_lifetime_ms", 0) / 1000
        return response

    def authenticator_oauth(self) -> Any:
        """Return what shows tokens."""
        return _Bearer(sasl_oauth_token_provider=self._sasl_oauth_token_provider)

    def lapsed(self, share: float = 1) -> bool:
        """Return whether that much of the session's life is over."""
        return self._life_s > 0 and asyncio.get_running_loop().time() >= self._begun + share * self._life_s

    async def renew(self) -> bool:
        """Prove again who this is, if it is time to; return whether the connection can be used.

        Nothing else may be sent meanwhile.
        """
        if not self.connected():
            return False
        if self.lapsed(_SHARE) and await self._has_proof():
            try:
                await self._do_sasl_handshake()
            except _FAULTS as error:
                # A new connection will tell what is wrong.
                _log.debug("a session with %s:%s was not renewed: %r", self.host, self.port, error)
                self.close(reason=CloseReason.AUTH_FAILURE, exc=error)
        return bool(self.connected())

    async def _has_proof(self) -> bool:
        """Return whether there is something new to show; as long as the session lasts, nobody waits for it."""
        if self._sasl_oauth_token_provider is None:
            return True
        if self._fetching is None:
            self._fetching = asyncio.create_task(self._sasl_oauth_token_provider.token())
            self._fetching.add_done_callback(lambda task: task.cancelled() or task.exception())
        fetching, last = self._fetching, self.lapsed(_LAST_SHARE)
        await asyncio.wait([fetching], timeout=None if last else 0)
        if not fetching.done():
            return False
        self._fetching = None
        return last or fetching.exception() is None


class _Bearer(OAuthAuthenticator):  # type: ignore[misc]
    """Shows a token and hears what the broker says to it, which the library does not."""

    async def step(self, payload: bytes | None) -> Any:
        """Return what to send next, None at the end."""
        if payload:
            raise SaslAuthenticationFailed("the token is refused")
        return await super().step(payload)


class CutError(KafkaConnectionError):  # type: ignore[misc]
    """The broker said hello, and ended the connection at the first request that not everybody may make."""


class Client(AIOKafkaClient):  # type: ignore[misc]
    """A client whose connections last, and that says why it cannot connect."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._how = {name: value for name, value in arguments.items() if name != "bootstrap_servers"}
        self._turns: dict[tuple[Any, Any], asyncio.Lock] = {}
        self._troubles: dict[tuple[Any, Any], _Trouble] = {}
        logging.getLogger("aiokafka.conn").addFilter(_is_harmless)

    async def bootstrap(self) -> None:
        """Ask the first broker that answers for the others.

        Raises:
            KafkaConnectionError: none does; its cause is what was wrong with the last one.
            HeadraceError: there is nothing to prove with who this is.
        """
        for host, port, _ in self.hosts:
            try:
                metadata = await self._metadata_from(host, port)
            except _FAULTS as error:
                failure = error
            else:
                self.begin(metadata)
                return
        if isinstance(failure, HeadraceError):
            raise failure
        raise KafkaConnectionError("no broker can be reached") from failure

    async def rebootstrap(self, servers: str) -> bool:
        """Ask the first addresses for brokers that are not known; return whether there are any (KIP-899).

        For when no known broker answers: all of them may have moved meanwhile. Who leads what is to be asked anew.

        Args:
            servers: ``host:port,...``; who is known at such an address is not asked again.
        """
        known = {(broker.host, broker.port) for broker in self.cluster.brokers()}
        for host, port, _ in collect_hosts(servers):
            if (host, port) in known:
                continue
            try:
                async with asyncio.timeout(_CONNECT_S):
                    metadata = await self._metadata_from(host, port)
            except _FAULTS as error:
                _log.debug("the brokers could not be asked for at %s:%s: %r", host, port, error)
                continue
            if not known.issuperset((host, port) for _, host, port, _ in metadata.brokers):
                self.cluster.update_metadata(metadata)
                return True
        return False

    def begin(self, metadata: Any) -> None:
        """Know what a broker has said, and keep it fresh from now on."""
        self.cluster.update_metadata(metadata)
        self._sync_task = asyncio.create_task(self._md_synchronizer())

    async def _metadata_from(self, host: str, port: int) -> Any:
        connection = await self._connected(host, port)
        try:
            while not (metadata := await connection.send(MetadataRequest([]))).brokers:
                # It has begun just now.
                await asyncio.wait([asyncio.get_running_loop().create_future()], timeout=_PAUSES_S[0])
        except KafkaConnectionError as error:
            raise CutError(str(error)) from error
        finally:
            connection.close()
        return metadata

    async def send(self, node_id: Any, request: Any, *, group: Any = 0) -> Any:
        """Send a request to a broker and return its response.

        Raises:
            KafkaError: it cannot be reached, or does not answer.
        """
        try:
            return await super().send(node_id, request, group=group)
        except NodeNotReadyError as error:
            trouble = self._troubles.get((node_id, group))
            if trouble is None:
                raise
            if trouble.is_final(asyncio.get_running_loop().time()):
                raise SaslAuthenticationFailed(str(trouble.error)) from trouble.error
            raise NodeNotReadyError(f"broker {node_id} cannot be reached: {trouble.error}") from error
        except KafkaConnectionError:
            connection = self._conns.get((node_id, group))
            if not isinstance(connection, Session) or not connection.lapsed():
                raise
            # It came too late after all, and the broker has not looked at it.
            return await super().send(node_id, request, group=group)

    async def _get_conn(self, node_id: Any, *, group: Any = 0, no_hint: bool = False) -> Any:
        """Return a connection that a request can be sent on at once, None if there is none.

        Replaces what the library does: there, a failure to connect leaves no reason, all wait for one that cannot be
        reached, and sessions end.
        """
        way = (node_id, group)
        async with self._turns.setdefault(way, asyncio.Lock()):
            connection = self._conns.get(way)
            if connection is not None and (not isinstance(connection, Session) or await connection.renew()):
                return connection
            self._conns.pop(way, None)
            trouble = self._troubles.get(way)
            now = asyncio.get_running_loop().time()
            if trouble is not None and now < trouble.not_before:
                return None
            try:
                broker = self.cluster.broker_metadata(node_id)
                if broker is None:
                    raise StaleMetadata(f"broker {node_id} is not known any more")
                connection = self._conns[way] = await self._connected(broker.host, broker.port)
            except _FAULTS as error:
                self._troubles[way] = _Trouble.of(error, trouble, asyncio.get_running_loop().time())
                self.force_metadata_update()  # it may be somewhere else
                return None
            self._troubles.pop(way, None)
            return connection

    async def _connected(self, host: str, port: int) -> Session:
        connection = Session(host, port, on_close=self._on_connection_closed, max_idle_ms=_MAX_IDLE_MS, **self._how)
        try:
            async with asyncio.timeout(_CONNECT_S):
                await connection.connect()
        except TimeoutError:
            raise TimeoutError(f"no connection to {host}:{port} within {_CONNECT_S:.0f} s") from None
        return connection

    def drop(self, node_id: Any, group: Any) -> None:
        """Close a connection, if there is one: what was asked on it fails, and the next request makes another."""
        connection = self._conns.pop((node_id, group), None)
        if connection is not None:
            connection.close(reason=CloseReason.CONNECTION_TIMEOUT)


class _Second(Client):
    """A client that begins with what another one was told: the first addresses may be gone meanwhile."""

    def __init__(self, metadata: Any, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._metadata = metadata

    async def bootstrap(self) -> None:
        """Begin; connects to nobody yet."""
        self.begin(self._metadata)


@dataclass(frozen=True, slots=True)
class _Trouble:
    """Why there is no connection, since when, and when to try again."""

    error: Exception
    refused: bool
    since: float
    pause_s: float
    not_before: float

    @classmethod
    def of(cls, error: Exception, before: _Trouble | None, now: float) -> _Trouble:
        """Return the trouble after one more try."""
        refused = isinstance(error, (*REFUSED, FatalError))
        first, longest = _REFUSED_PAUSES_S if refused else _PAUSES_S
        if before is None or before.refused != refused:
            return cls(error, refused, now, first, now + first)
        pause_s = min(2 * before.pause_s, longest)
        return cls(error, refused, before.since, pause_s, now + pause_s)

    def is_final(self, now: float) -> bool:
        """Return whether another try makes no sense."""
        return self.refused and now - self.since >= _REFUSED_S


def keep_sessions(producer: AIOKafkaProducer, arguments: Mapping[str, Any], metadata: Any) -> None:
    """Give a producer, before it starts, a client whose connections last, and that knows the brokers already.

    Args:
        producer: Whose client is replaced.
        arguments: Those of the client.
        metadata: What a broker has said, lately.
    """
    client = _Second(metadata, **arguments)
    client.cluster = producer.client.cluster
    producer.client = producer._sender.client = client


def _is_harmless(record: logging.LogRecord) -> bool:
    """Keep out of the logs what somebody proves with: the client writes every request, if it is asked for details."""
    arguments = record.args if isinstance(record.args, tuple) else ()
    return not any(isinstance(one, SaslAuthenticateRequest_v0 | SaslAuthenticateRequest_v1) for one in arguments)
