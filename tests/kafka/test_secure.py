"""A broker that wants TLS, a name and a password."""

from __future__ import annotations

import os
import shutil

import pytest

from headrace.clock import SystemClock
from headrace.errors import RetriableError, SettingsError
from headrace.log.kafka.log import KafkaLog
from headrace.log.kafka.options import KafkaOptions
from headrace.record import TopicPartition
from headrace.testing.conformance.log_support import make_batch, read_all, values_of
from tests.kafka.broker import REMEDY, JavaBroker, has_java

PART = TopicPartition("payments", 0)
USER = ("worker", "pass-word")


@pytest.fixture(scope="module")
def broker(tmp_path_factory):
    """Yield a broker with a secure listener."""
    if not has_java() or shutil.which("openssl") is None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(f"there is no secure broker. {REMEDY}")
    broker = JavaBroker(tmp_path_factory.mktemp("secure"), USER)
    broker.start()
    yield broker
    broker.kill()


def options(broker, **more):
    given = {
        "security_protocol": "SASL_SSL", "sasl_mechanism": "SCRAM-SHA-512", "username": USER[0], "password": USER[1],
        "ca_file": str(broker.certificate),
    }  # fmt: skip
    return KafkaOptions(**given | more)


def test_with_name_and_password(broker, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text(USER[1])
    chosen = options(broker, password="", password_file=str(secret), compression="gzip")
    log = KafkaLog(f"kafka://{broker.secure_address}", clock=SystemClock(), options=chosen)
    log.create_topic("payments", 1)
    log.append(PART, make_batch([b"a" * 1000, b"b"]))
    reader = log.reader(PART, 0)
    assert values_of(read_all(reader)) == [b"a" * 1000, b"b"]
    reader.close()
    log.close()


@pytest.mark.parametrize(
    ("more", "kind"),
    [({"password": "wrong"}, SettingsError), ({"ca_file": ""}, RetriableError)],
)
def test_what_is_refused(broker, more, kind):
    with pytest.raises(kind) as raised:
        KafkaLog(f"kafka://{broker.secure_address}", clock=SystemClock(), options=options(broker, **more))
    assert "wrong" not in str(raised.value)
    assert "pass-word" not in str(raised.value)
