"""What happens with records that cannot be decoded or processed."""

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from headrace import Msgpack, RecordError, Topology, TopologyError, agg, tumbling
from headrace.testing.driver import TopologyTestDriver

GOOD = [{"k": "a", "at": at, "n": at} for at in (1, 2, 3)]
HERE = Path(__file__)


def explode(value: dict[str, Any]) -> dict[str, Any]:
    if value["n"] == 2:
        raise ValueError(f"the secret is {value['k']}")  # the line that messages name
    return value


def line_of(text: str) -> int:
    lines = HERE.read_text(encoding="utf-8").splitlines()
    return next(i for i, line in enumerate(lines, 1) if text in line and "line_of" not in line)


EXPLODES = f"ValueError at {HERE}:{line_of('# the line that messages name')}"


def at_decode(**options: Any) -> Topology:
    class Strict(msgspec.Struct):
        k: str
        at: int
        n: int

    topology = Topology("t", **options)
    topology.stream("in", value=Strict, keyed_by="k", time="at").to("out")
    return topology


def in_map(**options: Any) -> Topology:
    topology = Topology("t", **options)
    topology.stream("in", keyed_by="k", time="at").map(explode).to("out")
    return topology


def in_filter(**options: Any) -> Topology:
    topology = Topology("t", **options)
    topology.stream("in", keyed_by="k", time="at").filter(explode).to("out")
    return topology


def in_flat_map(**options: Any) -> Topology:
    topology = Topology("t", **options)
    topology.stream("in", keyed_by="k", time="at").flat_map(lambda v: [explode(v)]).to("out")
    return topology


def in_branch(**options: Any) -> Topology:
    topology = Topology("t", **options)
    branches = topology.stream("in", keyed_by="k", time="at").branch(a=lambda v: explode(v)["n"] > 5, b=lambda v: True)
    branches["b"].to("out")
    return topology


def in_deduplicate(**options: Any) -> Topology:
    topology = Topology("t", **options)
    topology.stream("in", keyed_by="k", time="at").deduplicate(lambda v: explode(v)["n"], within="1m").to("out")
    return topology


def in_key_by(**options: Any) -> Topology:
    topology = Topology("t", **options)
    topology.stream("in", time="at").key_by(lambda v: explode(v)["k"], name="rekeyed").to("out")
    return topology


def at_a_sink(**options: Any) -> Topology:
    class Strict:
        name = "strict"

        def encode_many(self, values: Any) -> Any:
            return Msgpack().encode_many([explode(value) for value in values])

        def decode_many(self, values: Any) -> Any:
            return Msgpack().decode_many(values)

        def decode(self, value: Any) -> Any:
            return Msgpack().decode(value)

    topology = Topology("t", **options)
    topology.stream("in", keyed_by="k", time="at").to("out", value=Strict())
    return topology


BROKEN = [in_map, in_filter, in_flat_map, in_branch, in_deduplicate, in_key_by, at_a_sink]
NAMES = ["in-map-explode", "in-filter-explode", "in-flat_map-lambda", "in-branch", "in-deduplicate-lambda", "rekeyed",
         "in-to-out"]  # fmt: skip


broken = pytest.mark.parametrize(("make", "step"), list(zip(BROKEN, NAMES, strict=True)))


def send(driver: TopologyTestDriver, values: list[Any], one_by_one: bool) -> None:
    for part in [[value] for value in values] if one_by_one else [values]:
        driver.send_many("in", part)


@broken
@pytest.mark.parametrize("one_by_one", [True, False])
def test_stop_says_what_where_and_the_line_but_no_data(make: Any, step: str, one_by_one: bool) -> None:
    driver = TopologyTestDriver(make())
    with pytest.raises(RecordError) as failed:
        send(driver, GOOD, one_by_one)
    message = failed.value.message
    assert f"step '{step}' failed on the record at partition in/0, offset 1: {EXPLODES}" in message
    assert "secret" not in str(failed.value)
    assert "on_error" in failed.value.remedy
    assert isinstance(failed.value.__cause__, ValueError)


