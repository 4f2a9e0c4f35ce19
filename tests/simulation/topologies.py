"""What is simulated: topologies of several kinds, each with input and an oracle in plain Python."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from headrace import Context, Topology, ValueState, agg, session, tumbling
from headrace.testing import Event, SimulationResult

Row = dict[str, Any]
Inputs = Mapping[str, list[Any]]


class Case(NamedTuple):
    name: str
    make: Callable[[], Topology]
    inputs: Callable[[random.Random], Inputs]
    check: Callable[[Inputs, SimulationResult], None]


def events(rng: random.Random, count: int, keys: int, step_ms: int = 300, disorder_ms: int = 1_500) -> list[Row]:
    rows = []
    for number in range(count):
        at = number * step_ms + rng.randrange(disorder_ms) + 1
        rows.append({"id": f"{number}", "k": f"k{rng.randrange(keys)}", "v": rng.randrange(100), "at": at})
    return rows


def found(result: SimulationResult, topic: str, *fields: str) -> list[tuple[Any, ...]]:
    return sorted(tuple(record.value[name] for name in fields) for record in result.outputs[topic])


# --- stateless


def stateless() -> Topology:
    topology = Topology("stateless")
    stream = topology.stream("in", time="at")
    stream.filter(lambda row: row["v"] % 3 != 0).map(lambda row: {"id": row["id"], "w": 2 * row["v"]}).to("out")
    return topology


def check_stateless(inputs: Inputs, result: SimulationResult) -> None:
    wanted = sorted((row["id"], 2 * row["v"]) for row in inputs["in"] if row["v"] % 3 != 0)
    assert found(result, "out", "id", "w") == wanted


# --- a repartition before a window


def windows() -> Topology:
    topology = Topology("windows")
    stream = topology.stream("in", keyed_by="k", time="at", out_of_orderness="2s")
    regrouped = stream.map(lambda row: {**row, "group": f"g{row['v'] % 4}"}).key_by("group")
    regrouped.window(tumbling("5s"), lateness="5s").aggregate(n=agg.count(), total=agg.sum("v")).to("out")
    return topology


def check_windows(inputs: Inputs, result: SimulationResult) -> None:
    totals: dict[tuple[str, int], list[int]] = defaultdict(lambda: [0, 0])
    for row in inputs["in"]:
        cell = totals[f"g{row['v'] % 4}", row["at"] // 5000 * 5000]
        cell[0] += 1
        cell[1] += row["v"]
    assert found(result, "out", "key", "window_start", "n", "total") == sorted(
        (*name, *cell) for name, cell in totals.items()
    )


# --- sessions


def sessions() -> Topology:
    topology = Topology("sessions")
    stream = topology.stream("in", keyed_by="k", time="at", out_of_orderness="5s")
    stream.window(session("2s"), lateness="5s").aggregate(n=agg.count(), total=agg.sum("v")).to("out")
    return topology


def check_sessions(inputs: Inputs, result: SimulationResult) -> None:
    by_key: dict[str, list[Row]] = defaultdict(list)
    for row in sorted(inputs["in"], key=lambda row: row["at"]):
        by_key[row["k"]].append(row)
    wanted = []
    for key, rows in by_key.items():
        open_: list[Row] = []
        for row in [*rows, None]:
            if open_ and (row is None or row["at"] - open_[-1]["at"] >= 2000):
                wanted.append((key, open_[0]["at"], len(open_), sum(one["v"] for one in open_)))
                open_ = []
            if row is not None:
                open_.append(row)
    assert found(result, "out", "key", "window_start", "n", "total") == sorted(wanted)


# --- a join of two streams


def interval_join() -> Topology:
    topology = Topology("interval-join")
    left = topology.stream("orders", keyed_by="k", time="at", out_of_orderness="5s")
    right = topology.stream("payments", keyed_by="k", time="at", out_of_orderness="5s")
    left.join(right, lambda order, paid: {"l": order["id"], "r": paid["id"]}, within="2s").to("out")
    return topology


def two_streams(rng: random.Random) -> Inputs:
    return {"orders": events(rng, 60, 6, 400), "payments": events(rng, 60, 6, 400)}


def check_interval_join(inputs: Inputs, result: SimulationResult) -> None:
    wanted = {
        (left["id"], right["id"])
        for left in inputs["orders"]
        for right in inputs["payments"]
        if left["k"] == right["k"] and abs(left["at"] - right["at"]) <= 2000
    }
    # The order of two inputs decides which result has which id, so there may be repeats under other ids.
    assert set(found(result, "out", "l", "r")) == wanted


# --- a join with a table


def table_join() -> Topology:
    topology = Topology("table-join")
    orders = topology.stream("orders", keyed_by="k", time="at", out_of_orderness="2s")
    names = topology.table("names", time="at", idle_after="30s")
    orders.join(names, lambda order, row: {"id": order["id"], "name": row and row["name"]}, how="left").to("out")
    return topology


def stream_and_table(rng: random.Random) -> Inputs:
    names = [
        Event({"name": f"n{number}", "at": number * 900 + 1}, f"k{rng.randrange(6)}", number) for number in range(20)
    ]
    return {"names": names, "orders": events(rng, 60, 6)}


def check_table_join(inputs: Inputs, result: SimulationResult) -> None:
    wanted = []
    for order in inputs["orders"]:
        known = [e.value for e in inputs["names"] if e.key == order["k"] and e.value["at"] <= order["at"]]
        wanted.append((order["id"], known[-1]["name"] if known else ""))
    there = {(record.value["id"], record.value["name"] or "") for record in result.outputs["out"]}
    assert sorted(there) == sorted(wanted)


# --- code of one's own, with timers, behind asynchronous calls


async def priced(row: Row) -> Row:
    return {**row, "price": row["v"] * 10}


def remember(row: Row, context: Context, total: ValueState[int]) -> Iterator[Row]:
    total.value += row["price"]
    context.set_timer("report", at=row["at"] // 4000 * 4000 + 4000)
    yield {"id": row["id"], "price": row["price"]}


def report(name: str, context: Context, total: ValueState[int]) -> Iterator[Row]:
    yield {"key": context.key, "total": total.value}


def processing() -> Topology:
    topology = Topology("processing")
    stream = topology.stream("in", keyed_by="k", time="at", out_of_orderness="2s")
    answered = stream.map_async(priced, concurrency=4)
    results = answered.process(remember, on_timer=report, total=ValueState(int, default=0), name="remember")
    results.filter(lambda row: "id" in row).to("out")
    results.filter(lambda row: "key" in row).to("totals")
    return topology


def check_processing(inputs: Inputs, result: SimulationResult) -> None:
    wanted = {(row["id"], row["v"] * 10) for row in inputs["in"]}
    assert set(found(result, "out", "id", "price")) == wanted
    last: dict[str, int] = defaultdict(int)
    for row in inputs["in"]:
        last[row["k"]] += row["v"] * 10
    highest: dict[str, int] = defaultdict(int)
    for record in result.outputs["totals"]:
        highest[record.value["key"]] = max(highest[record.value["key"]], record.value["total"])
    assert highest == last


# --- a stream with repeats, deduplicated before a window


def deduplicated() -> Topology:
    topology = Topology("deduplicated")
    stream = topology.stream("in", keyed_by="k", time="at", out_of_orderness="2s")
    once = stream.deduplicate(by="id", within="1h")
    once.window(tumbling("5s"), lateness="5s").aggregate(n=agg.count(), total=agg.sum("v")).to("out")
    return topology


def repeated(rng: random.Random) -> Inputs:
    rows = []
    for row in events(rng, 80, 8):
        rows += [row] * rng.choice((1, 1, 2, 3))
    return {"in": rows}


def check_deduplicated(inputs: Inputs, result: SimulationResult) -> None:
    totals: dict[tuple[str, int], list[int]] = defaultdict(lambda: [0, 0])
    for row in {(row["k"], row["id"]): row for row in inputs["in"]}.values():
        cell = totals[row["k"], row["at"] // 5000 * 5000]
        cell[0] += 1
        cell[1] += row["v"]
    assert found(result, "out", "key", "window_start", "n", "total") == sorted(
        (*name, *cell) for name, cell in totals.items()
    )


# --- a count that runs, over two repartitions


def running() -> Topology:
    topology = Topology("running")
    stream = topology.stream("in", keyed_by="k", time="at")
    pairs = stream.map(lambda row: {**row, "group": f"g{row['v'] % 5}"}).key_by("group")
    again = pairs.map(lambda row: {**row, "parity": f"p{row['v'] % 3}"}).key_by("parity", name="by-parity")
    again.aggregate(n=agg.count(), total=agg.sum("v")).to("out")
    return topology


def check_running(inputs: Inputs, result: SimulationResult) -> None:
    wanted: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for row in inputs["in"]:
        wanted[f"p{row['v'] % 3}"][0] += 1
        wanted[f"p{row['v'] % 3}"][1] += row["v"]
    largest: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for record in result.outputs["out"]:
        value = [record.value["n"], record.value["total"]]
        largest[record.key] = max(largest[record.key], value)
    assert largest == wanted


# --- windows on a topic that has its keys, which the clock closes soon when nothing comes


def impatient() -> Topology:
    topology = Topology("impatient")
    stream = topology.stream("in", keyed_by="k", time="at", out_of_orderness="2s", idle_after="3s")
    stream.window(tumbling("5s")).aggregate(n=agg.count(), total=agg.sum("v")).to("out")
    return topology


def check_impatient(inputs: Inputs, result: SimulationResult) -> None:
    totals: dict[tuple[str, int], list[int]] = defaultdict(lambda: [0, 0])
    for row in inputs["in"]:
        cell = totals[row["k"], row["at"] // 5000 * 5000]
        cell[0] += 1
        cell[1] += row["v"]
    assert found(result, "out", "key", "window_start", "n", "total") == sorted(
        (*name, *cell) for name, cell in totals.items()
    )


def plain(count: int, keys: int) -> Callable[[random.Random], Inputs]:
    return lambda rng: {"in": events(rng, count, keys)}


CASES: Iterable[Case] = (
    Case("stateless", stateless, plain(120, 10), check_stateless),
    Case("windows", windows, plain(100, 8), check_windows),
    Case("sessions", sessions, plain(100, 6), check_sessions),
    Case("interval-join", interval_join, two_streams, check_interval_join),
    Case("table-join", table_join, stream_and_table, check_table_join),
    Case("processing", processing, plain(80, 6), check_processing),
    Case("deduplicated", deduplicated, repeated, check_deduplicated),
    Case("impatient", impatient, plain(100, 6), check_impatient),
    Case("running", running, plain(100, 8), check_running),
)
BY_NAME = {case.name: case for case in CASES}
