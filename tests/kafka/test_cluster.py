"""Three brokers: leaders die, come back and hand over, and nothing is lost, doubled or in the wrong order."""

from __future__ import annotations

import logging
import threading
from contextlib import closing

import pytest

from headrace.clock import SystemClock
from headrace.errors import NotFoundError, RetriableError, SettingsError
from headrace.log.kafka import replicas, sending
from headrace.log.kafka.coordinator import coordinator
from headrace.log.kafka.log import KafkaLog
from headrace.log.kafka.offsets import leader_of
from headrace.log.kafka.options import KafkaOptions
from headrace.record import TopicPartition
from headrace.testing.conformance.log_support import assign_evenly, make_batch, read_all, values_of
from tests.e2e.harness import kill_all, wait_for
from tests.kafka.clean import alter
from tests.kafka.cluster import BROKERS, rack
from tests.kafka.machines import beyond, check, fed, positions
from tests.kafka.site import KafkaSite

PARTS = [TopicPartition("payments", number) for number in range(3)]


def opened(address, **options):
    return KafkaLog(f"kafka://{address}", clock=SystemClock(), options=KafkaOptions(**options))


def leaders(log):
    log._connection.call(log._connection.metadata(None))
    return [leader_of(log._connection, partition) for partition in PARTS]


def numbers(first, last):
    return [b"%d" % i for i in range(first, last)]


def test_a_leader_dies_comes_back_and_leads_again(cluster, caplog):
    caplog.set_level(logging.WARNING, "headrace")
    log = opened(cluster.near)
    log.create_topic("payments", 3)
    readers = [log.reader(partition, 0) for partition in PARTS]
    member = log.group("g").join("m", {"a": PARTS}, assign_evenly, session_timeout_ms=30_000)
    lease = wait_for(lambda: member.poll().leases)["a"]
    heard = [[] for _ in PARTS]

    def write(first, last):
        for i in range(first, last):
            for partition in PARTS:
                log.send(partition, make_batch([b"%d" % i]))
        flushed = threading.Thread(target=log.flush)
        flushed.start()
        flushed.join(60)
        assert not flushed.is_alive()
        for reader, values in zip(readers, heard, strict=True):
            wait_for(lambda reader=reader: reader.end_offset() == last)
            values += values_of(read_all(reader))
        assert heard == [numbers(0, last)] * 3

    before = leaders(log)
    assert sorted(before) == list(BROKERS), "every broker leads something"
    write(0, 50)
    victim = log._connection.call(coordinator(log._connection, "g"))
    cluster.brokers[victim].kill()
    write(50, 100)
    assert member.poll().leases == {"a": lease}
    member.heartbeat()
    assert victim not in leaders(log)
    assert told(caplog) == [victim]
    assert f"goes on without Kafka's broker {victim}" in caplog.text
    cluster.start()
    write(100, 150)
    caplog.clear()

    def led_again():
        cluster.elect("payments", 3)  # which takes replicas that are in sync again
        return leaders(log) == before

    wait_for(led_again)
    write(150, 200)
    assert member.poll().leases == {"a": lease}
    assert not told(caplog), "a leader that moves is no broker that is silent"
    member.leave()
    log.close()


def told(caplog):
    """Return the brokers that were said not to answer."""
    return [record.args[0] for record in caplog.records if "has not answered" in record.msg]


def test_a_partition_that_nobody_leads_for_long(cluster, monkeypatch):
    """The library would give up what was sent once it has waited for as long as an answer may take."""
    monkeypatch.setattr(sending, "_ANSWER_MS", 1000)
    cluster.create("payments", 1, replication=1)
    with closing(opened(cluster.near)) as log:
        wait_for(lambda: "payments" in log.topics())  # the broker that is asked may learn of it a little later
        log.append(PARTS[0], make_batch([b"a"]))
        (victim,) = leaders(log)[:1]
        cluster.brokers[victim].kill()
        log.send(PARTS[0], make_batch([b"b"]))
        wait_for(lambda: leaders(log)[0] is None)  # which the others notice after two seconds
        with monkeypatch.context() as now:
            now.setattr(sending, "_FLUSH_S", 0)
            with pytest.raises(RetriableError, match="within 0 s: payments/0 has no leader"):
                log.flush()
        cluster.start()
        log.flush()
        with closing(log.reader(PARTS[0], 0)) as reader:
            assert values_of(read_all(reader)) == [b"a", b"b"]


