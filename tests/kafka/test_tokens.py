"""Tokens: where they come from, how long they are kept, and brokers that look at them."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import ssl
import sys
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest

from headrace.clock import SystemClock
from headrace.errors import FatalError, RetriableError, SettingsError
from headrace.log.kafka import tokens
from headrace.log.kafka.log import KafkaLog
from headrace.log.kafka.options import KafkaOptions
from headrace.log.kafka.tokens import FileTokens, GrantedTokens, region_of
from headrace.record import TopicPartition
from headrace.testing.conformance.log_support import make_batch, read_all, values_of
from tests.kafka.granting import granting, serving, token
from tests.kafka.msk import Front, Secret, front
from tests.kafka.secured import SESSION_MS, USER

BEARER = {"security_protocol": "SASL_PLAINTEXT", "sasl_mechanism": "OAUTHBEARER"}
GRANTED = {**BEARER, "token_client_id": "my:client", "token_client_secret": "se cret/+"}
REGION = "eu-west-1"


class Hands:
    """A clock that stands still."""

    def __init__(self):
        self.ms = 1_700_000_000_000

    def now_ms(self):
        return self.ms

    monotonic_ms = now_ms


def ask(source, times=1):
    async def asked():
        return await asyncio.gather(*(source.token() for _ in range(times)))

    return asyncio.run(asked())


def open_log(address, **options):
    return closing(KafkaLog(f"kafka://{address}", clock=SystemClock(), options=KafkaOptions(**options)))


def write_and_read(log, topic):
    log.create_topic(topic, 1)
    log.append(TopicPartition(topic, 0), make_batch([b"a", b"b"]))
    with closing(log.reader(TopicPartition(topic, 0), 0)) as reader:
        assert values_of(read_all(reader)) == [b"a", b"b"]


def test_a_file_that_something_else_writes(secure, tmp_path):
    file = tmp_path / "token"
    file.write_text(token(USER, 60) + "\n")
    with open_log(secure.at("BRIEF"), **BEARER, token_file=str(file)) as log:
        write_and_read(log, "by-token-file")
    source = FileTokens(KafkaOptions(**BEARER, token_file=str(file)), Hands())
    for text in ("first", "second"):
        file.write_text(text)
        assert ask(source) == [text]
    for content, told in (
        (token(USER, -1000), "expired"), ("", "empty"), ("two words", "no bearer token"), (b"\xff", "UTF-8"),
    ):  # fmt: skip
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises((FatalError, SettingsError), match=told) as raised:
            ask(FileTokens(KafkaOptions(**BEARER, token_file=str(file)), SystemClock()))
        assert "HEADRACE_KAFKA_TOKEN_FILE" in str(raised.value)
    file.unlink()
    with pytest.raises(SettingsError, match=r"HEADRACE_KAFKA_TOKEN_FILE.*No such file"):
        open_log(secure.at("BRIEF"), **BEARER, token_file=str(file))


def test_a_token_that_the_broker_refuses(secure, tmp_path):
    file = tmp_path / "token"
    file.write_text("opaque-and-secret")
    with pytest.raises(FatalError, match="refuses the token") as raised:
        open_log(secure.at("BRIEF"), **BEARER, token_file=str(file))
    assert "opaque" not in str(raised.value)


def granted(answer, url, clock, **more):
    options = KafkaOptions(**{**GRANTED, "token_url": url, **more})
    return GrantedTokens(options, ssl.create_default_context(), clock)


def test_a_granted_token_is_kept_while_it_is_fresh(secure):
    def answer(number):
        if number == 0:
            return 503, b"later"
        return 200, json.dumps({"access_token": f"t{number}", "expires_in": 100}).encode()

    clock = Hands()
    with serving(answer) as server:
        source = granted(answer, server.url + "/token", clock, token_scope="kafka all")
        assert ask(source, 3) == ["t1"] * 3
        clock.ms += 74_000
        assert ask(source) == ["t1"]
        clock.ms += 2_000
        assert ask(source) == ["t2"]
    path, headers, form = server.asked[-1]
    assert path == "/token"
    assert form == {"grant_type": "client_credentials", "scope": "kafka all"}
    assert base64.b64decode(headers["Authorization"].removeprefix("Basic ")) == b"my%3Aclient:se%20cret%2F%2B"
    assert len(server.asked) == 3


def test_a_granted_token_over_tls_and_a_real_broker(secure, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("s3\n")
    how = {
        "security_protocol": "SASL_SSL", "sasl_mechanism": "OAUTHBEARER", "token_client_id": "id",
        "token_client_secret_file": str(secret), "ca_file": str(secure.authority.certificate),
    }  # fmt: skip
    with serving(granting(USER, 60), secure.authority.sign("granter")) as server:
        with open_log(secure.at("SECURE"), **how, token_url=server.url) as log:
            write_and_read(log, "by-granted-token")
        assert len(server.asked) == 1
        del how["ca_file"]
        how["security_protocol"] = "SASL_PLAINTEXT"
        with pytest.raises(FatalError, match="certificate that is not trusted"):
            open_log(secure.at("BRIEF"), **how, token_url=server.url)


@pytest.mark.parametrize(
    ("status", "body", "told"),
    [
        (401, b'{"error":"invalid_client","error_description":"se cret/+ is wrong"}', "status 401 .invalid_client."),
        (400, b'{"error":"se cret/+"}', "status 400"),
        (302, b"", "status 302"),
        (200, b"<html>", "without a token"),
        (200, b'{"access_token":"a\\u0001b"}', "no bearer token"),
    ],
)
def test_tokens_that_are_not_granted(status, body, told):
    with serving(lambda _: (status, body)) as server:
        with pytest.raises(FatalError, match=told) as raised:
            ask(granted(None, server.url, Hands()))
        assert len(server.asked) == 1, "what was refused is asked for again"
    assert "HEADRACE_KAFKA_TOKEN_URL" in str(raised.value)
    assert "cret" not in str(raised.value).replace("its secret", "")


def test_a_granter_that_is_not_there(monkeypatch):
    monkeypatch.setattr(tokens, "_PAUSE_S", 0.01)
    with serving(lambda _: (500, b"")) as server:
        with pytest.raises(RetriableError, match="status 500"):
            ask(granted(None, server.url, Hands()))
        assert len(server.asked) == 3
    with pytest.raises(RetriableError, match="cannot be reached"):
        ask(granted(None, server.url, Hands()))


@pytest.fixture
def aws(monkeypatch, tmp_path):
    """Set the environment of a machine that has no credentials, and is not at AWS."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    return monkeypatch


