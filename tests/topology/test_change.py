"""What a deploy keeps, migrates and loses, by what the newest checkpoints say."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from headrace import Topology, ValueState, agg, tumbling
from headrace.topology.change import (
    Change,
    Kept,
    Verdict,
    abandoned,
    compare,
    described,
    read,
    to_reset,
)
from headrace.topology.graph import Step
from headrace.topology.plan import Plan, plan

Build = Callable[[Topology], Any]


def planned(build: Build, repartition: int = 0, existing: dict[str, int] | None = None, **counts: int) -> Plan:
    topology = Topology("t")
    build(topology)
    return plan(topology.graph(), {"in": 3, "other": 3} | counts, repartition, existing)


def kept(old: Plan) -> list[Kept]:
    """Return what the checkpoints of all tasks would say, after a way through JSON."""
    found = []
    for task, sub in old.tasks().items():
        shapes = {n.name: n.spec.shape() for n in sub.nodes if isinstance(n, Step) and n.spec.stateful}
        shape = read(msgspec.json.decode(msgspec.json.encode(described(old, sub, shapes))))
        assert shape is not None
        found.append(Kept(str(task), shape, {str(p): 7 for p in sub.reads(task.partition)}))
    return found


def deploy(before: Build, after: Build, **counts: int) -> Change:
    return compare(planned(after, **counts), kept(planned(before)))


def verdicts(change: Change) -> dict[str, str]:
    return {step.step: str(step.verdict) for step in change.steps if step.verdict is not Verdict.STATELESS}


def windows(size: str = "1m", name: str = "spend", **source: Any) -> Build:
    def build(topology: Topology) -> None:
        stream = topology.stream("in", **({"keyed_by": "a"} | source))
        stream.deduplicate(by="id", within="1h", name="once").window(tumbling(size)).aggregate(
            total=agg.sum("b"), name=name
        ).to("out")

    return build


def repartitioned(topology: Topology, name: str = "by-a", step: str = "totals", **options: Any) -> None:
    stream = topology.stream("in").map(lambda value: value)
    stream.key_by("a", name=name, **options).aggregate(total=agg.sum("b"), name=step).to("out")


def test_the_first_deploy_begins_empty() -> None:
    change = compare(planned(windows()), [])
    assert change.first
    assert verdicts(change) == {"once": "NEW", "spend": "NEW"}
    assert change.losses() == []


def test_a_topology_that_is_the_same_keeps_everything() -> None:
    for build in (windows(), repartitioned):
        change = deploy(build, build)
        assert not change.first
        assert set(verdicts(change).values()) == {"KEEP"}
        assert {str(topic.verdict) for topic in change.topics} == {str(tasks.verdict) for tasks in change.tasks}
        assert change.losses() == []


def test_tasks_that_were_claimed_and_never_ran_count_for_nothing() -> None:
    assert compare(planned(windows()), [Kept("in-0", None, {})]).first


def test_a_changed_window_loses_its_state_and_says_what_differs() -> None:
    change = deploy(windows("1m"), windows("5m"))
    assert verdicts(change) == {"once": "KEEP", "spend": "RESET"}
    (loss,) = change.losses()
    assert "size_ms was 60000 and is 300000" in loss.told
    assert "test_change.py:" in loss.location
    assert change.losses({"spend"}) == []


def test_a_renamed_step_is_a_loss_and_the_name_is_hinted() -> None:
    change = deploy(windows(name="spend"), windows(name="total-spend"))
    assert verdicts(change) == {"once": "KEEP", "total-spend": "NEW", "spend": "RESET"}
    (loss,) = change.losses()
    assert loss.name == "spend"
    assert 'give it name="spend"' in loss.told
    assert "3 tasks" in loss.told


def test_a_step_that_is_gone_and_one_that_ceased_to_keep_state() -> None:
    def without(topology: Topology) -> None:
        topology.stream("in", keyed_by="a").deduplicate(by="id", within="1h", name="once").map(dict, name="spend").to(
            "out"
        )

    change = deploy(windows(), without)
    assert verdicts(change) == {"once": "KEEP", "spend": "RESET"}
    (loss,) = change.losses()
    assert "keeps no state any more" in loss.told
    change = deploy(windows(), lambda topology: topology.stream("in", keyed_by="a").to("out"))
    assert [loss.name for loss in change.losses()] == ["once", "spend"]


def test_a_step_that_moves_to_another_subtopology_would_begin_empty_there() -> None:
    def moved(topology: Topology) -> None:
        stream = topology.stream("in", keyed_by="a").deduplicate(by="id", within="1h", name="once")
        stream.key_by("c", name="by-c").window(tumbling("1m")).aggregate(total=agg.sum("b"), name="spend").to("out")

    change = deploy(windows(), moved)
    assert verdicts(change) == {"once": "KEEP", "spend": "RESET"}
    (loss,) = change.losses()
    assert "sub-topology 'in'" in loss.told
    # Where it was, its rows are to be deleted.
    assert to_reset(planned(moved), kept(planned(windows()))[0], {"spend"}) == {"spend"}


def test_a_version_with_migrations_migrates() -> None:
    class Cart(msgspec.Struct):
        total: int

    class CartInCents(msgspec.Struct):
        cents: int

    def act(value: Any, context: Any, cart: Any) -> Any:
        return value

    def keep(state: ValueState[Any]) -> Build:
        return lambda topology: topology.stream("in", keyed_by="a").process(act, name="p", cart=state).to("out")

    old = ValueState(Cart)
    new = ValueState(CartInCents, version=2, migrations={1: lambda cart: {"cents": 100 * cart["total"]}})
    assert verdicts(deploy(keep(old), keep(old))) == {"p": "KEEP"}
    assert verdicts(deploy(keep(old), keep(new))) == {"p": "MIGRATE"}
    (loss,) = deploy(keep(new), keep(old)).losses()
    assert "stored as version 2 and is declared with version 1" in loss.told


@pytest.mark.parametrize(
    ("after", "told"),
    [
        (lambda t: repartitioned(t, key=int), "keys of 'by-a' were"),
        (
            lambda t: t.stream("in").key_by("z", name="by-a").aggregate(total=agg.sum("b"), name="totals").to("out"),
            "the key of 'by-a' was 'a' and is 'z'",
        ),
    ],
)
def test_other_keys_lose_the_state_under_the_old_ones(after: Build, told: str) -> None:
    change = deploy(repartitioned, after)
    assert verdicts(change) == {"totals": "RESET"}
    assert told in change.losses()[0].told


def test_a_renamed_repartition_loses_state_and_unread_records() -> None:
    new = planned(lambda t: repartitioned(t, name="by-customer"))
    old = kept(planned(repartitioned))
    left = abandoned(new, old)
    assert left == {"t-by-a-repartition": {f"t-by-a-repartition/{n}": 7 for n in range(3)}}
    change = compare(new, old, {"t-by-a-repartition": 5})
    assert [loss.name for loss in change.losses()] == ["totals", "by-a"]
    assert "5 records in it were not read yet" in change.losses()[1].told
    assert change.losses({"totals", "by-a"}) == []
    assert {(t.subtopology, str(t.verdict)) for t in change.tasks} == {
        ("in", "KEEP"), ("by-customer", "NEW"), ("by-a", "GONE")
    }  # fmt: skip


def test_records_in_flight_that_could_not_be_read() -> None:
    class Small(msgspec.Struct):
        a: str

    class Large(Small):
        b: int

    def build(kind: type) -> Build:
        return lambda t: t.stream("in", value=kind).key_by("a", name="by-a").to("out")

    old, new = kept(planned(build(Small))), planned(build(Large))
    assert set(abandoned(new, old)) == {"t-by-a-repartition"}
    assert compare(new, old, {"t-by-a-repartition": 0}).losses() == []
    (loss,) = compare(new, old, {"t-by-a-repartition": 2}).losses({"by-a"})
    assert "field 'b' is new" in loss.told
    assert "2 records in it cannot be read" in loss.told


def test_a_source_read_by_another_subtopology_would_be_read_again() -> None:
    def apart(topology: Topology) -> None:
        topology.stream("in", keyed_by="a", name="i").map(dict, name="m").to("out")
        topology.stream("other", keyed_by="a", name="o").map(dict, name="n").to("out")

    def together(topology: Topology) -> None:
        first = topology.stream("in", keyed_by="a", name="i")
        first.merge(topology.stream("other", keyed_by="a", name="o")).to("out")

    change = deploy(apart, together)
    (loss,) = change.losses()
    assert loss.name == "o"
    assert "read again from its start" in loss.told
    # Once it is read there, the tasks that are gone matter no more.
    again = compare(planned(together), [*kept(planned(together)), *kept(planned(apart))])
    assert again.losses() == []


def test_a_source_that_grew_moves_keys_where_state_is_by_key() -> None:
    change = compare(planned(windows(), **{"in": 5}), kept(planned(windows())))
    assert verdicts(change) == {"once": "RESCALE", "spend": "RESCALE"}
    assert all(loss.rescalable for loss in change.losses())
    assert [t.detail for t in change.tasks] == ["2 tasks more than before"]
    assert to_reset(planned(windows(), **{"in": 5}), kept(planned(windows()))[0], {"once", "other"}) == {"once"}


def test_a_source_that_grew_before_a_repartition_is_only_read_by_more_tasks() -> None:
    existing = {"in": 5, "t-by-a-repartition": 3}
    change = compare(planned(repartitioned, existing=existing, **{"in": 5}), kept(planned(repartitioned)))
    assert verdicts(change) == {"totals": "KEEP"}
    assert change.losses() == []
    wider = compare(planned(repartitioned, repartition=5, **{"in": 5}), kept(planned(repartitioned)))
    assert verdicts(wider) == {"totals": "RESCALE"}


def test_a_source_with_fewer_partitions_is_another_topic() -> None:
    change = compare(
        planned(repartitioned, existing={"t-by-a-repartition": 3}, **{"in": 2}), kept(planned(repartitioned))
    )
    (loss,) = change.losses({"in"})
    assert not loss.allowable
    assert "had 3 partitions and has 2" in loss.told


def test_checkpoints_that_say_nothing_are_looked_at_later() -> None:
    change = compare(planned(windows()), [Kept("in-0", None, {"in/0": 3})])
    assert verdicts(change) == {"once": "UNKNOWN", "spend": "UNKNOWN"}
    assert change.losses() == []


def test_only_what_is_lost_is_reset() -> None:
    new, before = planned(windows("5m")), kept(planned(windows("1m")))[0]
    assert to_reset(new, before, {"once", "spend", "unknown"}) == {"spend"}
    assert to_reset(new, kept(new)[0], {"once", "spend"}) == frozenset()
