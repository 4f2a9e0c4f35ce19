"""Inputs that end, run dry or never begin, and steps that wait: in bounded runs and in live ones."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from headrace.clock import SystemClock
from tests.e2e.harness import Site, committed, kill_all, wait_for
from tests.e2e.small import Telling, counted, counting, counts_of, found, holders, module, put, put_rows, rows

FAST = {
    "HEADRACE_CHECKPOINT_INTERVAL": "50ms",
    "HEADRACE_HEARTBEAT_INTERVAL": "100ms",
    "HEADRACE_SESSION_TIMEOUT": "1s",
    "HEADRACE_BATCH_RECORDS": "50",
}
Start = Callable[..., Telling]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@pytest.fixture
def start(site: Site) -> Iterator[Start]:
    """Start a run that ends with the test."""
    started: list[Telling] = []

    def begin(name: str, *arguments: str) -> Telling:
        started.append(Telling(site.start("run", name, *arguments, **found(site), **FAST)))
        return started[-1]

    yield begin
    for telling in started:
        with suppress(ValueError):
            kill_all(telling.process)
        telling.end()


def fill(site: Site, count: int = 300, partitions: int = 3) -> list[dict[str, Any]]:
    """Put records into some partitions of ``in`` only, rows into ``names``, and nothing into two more topics."""
    records = [{"k": f"k{n % 2}", "at": 1_000 + 10 * n, "n": n} for n in range(count)]
    put_rows(site, "in", [(row["k"], row["at"], row) for row in records], partitions)
    put_rows(site, "nothing", [], partitions)
    put_rows(site, "no-rows", [], partitions)
    put_rows(site, "names", [(f"n{n}", 0, f"name {n}") for n in range(10)], 7)
    return records


EVERYTHING = """
import asyncio

from headrace import Process, Topology, ValueState, agg, tumbling

topology = Topology("ends")
stream = topology.stream("in", keyed_by="k", time="at")
nothing = topology.stream("nothing", keyed_by="k", time="at")
names = topology.global_table("names")


class Reminders(Process):
    seen = ValueState(int, default=0)

    def on_record(self, record, context):
        self.seen.value += 1
        context.set_clock_timer("remind", after="10ms")
        context.set_timer("end", after="1s")

    def on_clock_timer(self, name, context):
        yield {"k": context.key, "clock": True}

    def on_timer(self, name, context):
        yield {"k": context.key, "seen": self.seen.value}


async def ask(value):
    await asyncio.sleep(0.005 * (value["n"] % 7))
    return value["n"]


async def ask_of_window(window):
    await asyncio.sleep(0.2)
    return window["n"]


stream.process(Reminders).to("reminders")
stream.map_async(ask).to("asked")
stream.window(tumbling("1s")).aggregate(n=agg.count()).map_async(ask_of_window).to("windows")
stream.as_of(nothing, lambda a, b: [a["n"], b]).to("as-of")
stream.join(topology.table("no-rows"), lambda a, b: [a["n"], b], how="left").to("with-rows")
stream.join(nothing, lambda a, b: [a["n"], b], within="1s", how="left").to("pairs")
stream.join(names, lambda a, b: [a["n"], b], on=lambda value: f"n{value['n'] % 12}", how="left").to("named")
"""


def values(site: Site, topic: str) -> list[Any]:
    by_id = {dict(record.headers)["headrace-id"]: record.value for record in site.read(topic)}
    return sorted(by_id.values(), key=repr)


def check_everything(site: Site, count: int) -> None:
    numbers = range(count)
    assert values(site, "asked") == sorted(numbers, key=repr)
    assert sum(values(site, "windows")) == count
    for topic in ("as-of", "with-rows", "pairs"):
        assert values(site, topic) == sorted(([n, None] for n in numbers), key=repr), topic
    names = [f"name {n}" for n in range(10)] + [None, None]
    assert values(site, "named") == sorted(([n, names[n % 12]] for n in numbers), key=repr)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_bounded_run_ends_whatever_is_missing_or_waits(site: Site, workers: str) -> None:
    count = len(fill(site))
    name = module(site, EVERYTHING)
    for _ in range(int(workers)):
        output = site.run("run", name, "--until-end", "--workers", workers, **found(site))
        assert "ends finished: " in output
        check_everything(site, count)
        assert values(site, "reminders") == [{"k": f"k{k}", "seen": count // 2} for k in range(2)]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_bounded_run_with_other_checkpoints_begins_anew(site: Site, workers: str) -> None:
    """What the group knows of a run before counts only together with the checkpoints of that run."""
    put(site, rows(300), 3)
    once = len(counts_of(rows(300)))
    for count, name in enumerate(("some", "other"), 1):
        places = {
            "HEADRACE_CHECKPOINTS": str(site.folder / name),
            "HEADRACE_STATE_DIR": str(site.folder / f"{name}-state"),
        }
        for _ in range(2):
            site.run("run", counting(site), "--until-end", "--workers", workers, **found(site) | FAST | places)
            assert len(site.read("out")) == count * once, name
            assert counted(site) == counts_of(rows(300)), name


def test_a_live_run_brings_out_everything_though_its_inputs_are_idle_empty_or_missing(site: Site, start: Start) -> None:
    text = EVERYTHING.replace('time="at")', 'time="at", idle_after="200ms")')
    count = len(fill(site))
    running = start(module(site, text), "--workers", "2")
    running.until(lambda: sum(values(site, "windows")) == count)
    running.until(lambda: len(values(site, "pairs")) == count)
    running.until(lambda: {"k": "k0", "clock": True} in values(site, "reminders"))
    running.until(lambda: {"k": "k0", "seen": count // 2} in values(site, "reminders"))
    running.until(lambda: len(values(site, "as-of")) == len(values(site, "with-rows")) == count)
    running.process.send_signal(signal.SIGTERM)
    assert running.end() == 0, running.text
    check_everything(site, count)


TABLE = """
from headrace import Topology

