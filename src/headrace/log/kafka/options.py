"""What a Kafka client needs to be told beside the addresses of its brokers."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from aiokafka.abc import AbstractTokenProvider

from headrace.errors import SettingsError

_SCHEME = "kafka://"
_PROTOCOLS = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")
_MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "AWS_MSK_IAM")
_CODECS = ("none", "gzip", "snappy", "lz4", "zstd")


@dataclass(frozen=True, slots=True, kw_only=True)
class KafkaOptions:
    """How to reach a Kafka cluster, and how to write to it.

    Raises:
        SettingsError: options are wrong or do not fit together; the message names the variable.
    """

    security_protocol: str = "PLAINTEXT"
    """``PLAINTEXT``, ``SSL``, ``SASL_PLAINTEXT`` or ``SASL_SSL``."""
    sasl_mechanism: str = ""
    """``PLAIN``, ``SCRAM-SHA-256``, ``SCRAM-SHA-512`` or ``AWS_MSK_IAM``."""
    username: str = ""
    password: str = field(default="", repr=False)
    password_file: str = ""
    """A file with the password, which is read when the log is opened."""
    ca_file: str = ""
    """Certificates to trust instead of the system's."""
    compression: str = "none"
    """``none``, ``gzip``, ``snappy``, ``lz4`` or ``zstd``."""
    replication: int = 0
    """Replicas of topics that are created; 0 takes what the brokers say."""
    instance_id: str = ""
    """Makes the member of a group a static one; each worker needs another."""

    def __post_init__(self) -> None:
        for name, value, known in (
            ("SECURITY_PROTOCOL", self.security_protocol, _PROTOCOLS),
            ("SASL_MECHANISM", self.sasl_mechanism, ("", *_MECHANISMS)),
            ("COMPRESSION", self.compression, _CODECS),
        ):
            if value not in known:
                raise SettingsError(f"HEADRACE_KAFKA_{name} must be one of {', '.join(known)}: {value!r}")
        sasl = self.security_protocol.startswith("SASL")
        if sasl != bool(self.sasl_mechanism):
            raise SettingsError(
                "HEADRACE_KAFKA_SASL_MECHANISM goes with the security protocols SASL_SSL and SASL_PLAINTEXT, and only "
                "with them",
                remedy="Set both, or neither",
            )
        if self.sasl_mechanism == "AWS_MSK_IAM" and self.security_protocol != "SASL_SSL":
            raise SettingsError("AWS_MSK_IAM needs HEADRACE_KAFKA_SECURITY_PROTOCOL=SASL_SSL")
        given = bool(self.username) and bool(self.password or self.password_file)
        if sasl and self.sasl_mechanism != "AWS_MSK_IAM" and not given:
            raise SettingsError(
                f"{self.sasl_mechanism} needs a name and a password",
                remedy="Set HEADRACE_KAFKA_USERNAME and HEADRACE_KAFKA_PASSWORD or HEADRACE_KAFKA_PASSWORD_FILE",
            )

    @classmethod
    def load(cls, environment: Mapping[str, str], worker: int | None = None) -> KafkaOptions:
        """Return what the variables ``HEADRACE_KAFKA_*`` say.

        Args:
            environment: The variables.
            worker: Which of several workers on this machine it is for: each has an instance id of its own.

        Raises:
            SettingsError: a value cannot be used.

        Example:
            >>> KafkaOptions.load({"HEADRACE_KAFKA_INSTANCE_ID": "slot-1"}, worker=0).instance_id
            'slot-1-0'
        """
        given: dict[str, Any] = {}
        for option in fields(cls):
            value = environment.get(f"HEADRACE_KAFKA_{option.name.upper()}", "")
            if value:
                given[option.name] = value
        if "replication" in given:
            if not given["replication"].isdigit():
                raise SettingsError(f"HEADRACE_KAFKA_REPLICATION is not a whole number: {given['replication']!r}")
            given["replication"] = int(given["replication"])
        if worker is not None and "instance_id" in given:
            given["instance_id"] += f"-{worker}"
        return cls(**given)

    def client(self) -> dict[str, Any]:
        """Return the arguments that every aiokafka client takes.

        Raises:
            SettingsError: a file cannot be read, or a package is missing.
        """
        arguments: dict[str, Any] = {"security_protocol": self.security_protocol, "client_id": "headrace"}
        if "SSL" in self.security_protocol:
            arguments["ssl_context"] = self._ssl_context()
        if self.sasl_mechanism == "AWS_MSK_IAM":
            arguments["sasl_mechanism"] = "OAUTHBEARER"
            arguments["sasl_oauth_token_provider"] = _iam_tokens()
        elif self.sasl_mechanism:
            arguments["sasl_mechanism"] = self.sasl_mechanism
            arguments["sasl_plain_username"] = self.username
            arguments["sasl_plain_password"] = self._password()
        return arguments

    def _password(self) -> str:
        if not self.password_file:
            return self.password
        try:
            return Path(self.password_file).read_text(encoding="utf-8").rstrip("\r\n")
        except OSError as error:
            raise SettingsError(
                f"the file that HEADRACE_KAFKA_PASSWORD_FILE names cannot be read: {error.strerror}"
            ) from error

    def _ssl_context(self) -> ssl.SSLContext:
        try:
            return ssl.create_default_context(cafile=self.ca_file or None)
        except OSError as error:  # what ssl itself raises is one too
            raise SettingsError(
                f"the certificates that HEADRACE_KAFKA_CA_FILE names cannot be used: {error.strerror or error}"
            ) from error


def servers_of(url: str) -> str:
    """Return the bootstrap servers in ``kafka://host:port,...``.

    Raises:
        SettingsError: it is no such address.

    Example:
        >>> servers_of("kafka://b-1:9092,b-2:9092")
        'b-1:9092,b-2:9092'
    """
    servers = url.removeprefix(_SCHEME).rstrip("/")
    for server in servers.split(","):
        host, colon, port = server.rpartition(":")
        if not (colon and host and port.isdigit() and 0 < int(port) < 65536) or "/" in server or "@" in server:
            raise SettingsError(
                "the address of the log is not kafka://host:port,...",
                remedy="Give the brokers' hosts and ports; user and password go into HEADRACE_KAFKA_USERNAME and "
                "HEADRACE_KAFKA_PASSWORD_FILE",
            )
    return servers


def _iam_tokens() -> AbstractTokenProvider:
    try:
        from aws_msk_iam_sasl_signer import MSKAuthTokenProvider
    except ImportError as error:
        raise SettingsError(
            "AWS_MSK_IAM needs the package aws-msk-iam-sasl-signer-python",
            remedy="Install it: pip install 'headrace[msk]'",
        ) from error
    import os

    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if not region:
        raise SettingsError("AWS_MSK_IAM needs to know the region", remedy="Set AWS_REGION")

    class Tokens(AbstractTokenProvider):  # type: ignore[misc]
        """Signs a token for every connection; it is only a signature, so nothing is asked of AWS for it."""

        async def token(self) -> str:
            token, _ = await asyncio.to_thread(MSKAuthTokenProvider.generate_auth_token, region)
            return str(token)

    return Tokens()
