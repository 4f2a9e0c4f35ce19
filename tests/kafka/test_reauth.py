"""Sessions that end: nobody notices, and nothing is lost."""

from __future__ import annotations

import logging
from contextlib import closing

import pytest
from confluent_kafka.admin import AdminClient, ScramMechanism, UserScramCredentialDeletion

from headrace.clock import SystemClock
from headrace.demo.payments import Payments
from headrace.errors import FatalError
from headrace.log.kafka import sessions, tokens
from headrace.log.kafka.log import KafkaLog
from headrace.log.kafka.options import KafkaOptions
from headrace.record import TopicPartition
from headrace.testing.conformance.log_support import assign_evenly, make_batch, until, values_of
from tests.e2e.harness import committed, expected, fill, kill_all, results, wait_for
from tests.kafka.clean import wipe
from tests.kafka.granting import granting, serving
from tests.kafka.secured import LEAVER, LEAVER_PASSWORD, PASSWORD, SESSION_MS, USER
from tests.kafka.site import KafkaSite

SESSIONS = 3
"""How many of them the tests last."""
SCRAM = {
    "security_protocol": "SASL_PLAINTEXT",
    "sasl_mechanism": "SCRAM-SHA-512",
    "username": USER,
    "password": PASSWORD,
}
PAYMENTS = Payments(count=1_000_000, customers=50, duplicate_share=0.02, late_share=0.01)


class Traffic:
    """A log with a producer, a reader and a member, all of them busy."""

    def __init__(self, address, name, options):
        self.log = KafkaLog(f"kafka://{address}", clock=SystemClock(), options=options)
        self.part = TopicPartition(f"traffic-{name}", 0)
        self.log.create_topic(self.part.topic, 1)
        self.member = self.log.group(f"group-{name}").join(
            "m", {"unit": [self.part]}, assign_evenly, session_timeout_ms=30_000
        )
        until(lambda: self.member.poll().leases, 60)
        self.reader = self.log.reader(self.part, 0)
        self.sent, self.read = [], []
        self.turn()
        self.begun = self.known()

    def known(self):
        connections = self.log._connection.client._conns | self.log._sender._producer.client._conns
        return self.member.poll().leases, self.member._generation, set(connections.values())

    def turn(self):
        self.sent.append(b"%d" % len(self.sent))
        self.log.append(self.part, make_batch([self.sent[-1]]))
        batch = self.reader.read(1000)
        self.read += values_of([batch]) if batch is not None else []
        self.member.poll()
        self.log.topics()

    def check(self):
        leases, generation, connections = self.known()
        assert (leases, generation) == self.begun[:2]
        assert connections >= self.begun[2], "a connection was made anew"
        while len(self.read) < len(self.sent):
            until(lambda: self.reader.end_offset() > self.reader.position, 60)
            batch = self.reader.read(1000)
            self.read += values_of([batch]) if batch is not None else []
        assert self.read == self.sent

    def close(self):
        self.member.leave()
        self.reader.close()
        self.log.close()


class Meanwhile:
    """Payments that come one after the other, with other traffic in between, over several sessions."""

    def __init__(self, traffics):
        self._traffics = traffics

    def batches(self, _):
        goes_on = lasting(SESSIONS)
        for batch in PAYMENTS.batches(20):
            yield batch
            for traffic in self._traffics:
                traffic.turn()
            if not goes_on():
                return


def lasting(sessions):
    clock = SystemClock()
    end_ms = clock.monotonic_ms() + sessions * SESSION_MS
    return lambda: clock.monotonic_ms() < end_ms


def check_silence(caplog):
    """Nothing was said but, by the client, that it has said who it is."""
    most = {"aiokafka.conn": logging.INFO}
    loud = [record for record in caplog.records if record.levelno > most.get(record.name, logging.DEBUG)]
    assert not [record.getMessage() for record in loud]


def test_a_request_that_comes_too_late(secure, caplog, monkeypatch):
    monkeypatch.setattr(sessions, "_SHARE", 1000)  # so that no session is renewed, and brokers cut every connection
    caplog.set_level(logging.INFO)
    with closing(Traffic(secure.at("BRIEF"), "late", KafkaOptions(**SCRAM))) as traffic:
        goes_on = lasting(1.5)
        while goes_on():
            traffic.turn()
        *rest, connections = traffic.begun
        assert len(traffic.known()[-1] - connections) >= 3, "no session ended"
        traffic.begun = (*rest, set())
        traffic.check()
    check_silence(caplog)


def test_a_password_that_counts_no_more(secure, monkeypatch):
    monkeypatch.setattr(sessions, "_REFUSED_S", 1)
    chosen = KafkaOptions(**SCRAM | {"username": LEAVER, "password": LEAVER_PASSWORD})
    traffic = Traffic(secure.at("BRIEF"), "leaver", chosen)
    admin = AdminClient({"bootstrap.servers": secure.address, "log_level": 0})
    gone = UserScramCredentialDeletion(LEAVER, ScramMechanism.SCRAM_SHA_512)
    for done in admin.alter_user_scram_credentials([gone]).values():
        done.result(60)
    traffic.member.poll()  # what is connected stays so
    with pytest.raises(FatalError, match="refuses user 'leaver'"):
        wait_for(lambda: traffic.member.poll() is None)
    traffic.reader.close()
    traffic.log.close()


class BriefSite(KafkaSite):
    """A site whose processes have to say again and again who they are."""

    def environment(self, **more):
        return super().environment(**{f"HEADRACE_KAFKA_{name.upper()}": value for name, value in SCRAM.items()}, **more)


def test_sessions_that_end(secure, tmp_path, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    address = secure.at("BRIEF")
    wipe(secure.address)
    site = KafkaSite(tmp_path, secure.address)
    fill(site, Payments(count=100), 2)
    process = BriefSite(tmp_path, address).start("run", "topologies.card_spend", HEADRACE_CHECKPOINT_INTERVAL="200ms")
    monkeypatch.setattr(tokens, "_PAUSE_S", 0.05)
    grant = granting(USER, SESSION_MS / 1000)
    with serving(lambda number: (503, b"") if number % 3 == 1 else grant(number)) as server:
        bearer = KafkaOptions(
            security_protocol="SASL_PLAINTEXT", sasl_mechanism="OAUTHBEARER", token_url=server.url,
            token_client_id="id", token_client_secret="secret",
        )  # fmt: skip
        try:
            wait_for(lambda: committed(site, "card-spend") >= 100)
            with (
                closing(Traffic(address, "scram", KafkaOptions(**SCRAM))) as one,
                closing(Traffic(address, "bearer", bearer)) as other,
            ):
                fill(site, Meanwhile([one, other]), 2)
                one.check()
                other.check()
            with closing(site.open()) as log:
                ends = sum(log.end_offset(TopicPartition("payments", partition)) for partition in range(2))
            wait_for(lambda: committed(site, "card-spend") >= ends)
            process.terminate()
            told = process.communicate(timeout=60)[0]
        finally:
            kill_all(process)
        assert 4 < len(server.asked) <= 4 * SESSIONS, "more tokens than sessions"
    assert process.returncode == 0, told
    assert "WARNING" not in told.upper()
    assert "kafka" not in told.lower()
    check_silence(caplog)
    site.run("run", "topologies.card_spend", "--until-end")
    assert results(site.read("spend-per-minute")) == expected(site)
