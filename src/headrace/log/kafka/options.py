"""What a Kafka client needs to be told beside the addresses of its brokers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from headrace.errors import SettingsError

_SCHEME = "kafka://"
_PROTOCOLS = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")
_MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER", "AWS_MSK_IAM")
_LONGEST_RACK = 255
_CODECS = ("none", "gzip", "snappy", "lz4", "zstd")


@dataclass(frozen=True, slots=True, kw_only=True)
class KafkaOptions:
    """How to reach a Kafka cluster, and how to write to it.

    Every option is an environment variable ``HEADRACE_KAFKA_...``. What is read from a file is read when it is needed.

    Raises:
        SettingsError: options are wrong or do not fit together; the message names the variable.
    """

    security_protocol: str = "PLAINTEXT"
    """``PLAINTEXT``, ``SSL``, ``SASL_PLAINTEXT`` or ``SASL_SSL``."""
    sasl_mechanism: str = ""
    """``PLAIN``, ``SCRAM-SHA-256``, ``SCRAM-SHA-512``, ``OAUTHBEARER`` or ``AWS_MSK_IAM``."""
    username: str = ""
    password: str = field(default="", repr=False)
    password_file: str = ""
    """A file with the password."""
    ca_file: str = ""
    """Certificates to trust instead of the system's."""
    cert_file: str = ""
    """The client's own certificate, and what leads from it to one that the brokers trust."""
    key_file: str = ""
    """The key of that certificate, if it is not in the same file."""
    key_password: str = field(default="", repr=False)
    key_password_file: str = ""
    """A file with the password of the key."""
    token_file: str = ""
    """A file with a token, which something else keeps fresh."""
    token_url: str = ""
    """Where tokens are granted for a client id and its secret (RFC 6749, 4.4)."""
    token_client_id: str = ""
    token_client_secret: str = field(default="", repr=False)
    token_client_secret_file: str = ""
    """A file with the client's secret."""
    token_scope: str = ""
    """What is asked for; may be empty."""
    token_extensions: str = ""
    """What goes with a token: ``name=value,...``."""
    region: str = ""
    """The AWS region of the cluster; otherwise what its address says, or ``AWS_REGION``."""
    compression: str = "none"
    """``none``, ``gzip``, ``snappy``, ``lz4`` or ``zstd``."""
    rack: str = ""
    """Where this client is, as ``broker.rack`` says it of brokers: it reads from replicas there, if they offer that."""
    replication: int = 0
    """Replicas of topics that are created; 0 takes what the brokers say."""
    instance_id: str = ""
    """Makes the member of a group a static one; each worker needs another."""

    def __post_init__(self) -> None:
        for name, value, known in (
            ("security_protocol", self.security_protocol, _PROTOCOLS),
            ("sasl_mechanism", self.sasl_mechanism, ("", *_MECHANISMS)),
            ("compression", self.compression, _CODECS),
        ):
            if value not in known:
                raise SettingsError(f"{_variable(name)} must be one of {', '.join(known)}: {value!r}")
        if self.security_protocol.startswith("SASL") != bool(self.sasl_mechanism):
            raise SettingsError(
                "HEADRACE_KAFKA_SASL_MECHANISM goes with the security protocols SASL_SSL and SASL_PLAINTEXT, and only "
                "with them",
                remedy="Set both, or neither",
            )
        if not self.rack.isprintable() or self.rack != self.rack.strip() or len(self.rack) > _LONGEST_RACK:
            raise SettingsError(
                "HEADRACE_KAFKA_RACK is no name of a rack", remedy="Give what brokers have as broker.rack: use1-az1"
            )
        for name in ("password", "key_password", "token_client_secret"):
            if getattr(self, name) and getattr(self, f"{name}_file"):
                variables = f"{_variable(name)} and {_variable(name)}_FILE"
                raise SettingsError(f"{variables} are both set", remedy="Set one of them")
        self._check_tls()
        self._check_user()
        self._check_token()
        if self.sasl_mechanism == "AWS_MSK_IAM" and self.security_protocol != "SASL_SSL":
            raise SettingsError("AWS_MSK_IAM needs HEADRACE_KAFKA_SECURITY_PROTOCOL=SASL_SSL")

    def _check_tls(self) -> None:
        for name in ("ca_file", "cert_file", "key_file", "key_password", "key_password_file"):
            # Whoever names certificates believes to be safe from listeners.
            if getattr(self, name) and "SSL" not in self.security_protocol:
                raise SettingsError(
                    f"{_variable(name)} is for TLS, but the connection would be without",
                    remedy="Set HEADRACE_KAFKA_SECURITY_PROTOCOL to SSL or SASL_SSL",
                )
        if not self.cert_file and (self.key_file or self.key_password or self.key_password_file):
            raise SettingsError(
                "HEADRACE_KAFKA_KEY_FILE and the key's password go with a certificate",
                remedy="Set HEADRACE_KAFKA_CERT_FILE",
            )

    def _check_user(self) -> None:
        wanted = self.sasl_mechanism in ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
        secret = self.password or self.password_file
        if wanted and not (self.username and secret):
            raise SettingsError(
                f"{self.sasl_mechanism} needs a name and a password",
                remedy="Set HEADRACE_KAFKA_USERNAME and HEADRACE_KAFKA_PASSWORD or HEADRACE_KAFKA_PASSWORD_FILE",
            )
        if not wanted and (self.username or secret):
            raise SettingsError(
                "HEADRACE_KAFKA_USERNAME and a password are set, but nothing would ask for them",
                remedy="Set HEADRACE_KAFKA_SASL_MECHANISM to PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512, or leave them out",
            )

    def _check_token(self) -> None:
        wanted = self.sasl_mechanism == "OAUTHBEARER"
        if not wanted and (self.token_file or self.token_url):
            raise SettingsError(
                "HEADRACE_KAFKA_TOKEN_FILE and HEADRACE_KAFKA_TOKEN_URL are for OAUTHBEARER only",
                remedy="Set HEADRACE_KAFKA_SASL_MECHANISM=OAUTHBEARER, or leave them out",
            )
        if wanted and bool(self.token_file) == bool(self.token_url):
            raise SettingsError(
                "OAUTHBEARER needs one place where tokens come from",
                remedy="Set either HEADRACE_KAFKA_TOKEN_FILE or HEADRACE_KAFKA_TOKEN_URL",
            )
        if self.token_url and not self.token_url.startswith(("https://", "http://")):
            raise SettingsError("HEADRACE_KAFKA_TOKEN_URL must begin with https:// or http://")
        secret = self.token_client_secret or self.token_client_secret_file
        if self.token_url and not (self.token_client_id and secret):
            raise SettingsError(
                "HEADRACE_KAFKA_TOKEN_URL needs a client id and its secret",
                remedy="Set HEADRACE_KAFKA_TOKEN_CLIENT_ID and HEADRACE_KAFKA_TOKEN_CLIENT_SECRET or "
                "HEADRACE_KAFKA_TOKEN_CLIENT_SECRET_FILE",
            )
        self.extensions()

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
            value = environment.get(_variable(option.name), "")
            if value:
                given[option.name] = value
        if "replication" in given:
            if not given["replication"].isdigit():
                raise SettingsError(f"HEADRACE_KAFKA_REPLICATION is not a whole number: {given['replication']!r}")
            given["replication"] = int(given["replication"])
        if worker is not None and "instance_id" in given:
            given["instance_id"] += f"-{worker}"
        return cls(**given)

    @classmethod
    def variables(cls) -> list[str]:
        """Return the names of the variables that say how to connect."""
        return [_variable(option.name) for option in fields(cls)]

    def secret(self, name: str) -> str:
        """Return ``password``, ``key_password`` or ``token_client_secret``, wherever it stands.

        Raises:
            SettingsError: its file cannot be read, or is empty.
        """
        path = getattr(self, f"{name}_file")
        return read_secret(path, f"{_variable(name)}_FILE") if path else str(getattr(self, name))

    def extensions(self) -> dict[str, str]:
        """Return what goes with a token.

        Raises:
            SettingsError: it is written in another way.

        Example:
            >>> KafkaOptions(token_extensions="logicalCluster=lkc-1,identityPoolId=pool-2").extensions()
            {'logicalCluster': 'lkc-1', 'identityPoolId': 'pool-2'}
        """
        pairs = [pair.partition("=") for pair in self.token_extensions.split(",") if self.token_extensions]
        if not all(name.isalpha() and value.isprintable() and value for name, _, value in pairs):
            raise SettingsError("HEADRACE_KAFKA_TOKEN_EXTENSIONS is not name=value,... with names of letters only")
        return {name: value for name, _, value in pairs}


def _variable(name: str) -> str:
    return f"HEADRACE_KAFKA_{name.upper()}"


def read_secret(path: str, variable: str) -> str:
    """Return what stands in a file, without the end of its line.

    Raises:
        SettingsError: it cannot be read, or is empty; the message names the variable.
    """
    try:
        found = Path(path).read_text(encoding="utf-8").strip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text in UTF-8"
        raise SettingsError(f"the file that {variable} names cannot be read: {why}") from None
    if not found:
        raise SettingsError(f"the file that {variable} names is empty")
    return found


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
