"""What must be partitioned alike: found before anything starts, repaired where an internal topic can have any width."""

import re
from typing import Any

import pytest

from headrace import Topology, TopologyError, agg
from headrace.topology.plan import Plan, plan


def planned(topology: Topology, repartition_partitions: int = 0, **partitions: int) -> Plan:
    return plan(topology.graph(), partitions, repartition_partitions)


def pair(left: Any, right: Any) -> Any:
    return [left, right]


def test_tables_of_different_widths_cannot_be_joined() -> None:
    topology = Topology("t")
    topology.table("a").join(topology.table("b"), pair).to("out")
    assert len(planned(topology, a=3, b=3).tasks()) == 3
    with pytest.raises(TopologyError) as refused:
        planned(topology, a=2, b=3)
    message = str(refused.value)
    assert re.search(r"step 'a-join-b' \(.*test_copartition.py:\d+\)", message)
    assert "a has 2, b has 3" in message
    assert "key_by()" in message
    assert ".repartition()" in message


def test_what_the_message_advises_works() -> None:
    topology = Topology("t")
    topology.table("a").repartition().join(topology.table("b"), pair).to("out")
    made = planned(topology, a=2, b=3)
    assert made.internal_topics() == {"t-a-again-repartition": 3}
    topology = Topology("t")
    counts = topology.stream("a").key_by("k").aggregate(n=agg.count())
    counts.join(topology.table("b"), pair).to("out")
    assert planned(topology, a=8, b=3).internal_topics() == {"t-a-by-k-repartition": 3}


def test_keyed_streams_of_different_widths_may_merge_but_keep_no_state() -> None:
    topology = Topology("t")
    merged = topology.stream("a", keyed_by="k").merge(topology.stream("b", keyed_by="k"))
    merged.to("out")
    assert len(planned(topology, a=2, b=3).tasks()) == 3
    merged.aggregate(n=agg.count()).to("counts")
    with pytest.raises(TopologyError, match="a has 2, b has 3"):
        planned(topology, a=2, b=3)


def test_an_internal_topic_has_the_width_of_the_sources_that_its_keys_meet_and_of_no_others() -> None:
    topology = Topology("t")
    keyed = topology.stream("events").key_by("k", name="keyed")
    keyed.aggregate(n=agg.count()).join(topology.table("narrow"), pair).to("out")
    keyed.merge(topology.stream("wide")).to("all")
    made = planned(topology, events=1, narrow=2, wide=5)
    assert made.internal_topics() == {"t-keyed-repartition": 2}
    assert [(sub.name, sub.partitions) for sub in made.subtopologies] == [("events", 1), ("keyed", 5)]


def test_keys_meet_through_other_keys_too() -> None:
    topology = Topology("t")
    keyed = topology.stream("events").key_by("k", name="keyed")
    first = keyed.aggregate(n=agg.count(), name="first").join(topology.table("a"), pair)
    assert planned(topology, events=4, a=3).internal_topics() == {"t-keyed-repartition": 3}
    second = keyed.aggregate(n=agg.count(), name="second")
    second.join(topology.table("b"), pair).to("out")
    first.to("other")
    with pytest.raises(TopologyError, match=r"'second-join-b' \(.*a has 3, b has 2"):
        planned(topology, events=4, a=3, b=2)


def test_internal_topics_whose_keys_meet_have_one_width() -> None:
    topology = Topology("t")
    left = topology.stream("a").key_by("k").aggregate(n=agg.count())
    right = topology.stream("b").key_by("k").aggregate(n=agg.count())
    left.join(right, pair).to("out")
    names = ["t-a-by-k-repartition", "t-b-by-k-repartition"]
    assert planned(topology, a=2, b=3).internal_topics() == dict.fromkeys(names, 3)
    assert planned(topology, a=2, b=3, repartition_partitions=7).internal_topics() == dict.fromkeys(names, 7)


def test_a_wish_for_other_widths_counts_only_where_no_source_says_otherwise() -> None:
    topology = Topology("t")
    orders, customers = topology.table("orders"), topology.table("customers")
    orders.join(customers, pair, on="c", name="named").to("out")
    made = planned(topology, orders=2, customers=3, repartition_partitions=5)
    assert made.internal_topics() == {"t-named-sent-repartition": 3, "t-named-answers-repartition": 5}


def test_keys_of_different_types_never_meet() -> None:
    topology = Topology("t")
    counts = topology.stream("a").key_by("k", key=int).aggregate(n=agg.count())
    counts.join(topology.table("b"), pair).to("out")
    with pytest.raises(TopologyError, match=r"'a-by-k-aggregate-join-b' \(.*'a-by-k' has int, b has str.*key=int"):
        planned(topology, a=2, b=2)


def test_a_global_table_has_any_width() -> None:
    topology = Topology("t")
    merged = topology.stream("a").merge(topology.stream("b"))
    merged.join(topology.global_table("rates", key=int), pair, on="c").to("out")
    made = planned(topology, a=2, b=3, rates=7)
    (sub,) = made.subtopologies
    assert (sub.name, sub.partitions) == ("a", 3)
    assert [len(sub.reads(number)) for number in range(3)] == [2 + 7, 2 + 7, 1 + 7]
    assert made.topics_read_once() == {"a", "b"}
    assert sorted(made.source_topics()) == ["a", "b", "rates"]


def test_what_comes_back_through_an_internal_topic_meets_what_went_in() -> None:
    topology = Topology("t")
    orders, customers = topology.table("orders"), topology.table("customers")
    named = orders.join(customers, pair, on="c", name="named")
    named.join(orders, pair, name="again").to("out")
    made = planned(topology, orders=2, customers=3)
    assert "t-again-right-repartition" in made.internal_topics()
    named.changes().merge(orders.changes()).to("both")
    with pytest.raises(TopologyError, match=r"in a circle: .*'named-sent' \(.*\.repartition\(\)"):
        planned(topology, orders=2, customers=3)
