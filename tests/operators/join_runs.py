"""Inputs, runs and plain models for the tests of joins.

An event is a dict with ``k`` (key), ``n`` (a number of its own), ``s`` (its side, 0 or 1) and ``at``.
"""

from collections.abc import Callable, Iterator
from typing import Any

from hypothesis import strategies as st

from headrace import Topology
from headrace.testing.driver import TopologyTestDriver
from tests.runtime.streams import Output, outputs, pieces

DISORDER = 1_000

Event = dict[str, Any]
Pair = tuple[int, Any, Any]
"""Timestamp, and the numbers of both sides."""


def _numbered(rows: list[tuple[str, int, int]]) -> list[Event]:
    return [{"k": k, "s": s, "at": at * 50, "n": n} for n, (k, s, at) in enumerate(rows)]


events = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(0, 1), st.integers(0, 100)), max_size=40
).map(_numbered)  # fmt: skip
"""Records in any order, many of them late, many with equal times."""

cuts = st.lists(st.integers(1, 9), max_size=12)

faults = st.lists(
    st.tuples(st.integers(0, 8), st.sampled_from(["checkpoint", "crash", "crash", "restart"])), min_size=1, max_size=6
)


def orderly(made: list[Event]) -> list[Event]:
    """Put records into an order in which none is late and few are in order."""
    return [event for _, event in sorted(enumerate(made), key=lambda pair: (pair[1]["at"] // DISORDER, pair[0]))]


def numbers(left: Event | None, right: Event | None) -> dict[str, Any]:
    return {"left": left and left["n"], "right": right and right["n"]}


def run(
    topology: Topology, made: list[Event], sizes: list[int] | None = None, faults: Any = (), **options: Any
) -> list[Output]:
    """Return everything that is written for the topic ``in``, cut and disturbed like that."""
    driver = TopologyTestDriver(topology, **options)
    parts = pieces(made, [1] * len(made) if sizes is None else sizes)
    for place, part in enumerate(parts):
        driver.send_many("in", part)
        for _, fault in (f for f in faults if f[0] == place):
            getattr(driver, fault)()
    driver.end_input()
    for _, fault in (f for f in faults if f[0] >= len(parts)):
        getattr(driver, fault)()
    return outputs(driver)


def by_id(found: list[Output]) -> dict[tuple[str, bytes], Any]:
    """Return outputs by topic and id; what comes twice with one id must be the same both times."""
    unique: dict[tuple[str, bytes], Any] = {}
    for output in found:
        assert unique.setdefault((output[0], output[-1]), output) == output
    return unique


def pairs(found: list[Output], topic: str = "out") -> list[Pair]:
    return [(o[2], o[4]["left"], o[4]["right"]) for o in found if o[0] == topic]


def numbers_of(found: list[Output], topic: str) -> list[int]:
    return [o[4]["n"] for o in found if o[0] == topic]


def with_watermarks(made: list[Event], disorder: int = DISORDER) -> Iterator[tuple[Event, int]]:
    """Yield each record with the watermark just before it."""
    highest = -1
    for event in made:
        yield event, max(-1, highest - disorder)
        highest = max(highest, event["at"])


def near(left: Event, right: Event, before: int, after: int) -> bool:
    return bool(left["k"] == right["k"] and left["at"] - before <= right["at"] <= left["at"] + after)


def nested_loop(left: list[Event], right: list[Event], how: str, before: int, after: int) -> list[Pair]:
    """Return what a database would."""
    found: list[Pair] = [
        (max(a["at"], b["at"]), a["n"], b["n"]) for a in left for b in right if near(a, b, before, after)
    ]
    if how in ("left", "outer"):
        found += [(a["at"], a["n"], None) for a in left if not any(near(a, b, before, after) for b in right)]
    if how in ("right", "outer"):
        found += [(b["at"], None, b["n"]) for b in right if not any(near(a, b, before, after) for a in left)]
    return sorted(found, key=repr)


class Model:
    """An interval join record by record, over plain lists: with late records, and in the order of the results."""

    def __init__(self, how: str, before: int, after: int, lateness: int) -> None:
        self.before, self.after = before, after
        self.waits = (after + lateness, before + lateness)
        self.emits = (how in ("left", "outer"), how in ("right", "outer"))
        self.hold = max([w for w, e in zip(self.waits, self.emits, strict=True) if e], default=0)
        self.kept: tuple[list[Event], list[Event]] = ([], [])
        self.alone: list[tuple[int, int, bytes, int, Event]] = []
        self.out: list[Pair] = []
        self.late: tuple[list[int], list[int]] = ([], [])

    def expire(self, watermark: float) -> None:
        for item in sorted(self.alone, key=lambda item: item[:4]):
            expiry, side, _, _, event = item
            if expiry < watermark:
                self.alone.remove(item)
                self.out.append((event["at"], event["n"], None) if side == 0 else (event["at"], None, event["n"]))

    def take(self, event: Event, side: int, watermark: int, arrival: int) -> None:
        self.expire(watermark)
        if event["at"] + self.waits[side] < watermark:
            self.late[side].append(event["n"])
            return
        matched = False
        for other in sorted(self.kept[1 - side], key=lambda e: e["at"]):
            left, right = (event, other) if side == 0 else (other, event)
            if near(left, right, self.before, self.after) and other["at"] + self.waits[1 - side] >= watermark:
                matched = True
                self.out.append((max(event["at"], other["at"]), left["n"], right["n"]))
                self.alone = [item for item in self.alone if not (item[1] == 1 - side and item[4] is other)]
        self.kept[side].append(event)
        if self.emits[side] and not matched:
            self.alone.append((event["at"] + self.hold, side, event["k"].encode(), arrival, event))


def model(
    made: list[Event], how: str, before: int, after: int, lateness: int, sides: Callable[[Event], list[int]]
) -> Model:
    """Run the model over one source; ``sides`` says as which sides a record enters."""
    joined = Model(how, before, after, lateness)
    for arrival, (event, watermark) in enumerate(with_watermarks(made)):
        for side in sides(event):
            joined.take(event, side, watermark, arrival)
    joined.expire(float("inf"))
    return joined