topology = Topology("ends")
stream = topology.stream("in", keyed_by="k", time="at")
stream.join(topology.table("rows"), lambda value, row: [value["n"], row]).to("out")
"""


def test_a_table_that_was_read_does_not_hold_a_join_back(site: Site, start: Start) -> None:
    """The stream is not idle for 30 s, so nothing but its own records moves time."""
    put_rows(site, "rows", [("k0", 5, "row")], 2)
    put_rows(site, "in", [("k0", at, {"k": "k0", "at": at, "n": at}) for at in (10, 20, 30)], 2)
    running = start(module(site, TABLE))
    running.until(lambda: values(site, "out") == [[10, "row"], [20, "row"]])
    put_rows(site, "in", [("k0", 40, {"k": "k0", "at": 40, "n": 40})], 2)
    running.until(lambda: values(site, "out") == [[n, "row"] for n in (10, 20, 30)])
    running.process.send_signal(signal.SIGTERM)
    assert running.end() == 0, running.text


GATED = """
import asyncio
from pathlib import Path

from headrace import Topology

topology = Topology("ends")
gate = Path(__file__).with_name("gate")


async def ask(value):
    if value["n"] == 20:
        gate.with_suffix(".waiting").touch()
        while not gate.exists():
            await asyncio.sleep(0.01)
    return value["n"]


topology.stream("in", keyed_by="k", time="at").map_async(ask).to("out")
"""


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_drain_in_the_middle_of_calls_waits_for_them(site: Site, start: Start, workers: str) -> None:
    fill(site)
    running = start(module(site, GATED), "--workers", workers)
    wait_for((site.folder / "gate.waiting").exists)
    wait_for(lambda: committed(site, "ends") == 150)
    running.process.send_signal(signal.SIGTERM)
    running.until(lambda: sum(map(len, holders(site, "ends").values())) == 1)
    (site.folder / "gate").touch()
    assert running.end() == 0, running.text
    # What had been begun has been ended, and nothing else.
    assert committed(site, "ends") == 200
    assert len(site.read("out")) == 200
    site.run("run", "job", "--until-end", **found(site))
    assert sorted(record.value for record in site.read("out")) == list(range(300))


HANGING = """
import asyncio, time
from headrace import Topology

topology = Topology("ends", on_error="dead-letter")


async def ask(value):
    if value["n"] == 20:
        await asyncio.sleep(3600)
    if value["n"] == 21:
        time.sleep(2)
    return value["n"]


topology.stream("in", keyed_by="k", time="at").map_async(ask, timeout="2s").to("out")
"""


def test_calls_that_hang_or_block_cost_no_membership(site: Site, start: Start) -> None:
    """They do so for twice as long as a worker may be silent."""
    fill(site)
    running = start(module(site, HANGING), "--workers", "2")
    wait_for(lambda: len(holders(site, "ends")) == 2)
    members = set(holders(site, "ends"))
    clock = SystemClock()
    while committed(site, "ends") < 300:
        assert set(holders(site, "ends")) == members
        assert running.process.poll() is None, running.text
        clock.sleep_ms(50)
    running.process.send_signal(signal.SIGTERM)
    assert running.end() == 0, running.text
    assert "taken for dead" not in running.text
    letters = [(record.value["n"], dict(record.headers)["headrace-error"]) for record in site.read("ends-dead-letter")]
    assert letters == [(20, b"TimeoutError: the call took longer than 2000 ms")]
    assert sorted(record.value for record in site.read("out")) == sorted({*range(300)} - {20})
