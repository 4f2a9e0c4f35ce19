"""The credentials that a container platform serves under a URL (``AWS_CONTAINER_CREDENTIALS_FULL_URI``)."""

from __future__ import annotations

import http.client
import ipaddress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import msgspec

from headrace.errors import RetriableError, SettingsError

if TYPE_CHECKING:
    from obstore.store import S3Credential

_MARGIN = timedelta(minutes=5)
"""Fetched anew so long before they expire: requests are signed once and then tried for a while."""
_PLATFORM_HOSTS = frozenset({"169.254.170.2", "169.254.170.23", "fd00:ec2::23", "localhost"})
_REMEDY = "Look at AWS_CONTAINER_CREDENTIALS_FULL_URI, AWS_CONTAINER_AUTHORIZATION_TOKEN and the role of the container"


class ContainerCredentials:
    """Fetches credentials whenever it is called; obstore calls it again when they are about to expire.

    Args:
        uri: Where they are served: over https, or over http from this machine or the platform's own address.
        token: Sent as ``Authorization``, if not empty.
        token_file: Holds the token instead, and is read each time.
        timeout_ms: For connecting, and for every read.

    Raises:
        SettingsError: the URI would carry the token over an open network.
    """

    def __init__(self, uri: str, *, token: str = "", token_file: str = "", timeout_ms: int = 5_000) -> None:
        self._url = urlsplit(uri)
        self._token = token
        self._token_file = token_file
        self._timeout_s = timeout_ms / 1000
        host = self._url.hostname or ""
        if self._url.scheme != "https" and not (self._url.scheme == "http" and _is_near(host)):
            raise SettingsError(
                f"AWS_CONTAINER_CREDENTIALS_FULL_URI must be https, or http on this machine: its host is {host!r}"
            )

    def __call__(self) -> S3Credential:
        """Return credentials.

        Raises:
            RetriableError: they are not served now.
            SettingsError: they are refused.
        """
        try:
            status, body = self._get()
        except (OSError, http.client.HTTPException) as error:
            raise RetriableError(f"the container's credentials cannot be fetched: {error}", remedy=_REMEDY) from error
        if status >= 500 or status == 429:
            raise RetriableError(f"the container's credentials cannot be fetched: status {status}", remedy=_REMEDY)
        if status != 200:
            raise SettingsError(f"the container's credentials are refused: status {status}", remedy=_REMEDY)
        try:
            found = _served.decode(body)
        except msgspec.MsgspecError as error:
            raise RetriableError("the container's credentials cannot be read", remedy=_REMEDY) from error
        return {
            "access_key_id": found.AccessKeyId,
            "secret_access_key": found.SecretAccessKey,
            "token": found.Token,
            "expires_at": None if found.Expiration is None else found.Expiration.astimezone(UTC) - _MARGIN,
        }

    def _get(self) -> tuple[int, bytes]:
        kind = http.client.HTTPSConnection if self._url.scheme == "https" else http.client.HTTPConnection
        connection = kind(self._url.hostname or "", self._url.port, timeout=self._timeout_s)
        token = Path(self._token_file).read_text().strip() if self._token_file else self._token
        path = (self._url.path or "/") + (f"?{self._url.query}" if self._url.query else "")
        try:
            connection.request("GET", path, headers={"Authorization": token} if token else {})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()


class _Served(msgspec.Struct):
    AccessKeyId: str
    SecretAccessKey: str
    Token: str | None = None
    Expiration: datetime | None = None


_served = msgspec.json.Decoder(_Served)  # made at once, as threads decode: see ``serde.converting``


def _is_near(host: str) -> bool:
    try:
        return host in _PLATFORM_HOSTS or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
