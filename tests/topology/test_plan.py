"""How a graph is cut: sub-topologies, internal topics, levels, and what a replay repeats."""

from typing import Any

import pytest

from headrace import SettingsError, Topology, TopologyError, agg, retry, session, tumbling
from headrace.operators.deduplicate import Deduplicate
from headrace.operators.stateless import merging
from headrace.serde.msgpack import Msgpack
from headrace.serde.primitives import Str
from headrace.settings import Settings
from headrace.testing.driver import TopologyTestDriver
from headrace.topology.graph import Graph, Location, Port, Sink, Source, Step
from headrace.topology.plan import EXACTLY_ONCE, Plan, at_least_once, by_outbox, plan


def planned(topology: Topology, repartition_partitions: int = 0, **partitions: int) -> Plan:
    return plan(topology.graph(), partitions, repartition_partitions)


def brief(made: Plan) -> list[tuple[str, int, int, list[str]]]:
    return [(s.name, s.level, s.partitions, [i.topic for i in s.inputs]) for s in made.subtopologies]


def test_without_a_repartition_there_is_one() -> None:
    topology = Topology("t")
    topology.stream("in", keyed_by="k").window(tumbling("1m")).aggregate(n=agg.count()).to("out")
    made = planned(topology, **{"in": 3})
    assert brief(made) == [("in", 0, 3, ["in"])]
    assert list(map(str, made.tasks())) == ["in-0", "in-1", "in-2"]
    assert made.internal_topics() == {}
    assert made.source_topics() == ["in"]


def test_streams_that_do_not_meet_are_apart() -> None:
    topology = Topology("t")
    topology.stream("a").to("x")
    topology.stream("b").to("y")
    assert brief(planned(topology, a=1, b=2)) == [("a", 0, 1, ["a"]), ("b", 0, 2, ["b"])]


def test_streams_that_merge_are_together() -> None:
    topology = Topology("t")
    topology.stream("a").merge(topology.stream("b")).to("x")
    made = planned(topology, a=1, b=2)
    assert brief(made) == [("a", 0, 2, ["a", "b"])]
    sub = made.subtopologies[0]
    assert [list(map(str, sub.reads(p))) for p in (0, 1)] == [["a/0", "b/0"], ["b/1"]]


def test_levels_follow_the_internal_topics() -> None:
    topology = Topology("t")
    first = topology.stream("a").key_by("x", name="first")
    second = first.key_by("y", name="second")
    second.merge(topology.stream("b")).key_by("z", name="third").to("out")
    made = planned(topology, repartition_partitions=4, a=2, b=3)
    assert brief(made) == [
        ("a", 0, 2, ["a"]),
        ("first", 1, 4, ["t-first-repartition"]),
        ("second", 2, 4, ["t-second-repartition", "b"]),
        ("third", 3, 4, ["t-third-repartition"]),
    ]
    assert made.internal_topics() == {f"t-{name}-repartition": 4 for name in ("first", "second", "third")}
    assert made.subtopologies[1].inputs[0].upstream == ("a-0", "a-1")
    assert made.subtopologies[2].inputs[0].upstream == tuple(f"first-{i}" for i in range(4))
    assert made.source_topics() == ["a", "b"]


def test_internal_topics_are_as_wide_as_the_widest_source() -> None:
    topology = Topology("t")
    topology.stream("a").key_by("x").to("out")
    topology.stream("b").to("other")
    assert planned(topology, a=2, b=5).internal_topics() == {"t-a-by-x-repartition": 5}


def test_a_repartition_that_nobody_reads_is_not_made() -> None:
    topology = Topology("t")
    stream = topology.stream("a")
    stream.key_by("x")
    stream.to("out")
    made = planned(topology, a=1)
    assert brief(made) == [("a", 0, 1, ["a"])]
    assert [node.name for node in made.subtopologies[0].nodes] == ["a", "a-to-out"]
    driver = TopologyTestDriver(topology)
    driver.send("a", {"x": 1})
    assert len(driver.read("out")) == 1


def test_a_stream_cannot_merge_with_its_own_repartition() -> None:
    topology = Topology("t")
    stream = topology.stream("a")
    stream.merge(stream.key_by("x")).to("out")
    with pytest.raises(TopologyError, match="repartitions in a circle"):
        planned(topology, a=1)


def windows(stream: Any, name: str) -> Any:
    return stream.window(tumbling("1m")).aggregate(n=agg.count(), name=name)


