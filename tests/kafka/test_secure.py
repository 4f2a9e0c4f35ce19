"""Brokers that want TLS, a certificate, a name and a password, and that do not allow everybody everything."""

from __future__ import annotations

import os
import subprocess
from contextlib import closing, contextmanager

import msgspec
import pytest
from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)

from headrace.clock import SystemClock
from headrace.errors import FatalError, RetriableError, SettingsError
from headrace.log.kafka.log import KafkaLog
from headrace.log.kafka.options import KafkaOptions
from headrace.record import JoinedBytes, RecordBatch, TopicPartition
from headrace.testing.conformance.log_support import make_batch, read_all, values_of
from tests.e2e.harness import HEADRACE, ROOT
from tests.kafka.certificates import Authority
from tests.kafka.clean import wipe
from tests.kafka.secured import GUEST, GUEST_PASSWORD, PASSWORD, USER

PLAIN, SSL, SASL = "PLAINTEXT", "SSL", "SASL_PLAINTEXT"
SCRAM = {"sasl_mechanism": "SCRAM-SHA-512", "username": USER, "password": PASSWORD}


@pytest.fixture(scope="session")
def files(secure, tmp_path_factory):
    """Return files by name: the authority's certificate, the client's, and what is wrong in some way."""
    directory = tmp_path_factory.mktemp("files")
    other = Authority(directory, "other")
    client, stranger = secure.authority.sign("client"), other.sign("stranger")
    locked = secure.authority.sign("locked", password="key-pass")
    (directory / "empty").write_text("")
    (directory / "password").write_text(PASSWORD + "\n")
    both = directory / "both.pem"
    both.write_text(client.certificate.read_text() + client.key.read_text())
    return {
        "ca": secure.authority.certificate, "other-ca": other.certificate, "client": client.certificate,
        "client-key": client.key, "both": both, "stranger": stranger.certificate, "stranger-key": stranger.key,
        "locked": locked.certificate, "locked-key": locked.key, "empty": directory / "empty",
        "none": directory / "none", "password": directory / "password",
    }  # fmt: skip


def options(files, **given):
    """Return options; those that name files are given by name."""
    return KafkaOptions(**{key: str(files[to]) if key.endswith("_file") else to for key, to in given.items()})


def open_log(address, chosen):
    return closing(KafkaLog(f"kafka://{address}", clock=SystemClock(), options=chosen))


@pytest.mark.parametrize(
    ("listener", "given"),
    [
        ("SECURE", {**SCRAM, "password": "", "password_file": "password"}),
        ("SECURE", {**SCRAM, "sasl_mechanism": "PLAIN"}),
        ("MUTUAL", {"cert_file": "client", "key_file": "client-key"}),
        ("MUTUAL", {"cert_file": "both"}),
        ("MUTUAL", {"cert_file": "locked", "key_file": "locked-key", "key_password": "key-pass"}),
    ],
)
def test_who_comes_in(secure, files, listener, given):
    protocol = "SASL_SSL" if listener == "SECURE" else SSL
    chosen = options(files, security_protocol=protocol, ca_file="ca", compression="gzip", **given)
    part = TopicPartition("who-comes-in", 0)
    with open_log(secure.at(listener), chosen) as log:
        log.create_topic(*part[:1], 1)
        offset = log.append(part, make_batch([b"a" * 1000, b"b"]))
        with closing(log.reader(part, offset)) as reader:
            assert values_of(read_all(reader)) == [b"a" * 1000, b"b"]


TLS_SCRAM = {"security_protocol": "SASL_SSL", "ca_file": "ca", **SCRAM}
TLS = {"security_protocol": SSL, "ca_file": "ca"}


