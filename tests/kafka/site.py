"""A folder and a broker on which tests run the command."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from headrace.clock import SystemClock
from headrace.log.kafka.log import KafkaLog
from headrace.record import Record, TopicPartition
from headrace.testing.conformance.log_support import read_all
from tests.e2e.harness import Site, _decoded


@dataclass(frozen=True)
class KafkaSite(Site):
    """A folder and a broker."""

    address: str

    def environment(self, **more: str) -> Mapping[str, str]:
        return super().environment(HEADRACE_LOG=f"kafka://{self.address}", **more)

    def open(self):
        return KafkaLog(f"kafka://{self.address}", clock=SystemClock())

    def read(self, topic: str) -> list[Record]:
        log = self.open()
        records = []
        for partition in range(log.topics()[topic].partitions if topic in log.topics() else 0):
            place = TopicPartition(topic, partition)
            reader = log.reader(place, log.start_offset(place))
            for batch in read_all(reader, 100_000):
                records += [] if batch.control else batch.records(topic, partition)
            reader.close()
        log.close()
        return [_decoded(record) for record in records]
