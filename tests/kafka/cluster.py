"""Three brokers that stand in for each other, each in a rack of its own."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import confluent_kafka
from confluent_kafka.admin import AdminClient, NewTopic

from tests.kafka.broker import JavaBroker, cluster_id
from tests.kafka.proxy import Proxy
from tests.ports import free_port

BROKERS = (1, 2, 3)
_LISTENERS = "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,FAR:PLAINTEXT"


class Cluster:
    """Three brokers, by their ids; topics have three replicas of which two must be in sync.

    Each has a second listener, ``FAR``, that clients find behind a proxy: ``far`` leads there. Inner traffic and
    ``near`` go past the proxies.

    Args:
        directory: For what they write; empty.
    """

    def __init__(self, directory: Path) -> None:
        ports = {node: (free_port(), free_port(), free_port()) for node in BROKERS}
        voters = ",".join(f"{node}@127.0.0.1:{controller}" for node, (_, _, controller) in ports.items())
        cluster = cluster_id()
        self.proxies = {node: Proxy(far) for node, (_, far, _) in ports.items()}
        self.near = ",".join(f"127.0.0.1:{near}" for near, _, _ in ports.values())
        self.far = ",".join(map(self.far_of, BROKERS))

        def made(node: int) -> JavaBroker:
            near, far, controller = ports[node]
            own = directory / str(node)
            own.mkdir()
            changed = {
                "node.id": str(node),
                "controller.quorum.voters": voters,
                "listeners": f"PLAINTEXT://127.0.0.1:{near},FAR://127.0.0.1:{far},CONTROLLER://127.0.0.1:{controller}",
                "advertised.listeners": f"PLAINTEXT://127.0.0.1:{near},FAR://127.0.0.1:{self.proxies[node].port}",
                "listener.security.protocol.map": _LISTENERS,
                "inter.broker.listener.name": "PLAINTEXT",
                "broker.rack": rack(node),
                "replica.selector.class": "org.apache.kafka.common.replica.RackAwareReplicaSelector",
                "replica.fetch.wait.max.ms": "100",
                "default.replication.factor": "3",
                "min.insync.replicas": "2",
                "offsets.topic.replication.factor": "3",
                "transaction.state.log.replication.factor": "3",
                "transaction.state.log.min.isr": "2",
            }
            return JavaBroker(own, lambda settings: settings | changed, port=near, cluster=cluster)

        with ThreadPoolExecutor() as pool:
            self.brokers = dict(zip(BROKERS, pool.map(made, BROKERS), strict=True))

    def start(self) -> None:
        """Start what does not run, and wait until it listens."""
        with ThreadPoolExecutor() as pool:
            list(pool.map(JavaBroker.start, self.brokers.values()))

    def far_of(self, node: int) -> str:
        """Return where clients find a broker behind its proxy."""
        return f"127.0.0.1:{self.proxies[node].port}"

    def mend(self) -> None:
        """Start whoever is dead, and open all ways."""
        for proxy in self.proxies.values():
            proxy.heal()
        self.start()

    def create(self, topic: str, partitions: int, replication: int, *, unclean: bool = False) -> None:
        """Create a topic that takes records as long as one replica is there, and may let any replica lead."""
        config = {"min.insync.replicas": "1", "unclean.leader.election.enable": str(unclean).lower()}
        made = NewTopic(topic, partitions, replication_factor=replication, config=config)
        admin = AdminClient({"bootstrap.servers": self.near})
        admin.create_topics([made])[topic].result(30)

    def elect(self, topic: str, partitions: int) -> None:
        """Let the first replica of every partition lead again, as brokers do by themselves after some minutes."""
        parts = [confluent_kafka.TopicPartition(topic, number) for number in range(partitions)]
        admin = AdminClient({"bootstrap.servers": self.near})
        admin.elect_leaders(confluent_kafka.ElectionType.PREFERRED, parts).result(30)

    def close(self) -> None:
        """Kill all."""
        for broker in self.brokers.values():
            broker.kill()
        for proxy in self.proxies.values():
            proxy.close()


def rack(node: int) -> str:
    """Return the rack that a broker stands in."""
    return f"az{node}"
