"""Tables in the language: topics, tombstones, changes, and what is refused."""

from typing import Any

import pytest

from headrace import RecordError, Topology, TopologyError, agg, tumbling
from headrace.testing.driver import TopologyTestDriver
from tests.operators import tables


def test_the_order_of_the_topic_counts_and_not_that_of_times() -> None:
    topology = Topology("t")
    topology.table("in", time="at").to("out")
    driver = TopologyTestDriver(topology)
    driver.send_many("in", [{"at": 9}, {"at": 3}], keys=["a", "a"])
    driver.send("in", None, key="a", timestamp=77)
    assert [(r.key, r.value, r.timestamp) for r in driver.read("out")] == [
        ("a", {"at": 9}, 9),
        ("a", {"at": 3}, 3),
        ("a", None, 77),
    ]


def test_functions_never_see_a_deletion() -> None:
    topology = Topology("t")
    table = topology.table("in", value=int)
    table.filter(lambda n: n > 1).map_values(lambda n: n * 10).to("out")
    driver = TopologyTestDriver(topology)
    driver.send_many("in", [1, 2, None, 3, 0], keys=["a"] * 5)
    assert [value for _, value in tables.read(driver)] == [None, 20, None, 30, None]


def test_changes_are_a_keyed_stream() -> None:
    topology = Topology("t")
    changes = topology.table("in", value=int, time=lambda n: n).changes()
    changes.window(tumbling("10ms")).aggregate(n=agg.count()).to("out")
    driver = TopologyTestDriver(topology, partitions=2)
    driver.send_many("in", [1, 2, 3], keys=["a", "b", "a"])
    driver.end_input()
    assert {value["key"]: value["n"] for _, value in tables.read(driver)} == {"a": 2, "b": 1}


def test_a_record_without_a_key_is_an_error() -> None:
    topology = Topology("t")
    topology.table("in").to("out")
    with pytest.raises(RecordError, match="in/0, offset 0: ValueError: the record has no key"):
        TopologyTestDriver(topology).send("in", {"n": 1})


def test_a_record_without_a_key_can_be_left_out_of_a_batch() -> None:
    topology = Topology("t", on_error="skip")
    topology.table("in", time="at").to("out")
    driver = TopologyTestDriver(topology)
    driver.send_many("in", [{"at": 1}, None, {"at": 2}, {}], keys=["a", "b", None, "c"], timestamps=[5, 6, 7, 8])
    assert [(r.key, r.timestamp) for r in driver.read("out")] == [("a", 1), ("b", 6)]
    assert driver.skipped == {"in": 2}


def test_a_table_that_was_read_to_its_end_holds_nothing_back() -> None:
    topology = Topology("t")
    prices = topology.table("prices", time="at").changes()
    stream = topology.stream("in", keyed_by="k", time="at")
    stream.merge(prices).window(tumbling("10ms")).aggregate(n=agg.count()).to("out")
    driver = TopologyTestDriver(topology)
    driver.send("prices", {"at": 3}, key="a")
    driver.send_many("in", [{"k": "a", "at": at} for at in (4, 25)])
    assert [value["n"] for _, value in tables.read(driver)] == [2]


@pytest.mark.parametrize(
    ("first", "second", "remedy"),
    [
        ("stream", "table", r"\.to_table\(\)"), ("table", "stream", r"\.changes\(\)"),
        ("table", "table", "keep the table in a variable"), ("stream", "stream", "keep the stream in a variable"),
        ("global_table", "table", "second topic"), ("global_table", "global_table", "keep the table"),
    ],
)  # fmt: skip
def test_a_topic_is_read_once_and_the_message_says_how(first: str, second: str, remedy: str) -> None:
    topology = Topology("t")
    for way in (first, second):
        getattr(topology, way)("in", name=f"{way}-{len(topology._definition.nodes)}")
    with pytest.raises(TopologyError, match=f"'in' is read twice, at .*test_table.py:.*{remedy}"):
        topology.graph()


def test_a_repartitioned_table_meets_one_with_more_partitions() -> None:
    topology = Topology("t")
    narrow, wide = topology.table("narrow"), topology.table("wide")
    narrow.repartition().join(wide, lambda a, b: [a["n"], b["n"]]).to("out")
    driver = TopologyTestDriver(topology, partitions={"narrow": 2, "wide": 5})
    keys = [f"k{i}" for i in range(20)]
    for topic in ("narrow", "wide"):
        driver.send_many(topic, [{"n": n} for n in range(20)], keys=keys)
    driver.send("narrow", None, key="k3")
    found = tables.rows_of(tables.read(driver))
    assert found == {f"k{n}": [n, n] for n in range(20) if n != 3}


def test_steps_have_names_that_others_do_not_change() -> None:
    def names(topology: Topology) -> list[str]:
        return [node.name for node in topology.graph().nodes]

    topology = Topology("t")
    orders, customers = topology.table("orders"), topology.table("customers")
    orders.join(customers, lambda o, c: o, on="c").to("out")
    orders.join(topology.table("parcels"), lambda o, p: o).to("other")
    topology.stream("in", keyed_by="k").aggregate(n=agg.count()).to("counts")
    base = "orders-join-customers-on-c"
    assert names(topology)[2:] == [
        f"{base}-references", f"{base}-sent", f"{base}-lookup", f"{base}-answers", base, f"{base}-combine",
        f"{base}-to-out", "parcels", "orders-join-parcels", "orders-join-parcels-combine",
        "orders-join-parcels-to-other", "in", "in-aggregate", "in-aggregate-to-counts",
    ]  # fmt: skip


@pytest.mark.parametrize("bad", [{"time": 5}, {"key": 5}, {"value": 5}, {"on_error": "ignore"}])
def test_what_cannot_be_read_is_refused(bad: Any) -> None:
    with pytest.raises(TopologyError):
        Topology("t").table("in", **bad)


def test_functions_are_checked() -> None:
    table: Any = Topology("t").table("in")
    with pytest.raises(TopologyError, match="filter needs a function, not str"):
        table.filter("n")
    with pytest.raises(TopologyError, match="map_values needs a function, not int"):
        table.map_values(1)
