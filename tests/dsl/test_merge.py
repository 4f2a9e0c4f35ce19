"""Merging keyed streams keeps the key, so that state sees the records of a key from all of them."""

import pytest

from headrace import KeyedStream, Stream, Topology, TopologyError, agg, tumbling
from headrace.testing.driver import TopologyTestDriver
from headrace.topology.plan import plan


def test_a_window_sees_the_records_of_a_key_from_every_stream() -> None:
    topology = Topology("shop")
    orders = topology.stream("orders", keyed_by="customer", time="at")
    returns = topology.stream("returns", keyed_by="customer", time="at")
    orders.merge(returns).window(tumbling("1m")).aggregate(n=agg.count(), total=agg.sum("total")).to("contacts")
    driver = TopologyTestDriver(topology, partitions=3)
    for customer in ("ann", "bob"):
        driver.send("orders", {"customer": customer, "total": 5, "at": 1})
        driver.send("returns", {"customer": customer, "total": -2, "at": 2})
    driver.end_input()
    assert sorted((r.key, r.value["n"], r.value["total"]) for r in driver.read("contacts")) == [
        ("ann", 2, 3),
        ("bob", 2, 3),
    ]


def test_streams_whose_topics_are_partitioned_differently_cannot_share_state() -> None:
    topology = Topology("shop")
    orders = topology.stream("orders", keyed_by="customer")
    orders.merge(topology.stream("returns", keyed_by="customer")).deduplicate(by="id", within="1h").to("out")
    with pytest.raises(TopologyError, match="orders has 2, returns has 3"):
        plan(topology.graph(), {"orders": 2, "returns": 3})


def test_what_is_merged_is_keyed_only_if_all_is_and_by_one_type_of_key() -> None:
    topology = Topology("shop")
    texts = topology.stream("a", keyed_by="x")
    numbers = topology.stream("b", key=int, keyed_by="x")
    plain = topology.stream("c")
    assert type(texts.merge(topology.stream("d", keyed_by="y"))) is KeyedStream
    assert type(texts.merge(numbers)) is Stream
    assert type(texts.merge(plain)) is Stream
    assert type(plain.merge(texts)) is Stream
