"""Machines that come and go while payments keep coming."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field

from headrace.demo.payments import Payments
from headrace.log.api import Log
from headrace.record import TopicPartition
from tests.e2e.feeding import PARTITIONS, Feed
from tests.e2e.harness import expected, kill_all, results
from tests.kafka.site import KafkaSite

LIVELY = {
    "HEADRACE_CHECKPOINT_INTERVAL": "200ms", "HEADRACE_BATCH_RECORDS": "100",
    "HEADRACE_SESSION_TIMEOUT": "2s", "HEADRACE_HEARTBEAT_INTERVAL": "500ms",
}  # fmt: skip
PAYMENTS = Payments(
    count=2_000_000, customers=500, duration_ms=2_000_000 * 4, duplicate_share=0.02, late_share=0.01
)  # more than any test gets to see


@dataclass
class Machine:
    """A machine with a disk of its own, on which one worker runs at a time."""

    site: KafkaSite
    name: str
    more: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        state = {"HEADRACE_STATE_DIR": str(self.site.folder / self.name)}
        self.process = self.site.start("run", "topologies.card_spend", **(LIVELY | state | self.more))

    def end(self, number: int) -> str:
        """End it by a signal and return what it said; a worker that is told to stop does so in order."""
        assert self.process is not None
        assert self.process.poll() is None, self.process.communicate()[0]
        self.process.send_signal(number)
        output, _ = self.process.communicate(timeout=60)
        # Before it has learned what to do with a SIGTERM, it dies of it.
        assert self.process.returncode in ((0, -number) if number == signal.SIGTERM else (-number,)), output
        assert "Traceback" not in output, output
        self.process = None
        return output


@contextmanager
def machines(*made: Machine) -> Iterator[tuple[Machine, ...]]:
    """Have machines for as long as the block lasts."""
    try:
        yield made
    finally:
        for machine in made:
            if machine.process is not None:
                kill_all(machine.process)


@contextmanager
def fed(site: KafkaSite) -> Iterator[Log]:
    """Let payments come for as long as the block lasts, and no longer."""
    with Feed(site, PAYMENTS, batch=50, pause_s=0.02, eager=True).meanwhile(), closing(site.open()) as log:
        yield log


def holders(log: Log, group: str = "card-spend") -> list[int]:
    """Return how many tasks each worker of a group has."""
    return sorted(len(member.units) for member in log.group(group).members())


def positions(log: Log) -> list[int]:
    """Return how far each partition was committed."""
    known = log.group("card-spend").committed()
    parts = [known.get(TopicPartition("payments", number)) for number in range(PARTITIONS)]
    return [0 if part is None else part.offset for part in parts]


def beyond(log: Log, before: list[int], records: int) -> bool:
    """Return whether every partition was worked on since."""
    return all(now > then + records // PARTITIONS for now, then in zip(positions(log), before, strict=True))


def check(site: KafkaSite) -> None:
    """Let the rest be worked off, and compare with SQL."""
    site.run("run", "topologies.card_spend", "--until-end", "--workers", "2", **LIVELY)
    records = site.read("spend-per-minute")
    assert results(records) == expected(site)
