"""What is wrong when brokers cannot be reached, refuse a client, or deny it something."""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Mapping
from typing import Any

from aiokafka.errors import (
    ClusterAuthorizationFailedError,
    GroupAuthorizationFailedError,
    IllegalSaslStateError,
    KafkaError,
    TopicAuthorizationFailedError,
    TransactionalIdAuthorizationFailed,
    UnsupportedSaslMechanismError,
)

from headrace.errors import FatalError, HeadraceError, RetriableError
from headrace.log.kafka.sessions import REFUSED, CutError

_USUALLY = {
    ClusterAuthorizationFailedError: "IdempotentWrite on the cluster, or Write on a topic",
    GroupAuthorizationFailedError: "Read on the group",
    TopicAuthorizationFailedError: "more on a topic",
    TransactionalIdAuthorizationFailed: "Write on the transactional id",
}
DENIED = tuple(_USUALLY)
"""The client is known, but may not do what it wants."""
_LOOK = "Look at the address, at HEADRACE_KAFKA_SECURITY_PROTOCOL and at the network"
_OWN = "HEADRACE_KAFKA_CERT_FILE"
_ALERTS = {
    "CERTIFICATE_REQUIRED": ("want a certificate of the client", f"Set {_OWN} and HEADRACE_KAFKA_KEY_FILE"),
    "UNKNOWN_CA": (
        "do not trust whoever signed the client's certificate",
        f"Look at {_OWN}: the certificates in between go behind the client's own",
    ),
    "CERTIFICATE_EXPIRED": ("say that the client's certificate has expired", f"Put a new one into {_OWN}"),
    "BAD_CERTIFICATE": ("want a certificate of the client, or another one", f"Set {_OWN} and HEADRACE_KAFKA_KEY_FILE"),
    "CERTIFICATE_UNKNOWN": ("do not trust the client's certificate", f"Look at {_OWN}"),
    "UNSUPPORTED_CERTIFICATE": ("do not take the client's certificate", f"Look at {_OWN}"),
}
"""What a broker says in TLS, by the end of its name, and what to do."""
_NO_TLS = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG", "UNEXPECTED_EOF_WHILE_READING")
_NOT_YET, _EXPIRED, _NAMES = 9, 10, (62, 64)
"""OpenSSL's codes of what is wrong with a certificate."""


def is_refusal(error: BaseException) -> bool:
    """Return whether the brokers refuse the client, or deny it something."""
    return isinstance(error, (*REFUSED, *DENIED))


def refused(error: KafkaError, arguments: Mapping[str, Any], what: str = "") -> HeadraceError:
    """Return the error for a client that is refused, or denied something.

    Args:
        error: What the brokers said; its text is what would be needed, such as ``Read on topic 'payments'``.
        arguments: Those of the client.
        what: What it was about.
    """
    at, mechanism = f"Kafka at {arguments['bootstrap_servers']}", arguments.get("sasl_mechanism", "")
    name = arguments.get("sasl_plain_username")
    user = f"user {name!r}" if name else "this client"
    if isinstance(error, DENIED):
        needed = _told(error) or _USUALLY[type(error)]
        about = f" ({what})" if what else ""
        return FatalError(
            f"{at} denies {user} what it needs: {needed}{about}",
            remedy="Allow it, with an ACL or, for IAM on MSK, in the policy of its role",
        )
    if isinstance(error, UnsupportedSaslMechanismError | IllegalSaslStateError):
        return FatalError(
            f"{at} does not take {_given(mechanism, arguments)} on this port",
            remedy="Look at HEADRACE_KAFKA_SASL_MECHANISM and HEADRACE_KAFKA_SECURITY_PROTOCOL, and at the port",
        )
    if mechanism == "OAUTHBEARER":
        return FatalError(
            f"{at} refuses the token of this client", remedy="Look at where it comes from, its scope and its role"
        )
    return FatalError(
        f"{at} refuses {user}, or its password",
        remedy="Look at HEADRACE_KAFKA_USERNAME and at HEADRACE_KAFKA_PASSWORD or HEADRACE_KAFKA_PASSWORD_FILE",
    )


def unreachable(error: KafkaError, arguments: Mapping[str, Any]) -> HeadraceError:
    """Return what to say of brokers that cannot be reached.

    Args:
        error: Its causes say why.
        arguments: Those of the client.
    """
    at = f"the brokers at {arguments['bootstrap_servers']}"
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, KafkaError) and is_refusal(cause):
            return refused(cause, arguments)
        if isinstance(cause, ssl.SSLCertVerificationError):
            return _distrusted(cause, at)
        if isinstance(cause, ssl.SSLError):
            return _tls(cause, at)
    hello = any(isinstance(cause, CutError) for cause in causes)
    if hello and "sasl_mechanism" not in arguments:
        return FatalError(
            f"{at} want clients to say who they are",
            remedy="Set HEADRACE_KAFKA_SECURITY_PROTOCOL and HEADRACE_KAFKA_SASL_MECHANISM, or look at the port",
        )
    if not hello and isinstance(causes[-1], EOFError | ConnectionResetError):
        do = "do not speak TLS" if "SSL" in arguments["security_protocol"] else "want TLS"
        return RetriableError(
            f"{at} end the connection at once, so perhaps they {do}",
            remedy="Look at HEADRACE_KAFKA_SECURITY_PROTOCOL and at the port",
        )
    last = causes[-1]
    why = f"{type(last).__name__}: {last}" if isinstance(last, OSError) and str(last) else type(last).__name__
    return RetriableError(f"no broker at {arguments['bootstrap_servers']} can be reached: {why}", remedy=_LOOK)


def _distrusted(error: ssl.SSLCertVerificationError, at: str) -> HeadraceError:
    code = error.verify_code
    if code in _NAMES:
        return FatalError(
            f"the certificate of {at} is for another name: " + error.verify_message.rstrip("."),
            remedy="Name the brokers as their certificates do",
        )
    if code in (_EXPIRED, _NOT_YET):
        return FatalError(
            f"the certificate of {at} {'has expired' if code == _EXPIRED else 'is not valid yet'}",
            remedy="Have the brokers given new ones, or look at this machine's clock",
        )
    return FatalError(
        f"nobody that is trusted has signed the certificate of {at}: {error.verify_message}",
        remedy="Name the certificates to trust with HEADRACE_KAFKA_CA_FILE",
    )


def _tls(error: ssl.SSLError, at: str) -> HeadraceError:
    reason = error.reason or ""
    for end, (told, remedy) in _ALERTS.items():
        if reason.endswith(end):
            return FatalError(f"{at} {told}", remedy=remedy)
    if reason in _NO_TLS:
        return RetriableError(
            f"{at} do not speak TLS", remedy="Look at HEADRACE_KAFKA_SECURITY_PROTOCOL and at the port"
        )
    return RetriableError(f"TLS with {at} fails: {reason or type(error).__name__}", remedy=_LOOK)


def _given(mechanism: str, arguments: Mapping[str, Any]) -> str:
    return f"{mechanism} with {arguments['security_protocol']}"


def _told(error: KafkaError) -> str:
    """Return what was said where it was raised, without what the library puts before."""
    first = error.args[0] if error.args else ""
    return first if isinstance(first, str) else ""


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