def test_what_a_replay_repeats() -> None:
    topology = Topology("t")
    a, b = topology.stream("a", keyed_by="k"), topology.stream("b", keyed_by="k")
    a.key_by("x", name="plain").to("1")
    a.map(dict).filter(bool).key_by("x", name="stateless").to("2")
    a.deduplicate("id", within="1h").key_by("x", name="deduplicated").to("3")
    windows(a, "w1").key_by("x", name="windowed").to("4")
    a.merge(b).key_by("x", name="merged").to("5")
    counts = a.window(session("1m")).aggregate(n=agg.count())
    counts.late.merge(a).key_by("x", name="late").to("7")
    counts.merge(a).key_by("x", name="mixed").to("8")  # type: ignore[arg-type]
    windows(a.filter(bool), "w2").merge(counts).key_by("x", name="several").to("9")
    a.key_by("y", name="y").window(session("1m")).aggregate(n=agg.count()).key_by("z", name="z").to("6")
    made = planned(topology, a=1, b=1)
    found = {i.node: i.deterministic for sub in made.subtopologies for i in sub.inputs if i.upstream}
    assert sorted(name for name, deterministic in found.items() if not deterministic) == ["mixed", "several"]
    assert sorted(name for name, deterministic in found.items() if deterministic) == [
        "deduplicated",
        "late",
        "merged",
        "plain",
        "stateless",
        "windowed",
        "y",
        "z",
    ]


async def ask(value: Any) -> Any:
    return value


def chained() -> Topology:
    """Calls, what is made of their answers behind an internal topic, and something else beside them."""
    topology = Topology("t", on_error="dead-letter")
    stream = topology.stream("a", keyed_by="k")
    stream.map_async(ask, name="asked").key_by("x", name="again").to("made-of-answers")
    topology.stream("b", keyed_by="k").map(dict, name="plain").to("plain")
    topology.stream("c").map(dict, name="tried", on_error=retry(2, then="dead-letter")).filter(bool)
    return topology


def test_with_exactly_once_what_a_replay_does_not_repeat_leaves_through_an_outbox() -> None:
    graph, counts = chained().graph(), {"a": 2, "b": 1, "c": 1}
    usual, once = plan(graph, counts), plan(graph, counts, guarantee=EXACTLY_ONCE)
    assert (usual.outbox, usual.waiting_letters, by_outbox(usual)) == (frozenset(), frozenset(), {})
    assert sorted(at_least_once(usual)) == ["again", "again-to-made-of-answers"]
    assert once.outbox == {"again"}
    assert by_outbox(once) == {"again": "step 'asked' may get other answers when it asks again"}
    assert at_least_once(once) == {}
    assert once.subtopologies == usual.subtopologies


def test_a_guarantee_that_there_is_not_is_refused() -> None:
    with pytest.raises(SettingsError, match="must be at-least-once or exactly-once: 'twice'"):
        plan(chained().graph(), {"a": 1, "b": 1, "c": 1}, guarantee="twice")
    with pytest.raises(SettingsError, match="guarantee must be at-least-once or exactly-once: 'twice'"):
        Settings(guarantee="twice")


def test_dead_letters_wait_where_another_replay_may_fail_on_others() -> None:
    """Also where nothing else leaves, so that there is no edge to say so."""
    once = plan(chained().graph(), {"a": 2, "b": 1, "c": 1}, guarantee=EXACTLY_ONCE)
    assert once.waiting_letters == {"a", "c"}


def shared_state(first: int, second: int) -> Plan:
    """Build by hand what the language does not make yet: state that two sources share."""

    def source(name: str) -> Source:
        return Source(name=name, topic=name, value=Msgpack(), key=Str())

    ab = (Port("a"), Port("b"))
    line = Location("here.py", 7)
    nodes = (
        source("a"), source("b"), Step(name="ab", inputs=ab, spec=merging()),
        Step(name="once", inputs=(Port("ab"),), spec=Deduplicate("id", 10), location=line),
        Sink(name="to", inputs=(Port("once"),), topic="out", value=Msgpack()),
    )  # fmt: skip
    return plan(Graph("t", nodes), {"a": first, "b": second})


def test_keys_of_differently_partitioned_topics_cannot_meet() -> None:
    assert len(shared_state(3, 3).tasks()) == 3
    with pytest.raises(TopologyError, match=r"'once' \(here.py:7\).*a has 2, b has 3.*key_by\(\)"):
        shared_state(2, 3)
