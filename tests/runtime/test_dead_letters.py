"""Records that failed are kept as they were, with what failed where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace import RecordError, Topology, agg, tumbling
from headrace.operators.api import MAIN, Batch, Outputs, RecordsFailedError, StepContext
from headrace.operators.stateless import StatelessOperator
from headrace.record import JoinedBytes, Record, RecordBatch, TopicPartition
from headrace.runtime.tasks.executor import Chain
from headrace.runtime.tasks.outbox import Outbox
from headrace.runtime.tasks.parking import start
from headrace.runtime.tasks.task import Task
from headrace.runtime.tasks.times import Mark
from headrace.state.memory import MemoryStore
from headrace.testing.driver import TopologyTestDriver
from headrace.topology.graph import Port, Sink, Source, Step
from headrace.topology.plan import TaskId, plan
from headrace.topology.validate import validate
from tests.runtime.streams import cuts, pieces
from tests.runtime.test_task_errors import BROKEN, EXPLODES, GOOD, NAMES, at_decode, send


def letters(driver: TopologyTestDriver) -> list[Record]:
    return driver.read("t-dead-letter")


def headers_of(letter: Record) -> dict[str, str]:
    assert len(letter.headers) == len({name for name, _ in letter.headers}), "no header twice"
    return {name: value.decode() for name, value in letter.headers}


@pytest.mark.parametrize(("make", "step"), list(zip(BROKEN, NAMES, strict=True)))
@pytest.mark.parametrize("one_by_one", [True, False])
def test_the_untouched_record_is_kept_with_what_failed(make: Any, step: str, one_by_one: bool) -> None:
    driver = TopologyTestDriver(make(on_error="dead-letter"))
    driver.now_ms = 77
    send(driver, GOOD, one_by_one)
    assert [record.value["n"] for record in driver.read("out")] == [1, 3]
    (letter,) = letters(driver)
    keyed = make.__name__ != "in_key_by"
    assert (letter.topic, letter.partition, letter.timestamp) == ("t-dead-letter", 0, 77)
    assert (letter.key, letter.value) == (b"a" if keyed else None, msgspec.msgpack.encode(GOOD[1]))
    at = EXPLODES.removeprefix("ValueError at ")
    assert headers_of(letter) == {
        "headrace-error": "ValueError", "headrace-error-at": at, "headrace-step": step, "headrace-topic": "in",
        "headrace-partition": "0", "headrace-offset": "1", "headrace-attempt": "1",
        "headrace-id": f"t/{step}/in-0/dead-letter/in/0/1",
    }  # fmt: skip
    assert driver.dead_letters == {step: 1}
    assert not driver.skipped


def test_a_record_that_does_not_decode() -> None:
    driver = TopologyTestDriver(at_decode(on_error="dead-letter"))
    driver.send_many("in", [GOOD[0], {"k": "a", "at": 1, "n": "text"}, GOOD[1]])
    assert [record.value["n"] for record in driver.read("out")] == [1, 2]
    (letter,) = letters(driver)
    headers = headers_of(letter)
    assert headers["headrace-error"] == "ValidationError: Expected `int`, got `str` - at `$.n`"
    assert "headrace-error-at" not in headers
    assert headers["headrace-step"] == "in"


def test_what_the_exception_says_is_not_kept_as_it_may_hold_data() -> None:
    driver = TopologyTestDriver(BROKEN[0](on_error="dead-letter"))
    driver.send_many("in", GOOD)
    assert "secret" not in repr(letters(driver)[0].headers)


def odd(value: dict[str, Any]) -> dict[str, Any]:
    if value["n"] % 2:
        raise KeyError(value["n"])
    return value


def test_a_step_may_have_the_policy_alone_and_a_record_may_fail_in_two_of_them() -> None:
    topology = Topology("t")
    stream = topology.stream("in", keyed_by="k", time="at")
    stream.map(odd, name="first", on_error="dead-letter").to("out")
    stream.flat_map(lambda v: [odd(v), odd(v)], name="second", on_error="dead-letter").to("out", name="other")
    stream.filter(lambda v: v["n"] < 9, name="strict").to("out", name="third")
    driver = TopologyTestDriver(topology)
    driver.send_many("in", GOOD)
    found = [(headers_of(letter)["headrace-step"], headers_of(letter)["headrace-offset"]) for letter in letters(driver)]
    assert found == [("first", "0"), ("first", "2"), ("second", "0"), ("second", "2")]
    with pytest.raises(RecordError, match="step 'strict'"):
        driver.send("in", {"k": "a", "at": 1, "n": "text"})


def test_several_results_of_one_record_that_fail_in_one_step_make_one_letter() -> None:
    topology = Topology("t", on_error="dead-letter")
    stream = topology.stream("in", keyed_by="k", time="at")
    stream.flat_map(lambda v: [v, {**v, "n": 2}, v]).map(odd, name="odd").to("out")
    driver = TopologyTestDriver(topology)
    driver.send_many("in", GOOD)
    assert [headers_of(letter)["headrace-offset"] for letter in letters(driver)] == ["0", "2"]
    assert driver.dead_letters == {"odd": 2}
    assert [record.value["n"] for record in driver.read("out")] == [2, 2, 2, 2, 2]


def test_letters_of_a_partition_stay_together_and_the_topic_is_as_wide_as_the_widest_source() -> None:
    topology = Topology("t", on_error="dead-letter")
    topology.stream("in", time="at").merge(topology.stream("wide", time="at")).map(odd).to("out")
    driver = TopologyTestDriver(topology, partitions={"in": 2, "wide": 3})
    for partition in (0, 1):
        driver.send("in", GOOD[0], partition=partition)
    driver.send("wide", GOOD[0], partition=2)
    assert {(headers_of(m)["headrace-topic"], m.partition) for m in letters(driver)} == {
        ("in", 0),
        ("in", 1),
        ("wide", 2),
    }
    assert "t-dead-letter" in driver.outputs


def test_behind_a_repartition_it_is_the_internal_record() -> None:
    topology = Topology("t", on_error="dead-letter")
    topology.stream("in", time="at").key_by("k", name="by-k").map(odd, name="odd").to("out")
    driver = TopologyTestDriver(topology)
    driver.send_many("in", GOOD)
    first, second = letters(driver)
    assert [headers_of(letter)["headrace-topic"] for letter in (first, second)] == ["t-by-k-repartition"] * 2
    assert (first.key, first.timestamp) == (b"a", 1)
    assert msgspec.msgpack.decode(second.value) == GOOD[2]


def test_no_policy_no_topic() -> None:
    assert TopologyTestDriver(BROKEN[0](on_error="skip")).outputs == ["out"]


def source_batch(*headers: tuple[tuple[str, bytes], ...]) -> RecordBatch:
    value = msgspec.msgpack.encode(GOOD[1])
    count = len(headers)
    return RecordBatch(
        [5] * count, [b"a"] * count, JoinedBytes.of([value] * count), headers, offsets=range(7, 7 + count)
    )


def test_a_replayed_record_counts_its_attempts_and_keeps_its_own_headers() -> None:
    planned = plan(BROKEN[0](on_error="dead-letter").graph(), {"in": 1})
    task = Task(
        planned, planned.subtopologies[0], TaskId("in", 0), MemoryStore(),
        partitions={"out": 1, "t-dead-letter": 1}, cache_bytes=1000, starts={},
    )  # fmt: skip
    earlier = (("trace", b"x"), ("headrace-attempt", b"2"), ("headrace-error", b"Old"), ("headrace-made", b"?"))
    (append,) = task.step(TopicPartition("in", 0), source_batch((), earlier, (("headrace-attempt", b"junk"),)))
    assert append[0] == TopicPartition("t-dead-letter", 0)
    assert append[1].headers is not None
    first, second, third = ({**dict(headers)} for headers in append[1].headers)
    assert (first["headrace-attempt"], third["headrace-attempt"]) == (b"1", b"1")
    assert second == {**first, "trace": b"x", "headrace-attempt": b"3", "headrace-offset": b"8"}


def of_windows(**options: Any) -> Topology:
    topology = Topology("t", **options)
    counts = topology.stream("in", keyed_by="k", time="at").window(tumbling("10ms")).aggregate(n=agg.count())
    counts.map(lambda r: {**r, "k": r["key"]}).map(odd, name="odd").to("out")
    return topology


def test_what_a_window_made_is_written_as_messagepack_and_marked() -> None:
    driver = TopologyTestDriver(of_windows(on_error="dead-letter"))
    driver.send_many("in", [{"k": "a", "at": 1}, {"k": "b", "at": 2}, {"k": "b", "at": 3}, {"k": "c", "at": 4}])
    driver.send("in", {"k": "a", "at": 20})
    first, second = letters(driver)
    result = {"key": "a", "window_start": 0, "window_end": 10, "n": 1, "k": "a"}
    assert (first.key, msgspec.msgpack.decode(first.value), first.timestamp) == (b"a", result, 9)
    assert second.key == b"c"
    headers = headers_of(second)
    assert headers.pop("headrace-error-at").startswith(__file__)
    assert headers == {
        "headrace-error": "KeyError", "headrace-step": "odd", "headrace-attempt": "1", "headrace-made": "time",
        "headrace-id": "t/odd/in-0/dead-letter/time/1",
    }  # fmt: skip
    assert driver.dead_letters == {"odd": 2}


def test_what_cannot_be_written_leaves_an_empty_value() -> None:
    topology = Topology("t", on_error="dead-letter")
    counts = topology.stream("in", keyed_by="k", time="at").window(tumbling("10ms")).aggregate(n=agg.count())
    counts.map(lambda r: {"n": r["n"], "file": object()}).map(odd, name="odd").to("out")
    driver = TopologyTestDriver(topology)
    driver.send("in", {"k": "a", "at": 1})
    driver.end_input()
    (letter,) = letters(driver)
    assert (letter.key, letter.value) == (b"a", b"")


events = st.lists(
    st.builds(
        lambda k, n, at: {"k": k, "n": n, "at": at}, st.sampled_from("abc"), st.integers(0, 5), st.integers(0, 60)
    ),
    max_size=20,
)
faults = st.lists(st.tuples(st.integers(0, 8), st.sampled_from(["checkpoint", "crash", "restart"])), max_size=5)


def everywhere() -> Topology:
    topology = Topology("t", on_error="dead-letter")
    stream = topology.stream("in", keyed_by="k", time="at", out_of_orderness="10ms")
    good = stream.map(odd, name="first")
    counts = (
        good.merge(stream.filter(lambda v: v["n"] == 3), name="both").key_by("k", name="by-k").window(tumbling("10ms"))
    )
    results = counts.aggregate(n=agg.sum(lambda v: 1 // (v["n"] - 4)))
    results.map(odd, name="last").to("out")
    return topology


def run(made: list[Any], sizes: Sequence[int], faults: list[tuple[int, str]], partitions: int) -> list[Any]:
    """Return the letters without repeats; offsets in an internal topic depend on what else is written there."""
    driver = TopologyTestDriver(everywhere(), partitions=partitions, cache_bytes=500)
    for place, piece in enumerate(pieces(made, list(sizes))):
        driver.send_many("in", piece)
        for at, fault in faults:
            if at == place:
                getattr(driver, fault)()
    driver.end_input()
    found: dict[str, Any] = {}
    for letter in letters(driver):
        headers = headers_of(letter)
        letter_id = headers.pop("headrace-id")
        row = [letter.partition, letter.timestamp, letter.key, letter.value, sorted(headers.items()), letter_id]
        assert found.setdefault(letter_id, row) == row
    for row in found.values():
        if ("headrace-topic", "t-by-k-repartition") in row[4]:
            row[4:] = [pair for pair in row[4] if pair[0] != "headrace-offset"]
    return sorted(found.values(), key=repr)


@settings(max_examples=60, deadline=None)
@given(made=events, sizes=cuts, faults=faults, partitions=st.integers(1, 2))
def test_letters_are_the_same_however_the_input_is_cut_and_repeat_their_ids_after_a_crash(
    made: list[Any], sizes: list[int], faults: list[tuple[int, str]], partitions: int
) -> None:
    made.sort(key=lambda event: event["at"] // 10)
    assert run(made, sizes, faults, partitions) == run(made, [1] * len(made), [], partitions)


class Failing(StatelessOperator):
    """Fails on whatever time lets it make, and on nothing else."""

    def __init__(self) -> None:
        super().__init__(lambda batch: [(MAIN, batch)])

    def on_watermark(self, watermark: int) -> Outputs:
        made = Batch([-1], [watermark], [b"k"], [{"n": watermark}])
        raise RecordsFailedError([(-1, ValueError("secret"))], [(MAIN, made)])

    def on_clock(self, now_ms: int) -> Outputs:
        raise RecordsFailedError([(-1, ValueError("secret"))], [])


@dataclass(frozen=True, slots=True)
class FailingSpec:
    kind: str = "failing"
    ports: ClassVar[tuple[str, ...]] = (MAIN,)
    stateful: ClassVar[bool] = False
    sided: ClassVar[bool] = False
    uses_clock: ClassVar[bool] = True
    timed_ports: ClassVar[tuple[str, ...]] = (MAIN,)

    def shape(self) -> dict[str, Any]:
        return {}

    def build(self, context: StepContext) -> Failing:
        return Failing()


def failing(policy: Any) -> Chain:
    topology = Topology("t")
    topology.stream("in").to("out")
    source, sink = topology.graph().nodes
    assert isinstance(source, Source)
    assert isinstance(sink, Sink)
    step = Step(name="alarm", inputs=(Port("in"),), spec=FailingSpec(), on_error=policy)
    sink = Sink(name=sink.name, inputs=(Port("alarm"),), topic="out", value=sink.value)
    planned = plan(validate("t", [source, step, sink]), {"in": 1})

    def context(name: str) -> StepContext:
        raise AssertionError("needs no state")

    return Chain(
        planned, planned.subtopologies[0], TaskId("in", 0), {"out": 1, "t-dead-letter": 1},
        lambda name: None, Outbox(0),  # type: ignore[arg-type,return-value]
    )  # fmt: skip


def test_what_fails_while_time_makes_something_is_dealt_with_by_the_policy_and_the_rest_goes_on() -> None:
    chain = failing("dead-letter")
    start(chain.advance({"in": Mark(40, False)}))
    out, letter = chain.pack("in", False, -1)
    assert msgspec.msgpack.decode(out[1].values.joined) == {"n": 40}
    assert (letter[1].timestamps, letter[1].keys, letter[1].values.joined) == ((40,), (None,), b"")
    assert chain.take_tally().dead_letters == {"alarm": 1}
    chain = failing("skip")
    start(chain.advance({"in": Mark(40, False)}))
    start(chain.tick(50))
    assert chain.take_tally().errors == {"alarm": 2}
    with pytest.raises(RecordError, match=r"step 'alarm' failed on what event time made in it, in the task of .* in/0"):
        start(failing("stop").advance({"in": Mark(40, False)}))
    with pytest.raises(RecordError, match="step 'alarm' failed on what processing time made in it"):
        start(failing("stop").tick(40))
