"""Tokens that say who a client is: from a file, granted for a client's secret, or signed with AWS credentials."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import logging
import os
import re
import ssl
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple
from urllib.parse import quote

from aiokafka.abc import AbstractTokenProvider

from headrace.clock import Clock
from headrace.errors import FatalError, HeadraceError, RetriableError, SettingsError
from headrace.log.kafka.options import KafkaOptions, read_secret

_FRESH_SHARE = 0.75
"""Of its life, a token is used for new sessions. Sessions are renewed later than that, so each time with a new one."""
_USUAL_LIFE_MS = 60_000
"""Of a token that does not say how long it counts."""
_AGAIN_MS = 1000
"""How long a failure to get one is remembered."""
_ATTEMPTS = 3
_ATTEMPT_S = 6
_PAUSE_S = 0.3
_SIGNING = "headrace-signing"
_GRANTER = "the server that HEADRACE_KAFKA_TOKEN_URL names"
_OAUTH_ERRORS = (
    "invalid_request", "invalid_client", "invalid_grant", "unauthorized_client", "unsupported_grant_type",
    "invalid_scope",
)  # fmt: skip
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")
_REGION = re.compile(r"\.kafka(?:-serverless)?\.([a-z0-9-]+)\.amazonaws\.com(?:\.cn)?(?::|$)")


class Token(NamedTuple):
    """A token and how long it counts."""

    text: str
    life_ms: int


class Tokens(AbstractTokenProvider):  # type: ignore[misc]
    """Gives the newest token to whoever connects, and keeps it for as long as it is fresh."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = asyncio.Lock()
        self._text = ""
        self._fresh_until_ms = 0
        self._failure: HeadraceError | None = None
        self._again_ms = 0

    async def token(self) -> str:
        """Return a token that counts for a while.

        Raises:
            HeadraceError: there is none.
        """
        async with self._lock:
            now_ms = self._clock.monotonic_ms()
            if self._text and now_ms < self._fresh_until_ms:
                return self._text
            if self._failure is not None and now_ms < self._again_ms:
                raise self._failure  # several connections want to know the same
            try:
                self._text, life_ms = await self._fetch()
            except HeadraceError as error:
                self._failure, self._again_ms = error, self._clock.monotonic_ms() + _AGAIN_MS
                raise
            self._failure, self._fresh_until_ms = None, now_ms + int(life_ms * _FRESH_SHARE)
            return self._text

    def extensions(self) -> dict[str, str]:
        """Return what goes with every token."""
        return {}

    async def _fetch(self) -> Token:
        raise NotImplementedError


class FileTokens(Tokens):
    """Reads a file every time, as something else writes it."""

    def __init__(self, options: KafkaOptions, clock: Clock) -> None:
        super().__init__(clock)
        self._options = options

    def extensions(self) -> dict[str, str]:
        """Return what goes with every token."""
        return self._options.extensions()

    async def _fetch(self) -> Token:
        text = read_secret(self._options.token_file, "HEADRACE_KAFKA_TOKEN_FILE").strip()
        _check_shape(text, "the file that HEADRACE_KAFKA_TOKEN_FILE names")
        expires_ms = expiry_ms(text)
        if expires_ms is not None and expires_ms <= self._clock.now_ms():
            ago_s = (self._clock.now_ms() - expires_ms) // 1000
            raise FatalError(
                f"the token in the file that HEADRACE_KAFKA_TOKEN_FILE names expired {ago_s} s ago",
                remedy="Look at whatever should write a new one there",
            )
        return Token(text, 0)


class GrantedTokens(Tokens):
    """Has tokens granted for a client's id and secret (RFC 6749, section 4.4)."""

    def __init__(self, options: KafkaOptions, context: ssl.SSLContext, clock: Clock) -> None:
        super().__init__(clock)
        self._options = options
        self._context = context

    def extensions(self) -> dict[str, str]:
        """Return what goes with every token."""
        return self._options.extensions()

    async def _fetch(self) -> Token:
        failure: HeadraceError | None = None
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        for attempt in range(_ATTEMPTS):
            if failure is not None:
                await asyncio.wait([waiting], timeout=_PAUSE_S * 2**attempt)
            try:
                return await self._ask()
            except RetriableError as error:
                failure = error
        assert failure is not None
        raise failure

    async def _ask(self) -> Token:
        import aiohttp  # takes long, and few need it

        options = self._options
        form = {"grant_type": "client_credentials"} | ({"scope": options.token_scope} if options.token_scope else {})
        secret = options.secret("token_client_secret")
        user = f"{quote(options.token_client_id, safe='')}:{quote(secret, safe='')}"
        headers = {"Accept": "application/json", "Authorization": f"Basic {base64.b64encode(user.encode()).decode()}"}
        timeout = aiohttp.ClientTimeout(total=_ATTEMPT_S)
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout, trust_env=True) as session,
                session.post(
                    options.token_url, data=form, headers=headers, ssl=self._context, allow_redirects=False
                ) as response,
            ):
                return _granted(response.status, await response.read())
        except aiohttp.ClientConnectorCertificateError as error:
            why = getattr(error.certificate_error, "verify_message", "it is not what it should be")
            raise FatalError(
                f"{_GRANTER} shows a certificate that is not trusted: {why}",
                remedy="Look at the address; HEADRACE_KAFKA_CA_FILE is trusted beside the system's certificates",
            ) from None
        except (aiohttp.ClientError, TimeoutError) as error:
            raise RetriableError(
                f"{_GRANTER} cannot be reached: {type(error).__name__}", remedy="Look at the address and the network"
            ) from None