@broken
@pytest.mark.parametrize("one_by_one", [True, False])
def test_skip_leaves_out_just_those_and_counts_them(make: Any, step: str, one_by_one: bool) -> None:
    driver = TopologyTestDriver(make(on_error="skip"))
    send(driver, GOOD, one_by_one)
    assert [record.value["n"] for record in driver.read("out")] == [1, 3]
    assert driver.skipped == {step: 1}


def test_a_value_that_does_not_decode_names_field_and_types() -> None:
    driver = TopologyTestDriver(at_decode())
    with pytest.raises(RecordError, match=r"step 'in' failed on the record at partition in/0, offset 0: .*`\$\.n`"):
        driver.send("in", {"k": "a", "at": 1, "n": "text"})
    driver = TopologyTestDriver(at_decode(on_error="skip"))
    driver.send_many("in", [GOOD[0], {"k": "a", "at": 1, "n": "text"}, GOOD[1]])
    assert [record.value["n"] for record in driver.read("out")] == [1, 2]
    assert driver.skipped == {"in": 1}


def test_an_aggregate_that_fails_names_the_step_and_the_field() -> None:
    topology = Topology("t")
    stream = topology.stream("in", keyed_by="k", time="at")
    stream.window(tumbling("1m")).aggregate(total=agg.sum("amount")).to("out")
    driver = TopologyTestDriver(topology)
    with pytest.raises(RecordError) as failed:
        driver.send("in", GOOD[0])
    assert "step 'in-tumbling-60000ms' failed on the record at partition in/0, offset 0: KeyError" in str(failed.value)
    assert "amount" in str(failed.value)


def test_a_function_that_fails_in_an_aggregate_is_found_at_its_line() -> None:
    topology = Topology("t")
    stream = topology.stream("in", keyed_by="k", time="at")
    stream.window(tumbling("1m")).aggregate(total=agg.sum(lambda v: explode(v)["n"])).to("out")
    driver = TopologyTestDriver(topology)
    with pytest.raises(RecordError, match=re.escape(f"offset 1: {EXPLODES}")):
        driver.send_many("in", GOOD)


def test_a_failure_on_what_a_window_made_names_the_partition_of_the_task() -> None:
    topology = Topology("t")
    results = topology.stream("in", keyed_by="k", time="at").window(tumbling("1m")).aggregate(n=agg.count())
    results.map(lambda r: explode({**r, "k": r["key"], "n": 2})).to("out")
    driver = TopologyTestDriver(topology)
    driver.send("in", GOOD[0])
    with pytest.raises(RecordError, match="failed on what time made before it, in the task of partition in/0"):
        driver.end_input()


def test_the_line_is_the_users_even_if_a_library_raised() -> None:
    topology = Topology("t")
    topology.stream("in").map(lambda v: json.loads(v["k"])).to("out")  # a library raises here
    driver = TopologyTestDriver(topology)
    line = line_of("# a library raises here")
    with pytest.raises(RecordError, match=re.escape(f"JSONDecodeError at {HERE}:{line}")):
        driver.send("in", {"k": "no json"})


def test_a_builtin_that_fails_does_not_show_the_value() -> None:
    topology = Topology("t")
    topology.stream("in", value=str).map(int).to("out")
    with pytest.raises(RecordError) as failed:
        TopologyTestDriver(topology).send("in", "4929 1234")
    assert "ValueError" in str(failed.value)
    assert "4929" not in str(failed.value)


def test_a_key_that_is_not_the_field_says_what_to_do() -> None:
    topology = Topology("t")
    topology.stream("in", keyed_by="k").to("out")
    with pytest.raises(RecordError, match=r"partition in/0, offset 0: .*key is not its 'k' as str.*key_by\(\)"):
        TopologyTestDriver(topology).send("in", {"k": "a"}, key="b")


