"""Checkpoints in S3, and in what speaks its protocol."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from obstore.exceptions import BaseError
from obstore.store import S3Store

from headrace.checkpoint.container import ContainerCredentials
from headrace.checkpoint.store import StoredObjects, first_line
from headrace.errors import SettingsError

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig, S3Config, S3Credential

_PROOF = "headrace-checkpoints.json"
"""At the root, where no topology has its objects; see ``S3Objects``."""
_PROOF_BYTES = b'{"headrace":"checkpoints","version":1}\n'


@dataclass(frozen=True, slots=True)
class Patience:
    """How long S3 may take.

    What is tried again: answers of 500 and above, connections that cannot be made, and, for everything but a
    conditional write, connections that break and answers that do not come. With a retry, a request may take
    ``budget_ms`` and one more ``silence_ms``.
    """

    connect_ms: int = 5_000
    silence_ms: int = 60_000
    """Without a byte: for an answer, and for a part of an upload to be taken in."""
    request_ms: int = 600_000
    """For a request from its beginning to the last byte of its answer."""
    retries: int = 8
    budget_ms: int = 60_000
    """After this, nothing is tried again."""
    first_pause_ms: int = 100
    longest_pause_ms: int = 10_000


_PATIENCE = Patience()


def open_s3(url: str, environment: Mapping[str, str], patience: Patience = _PATIENCE) -> S3Objects:
    """Open the checkpoint store at ``s3://bucket/prefix``; nothing is asked of the network yet.

    Args:
        url: Names the bucket, and where in it.
        environment: Variables as every AWS tool takes them: ``AWS_REGION`` or ``AWS_DEFAULT_REGION``;
            ``AWS_ENDPOINT_URL_S3`` or ``AWS_ENDPOINT_URL``; and credentials, of which the first that is there counts:
            ``AWS_ACCESS_KEY_ID`` with ``AWS_SECRET_ACCESS_KEY`` and ``AWS_SESSION_TOKEN``;
            ``AWS_WEB_IDENTITY_TOKEN_FILE`` with ``AWS_ROLE_ARN``; ``AWS_CONTAINER_CREDENTIALS_RELATIVE_URI`` (the task
            role in ECS) or ``AWS_CONTAINER_CREDENTIALS_FULL_URI``; the role of the EC2 instance.
        patience: How long S3 may take.

    Raises:
        SettingsError: the bucket, the region or a part of the credentials is missing.
    """
    bucket, _, prefix = url.removeprefix("s3://").rstrip("/").partition("/")
    if not bucket:
        raise SettingsError(f"an S3 URL must name a bucket: {url!r}", remedy="Give s3://bucket/prefix")
    config: S3Config = {"conditional_put": "etag"}
    for variable, name in _VARIABLES.items():
        if value := environment.get(variable):
            config[name] = value  # type: ignore[literal-required]
    _check(url, environment)
    client: ClientConfig = {
        "connect_timeout": timedelta(milliseconds=patience.connect_ms),
        "read_timeout": timedelta(milliseconds=patience.silence_ms),
        "timeout": timedelta(milliseconds=patience.request_ms),
        "allow_http": str(config.get("endpoint", "")).startswith("http://"),
    }
    retry: RetryConfig = {
        "max_retries": patience.retries,
        "retry_timeout": timedelta(milliseconds=patience.budget_ms),
        "backoff": {
            "init_backoff": timedelta(milliseconds=patience.first_pause_ms),
            "max_backoff": timedelta(milliseconds=patience.longest_pause_ms),
        },
    }
    try:
        store = S3Store(
            bucket, prefix=prefix or None, config=config, client_options=client, retry_config=retry,
            credential_provider=_provider(environment, patience),
        )  # fmt: skip
    except BaseError as error:
        raise SettingsError(f"checkpoints cannot go to {url}: {first_line(error)}") from error
    return S3Objects(store, url)


class S3Objects(StoredObjects):
    """Objects in a bucket.

    Fencing needs a store that writes only where nothing is. Some that speak the protocol of S3 ignore that condition in
    silence, so it is proven before the first such write: a small object with fixed bytes at the root is created twice,
    and the second attempt must fail. Workers that start together do not disturb each other, and nobody deletes it.
    """

    def __init__(self, store: S3Store, name: str) -> None:
        super().__init__(store, name)
        self._proof = threading.Lock()
        self._proven = False

    def create(self, path: str, data: bytes) -> bool:
        """Write an object unless there is one; return whether it was written.

        Raises:
            SettingsError: the store would write over what is there.
        """
        with self._proof:
            if not self._proven:
                self._prove()
        return super().create(path, data)

    def _prove(self) -> None:
        for _ in range(2):
            written = super().create(_PROOF, _PROOF_BYTES)
        if written:
            raise SettingsError(
                f"{self._name} ignores the condition of a write (If-None-Match), so that two workers could both own "
                "a task",
                remedy="Use Amazon S3, or a server that keeps conditional writes, such as a recent MinIO",
            )
        self._proven = True


def _check(url: str, environment: Mapping[str, str]) -> None:
    given = {variable for variable, value in environment.items() if value}
    endpoint = given & {"AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"}
    if not endpoint and not given & {"AWS_REGION", "AWS_DEFAULT_REGION"}:
        raise SettingsError(
            f"the region of {url} is not known",
            remedy="Set AWS_REGION to the region of the bucket, such as eu-central-1",
        )
    for one, other in (
        ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
        ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"),
        ("AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_ROLE_ARN"),
    ):
        if one in given and other not in given:
            raise SettingsError(f"{one} is set, but {other} is not", remedy="Set both, or neither to use a role")
    if not given & _SOURCES:
        if "AWS_PROFILE" in given:
            raise SettingsError(
                "AWS_PROFILE is set, but profile files are not read",
                remedy='Put its keys into the environment: eval "$(aws configure export-credentials --format env)"',
            )
        if environment.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true":
            raise SettingsError(
                f"there are no credentials for {url}, and AWS_EC2_METADATA_DISABLED forbids to ask for the machine's",
                remedy="Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the ECS task a task role",
            )


def _provider(environment: Mapping[str, str], patience: Patience) -> Callable[[], S3Credential] | None:
    # obstore knows the other sources itself, and with a file for the token this one too.
    uri = environment.get("AWS_CONTAINER_CREDENTIALS_FULL_URI")
    if not uri or any(environment.get(one) for one in _SOURCES - {"AWS_CONTAINER_CREDENTIALS_FULL_URI"}):
        return None
    return ContainerCredentials(
        uri,
        token=environment.get("AWS_CONTAINER_AUTHORIZATION_TOKEN", ""),
        token_file=environment.get("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", ""),
        timeout_ms=patience.connect_ms,
    )


_SOURCES = frozenset({
    "AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
})  # fmt: skip

_VARIABLES = {
    "AWS_DEFAULT_REGION": "region",
    "AWS_REGION": "region",
    "AWS_ENDPOINT_URL": "endpoint",
    "AWS_ENDPOINT_URL_S3": "endpoint",
    "AWS_ACCESS_KEY_ID": "access_key_id",
    "AWS_SECRET_ACCESS_KEY": "secret_access_key",
    "AWS_SESSION_TOKEN": "session_token",
    "AWS_WEB_IDENTITY_TOKEN_FILE": "web_identity_token_file",
    "AWS_ROLE_ARN": "role_arn",
    "AWS_ROLE_SESSION_NAME": "role_session_name",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI": "container_credentials_relative_uri",
}
