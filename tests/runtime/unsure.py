"""Topologies that no replay repeats: what they make of a record depends on chance, the clock, or the order of inputs.

Each makes of every record of ``in`` at most one, with a ``tag`` that a replay may choose otherwise. It is written to
``made``, and counted by tag behind an internal topic; the counts go to ``counts``.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from headrace import Context, KeyedStream, Topology, ValueState, agg, retry, tumbling
from headrace.record import ID_HEADER, Record
from headrace.testing.driver import TopologyTestDriver

Event = dict[str, Any]
Make = Callable[[KeyedStream[Event], Topology, random.Random], KeyedStream[Event]]

LETTERS = "unsure-dead-letter"


def _asked(stream: KeyedStream[Event], topology: Topology, rng: random.Random) -> KeyedStream[Event]:
    async def ask(event: Event) -> Event:
        return {**event, "tag": rng.choice("abc")}

    return stream.map_async(ask, order="input", name="ask")


def _tried(stream: KeyedStream[Event], topology: Topology, rng: random.Random) -> KeyedStream[Event]:
    def flaky(event: Event) -> Event:
        if rng.random() < 0.4:
            raise ConnectionError
        return {**event, "tag": rng.choice("abc")}

    return stream.map(flaky, name="flaky", on_error=retry(2, backoff="1ms", then="dead-letter"))


def _met(stream: KeyedStream[Event], topology: Topology, rng: random.Random) -> KeyedStream[Event]:
    tags = topology.table("tags")

    def tagged(event: Event, tag: Event | None) -> Event:
        return {**event, "tag": tag["tag"] if tag else "none"}

    return stream.join(tags, tagged, how="left", match="latest", name="met")


def _timed(stream: KeyedStream[Event], topology: Topology, rng: random.Random) -> KeyedStream[Event]:
    def wait(event: Event, context: Context, held: ValueState[list[Event]]) -> Iterator[Event]:
        held.value = [*(held.value or []), event]
        context.set_clock_timer("t", after="3s")
        yield from ()

    def go_on(name: str, context: Context, held: ValueState[list[Event]]) -> Iterator[Event]:
        for event in held.value or []:
            yield {**event, "tag": f"t{context.now_ms // 4000 % 3}"}
        held.value = []

    return stream.process(wait, on_clock_timer=go_on, name="timed", held=ValueState(list))


def _mixed(stream: KeyedStream[Event], topology: Topology, rng: random.Random) -> KeyedStream[Event]:
    def last(windows: str) -> KeyedStream[Event]:
        results = stream.window(tumbling(windows)).aggregate(id=agg.last("id"), at=agg.last("at"), name=f"w-{windows}")
        return results.map(lambda r: {"id": (windows, r["key"], r["window_start"]), "at": r["at"], "tag": windows})

    return last("7ms").merge(last("10ms"))


MAKERS: dict[str, Make] = {"asked": _asked, "tried": _tried, "met": _met, "timed": _timed, "mixed": _mixed}


def unsure(kind: str, seed: int = 0) -> Topology:
    """Make the topology of a kind; runs of the same one choose other tags."""
    topology = Topology("unsure")
    stream = topology.stream("in", keyed_by="k", time="at", out_of_orderness="5ms", idle_after="2s")
    made = MAKERS[kind](stream, topology, random.Random(seed))
    made.to("made")
    by_tag = made.key_by("tag", name="by-tag")
    by_tag.aggregate(n=agg.count(), ids=agg.collect("id"), name="count").changes().to("counts")
    return topology


def events(count: int, first: int = 0) -> list[Event]:
    return [{"id": n, "k": "klmn"[n % 4], "at": n * 3 - n % 4} for n in range(first, first + count)]


def by_id(records: Iterable[Record]) -> list[Record]:
    """Return records without repeats; those with one id must be alike."""
    found: dict[tuple[int, bytes], Record] = {}
    for record in records:
        name = (record.partition, dict(record.headers)[ID_HEADER])
        first = found.setdefault(name, record)
        told = (first.key, first.value, first.timestamp), (record.key, record.value, record.timestamp)
        assert told[0] == told[1], f"one id, two records: {told}"
    return list(found.values())


def check(kind: str, sent: list[Event], made: list[Record], counts: list[Record], letters: list[Record]) -> None:
    """Check that everything downstream follows from one course of what chance decides."""
    once = by_id(made)
    ids = Counter(repr(record.value["id"]) for record in once)
    assert max(ids.values(), default=1) == 1, "a record was made twice"
    if kind != "mixed":
        failed = [dict(r.headers)["headrace-offset"] + b"/%d" % r.partition for r in by_id(letters)]
        assert len(set(failed)) == len(failed)
        assert len(once) + len(failed) == len(sent), "a record is missing, or has two fates"
    by_tag: dict[str, list[Event]] = {}
    for record in by_id(counts):
        by_tag.setdefault(record.key, []).append(record.value)
    for tag, rows in by_tag.items():
        rows.sort(key=lambda row: row["n"])
        assert [row["n"] for row in rows] == list(range(1, len(rows) + 1)), tag
    counted = {tag: sorted(map(repr, map(tuple_of, rows[-1]["ids"]))) for tag, rows in by_tag.items()}
    wanted: dict[str, list[str]] = {}
    for record in once:
        wanted.setdefault(record.value["tag"], []).append(repr(tuple_of(record.value["id"])))
    assert counted == {tag: sorted(ids) for tag, ids in wanted.items()}, "sinks and counts tell two stories"


def tuple_of(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def check_driver(kind: str, sent: list[Event], driver: TopologyTestDriver) -> None:
    """Check what a run that has ended wrote."""
    letters = driver.read(LETTERS) if LETTERS in driver.outputs else []
    check(kind, sent, driver.read("made"), driver.read("counts"), letters)