def test_a_missing_time_field_is_named() -> None:
    topology = Topology("t")
    topology.stream("in", time="at").to("out")
    with pytest.raises(RecordError, match="no field 'at'"):
        TopologyTestDriver(topology).send("in", {"k": "a"})


def test_a_step_may_have_a_policy_of_its_own() -> None:
    topology = Topology("t", on_error="skip")
    topology.stream("in", keyed_by="k", time="at").map(explode, on_error="stop").to("out")
    with pytest.raises(RecordError):
        TopologyTestDriver(topology).send_many("in", GOOD)


def test_an_unknown_policy_is_refused() -> None:
    with pytest.raises(TopologyError, match="on_error"):
        Topology("t", on_error="ignore")  # type: ignore[arg-type]
    with pytest.raises(TopologyError, match="on_error"):
        Topology("t").stream("in").map(explode, on_error="ignore")  # type: ignore[arg-type]


def test_objects_through_an_internal_topic_need_an_annotation() -> None:
    topology = Topology("t", on_error="skip")
    topology.stream("in").map(lambda v: Path("x")).key_by("name").to("out")
    with pytest.raises(TopologyError, match=r"step 'in-by-name' sends PosixPath objects through an internal topic"):
        TopologyTestDriver(topology).send("in", {"k": "a"})


class Payment(msgspec.Struct):
    k: str
    n: int


def to_payment(value: dict[str, Any]) -> Payment:
    return Payment(value["k"], value["n"])


def test_annotated_objects_come_out_of_an_internal_topic_as_what_they_were() -> None:
    topology = Topology("t")
    seen: list[Any] = []
    paid = topology.stream("in", keyed_by="k", time="at").map(to_payment).key_by("n")
    paid.tap(seen.append).map(lambda p: p.n).to("out")
    driver = TopologyTestDriver(topology)
    driver.send_many("in", GOOD)
    assert seen == [Payment("a", 1), Payment("a", 2), Payment("a", 3)]
    assert [(record.key, record.value) for record in driver.read("out")] == [(1, 1), (2, 2), (3, 3)]


def both(value: dict[str, Any]) -> list[Payment]:
    return [Payment(value["k"], value["n"]), Payment(value["k"], -value["n"])]


def test_also_those_that_flat_map_makes() -> None:
    topology = Topology("t")
    topology.stream("in").flat_map(both).key_by("k").map(lambda p: p.n).to("out")
    driver = TopologyTestDriver(topology)
    driver.send("in", GOOD[0])
    assert [record.value for record in driver.read("out")] == [1, -1]


def test_streams_of_different_types_merge() -> None:
    topology = Topology("t")
    payments = topology.stream("payments", value=Payment)
    refunds = topology.stream("refunds")
    payments.merge(refunds).map(lambda v: v.n if isinstance(v, Payment) else -v["n"]).to("out")
    driver = TopologyTestDriver(topology)
    driver.send("payments", Payment("a", 1))
    driver.send("refunds", {"n": 2})
    assert [record.value for record in driver.read("out")] == [1, -2]


def test_what_was_merged_of_different_types_is_not_taken_for_one_of_them_behind_an_internal_topic() -> None:
    topology = Topology("t")
    topology.stream("refunds").merge(topology.stream("payments", value=Payment)).key_by("k").to("out")  # type: ignore[arg-type]
    driver = TopologyTestDriver(topology)
    driver.send("refunds", {"k": "a"})
    with pytest.raises(TopologyError, match="Payment objects"):
        driver.send("payments", Payment("a", 1))
    other = Topology("t")
    other.stream("payments", value=Payment).merge(other.stream("refunds")).key_by("k").to("out")  # type: ignore[arg-type]
    driver = TopologyTestDriver(other)
    driver.send("refunds", {"k": "a", "extra": True})
    assert driver.read("out")[0].value == {"k": "a", "extra": True}