@pytest.mark.parametrize(
    ("listener", "given", "kind", "told"),
    [
        ("SECURE", {**TLS_SCRAM, "password": "not-that"}, FatalError, "refuses user 'worker'.*KAFKA_PASSWORD_FILE"),
        ("SECURE", {**TLS_SCRAM, "username": "nobody"}, FatalError, "refuses user 'nobody'.*KAFKA_USERNAME"),
        ("SECURE", {**TLS_SCRAM, "sasl_mechanism": "PLAIN", "password": "not-that"}, FatalError, "refuses user"),
        ("SECURE", {**TLS_SCRAM, "sasl_mechanism": "SCRAM-SHA-256"}, FatalError, "not take SCRAM-SHA-256.*MECHANISM"),
        ("SECURE", {**TLS_SCRAM, "ca_file": "other-ca"}, FatalError, "nobody that is trusted.*KAFKA_CA_FILE"),
        ("SECURE", TLS, FatalError, "say who they are.*KAFKA_SASL_MECHANISM"),
        ("MUTUAL", TLS, FatalError, "want a certificate of the client.*KAFKA_CERT_FILE and HEADRACE_KAFKA_KEY_FILE"),
        ("MUTUAL", {**TLS, "cert_file": "stranger", "key_file": "stranger-key"}, FatalError, "trust.*KAFKA_CERT_FILE"),
        ("EXPIRED", TLS, FatalError, "has expired"),
        ("ELSEWHERE", TLS, FatalError, "is for another name.*127.0.0.1"),
        ("MUTUAL", {}, RetriableError, "want TLS.*KAFKA_SECURITY_PROTOCOL"),
        ("BRIEF", {}, FatalError, "say who they are.*KAFKA_SASL_MECHANISM"),
        ("", TLS, RetriableError, "not speak TLS.*KAFKA_SECURITY_PROTOCOL"),
        ("", {"security_protocol": SASL, **SCRAM}, FatalError, "does not take SCRAM-SHA-512 with SASL_PLAINTEXT"),
    ],
)
def test_who_is_refused(secure, files, listener, given, kind, told):
    clock = SystemClock()
    begun_ms = clock.monotonic_ms()
    with pytest.raises(kind, match=told) as raised:
        open_log(secure.at(listener) if listener else secure.address, options(files, **given))
    assert clock.monotonic_ms() - begun_ms < 20_000
    assert "not-that" not in str(raised.value)
    assert PASSWORD not in str(raised.value)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"security_protocol": SSL, "ca_file": "none"}, "KAFKA_CA_FILE.*No such file"),
        ({"security_protocol": SSL, "ca_file": "client-key"}, "KAFKA_CA_FILE.*no certificates"),
        ({"ca_file": "ca"}, "KAFKA_CA_FILE is for TLS"),
        ({**TLS, "key_file": "client-key"}, "Set HEADRACE_KAFKA_CERT_FILE"),
        ({**TLS, "cert_file": "none"}, "KAFKA_CERT_FILE.*No such file"),
        ({**TLS, "cert_file": "client"}, "KAFKA_CERT_FILE.*no certificate with its key"),
        ({**TLS, "cert_file": "client", "key_file": "stranger-key"}, "KAFKA_KEY_FILE.*another certificate"),
        ({**TLS, "cert_file": "locked", "key_file": "locked-key"}, "Set HEADRACE_KAFKA_KEY_PASSWORD"),
        ({**TLS, "cert_file": "locked", "key_file": "locked-key", "key_password": "x"}, "KAFKA_KEY_PASSWORD_FILE"),
        ({**TLS, "cert_file": "locked", "key_file": "locked-key", "key_password_file": "none"}, "PASSWORD_FILE.*No"),
        ({"username": USER, "password": "x"}, "KAFKA_USERNAME.*nothing would ask"),
        ({"security_protocol": SASL, "sasl_mechanism": "PLAIN", "username": USER}, "KAFKA_PASSWORD_FILE"),
        ({"security_protocol": SASL, **SCRAM, "password_file": "password"}, "KAFKA_PASSWORD_FILE are both set"),
        ({"security_protocol": SASL, **SCRAM, "password": "", "password_file": "empty"}, "PASSWORD_FILE.* is empty"),
        ({"security_protocol": SASL, "sasl_mechanism": "AWS_MSK_IAM"}, "KAFKA_SECURITY_PROTOCOL=SASL_SSL"),
        ({"security_protocol": SASL, "sasl_mechanism": "OAUTHBEARER"}, "KAFKA_TOKEN_FILE or HEADRACE_KAFKA_TOKEN_URL"),
        ({"security_protocol": SASL, "sasl_mechanism": "OAUTHBEARER", "token_url": "x"}, "https:// or http://"),
        ({"security_protocol": SASL, "sasl_mechanism": "OAUTHBEARER", "token_url": "https://x"}, "TOKEN_CLIENT_SECRET"),
        ({"token_file": "password"}, "KAFKA_SASL_MECHANISM=OAUTHBEARER"),
        ({"token_extensions": "a=b,c"}, "KAFKA_TOKEN_EXTENSIONS"),
        ({"sasl_mechanism": "PLAIN"}, "KAFKA_SASL_MECHANISM goes with"),
        ({"security_protocol": "TLS"}, "KAFKA_SECURITY_PROTOCOL must be one of"),
    ],
)
def test_options_that_cannot_be_used(files, given, told):
    with pytest.raises(SettingsError, match=told) as raised:
        open_log("127.0.0.1:1", options(files, **given))
    assert PASSWORD not in str(raised.value)


