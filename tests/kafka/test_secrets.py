"""Secrets are nowhere but where they belong."""

from __future__ import annotations

import base64
import logging
import os
import subprocess
import traceback
from contextlib import closing, contextmanager
from urllib.parse import parse_qs, urlsplit

import msgspec
import pytest

from headrace.clock import SystemClock
from headrace.errors import HeadraceError
from headrace.log.kafka.log import KafkaLog
from headrace.log.kafka.options import KafkaOptions
from headrace.record import TopicPartition
from headrace.testing.conformance.log_support import make_batch, read_all
from tests.e2e.harness import HEADRACE, ROOT
from tests.kafka.granting import granting, serving
from tests.kafka.msk import Front, Secret, front
from tests.kafka.secured import PASSWORD, SESSION_MS, USER
from tests.ports import free_port

LOUD = TopicPartition("loud", 0)


@contextmanager
def by_password(secure, aws):
    yield secure.at("SECURE"), {"sasl_mechanism": "SCRAM-SHA-512", "username": USER, "password": PASSWORD}, [PASSWORD]


@contextmanager
def in_plain(secure, aws):
    yield secure.at("SECURE"), {"sasl_mechanism": "PLAIN", "username": USER, "password": PASSWORD}, [PASSWORD]


@contextmanager
def by_grant(secure, aws):
    told, secrets = granting(USER, 60), ["s3cr3t-of-client", base64.b64encode(b"id:s3cr3t-of-client").decode()]

    def answer(number):
        status, body = told(number)
        token = msgspec.json.decode(body)["access_token"]
        secrets.extend([token, token[:60]])  # the libraries shorten what is long
        return status, body

    with serving(answer) as server:
        how = {"sasl_mechanism": "OAUTHBEARER", "token_url": server.url, "token_client_id": "id"}
        yield secure.at("SECURE"), {**how, "token_client_secret": secrets[0]}, secrets
        assert len(secrets) > 2


@contextmanager
def by_certificate(secure, aws):
    pair = secure.authority.sign("with-password", password="s3cr3t-of-key")
    how = {"cert_file": str(pair.certificate), "key_file": str(pair.key), "key_password": "s3cr3t-of-key"}
    yield secure.at("MUTUAL"), {"security_protocol": "SSL", **how}, ["s3cr3t-of-key"]


@contextmanager
def by_role(secure, aws):
    aws.setenv("AWS_ACCESS_KEY_ID", "KEY")
    aws.setenv("AWS_SECRET_ACCESS_KEY", "s3cr3t-of-role")
    aws.setenv("AWS_SESSION_TOKEN", "t0k3n-of-session")
    aws.setenv("AWS_EC2_METADATA_DISABLED", "true")
    opened = Front({"KEY": Secret("s3cr3t-of-role", "t0k3n-of-session")}, "eu-west-1", SESSION_MS)
    secrets = ["s3cr3t-of-role", "t0k3n-of-session"]
    with front(secure.proxy_port, secure.at("BEHIND"), secure.authority.sign("front-of-secrets"), opened):
        yield f"127.0.0.1:{secure.proxy_port}", {"sasl_mechanism": "AWS_MSK_IAM", "region": "eu-west-1"}, secrets
        for token in opened.tokens:
            query = parse_qs(urlsplit(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)).decode()).query)
            secrets += [token, token[:60], *query["X-Amz-Signature"]]
    assert len(secrets) > 3


@pytest.mark.parametrize("how", [by_password, in_plain, by_grant, by_certificate, by_role])
def test_what_the_libraries_say(secure, caplog, monkeypatch, how):
    for name in ("", "aiokafka"):  # whoever opened a log for a command has made that one quiet
        caplog.set_level(logging.DEBUG, logger=name)
    part = TopicPartition(f"secrets-{how.__name__}", 0)
    with how(secure, monkeypatch) as (address, given, secrets):
        chosen = KafkaOptions(
            **{"security_protocol": "SASL_SSL", "ca_file": str(secure.authority.certificate), **given}
        )
        with closing(KafkaLog(f"kafka://{address}", clock=SystemClock(), options=chosen)) as log:
            log.create_topic(part.topic, 1)
            log.append(part, make_batch([b"a"]))
            with closing(log.reader(part, 0)) as reader:
                assert len(read_all(reader)) == 1
            seen = [repr(chosen), str(chosen), repr(log), repr(log._connection)]
        with pytest.raises(HeadraceError) as raised:
            KafkaLog("kafka://127.0.0.1:1", clock=SystemClock(), options=chosen)
        seen += traceback.format_exception(raised.value)
    seen += [record.getMessage() + repr(record.args) for record in caplog.records]
    assert any("Request to" in line for line in seen), "the client was silent"
    for secret in secrets:
        assert not [line for line in seen if secret in line]


def test_what_the_command_says(secure):
    with closing(KafkaLog(f"kafka://{secure.address}", clock=SystemClock())) as log:
        log.create_topic("loud", 1)
        log.append(LOUD, make_batch([b"aloud"]))
    settings = {
        "LOG": f"kafka://{secure.at('BRIEF')}", "KAFKA_SECURITY_PROTOCOL": "SASL_PLAINTEXT", "CHECKPOINTS": "memory://",
        "KAFKA_SASL_MECHANISM": "SCRAM-SHA-512", "KAFKA_USERNAME": USER, "METRICS_PORT": str(free_port()),
    }  # fmt: skip
    environment = os.environ | {f"HEADRACE_{name}": value for name, value in settings.items()} | {"LOUD": "yes"}
    said = ""
    for password, command in (
        (PASSWORD, ("run", "--until-end")), (PASSWORD, ("describe",)), ("s3cr3t-but-wrong", ("run", "--until-end")),
    ):  # fmt: skip
        done = subprocess.run(
            [HEADRACE, command[0], "tests.kafka.loud", *command[1:]], cwd=ROOT, capture_output=True, text=True,
            env=environment | {"HEADRACE_KAFKA_PASSWORD": password}, timeout=90, check=False,
        )  # fmt: skip
        said += done.stdout + done.stderr
    for part in ("Request to", "on purpose", "headrace_records_in_total", "tests.kafka.loud", "refuses user 'worker'"):
        assert part in said
    assert PASSWORD not in said
    assert "s3cr3t-but-wrong" not in said