def iam(secure, **more):
    return {
        "security_protocol": "SASL_SSL", "sasl_mechanism": "AWS_MSK_IAM", "region": REGION,
        "ca_file": str(secure.authority.certificate), **more,
    }  # fmt: skip


def test_iam_with_the_credentials_of_a_task(secure, aws):
    expires = (datetime.now(UTC) + timedelta(hours=6)).strftime("%Y-%m-%dT%H:%M:%SZ")
    task = {"AccessKeyId": "TASKKEY", "SecretAccessKey": "task-secret", "Token": "task-token", "Expiration": expires}
    opened = Front({"TASKKEY": Secret("task-secret", "task-token")}, REGION, SESSION_MS)
    with (
        front(secure.proxy_port, secure.at("BEHIND"), secure.authority.sign("front"), opened),
        serving(lambda _: (200, json.dumps(task).encode())) as server,
    ):
        aws.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", server.url + "/role")
        aws.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN", "may-i")
        with open_log(f"127.0.0.1:{secure.proxy_port}", **iam(secure)) as log:
            write_and_read(log, "by-task-role")
        path, headers, _ = server.asked[0]
    assert (path, headers["Authorization"], len(server.asked)) == ("/role", "may-i", 1)
    assert len(opened.faults) >= 3
    assert not any(opened.faults)


def test_iam_goes_on_when_its_sessions_end(secure, aws):
    aws.setenv("AWS_ACCESS_KEY_ID", "KEY")
    aws.setenv("AWS_SECRET_ACCESS_KEY", "right")
    opened = Front({"KEY": Secret("right")}, REGION, 400)
    with front(secure.proxy_port, secure.at("BEHIND"), secure.authority.sign("front"), opened):
        with open_log(f"127.0.0.1:{secure.proxy_port}", **iam(secure)) as log:
            before = len(opened.faults)
            log.create_topic("by-key", 1)
            while len(opened.faults) < before + 6:
                log.append(TopicPartition("by-key", 0), make_batch([b"x"]))
            assert not any(opened.faults)
            assert len(opened.faults) > opened.connections, "nobody proved twice on one connection who it is"
        aws.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        with pytest.raises(FatalError, match="refuses the token"):
            open_log(f"127.0.0.1:{secure.proxy_port}", **iam(secure))
        assert opened.faults[-1] == "signature"


def test_iam_without_what_it_needs(secure, aws):
    with pytest.raises(SettingsError, match=r"region.*HEADRACE_KAFKA_REGION or AWS_REGION"):
        open_log("127.0.0.1:1", **iam(secure, region=""))
    aws.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(RetriableError, match=r"ProfileNotFound.*AWS_PROFILE"):
        open_log(secure.at("SECURE"), **iam(secure))
    aws.setitem(sys.modules, "aws_msk_iam_sasl_signer", None)
    with pytest.raises(SettingsError, match=r"pip install 'headrace\[msk\]'"):
        open_log("127.0.0.1:1", **iam(secure))


def test_which_region(aws):
    aws.setenv("AWS_REGION", "us-east-1")
    for address, region in (
        ("b-1.pay.a1b2c3.c4.kafka.eu-west-1.amazonaws.com:9098,b-2.x:1", "eu-west-1"),
        ("boot-x.c1.kafka-serverless.ap-south-1.amazonaws.com:9098", "ap-south-1"),
        ("b-1.pay.a1.c4.kafka.cn-north-1.amazonaws.com.cn:9098", "cn-north-1"),
        ("kafka.inside.example:9098", "us-east-1"),
    ):
        assert region_of(address, "") == region
        assert region_of(address, "sa-east-1") == "sa-east-1"