class SignedTokens(Tokens):
    """Signs tokens for IAM on MSK with the credentials that the machine, the task or the environment has.

    Nothing is asked of AWS for a token, but where the credentials come from may be. So that runs in a thread, always
    the same one: sessions of botocore are not for several.

    Raises:
        SettingsError: the package is missing.
    """

    def __init__(self, region: str, clock: Clock) -> None:
        super().__init__(clock)
        try:
            import aws_msk_iam_sasl_signer  # noqa: F401
        except ImportError as error:
            raise SettingsError(
                "AWS_MSK_IAM needs the package aws-msk-iam-sasl-signer-python",
                remedy="Install it: pip install 'headrace[msk]'",
            ) from error
        self._region = region
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=_SIGNING)
        self._session: Any = None
        logging.getLogger("botocore.auth").addFilter(_is_no_signing)

    async def _fetch(self) -> Token:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._sign)

    def _sign(self) -> Token:
        from aws_msk_iam_sasl_signer.MSKAuthTokenProvider import generate_auth_token_from_credentials_provider
        from botocore.credentials import CredentialProvider  # type: ignore[import-untyped]
        from botocore.exceptions import BotoCoreError  # type: ignore[import-untyped]
        from botocore.session import Session  # type: ignore[import-untyped]

        class Chain(CredentialProvider):  # type: ignore[misc]
            """The default chain, asked once; credentials that expire renew themselves."""

            def load(self) -> Any:
                return credentials.get_frozen_credentials()

        try:
            self._session = self._session or Session()
            credentials = self._session.get_credentials()
            if credentials is None:
                self._session = None  # they may come
                raise FatalError(
                    "there are no AWS credentials to sign a token for MSK with",
                    remedy="Give the task a role, or set AWS_PROFILE or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
                )
            text, expires_ms = generate_auth_token_from_credentials_provider(self._region, Chain())
        except (BotoCoreError, ValueError) as error:
            self._session = None
            raise RetriableError(
                f"the AWS credentials to sign a token for MSK with cannot be had: {type(error).__name__}",
                remedy="Look at the task's role, at AWS_PROFILE and at the AWS_CONTAINER_CREDENTIALS variables",
            ) from None
        return Token(str(text), expires_ms - self._clock.now_ms())


def region_of(servers: str, region: str) -> str:
    """Return the AWS region of a cluster: the one that is named, or what its address says, or the environment's.

    Raises:
        SettingsError: nothing says which.

    Example:
        >>> region_of("b-1.pay.a1b2c3.c4.kafka.eu-west-1.amazonaws.com:9098", "")
        'eu-west-1'
    """
    found = _REGION.search(servers.split(",", maxsplit=1)[0])
    known = region or (found and found[1]) or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if not known:
        raise SettingsError(
            "AWS_MSK_IAM needs to know the region, and the brokers' addresses do not say it",
            remedy="Set HEADRACE_KAFKA_REGION or AWS_REGION",
        )
    return known


def expiry_ms(token: str) -> int | None:
    """Return when a token expires, if it is a JSON Web Token that says so.

    Example:
        >>> expiry_ms("e30.eyJleHAiOiAxNzAwMDAwMDAwfQ.c2ln"), expiry_ms("opaque")
        (1700000000000, None)
    """
    parts = token.split(".")
    if len(parts) != 3:
        return None
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
        return int(claims["exp"] * 1000)
    except (binascii.Error, ValueError, KeyError, TypeError):
        return None


def _granted(status: int, body: bytes) -> Token:
    """Return the token in an answer, of which nothing else is told to anybody: it may repeat a secret."""
    try:
        answer = json.loads(body)
    except ValueError:
        answer = None
    answer = answer if isinstance(answer, dict) else {}
    if status >= 500 or status in (408, 429):
        raise RetriableError(f"{_GRANTER} answers with status {status}", remedy="Look at the server")
    if status >= 300:
        told = answer.get("error")
        why = f" ({told})" if told in _OAUTH_ERRORS else ""
        raise FatalError(
            f"{_GRANTER} grants no token: status {status}{why}",
            remedy="Look at HEADRACE_KAFKA_TOKEN_CLIENT_ID, its secret, HEADRACE_KAFKA_TOKEN_SCOPE and the address",
        )
    text, life_s = answer.get("access_token"), answer.get("expires_in")
    if not isinstance(text, str):
        raise FatalError(f"{_GRANTER} answers without a token", remedy="Look at the address")
    _check_shape(text, _GRANTER)
    known = isinstance(life_s, int | float) and life_s > 0
    return Token(text, int((life_s or 0) * 1000) if known else _USUAL_LIFE_MS)


def _check_shape(token: str, source: str) -> None:
    """Refuse what cannot be a token: what breaks the message that it goes in would be hard to understand later."""
    if not _TOKEN.fullmatch(token):
        raise FatalError(
            f"what {source} gives is no bearer token", remedy="It is one word, and has nothing before or behind it"
        )


def _is_no_signing(record: logging.LogRecord) -> bool:
    """Keep out of the logs what a token is made of."""
    return not (record.threadName or "").startswith(_SIGNING)
