"""The rows of windows, byte for byte, as a released version wrote them, and that they are read.

After a wanted change of the format: ``HEADRACE_GOLDEN=write pytest tests/operators/test_window_format.py``, then read
the difference; the old rows must still be readable.
"""

import os
from pathlib import Path
from typing import Any

import pytest

from headrace import Topology, agg, counting, every, hopping, session, sliding, tumbling, when
from headrace.state.memory import MemoryStore
from headrace.testing.driver import TopologyTestDriver

GOLDEN = Path(__file__).parent / "golden" / "windows_v1.txt"


class FromTen:
    name = "from-ten"

    def windows(self, timestamp: int) -> list[tuple[int, int]]:
        return [(-5, 1000), (10, 1000)] if timestamp >= 10 else [(-5, 1000)]

    def shape(self) -> dict[str, Any]:
        return {}


STEPS: dict[str, tuple[Any, Any]] = {
    "tumbling": (tumbling("50ms"), "close"),
    "hopping-when": (hopping("50ms", "25ms"), when(lambda w: w["n"] > 1)),
    "tumbling-every": (tumbling("50ms"), every("20ms")),
    "custom": (FromTen(), "close"),
    "custom-every": (FromTen(), every("20ms")),
    "session": (session("20ms"), "close"),
    "session-when": (session("20ms"), when(lambda w: w["n"] > 1)),
    "session-every": (session("20ms"), every("15ms")),
    "sliding": (sliding("20ms"), "close"),
    "counting": (counting(2), "close"),
}
EVENTS = [("a", 1, 3), ("a", 2, 12), ("b\0", 3, 14), ("a", 4, 60), ("a", 5, 61), ("b\0", 6, 58), ("b\0", 7, 61)]
MORE = [("a", 8, 70), ("b\0", 9, 150)]


def topology(step: str) -> Topology:
    windows, emit = STEPS[step]
    topology = Topology("t")
    stream = topology.stream("in", keyed_by="k", time="at", out_of_orderness="10ms")
    stream.window(windows).aggregate(n=agg.count(), all=agg.collect("n"), emit=emit, name="w").to("out")
    return topology


def made(events: list[tuple[str, int, int]]) -> list[dict[str, Any]]:
    return [{"k": key, "n": n, "at": at} for key, n, at in events]


def rows_of(step: str) -> dict[bytes, bytes]:
    """Return what a step keeps after ``EVENTS``, by key."""
    driver = TopologyTestDriver(topology(step))
    driver.send_many("in", made(EVENTS))
    driver.checkpoint()
    (image,) = driver._checkpoints.values()
    return {key: row for key, row in image.items() if key[:2] != b"\0\0"}


def read_golden() -> dict[str, dict[bytes, bytes]]:
    kept: dict[str, dict[bytes, bytes]] = {}
    for line in GOLDEN.read_text(encoding="ascii").splitlines():
        step, key, row = line.split(" ")
        kept.setdefault(step, {})[bytes.fromhex(key)] = bytes.fromhex(row.removeprefix("="))
    return kept


def test_this_version_writes_version_1() -> None:
    written = {step: rows_of(step) for step in STEPS}
    if os.environ.get("HEADRACE_GOLDEN") == "write":
        lines = [f"{s} {key.hex()} ={row.hex()}\n" for s, rows in written.items() for key, row in sorted(rows.items())]
        GOLDEN.write_text("".join(lines), encoding="ascii")
    assert written == read_golden()


@pytest.mark.parametrize("step", STEPS)
def test_version_1_goes_on(step: str) -> None:
    def finish(driver: TopologyTestDriver) -> list[Any]:
        driver.send_many("in", made(MORE))
        driver.end_input()
        return [(record.key, record.timestamp, record.value) for record in driver.read("out")]

    driver = TopologyTestDriver(topology(step))
    driver.send_many("in", made(EVENTS))
    driver.read("out")
    expected = finish(driver)
    restored = TopologyTestDriver(topology(step))
    restored.send_many("in", made(EVENTS))
    restored.checkpoint()
    restored.read("out")
    (name,) = restored.tasks
    meta = {key: row for key, row in restored._checkpoints[name].items() if key[:2] == b"\0\0"}
    restored._checkpoints[name] = dict(MemoryStore({**meta, **read_golden()[step]}).scan(b""))
    restored.crash()
    found = finish(restored)
    assert found == expected
    assert found