def test_a_leader_that_lacks_records(cluster):
    """Who may let such a one lead may lose records; that is told, and not passed over."""
    cluster.create("payments", 1, replication=2, unclean=True)
    with closing(opened(cluster.near)) as log:
        wait_for(lambda: "payments" in log.topics())
        log.append(PARTS[0], make_batch([b"a"]))
        response = log._connection.call(log._connection.metadata(["payments"]))
        ((_, _, leader, replicas, *_),) = response.topics[0][-1]
        (follower,) = set(replicas) - {leader}
        cluster.brokers[follower].kill()
        log.append(PARTS[0], make_batch([b"b", b"c"]))
        with closing(log.reader(PARTS[0], 0)) as reader:
            wait_for(lambda: reader.end_offset() == 3)
            assert values_of(read_all(reader)) == [b"a", b"b", b"c"]
            cluster.brokers[leader].kill()
            cluster.brokers[follower].start()
            wait_for(lambda: leaders(log)[0] == follower)
            with pytest.raises(NotFoundError, match="went to offset 3, and ends at 1 now: it lost records"):
                wait_for(lambda: reader.read(10))
    cluster.start()


def test_records_wait_until_enough_replicas_are_in_sync(cluster, monkeypatch):
    with closing(opened(cluster.near)) as log:
        log.create_topic("payments", 1)
        alter(cluster.near, "payments", "min.insync.replicas", len(BROKERS))
        log.append(PARTS[0], make_batch([b"a"]))
        (leader,) = leaders(log)[:1]
        victim = next(node for node in BROKERS if node != leader)
        cluster.brokers[victim].kill()

        def refused():
            log.send(PARTS[0], make_batch([b"b"]))
            with monkeypatch.context() as now:
                now.setattr(sending, "_FLUSH_S", 0.2)
                try:
                    log.flush()
                except RetriableError as error:
                    return "payments/0 has 2 of 3 replicas in sync, and must have 3 (min.insync.replicas)" in str(error)
            return False

        wait_for(refused)
        cluster.start()
        log.flush()
        log.append(PARTS[0], make_batch([b"c"]))


def test_a_worker_outlives_a_leader(cluster, tmp_path):
    site = KafkaSite(tmp_path, cluster.near)
    with fed(site) as log:
        process = site.start("run", "topologies.card_spend", HEADRACE_CHECKPOINT_INTERVAL="200ms")
        try:
            wait_for(lambda: min(positions(log)) > 200 or process.poll() is not None)
            victim = log._connection.call(coordinator(log._connection, "card-spend"))
            assert victim in leaders(log)
            cluster.brokers[victim].kill()
            held = positions(log)
            wait_for(lambda: beyond(log, held, 2_000) or process.poll() is not None)
            assert process.poll() is None, process.communicate()[0]
        finally:
            kill_all(process)
            cluster.start()
    check(site)


def test_reading_in_the_own_rack(cluster, monkeypatch):
    monkeypatch.setattr(replicas, "_LEADER_S", 0.5)
    writer = opened(cluster.near)
    writer.create_topic("payments", 1)
    leader = leaders(writer)[0]
    own = next(node for node in BROKERS if node != leader)
    log = opened(cluster.far, rack=rack(own))
    reader = log.reader(PARTS[0], 0)
    sent = 0

    def served(by):
        """Write and read 300 kB, and return whether they came from one broker."""
        nonlocal sent
        before = {node: proxy.received for node, proxy in cluster.proxies.items()}
        values = [b"%d" % i + bytes(30_000) for i in range(sent, sent + 10)]
        for value in values:
            writer.send(PARTS[0], make_batch([value]))
        writer.flush()
        sent += 10
        wait_for(lambda: reader.end_offset() == sent)
        assert values_of(read_all(reader)) == values
        came = {node: proxy.received - before[node] for node, proxy in cluster.proxies.items()}
        return came[by] > 300_000 and all(came[node] < 100_000 for node in BROKERS if node != by)

    wait_for(lambda: served(own))
    assert served(own)
    cluster.brokers[own].kill()
    wait_for(lambda: served(leader))
    cluster.start()
    wait_for(lambda: served(own))
    log.close()
    writer.close()


def test_a_rack_without_brokers(cluster):
    with closing(opened(cluster.far, rack="az9")) as log:
        log.create_topic("payments", 1)
        log.append(PARTS[0], make_batch([b"a"]))
        with closing(log.reader(PARTS[0], 0)) as reader:
            assert values_of(read_all(reader)) == [b"a"]


@pytest.mark.parametrize("name", ["a\nb", " az1", "x" * 300])
def test_a_rack_that_is_none(name):
    with pytest.raises(SettingsError, match="HEADRACE_KAFKA_RACK"):
        KafkaOptions.load({"HEADRACE_KAFKA_RACK": name})
