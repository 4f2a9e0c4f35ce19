"""A folder and a broker on which tests run the command."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from headrace.clock import SystemClock
from headrace.log.kafka.log import KafkaLog
from tests.e2e.harness import Site


@dataclass(frozen=True)
class KafkaSite(Site):
    """A folder and a broker."""

    address: str

    def environment(self, **more: str) -> Mapping[str, str]:
        return super().environment(HEADRACE_LOG=f"kafka://{self.address}", **more)

    def open(self):
        return KafkaLog(f"kafka://{self.address}", clock=SystemClock())
