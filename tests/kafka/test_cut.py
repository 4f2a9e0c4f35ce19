"""Connections that are cut, refused or silent, and addresses where no broker is."""

from __future__ import annotations

import http.server
import os
import re
import signal
import threading
from collections import Counter
from contextlib import closing, suppress
from functools import partial

import pytest

from headrace.errors import RetriableError
from headrace.log.api import Committed
from headrace.log.kafka import opening
from headrace.log.kafka.coordinator import coordinator
from headrace.record import TopicPartition
from headrace.testing.conformance.log_support import assign_evenly, make_batch, read_all, values_of
from tests.e2e.harness import wait_for
from tests.e2e.small import Telling, ask
from tests.kafka.machines import check, fed
from tests.kafka.proxy import Proxy
from tests.kafka.site import KafkaSite
from tests.kafka.test_card_spend import committed
from tests.kafka.test_cluster import leaders, opened
from tests.ports import free_port

PART = TopicPartition("payments", 0)


def said(telling, what):
    """Return how often something was said of each broker."""
    return Counter(re.findall(what, telling.text))


def test_a_worker_outlives_outages(cluster, tmp_path):
    """A short one, and one in which packets vanish for longer than its session lasts."""
    near, far = KafkaSite(tmp_path, cluster.near), KafkaSite(tmp_path, cluster.far)
    port = free_port()
    settings = {
        "HEADRACE_CHECKPOINT_INTERVAL": "200ms", "HEADRACE_BATCH_RECORDS": "100", "HEADRACE_METRICS_PORT": str(port),
        "HEADRACE_SESSION_TIMEOUT": "6s", "HEADRACE_HEARTBEAT_INTERVAL": "500ms",
    }  # fmt: skip
    with fed(near) as log:
        telling = Telling(far.start("run", "topologies.card_spend", **settings))
        group, done = log.group("card-spend"), partial(committed, log, "card-spend")
        try:
            telling.until(lambda: done() > 1000)
            for proxy in cluster.proxies.values():
                proxy.cut()
            telling.until(lambda: "has not answered" in telling.text)
            before = done()
            cluster.mend()
            telling.until(lambda: done() > before + 1000)
            for proxy in cluster.proxies.values():
                proxy.hold()
            telling.until(lambda: not any(member.units for member in group.members()))
            before = done()
            assert ask(port, "/ready")[0] == 200, "nothing is lost yet, and it may be over in a moment"
            cluster.mend()
            telling.until(lambda: "joins again" in telling.text)
            telling.until(lambda: done() > before + 1000)
            silent, again = r"broker (\d) at \S+ has not answered", r"broker (\d) answers again"
            telling.until(lambda: said(telling, silent) == said(telling, again))
            assert max(said(telling, silent).values()) <= 2, "each outage is said once"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(telling.process.pid, signal.SIGKILL)
            telling.end()
    check(near)


def test_a_broker_whose_machine_is_gone_without_a_word(cluster):
    """Nothing tells a client of it; others take over what it led, and go on without it, also to begin to write."""
    with closing(opened(cluster.far)) as log:
        connection = log._connection
        first = cluster.far_of(connection.call(connection.attempts(partial(coordinator, connection, "g"))))
    with closing(opened(first)) as log:
        log.create_topic("payments", 3)
        parts = [TopicPartition("payments", number) for number in range(3)]
        readers = [log.reader(partition, 0) for partition in parts]
        member = log.group("g").join("m", {"a": parts}, assign_evenly, session_timeout_ms=30_000)
        lease = wait_for(lambda: member.poll().leases)["a"]
        other = log.group("h").join("m", {"a": parts}, assign_evenly, session_timeout_ms=30_000)
        wait_for(lambda: other.poll().leases)
        victim = log._connection.call(coordinator(log._connection, "g"))
        assert victim in leaders(log)
        cluster.proxies[victim].hold()
        cluster.brokers[victim].kill()
        for partition in parts:
            log.send(partition, make_batch([b"a"]))
        for reader in readers:
            assert values_of([wait_for(lambda reader=reader: reader.read(10))]) == [b"a"]
        log.flush()
        assert not any(read_all(reader) for reader in readers), "each came once"

        member.commit(lease, {parts[0]: Committed(1, "")})  # with the coordinator that took over
        assert log.group("g").committed() == {parts[0]: Committed(1, "")}
        assert member.poll().leases == {"a": lease}
        member.leave()
        other.leave()  # which has not asked for its coordinator since
        assert not log.group("g").members()
        assert not log.group("h").members()


@pytest.fixture
def hasty(monkeypatch):
    """Have little patience with addresses."""
    monkeypatch.setattr(opening, "_ADDRESS_S", 0.5)
    monkeypatch.setattr(opening, "_PROBE_S", 0.5)


def test_nobody_answers(hasty):
    silent = Proxy(1)
    silent.hold()
    refused = free_port()
    try:
        with pytest.raises(RetriableError) as raised:
            opened(f"127.0.0.1:{silent.port},127.0.0.1:{refused}")
    finally:
        silent.close()
    told = str(raised.value)
    assert f"127.0.0.1:{silent.port} can be reached: nothing answers" in told
    assert f"127.0.0.1:{refused} can be reached: ConnectionRefusedError" in told
    assert "Look at" in told


def test_a_web_server(hasty):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        with pytest.raises(RetriableError, match=f"{server.server_port} is a web server and no Kafka broker"):
            opened(f"127.0.0.1:{server.server_port}")
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