@pytest.fixture
def guest(secure, files, tmp_path):
    """Return what runs the command as a guest; it returns what was said."""
    settings = {"SECURITY_PROTOCOL": SASL, "SASL_MECHANISM": "SCRAM-SHA-512", "USERNAME": GUEST}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
    environment |= {f"HEADRACE_KAFKA_{name}": value for name, value in settings.items()}
    environment |= {"HEADRACE_KAFKA_PASSWORD": GUEST_PASSWORD, "HEADRACE_LOG": f"kafka://{secure.at('BRIEF')}"}
    environment |= {"HEADRACE_STATE_DIR": str(tmp_path / "state"), "HEADRACE_METRICS_PORT": "0"}
    environment |= {"HEADRACE_CHECKPOINTS": str(tmp_path / "checkpoints")}

    def run(*arguments, code, **more):
        done = subprocess.run(
            [HEADRACE, *arguments], env=environment | more, cwd=ROOT, capture_output=True, text=True, timeout=90,
            check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        return " ".join((done.stdout + done.stderr).split())

    return run


@contextmanager
def denied(secure, kind, name, operation):
    """Forbid the guest one thing, and allow it all others."""
    admin = AdminClient({"bootstrap.servers": secure.address, "log_level": 0})
    allow, deny = AclPermissionType.ALLOW, AclPermissionType.DENY
    rules = [(AclOperation.ALL, allow), (operation, deny)]
    place = (kind, name, ResourcePatternType.LITERAL, f"User:{GUEST}", "*")
    for made in admin.create_acls([AclBinding(*place, *rule) for rule in rules]).values():
        made.result(60)
    try:
        yield
    finally:
        for gone in admin.delete_acls([AclBindingFilter(*place, *rule) for rule in rules]).values():
            gone.result(60)


def test_exit_codes(secure, guest):
    assert "HEADRACE_KAFKA_PASSWORD" in guest("topics", code=1, HEADRACE_KAFKA_PASSWORD="wrong")
    assert "HEADRACE_KAFKA_CA_FILE" in guest("topics", code=2, HEADRACE_KAFKA_CA_FILE="/nowhere")


RUN = ("run", "topologies.card_spend", "--until-end")
PAYMENTS = TopicPartition("payments", 0)


def test_what_is_denied(secure, guest):
    wipe(secure.address)
    payment = {"transaction_id": "t", "customer_id": "c", "total": 1.5, "at": 1_700_000_000_000}
    batch = RecordBatch([payment["at"]], [b"c"], JoinedBytes.of([msgspec.msgpack.encode(payment)]))
    with open_log(secure.address, KafkaOptions()) as log:
        log.create_topic(PAYMENTS.topic, 1)
        log.append(PAYMENTS, batch)
    topic, group = ResourceType.TOPIC, ResourceType.GROUP
    for kind, name, operation, needed in (
        (topic, "payments", AclOperation.DESCRIBE, "Describe on topic 'payments'"),
        (topic, "payments", AclOperation.READ, "Read on topic 'payments'"),
        (group, "card-spend", AclOperation.READ, "Read on group 'card-spend'"),
        (topic, "spend-per-minute", AclOperation.WRITE, "Write on topic 'spend-per-minute'"),
    ):
        with denied(secure, kind, name, operation):
            said = guest(*RUN, code=1)
        assert f"denies user 'guest' what it needs: {needed}" in said
        assert "ACL" in said
        assert "passed over" not in said
    chosen = KafkaOptions(security_protocol=SASL, **SCRAM | {"username": GUEST, "password": GUEST_PASSWORD})
    with denied(secure, topic, "*", AclOperation.WRITE), open_log(secure.at("BRIEF"), chosen) as log:
        with closing(log.reader(PAYMENTS, 0)) as reader:  # who only reads needs not write
            assert len(read_all(reader)) == 1
        with pytest.raises(FatalError, match=r"what it needs: (Write on topic|IdempotentWrite)"):
            log.append(PAYMENTS, batch)
