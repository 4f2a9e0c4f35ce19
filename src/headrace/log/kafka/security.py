"""Options as the client wants them: TLS, the user, and where tokens come from."""

from __future__ import annotations

import ssl
from typing import Any

from headrace.clock import Clock
from headrace.errors import SettingsError
from headrace.log.kafka.options import KafkaOptions
from headrace.log.kafka.tokens import FileTokens, GrantedTokens, SignedTokens, Tokens, region_of


def client_arguments(options: KafkaOptions, servers: str, clock: Clock) -> dict[str, Any]:
    """Return the arguments that every aiokafka client takes.

    Args:
        options: How to connect.
        servers: Where to; may say in which AWS region that is.
        clock: Says when tokens have expired.

    Raises:
        SettingsError: a file cannot be used, a package is missing, or the region is not known.
    """
    arguments: dict[str, Any] = {
        "bootstrap_servers": servers, "client_id": "headrace", "security_protocol": options.security_protocol,
    }  # fmt: skip
    if "SSL" in options.security_protocol:
        arguments["ssl_context"] = _ssl_context(options)
    if options.sasl_mechanism in ("OAUTHBEARER", "AWS_MSK_IAM"):
        arguments["sasl_mechanism"] = "OAUTHBEARER"
        arguments["sasl_oauth_token_provider"] = _tokens(options, servers, clock)
    elif options.sasl_mechanism:
        arguments["sasl_mechanism"] = options.sasl_mechanism
        arguments["sasl_plain_username"] = options.username
        arguments["sasl_plain_password"] = options.secret("password")
    return arguments


def _tokens(options: KafkaOptions, servers: str, clock: Clock) -> Tokens:
    if options.sasl_mechanism == "AWS_MSK_IAM":
        return SignedTokens(region_of(servers, options.region), clock)
    if options.token_file:
        return FileTokens(options, clock)
    return GrantedTokens(options, _trusted(ssl.create_default_context(), options), clock)


def _ssl_context(options: KafkaOptions) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # checks certificates and the names in them
    if options.ca_file:
        _trusted(context, options)
    else:
        context.load_default_certs()
    if options.cert_file:
        _identify(context, options)
    return context


def _trusted(context: ssl.SSLContext, options: KafkaOptions) -> ssl.SSLContext:
    """Let ``context`` trust the certificates that the options name, if they name any."""
    try:
        if options.ca_file:
            context.load_verify_locations(cafile=options.ca_file)
    except OSError as error:  # what ssl itself raises is one too
        why = "it has no certificates in PEM format" if isinstance(error, ssl.SSLError) else error.strerror
        raise SettingsError(
            f"the certificates that HEADRACE_KAFKA_CA_FILE names cannot be used: {why}",
            remedy="Name a file in PEM format with the certificates of whoever signed the brokers' own",
        ) from None
    return context


def _identify(context: ssl.SSLContext, options: KafkaOptions) -> None:
    asked = False

    def password() -> str:
        nonlocal asked
        asked = True
        return options.secret("key_password")

    try:  # without a function it would ask whoever sits at the terminal
        context.load_cert_chain(options.cert_file, options.key_file or None, password)
    except OSError as error:
        raise _unusable(error, options, asked) from None


def _unusable(error: OSError, options: KafkaOptions, asked: bool) -> SettingsError:
    """Return what is wrong with the client's own certificate or key."""
    told = "HEADRACE_KAFKA_CERT_FILE" + (" and HEADRACE_KAFKA_KEY_FILE" if options.key_file else "")
    if not isinstance(error, ssl.SSLError):
        return SettingsError(f"what {told} names cannot be read: {error.strerror}")
    if asked and not (options.key_password or options.key_password_file):
        return SettingsError(
            "the key of the client's certificate has a password, and none is given",
            remedy="Set HEADRACE_KAFKA_KEY_PASSWORD or HEADRACE_KAFKA_KEY_PASSWORD_FILE",
        )
    if error.reason == "KEY_VALUES_MISMATCH":
        return SettingsError(f"what {told} names does not go together: the key is of another certificate")
    if asked:
        return SettingsError(
            "the key of the client's certificate cannot be read with the password that is given",
            remedy="Look at HEADRACE_KAFKA_KEY_PASSWORD or HEADRACE_KAFKA_KEY_PASSWORD_FILE",
        )
    return SettingsError(
        f"what {told} names is no certificate with its key in PEM format",
        remedy="Put the certificate first and those that signed it behind; the key may be in the same file",
    )
