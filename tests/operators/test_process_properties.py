"""What must hold for user code with state and timers: a plain model, other cuts, other caches, crashes."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace import Context, ListState, MapState, Process, Topology, ValueState, agg, tumbling
from headrace.testing.driver import TopologyTestDriver
from tests.runtime.naive import with_watermarks
from tests.runtime.streams import DISORDER, cuts, pieces

few = settings(max_examples=60, deadline=None)

TTL = 25
Event = dict[str, Any]
Output = tuple[str, int, str, Any, bytes]

ACTIONS = st.one_of(
    st.tuples(st.just("set"), st.integers(0, 9)),
    st.tuples(st.just("add"), st.integers(1, 9)),
    st.just(("unset",)),
    st.tuples(st.just("append"), st.integers(0, 9)),
    st.tuples(st.just("replace"), st.lists(st.integers(0, 9), max_size=3)),
    st.just(("empty",)),
    st.tuples(st.just("put"), st.sampled_from("xyz"), st.integers(0, 9)),
    st.tuples(st.just("delete"), st.sampled_from("xyz")),
    st.just(("wipe",)),
    st.tuples(st.just("timer"), st.sampled_from(["t", "u", "again"]), st.integers(-30, 60)),
    st.tuples(st.just("cancel"), st.sampled_from(["t", "u", "again"])),
    st.just(("say",)),
    st.just(("fail",)),
)

events = st.lists(
    st.builds(
        lambda k, at, do: {"k": k, "at": at, "do": do},
        st.sampled_from("abc"),
        st.integers(0, 150),
        st.lists(ACTIONS, max_size=4),
    ),
    max_size=20,
)


class Acting(Process[Event, Any]):
    """Does what the records say, with states that live for ever and states that do not."""

    value = ValueState(int, default=-1)
    mortal = ValueState(int, default=-1, ttl=f"{TTL}ms")
    items = ListState(int)
    mortal_items = ListState(int, ttl=f"{TTL}ms")
    entries = MapState(str, int)
    mortal_entries = MapState(str, int, ttl=f"{TTL}ms")

    def on_record(self, record: Event, context: Context) -> Iterator[Any]:
        for name, *arguments in record["do"]:
            getattr(self, f"do_{name}")(context, *arguments)
        yield self.everything(context)

    def on_timer(self, name: str, context: Context) -> Iterator[Any]:
        self.items.append(len(name))
        self.mortal_entries[name] = context.timestamp
        if name == "again" and len(self.items) < 8:
            context.set_timer("again", after="9ms")
        yield name
        yield self.everything(context)
        context.emit("said", name)

    def everything(self, context: Context) -> list[Any]:
        return [
            context.key, context.watermark, self.value.value, self.mortal.value, list(self.items),
            list(self.mortal_items), [list(e) for e in self.entries.items()],
            [list(e) for e in self.mortal_entries.items()], len(self.mortal_items), len(self.mortal_entries),
            context.timers,
        ]  # fmt: skip

    def do_set(self, context: Context, number: int) -> None:
        self.value.value = self.mortal.value = number

    def do_add(self, context: Context, number: int) -> None:
        self.value.value += number
        self.mortal.value += number

    def do_unset(self, context: Context) -> None:
        self.value.clear()
        self.mortal.clear()

    def do_append(self, context: Context, number: int) -> None:
        self.items.append(number)
        self.mortal_items.append(number)

    def do_replace(self, context: Context, numbers: list[int]) -> None:
        self.items.replace(numbers)
        self.mortal_items.replace(numbers)

    def do_empty(self, context: Context) -> None:
        self.items.clear()
        self.mortal_items.clear()

    def do_put(self, context: Context, key: str, number: int) -> None:
        self.entries[key] = number
        self.mortal_entries[key] = number

    def do_delete(self, context: Context, key: str) -> None:
        self.entries.pop(key, None)
        self.mortal_entries.pop(key, None)

    def do_wipe(self, context: Context) -> None:
        self.entries.clear()
        self.mortal_entries.clear()

    def do_timer(self, context: Context, name: str, distance: int) -> None:
        context.set_timer(name, at=max(0, context.timestamp + distance))

    def do_cancel(self, context: Context, name: str) -> None:
        context.cancel_timer(name)

    def do_say(self, context: Context) -> None:
        context.emit("said", context.timestamp)

    def do_fail(self, context: Context) -> None:
        raise ValueError("as told")


def acting() -> Topology:
    topology = Topology("acting")
    stream = topology.stream("in", keyed_by="k", time="at", out_of_orderness=f"{DISORDER}ms")
    results = stream.process(Acting, outputs=("said",), on_error="skip")
    results.to("out")
    results.output("said").to("said")
    return topology


class Model:
    """The same without any batch, cache or expiry: everything is kept for ever, with the time of its writing."""

    def __init__(self) -> None:
        self.keys: dict[str, dict[str, Any]] = {}
        self.out: list[tuple[str, int, str, Any]] = []

    def run(self, made: list[Event]) -> list[tuple[str, int, str, Any]]:
        for event, watermark in with_watermarks(made, DISORDER):
            self.fire(watermark, passed=0)
            self.take(event, watermark)
            self.fire(watermark, passed=watermark)
        highest = max((event["at"] for event in made), default=0)
        self.fire(max(-1, highest - DISORDER), passed=0)
        last = max((t for state in self.keys.values() for t in state["timers"].values()), default=-1)
        self.fire(last + 1, passed=0)
        return self.out

    def take(self, event: Event, watermark: int) -> None:
        key, now = event["k"], max(event["at"], watermark)
        before = self.keys.get(key) or {
            "value": [],
            "items": [],
            "entries": {},
            "timers": {},
            "m": [],
            "i": [],
            "e": {},
        }
        state = {name: part.copy() for name, part in before.items()}
        said = []
        for name, *arguments in event["do"]:
            if name == "fail":
                return
            if name == "say":
                said.append(("said", event["at"], key, event["at"]))
            self.act(state, now, event["at"], name, *arguments)
        self.keys[key] = state
        self.out += said
        self.out.append(("out", event["at"], key, self.everything(key, now, watermark)))

    def act(self, state: dict[str, Any], now: int, at: int, name: str, *arguments: Any) -> None:
        match name, *arguments:
            case "timer", timer, distance:
                state["timers"][timer] = max(0, at + distance)
            case "cancel", timer:
                state["timers"].pop(timer, None)
            case _:
                self.write(state, now, name, *arguments)

    def write(self, state: dict[str, Any], now: int, name: str, *arguments: Any) -> None:
        match name, *arguments:
            case "set", number:
                state["value"], state["m"] = [number], [(number, now)]
            case "add", number:
                alive = [n for n, stamp in state["m"] if stamp + TTL > now]
                state["value"], state["m"] = (
                    [(state["value"] or [-1])[0] + number],
                    [((alive or [-1])[0] + number, now)],
                )
            case ("unset",):
                state["value"], state["m"] = [], []
            case "append", number:
                state["items"].append(number)
                state["i"].append((number, now))
            case "replace", numbers:
                state["items"], state["i"] = list(numbers), [(number, now) for number in numbers]
            case ("empty",):
                state["items"], state["i"] = [], []
            case "put", key, number:
                state["entries"][key], state["e"][key] = number, (number, now)
            case "delete", key:
                state["entries"].pop(key, None)
                if key in state["e"] and state["e"][key][1] + TTL > now:
                    del state["e"][key]
            case ("wipe",):
                state["entries"], state["e"] = {}, {}

    def fire(self, limit: int, passed: int) -> None:
        while due := sorted(
            (t, key, name) for key, state in self.keys.items() for name, t in state["timers"].items() if t < limit
        ):
            t, key, name = due[0]
            state = self.keys[key]
            del state["timers"][name]
            now = at = max(t, passed)
            state["items"].append(len(name))
            state["e"][name] = (at, now)
            if name == "again" and len(state["items"]) < 8:
                state["timers"]["again"] = at + 9
            self.out.append(("out", at, key, name))
            self.out.append(("out", at, key, self.everything(key, now, max(t + 1, passed))))
            self.out.append(("said", at, key, name))

    def everything(self, key: str, now: int, watermark: int) -> list[Any]:
        state = self.keys[key]
        items = [n for n, stamp in state["i"] if stamp + TTL > now]
        entries = [[k, n] for k, (n, stamp) in state["e"].items() if stamp + TTL > now]
        return [
            key, watermark, (state["value"] or [-1])[0],
            ([n for n, stamp in state["m"] if stamp + TTL > now] or [-1])[0], state["items"].copy(), items,
            [list(e) for e in state["entries"].items()], entries, len(items), len(entries),
            dict(sorted(state["timers"].items(), key=lambda timer: (timer[1], timer[0]))),
        ]  # fmt: skip


def outputs(driver: TopologyTestDriver) -> list[Output]:
    return [
        (topic, record.timestamp, record.key, record.value, dict(record.headers)["headrace-id"])
        for topic in ("out", "said")
        for record in driver.read(topic)
    ]


def result_of(made: list[Event], sizes: list[int] | None = None, **options: Any) -> list[Output]:
    driver = TopologyTestDriver(acting(), **options)
    for piece in pieces(made, [1] * len(made) if sizes is None else sizes):
        driver.send_many("in", piece)
    driver.end_input()
    return outputs(driver)


def unordered_entries(found: list[Any]) -> list[Any]:
    """Put entries of maps that live for a time in order: where one comes back after its time, its place may be new."""
    return [
        (topic, at, key, [*value[:7], sorted(value[7]), *value[8:]] if isinstance(value, list) else value)
        for topic, at, key, value, *_ in found
    ]


@settings(max_examples=300, deadline=None)
@given(made=events, sizes=cuts)
def test_it_is_what_a_plain_model_says(made: list[Event], sizes: list[int]) -> None:
    found, expected = unordered_entries(result_of(made, sizes)), unordered_entries(Model().run(made))
    for topic in ("out", "said"):
        assert [row for row in found if row[0] == topic] == [row for row in expected if row[0] == topic]


@few
@given(made=events, batch_records=st.sampled_from([1, 2, 3, 7, 4096]))
def test_cuts_change_nothing(made: list[Event], batch_records: int) -> None:
    driver = TopologyTestDriver(acting(), batch_records=batch_records)
    driver.send_many("in", made)
    driver.end_input()
    assert outputs(driver) == result_of(made)


@few
@given(made=events, sizes=cuts, cache_bytes=st.sampled_from([0, 500, 3000]))
def test_the_size_of_the_cache_changes_nothing(made: list[Event], sizes: list[int], cache_bytes: int) -> None:
    assert result_of(made, sizes, cache_bytes=cache_bytes) == result_of(made)


def by_id(found: list[Output]) -> dict[tuple[str, bytes], Output]:
    unique: dict[tuple[str, bytes], Output] = {}
    for output in found:
        assert unique.setdefault((output[0], output[-1]), output) == output
    return unique


@few
@given(
    made=events,
    sizes=cuts,
    faults=st.lists(
        st.tuples(st.integers(0, 8), st.sampled_from(["checkpoint", "crash", "crash", "restart"])), max_size=6
    ),
    partitions=st.integers(1, 2),
)
def test_crashes_repeat_outputs_with_their_ids(
    made: list[Event], sizes: list[int], faults: list[tuple[int, str]], partitions: int
) -> None:
    driver = TopologyTestDriver(acting(), cache_bytes=1000, partitions=partitions)
    parts = pieces(made, sizes)
    for place, part in enumerate(parts):
        driver.send_many("in", part)
        for at, fault in faults:
            if at == place:
                getattr(driver, fault)()
    driver.end_input()
    for at, fault in faults:
        if at >= len(parts):
            getattr(driver, fault)()
    assert by_id(outputs(driver)) == by_id(result_of(made, partitions=partitions))


@few
@given(made=events, sizes=cuts)
def test_what_is_left_behind_is_what_is_alive(made: list[Event], sizes: list[int]) -> None:
    driver = TopologyTestDriver(acting())
    for piece in pieces([event for event in made if ("fail",) not in event["do"]], sizes):
        driver.send_many("in", piece)
    driver.end_input()
    latest = max((event["at"] for event in made), default=0)
    driver.send("in", {"k": "z", "at": latest + 10_000, "do": [["unset"]]})
    driver.send("in", {"k": "z", "at": latest + 10_000, "do": [["unset"]]})
    driver.end_input()
    driver.checkpoint()
    model = Model()
    model.run([event for event in made if ("fail",) not in event["do"]])
    (image,) = driver._checkpoints.values()
    rows = [key for key in image if b"z" not in key and key[2:] in (b"a", b"b", b"c")]
    expected = [k for k, s in model.keys.items() if s["value"] or s["items"] or s["entries"]]
    assert sorted(key[2:].decode() for key in rows) == sorted(expected)


class Heard(Process[dict[str, Any], dict[str, Any]]):
    """Says when nothing was heard of a key, again and again, and what was heard shortly before."""

    recent = ListState(int, ttl=f"{TTL}ms")

    def on_record(self, record: dict[str, Any], context: Context) -> Iterator[dict[str, Any]]:
        self.recent.append(record["n"])
        context.set_timer("silent", after="12ms")
        yield {"k": context.key, "n": sum(self.recent)}

    def on_timer(self, name: str, context: Context) -> Iterator[dict[str, Any]]:
        yield {"k": context.key, "n": 100 + len(self.recent)}
        if self.recent:
            context.set_timer("silent", after="12ms")


def between_windows() -> Topology:
    topology = Topology("between-windows")
    stream = topology.stream("in", keyed_by="k", time="at", out_of_orderness=f"{DISORDER}ms")
    heard = stream.window(tumbling("10ms"), lateness="15ms").aggregate(n=agg.count()).process(Heard)
    heard.window(tumbling("30ms"), lateness="5ms").aggregate(all=agg.collect("n")).to("out")
    heard.process(Heard, name="second").to("said")
    return topology


def merged_with_its_input() -> Topology:
    topology = Topology("merged")
    stream = topology.stream("in", keyed_by="k", time="at", out_of_orderness=f"{DISORDER}ms")
    numbered = stream.map(lambda event: {"k": event["k"], "n": len(event["do"])})
    numbered.process(Heard).merge(numbered).to("out")
    numbered.filter(lambda event: event["n"] > 1).process(Heard, name="second").to("said")
    return topology


def repartitioned() -> Topology:
    topology = Topology("repartitioned")
    stream = topology.stream("in", keyed_by="k", time="at", out_of_orderness=f"{DISORDER}ms")
    numbered = stream.map(lambda event: {"k": event["k"], "n": len(event["do"])})
    numbered.key_by("n", key=int, name="by-n").process(Heard).to("out")
    numbered.process(Heard, name="first").key_by("n", key=int, name="by-sum").process(Heard, name="second").to("said")
    return topology


def orderly(made: list[Event]) -> list[Event]:
    return [event for _, event in sorted(enumerate(made), key=lambda pair: pair[1]["at"] // DISORDER)]


def cut_twice(make: Callable[[], Topology], made: list[Event], sizes: list[int]) -> tuple[list[Output], list[Output]]:
    """Return what comes of records in batches with a small cache, and of records one by one with a large one."""
    found = []
    for cut, cache_bytes in ((sizes, 500), ([1] * len(made), 2**20)):
        driver = TopologyTestDriver(make(), cache_bytes=cache_bytes)
        for piece in pieces(made, cut):
            driver.send_many("in", piece)
        driver.end_input()
        found.append(outputs(driver))
    return found[0], found[1]


@few
@given(made=events, sizes=cuts)
def test_cuts_change_nothing_behind_and_before_windows(made: list[Event], sizes: list[int]) -> None:
    in_batches, one_by_one = cut_twice(between_windows, made, sizes)
    assert in_batches == one_by_one


@few
@given(made=events, sizes=cuts)
def test_a_merge_with_what_was_not_made_by_time_changes_the_order_alone(made: list[Event], sizes: list[int]) -> None:
    in_batches, one_by_one = cut_twice(merged_with_its_input, made, sizes)
    assert sorted(repr(row[:4]) for row in in_batches) == sorted(repr(row[:4]) for row in one_by_one)


@pytest.mark.parametrize("make", [between_windows, merged_with_its_input, repartitioned])
@few
@given(made=events, sizes=cuts, places=st.sets(st.integers(0, 8)))
def test_hand_offs_change_nothing_among_other_steps(
    make: Callable[[], Topology], made: list[Event], sizes: list[int], places: set[int]
) -> None:
    found = []
    for handed_over in (places, set()):
        driver = TopologyTestDriver(make())
        for place, piece in enumerate(pieces(orderly(made), sizes)):
            driver.send_many("in", piece)
            if place in handed_over:
                driver.restart()
        driver.end_input()
        found.append(outputs(driver))
    assert found[0] == found[1]
