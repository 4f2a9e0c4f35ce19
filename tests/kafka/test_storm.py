"""Groups under stress: workers that come and go by the second, and one that stands still and goes on.

A longer storm: ``HEADRACE_STORM=40 python -m pytest tests/kafka/test_storm.py -s`` (strikes).
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from urllib.error import URLError

from headrace.clock import SystemClock
from headrace.log.api import Log
from tests.e2e.feeding import PARTITIONS
from tests.e2e.harness import wait_for
from tests.e2e.small import Telling, counted, counts_of, found, module, put, rows
from tests.e2e.test_metrics import scrape
from tests.e2e.test_slow_steps import GATED
from tests.kafka.machines import LIVELY, Machine, beyond, check, fed, holders, machines, positions
from tests.kafka.test_card_spend import committed
from tests.ports import free_port

STRIKES = int(os.environ.get("HEADRACE_STORM", "6"))
PER_STRIKE = 600
"""Records that the worker which stays reads between two strikes: about a second."""


class Watch:
    """Looks at a worker all the while: how much it reads, and for how long a task that it keeps reads nothing."""

    def __init__(self, port: int) -> None:
        self.read = self.rebalances = self.longest_ms = 0
        self._port = port
        self._seen: dict[str, tuple[float, int]] = {}
        """By task, how much it had read, and since when."""
        self._reads: dict[str, float] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)

    @contextmanager
    def going(self) -> Iterator[Watch]:
        self._thread.start()
        try:
            yield self
        finally:
            self._ended.set()
            self._thread.join()

    def _run(self) -> None:
        clock = SystemClock()
        while not self._ended.wait(0.03):
            with suppress(URLError, OSError):
                self._look(scrape(self._port), clock.monotonic_ms())

    def _look(self, samples, now_ms: int) -> None:
        now = {labels["task"]: value for labels, value in samples.get("records_in_total", [])}
        seen = {}
        for task, value in now.items():
            before, since_ms = self._seen.get(task, (value, now_ms))
            self.read += int(max(0, value - before))
            if task in self._seen:
                self.longest_ms = max(self.longest_ms, now_ms - since_ms)
            seen[task] = (value, now_ms) if value != before else (before, since_ms)
        self._seen = seen
        self.rebalances = int(sum(value for _, value in samples.get("rebalances_total", [])))


def test_who_stays_goes_on_through_a_storm(site):
    """Workers come, drain and are killed by the second; nothing is lost or counted twice, and who stays reads on."""
    rng, port, clock = random.Random(3), free_port(), SystemClock()
    stays = Machine(site, "stays", {"HEADRACE_METRICS_PORT": str(port)})
    others = [Machine(site, f"other-{i}") for i in range(3)]
    struck: list[str] = []
    with fed(site) as log, machines(stays, *others), Watch(port).going() as watch:
        for machine in (stays, *others[:2]):
            machine.start()
        wait_for(lambda: holders(log) == [1, 1, 2] and watch.read)
        begun_ms, rebalances = clock.monotonic_ms(), watch.rebalances
        for _ in range(STRIKES):
            strike(rng.choice(others), log, rng, struck)
            wait_for(partial(reads, watch, watch.read + PER_STRIKE))
        seconds = (clock.monotonic_ms() - begun_ms) / 1000
        print(
            f"{len(struck)} strikes in {seconds:.1f} s ({' '.join(struck)}): {watch.rebalances - rebalances} "
            f"rebalances, {watch.read} records read, longest pause of a task that stayed {watch.longest_ms} ms"
        )
        assert watch.longest_ms < 10_000, "well below a second on a quiet machine"
        assert "taken for dead" not in stays.end(signal.SIGTERM)
    check(site)


def strike(machine: Machine, log: Log, rng: random.Random, struck: list[str]) -> None:
    """Let a machine's worker begin if there is none, or end, mostly when it has joined."""
    if machine.process is None:
        struck.append("+")
        machine.start()
        return
    if rng.random() < 0.8:
        wait_for(partial(joined, log, machine.process))
    number = rng.choice([signal.SIGTERM, signal.SIGKILL])
    struck.append(number.name)
    machine.end(number)


def joined(log: Log, process: subprocess.Popen[str]) -> bool:
    """Return whether a worker has joined, or is gone."""
    names = [member.member_id for member in log.group("card-spend").members()]
    return process.poll() is not None or any(name.endswith(f"-{process.pid}") for name in names)


def reads(watch: Watch, goal: int) -> bool:
    return watch.read >= goal


def test_one_that_stands_still_and_goes_on(site):
    """It is stopped in the middle of a checkpoint, past its session; another has its tasks when it comes back."""
    one, two = Machine(site, "one"), Machine(site, "two")
    with fed(site) as log, machines(one, two):
        one.start()
        two.start()
        wait_for(lambda: holders(log) == [2, 2])
        before = sum(positions(log))
        wait_for(lambda: sum(positions(log)) > before + 500)
        wait_for(lambda: any((site.folder / "one" / "card-spend").glob("*/*-snapshot")))
        assert one.process is not None
        one.process.send_signal(signal.SIGSTOP)
        try:
            held = positions(log)
            wait_for(lambda: holders(log) == [4])
            wait_for(partial(beyond, log, held, 500))
        finally:
            one.process.send_signal(signal.SIGCONT)
        wait_for(lambda: holders(log) == [2, 2])
        wait_for(partial(beyond, log, positions(log), 200))
        said = one.end(signal.SIGTERM)
        assert said.count("this worker was taken for dead and lost its tasks; it joins again") == 1, said
        assert "taken for dead" not in two.end(signal.SIGTERM)
    check(site)


def test_a_step_that_takes_longer_than_a_session_costs_nothing(site):
    """User code that holds a worker up holds up neither its client nor the others; what it is at shows."""
    name, gate = module(site, GATED), site.folder / "gate"
    settings = LIVELY | found(site) | {"HEADRACE_SLOW_STEP": "500ms"}
    made = rows(400)
    put(site, made[:100], PARTITIONS)
    one, two = (
        site.start("run", name, **settings, HEADRACE_STATE_DIR=str(site.folder / machine)) for machine in ("a", "b")
    )
    said = [Telling(one), Telling(two)]
    with closing(site.open()) as log:
        try:
            wait_for(lambda: holders(log, "gated") == [2, 2])
            put(site, made[100:], PARTITIONS)
            wait_for(lambda: "has taken" in said[0].text + said[1].text)
            end_ms = SystemClock().monotonic_ms() + 2 * 2_000 + 500  # more than two sessions
            while SystemClock().monotonic_ms() < end_ms:
                assert holders(log, "gated") == [2, 2]
            gate.touch()
            wait_for(lambda: committed(log, "gated") == len(made))
        finally:
            gate.touch()
            for process in (one, two):
                process.send_signal(signal.SIGTERM)
            codes = [told.end() for told in said]
    text = said[0].text + said[1].text
    assert codes == [0, 0], text
    assert "taken for dead" not in text
    assert text.count("step 'ask' of task ") == 2, text  # it is slow, and it came back
    assert "in ask_somebody" in text
    site.run("run", name, "--until-end", **settings)
    assert counted(site) == counts_of(made)
