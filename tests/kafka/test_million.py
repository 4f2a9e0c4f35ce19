"""Another make's client writes, workers and their broker are killed, and the results are what SQL says.

The full proof: ``HEADRACE_PROOF_PAYMENTS=1000000 python -m pytest tests/kafka/test_million.py -s``, which has 1, 2 and
then 3 workers.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import msgspec
import pytest
from confluent_kafka import Message

from headrace.clock import SystemClock
from headrace.demo.payments import Payments
from headrace.record import Record
from tests.e2e import test_outbox as outbox
from tests.e2e.harness import expected, kill_all, results, wait_for, workers_of
from tests.kafka import foreign
from tests.kafka.broker import REMEDY, JavaBroker, has_java
from tests.kafka.clean import wipe
from tests.kafka.foreign import Feed, Row
from tests.kafka.site import KafkaSite

ASKED = os.environ.get("HEADRACE_PROOF_PAYMENTS", "")
COUNT = int(ASKED or 60_000)
QUESTIONS = COUNT // 20
PARTITIONS = 6
PACE_MS = 4
"""Event time from one payment to the next."""
CHECKPOINT_MS = 200
LIVELY = {
    "HEADRACE_CHECKPOINT_INTERVAL": f"{CHECKPOINT_MS}ms", "HEADRACE_BATCH_RECORDS": "500",
    "HEADRACE_SESSION_TIMEOUT": "2s", "HEADRACE_HEARTBEAT_INTERVAL": "500ms",
}  # fmt: skip
STRIKES = ("a worker", "the broker", "one more", "a machine", "the broker")
"""What happens while records come, at full size."""
encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder().decode

pytestmark = pytest.mark.timeout(300 + COUNT // 1000)


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JavaBroker]:
    """Yield a broker that the tests may kill."""
    if not has_java():
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(f"there is no broker to restart. {REMEDY}")
    broker = JavaBroker(tmp_path_factory.mktemp("kafka"))
    broker.start()
    yield broker
    broker.kill()


@dataclass(frozen=True)
class ForeignSite(KafkaSite):
    """A site of which everything is read by the other client."""

    def read(self, topic: str) -> list[Record]:
        return [_decoded(message) for message in foreign.read(self.address, topic)]


def _decoded(message: Message) -> Record:
    key, headers = message.key(), tuple(message.headers() or ())
    place = message.topic(), message.partition(), message.offset(), message.timestamp()[1]
    return Record(*place, key and key.decode(), decode(message.value()), headers)


@dataclass
class Machine:
    """A machine on which a topology runs: a command with some workers and a disk of its own."""

    site: KafkaSite
    name: str
    command: tuple[str, ...]
    process: subprocess.Popen[str] = field(init=False)

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        state = {"HEADRACE_STATE_DIR": str(self.site.folder / self.name)}
        self.process = self.site.start(*self.command, **LIVELY, **state)

    def kill_worker(self, rng: random.Random) -> None:
        """Kill one of several workers, which the command replaces; a worker that is alone is the command."""
        if self.command[-1] == "1":
            self.kill()
            self.start()
        else:
            os.kill(rng.choice(wait_for(partial(workers_of, self.process))), signal.SIGKILL)

    def workers_in(self, names: list[list[str]]) -> int:
        """Return how many of its workers are among members, whose names hold the id of their process."""
        pids = [self.process.pid] if self.command[-1] == "1" else workers_of(self.process)
        return sum(any(str(pid) in name[-2:] for name in names) for pid in pids)

    def kill(self) -> None:
        kill_all(self.process)

    def check(self) -> None:
        """Check that nothing but a kill ended it."""
        assert self.process.poll() is None, self.process.communicate()[0]


@dataclass
class Storm:
    """Everything that happens to the machines while records come."""

    site: KafkaSite
    broker: JavaBroker
    group: str
    topic: str
    command: tuple[str, ...]
    machines: list[Machine] = field(default_factory=list)
    rng: random.Random = field(default_factory=lambda: random.Random(7))

    @contextmanager
    def going(self) -> Iterator[None]:
        try:
            yield
        finally:
            for machine in self.machines:
                machine.kill()

    def add(self, workers: int) -> Machine:
        command = ("run", *self.command, "--workers", str(workers))
        self.machines.append(Machine(self.site, f"machine-{len(self.machines)}", command))
        return self.machines[-1]

    def read_until(self, goal: int) -> None:
        """Wait until so many records were read, by the last checkpoints."""
        with closing(self.site.open()) as log:

            def reached() -> bool:
                for machine in self.machines:
                    machine.check()
                found = log.group(self.group).committed().items()
                return sum(at.offset for place, at in found if place.topic == self.topic) >= goal

            wait_for(reached, 60 + COUNT / 2000)

    def wait_for_all(self) -> None:
        """Wait until every worker is in the group."""
        with closing(self.site.open()) as log:

            def present() -> bool:
                names = [member.member_id.split("-") for member in log.group(self.group).members()]
                return all(machine.workers_in(names) == int(machine.command[-1]) for machine in self.machines)

            wait_for(present)

    def strike(self, what: str) -> None:
        if what == "the broker":
            self.wait_for_all()  # a command that finds no broker when it starts says so and ends
            self.broker.kill()
            self.broker.start()
        elif what == "a worker":
            self.machines[0].kill_worker(self.rng)
        elif what == "one more":
            self.add(1)
        else:
            self.machines[0].kill()
            self.machines[0].start()

    def rage(self, feed: Feed, count: int, workers: int, strikes: Sequence[str]) -> None:
        """Let records come, and strike again and again while what has come last is on its way."""
        self.add(workers)
        share = count // (len(strikes) + 1)
        for turn, what in enumerate(strikes):
            feed.allow((turn + 2) * share)
            self.read_until(turn * share + self.rng.randrange(1, share))
            # Behind a checkpoint there is nothing to be lost yet.
            SystemClock().sleep_ms(self.rng.randrange(50, CHECKPOINT_MS))
            self.strike(what)
        feed.allow(count)
        self.read_until(count)
        for machine in self.machines:
            machine.check()


@pytest.mark.parametrize("workers", [1, 2, 3] if ASKED else [2])
def test_results_are_what_sql_says(broker: JavaBroker, tmp_path: Path, workers: int) -> None:
    wipe(broker.address)
    site = ForeignSite(tmp_path, broker.address)
    payments = Payments(
        count=COUNT, customers=5_000, duration_ms=PACE_MS * COUNT, duplicate_share=0.02, late_share=0.01
    )
    rows = (
        Row(payment["customer_id"].encode(), encode(payment), payment["at"])
        for batch in payments.batches()
        for payment in batch
    )
    with closing(site.open()) as log:
        log.create_topic("payments", PARTITIONS)
    command = ("topologies.card_spend",)
    strikes = STRIKES if ASKED else STRIKES[:3]
    storm = Storm(site, broker, "card-spend", "payments", command)
    begun_ms = SystemClock().monotonic_ms()
    with storm.going(), Feed(broker.address, "payments", rows, COUNT, chunk=500).going() as feed:
        storm.rage(feed, COUNT, workers, strikes)
    stormy_ms = SystemClock().monotonic_ms()
    site.run("run", *command, "--until-end", "--workers", str(workers))
    done_ms = SystemClock().monotonic_ms()
    found = results(site.read("spend-per-minute"))
    assert found == expected(site)
    assert sum(payments for payments, _ in found.values()) > 0.9 * COUNT
    print(
        f"{COUNT} payments, {workers} workers, {len(strikes)} strikes: {(stormy_ms - begun_ms) / 1000:.1f} s, "
        f"to the end {(done_ms - stormy_ms) / 1000:.1f} s, {len(found)} windows"
    )


def test_ids_are_unique_in_content(broker: JavaBroker, tmp_path: Path) -> None:
    """Where no replay repeats itself, what stands in the topics is one answer per question, each counted once."""
    wipe(broker.address)
    site = ForeignSite(tmp_path, broker.address)
    rows = (Row(None, encode({"id": n, "at": n}), n, n % outbox.PARTITIONS) for n in range(QUESTIONS))
    with closing(site.open()) as log:
        log.create_topic("questions", outbox.PARTITIONS)
    command = ("tests.e2e.uncertain", "--guarantee", "exactly-once")
    strikes = STRIKES if ASKED else ("a worker", "the broker", "a machine")
    storm = Storm(site, broker, "uncertain", "questions", command)
    with storm.going(), Feed(broker.address, "questions", rows, QUESTIONS, chunk=25).going() as feed:
        storm.rage(feed, QUESTIONS, 2, strikes)
    site.run("run", *command, "--until-end", "--workers", "2")
    repeated = outbox.check(site, QUESTIONS)
    print(f"{QUESTIONS} questions, {len(strikes)} strikes: {repeated} answers came twice, under the same id")
