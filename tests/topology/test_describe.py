"""What ``headrace describe`` prints, compared with files in ``golden``.

After a wanted change: ``HEADRACE_GOLDEN=write pytest tests/topology/test_describe.py``, then read the difference.
"""

import json
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from headrace import (
    Context,
    Json,
    ListState,
    MapState,
    Process,
    Topology,
    ValueState,
    agg,
    every,
    hopping,
    retry,
    session,
    tumbling,
    when,
)
from headrace.topology.describe import describe, describe_json, describe_mermaid, describe_text, state_of
from headrace.topology.plan import EXACTLY_ONCE, Plan, plan
from topologies import card_spend

GOLDEN = Path(__file__).parent / "golden"


class Click(msgspec.Struct):
    user: str
    page: str


def large(value: object) -> bool:
    return bool(value)


def everything() -> Topology:
    topology = Topology("everything")
    clicks = topology.stream("clicks", value=Click, time=lambda c: 0, out_of_orderness="5s")
    others = topology.stream("other-clicks", value=Json(Click), keyed_by="user")
    kinds = clicks.merge(others).branch(large=large, small=lambda c: True)
    sessions = kinds["large"].key_by("user").window(session("30m"), lateness="1m").aggregate(clicks=agg.count())
    sessions.to("sessions", value=Json(), partitions=2)
    sessions.late.to("late-clicks")
    sessions.key_by(lambda s: s["clicks"], name="by-size").window(tumbling("1h")).aggregate(n=agg.count()).to("sizes")
    kinds["small"].deduplicate("page", within="1d").tap(print).to("pages")
    return topology


def enrichment() -> Topology:
    """Tables beside streams, and records that fail kept aside."""
    topology = Topology("enrichment", on_error="dead-letter")
    orders = topology.stream("orders", keyed_by="customer", time="at", on_error="skip")
    customers = topology.table("customers")
    rates = topology.global_table("rates")
    enriched = orders.join(customers, lambda order, customer: {**order, **customer}, how="left", name="enriched")
    converted = enriched.join(rates, lambda order, rate: order, on="currency", name="converted")
    converted.to("enriched-orders", partitions=2)
    fast = orders.filter(bool).map(dict, name="fast", on_error=retry(3, then="stop"))
    fast.as_of(orders, lambda a, b: a, within="1h", name="paired").to("pairs")
    return topology


def tables() -> Topology:
    """A running aggregate, joined with another table, and its changes."""
    topology = Topology("tables")
    totals = topology.stream("sales", keyed_by="shop").aggregate(sold=agg.sum("pieces"), name="totals")
    shops = topology.table("shops", value=Json())
    totals.join(shops, lambda total, shop: {**total, **shop}, name="named").filter(bool).to("totals-by-shop")
    totals.changes().key_by(lambda total: "all", name="everywhere").aggregate(n=agg.count(), name="all").to("changes")
    return topology


def windows() -> Topology:
    """Results that leave before their windows close."""
    topology = Topology("windows")
    clicks = topology.stream("clicks", keyed_by="user")
    n = agg.count()
    clicks.window(tumbling("1m"), lateness="90s").aggregate(n=n, emit="update", name="updated").to("updates")
    clicks.window(hopping("1h", "5m")).aggregate(n=n, emit=every("10s"), name="periodic").to("so-far")
    clicks.window(tumbling("1h")).aggregate(n=n, emit=when(large), name="once").to("alerts")
    return topology


async def ask(value: object) -> object:
    return value


class Reminder(Process[dict[str, Any], str]):
    """Keeps something of every kind, and acts on processing time."""

    last = ValueState(float, default=0.0)
    recent = ListState(int, ttl="1h")
    seen = MapState(str, int)

    def on_record(self, value: dict[str, Any], context: Context) -> None:
        context.set_clock_timer("later", after="1m")

    def on_clock_timer(self, name: str, context: Context) -> list[str]:
        return [name]


def weak() -> Topology:
    """Every reason for which a replay may not repeat itself."""
    topology = Topology("weak")
    a, b = topology.stream("a", keyed_by="k"), topology.stream("b", keyed_by="k")
    windows = a.window(tumbling("1m")).aggregate(n=agg.count(), name="windows")
    others = a.window(session("1m")).aggregate(n=agg.count(), name="sessions")
    a.join(b, lambda x, y: x, within="1m", name="joined").to("meet-in-state")
    a.deduplicate("id", within="1h", name="once").merge(b, name="behind").to("meet-behind-state")
    windows.merge(others, name="both-windows").filter(bool).to("several-windows")
    a.merge(windows, name="windows-and-records").to("windows-and-records")
    a.process(Reminder, name="reminder").to("clock")
    asked = a.map_async(ask, name="asked")
    asked.to("answers")
    asked.key_by("x", name="again").to("made-of-answers")
    a.to("plain")
    windows.to("windows-only")
    return topology


PLANS = {
    "card_spend": plan(card_spend.topology.graph(), {"payments": 4}),
    "windows": plan(windows().graph(), {"clicks": 2}, 0),
    "everything": plan(everything().graph(), {"clicks": 2, "other-clicks": 3}, 6),
    "enrichment": plan(enrichment().graph(), {"orders": 4, "customers": 4, "rates": 1}),
    "tables": plan(tables().graph(), {"sales": 2, "shops": 2}),
    "weak": plan(weak().graph(), {"a": 1, "b": 1}),
    "weak_once": plan(weak().graph(), {"a": 1, "b": 1}, guarantee=EXACTLY_ONCE),
}
FORMATS = {"txt": describe_text, "mmd": describe_mermaid, "json": describe_json}


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("name", PLANS)
def test_it_is_what_it_was(name: str, suffix: str) -> None:
    made: Plan = PLANS[name]
    found = FORMATS[suffix](made) + "\n"
    path = GOLDEN / f"{name}.{suffix}"
    if os.environ.get("HEADRACE_GOLDEN") == "write":
        path.write_text(found, encoding="utf-8")
    assert found == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", PLANS)
def test_json_names_every_step_and_topic(name: str) -> None:
    described = json.loads(describe_json(PLANS[name]))
    made = PLANS[name]
    told = [s["name"] for sub in described["subtopologies"] for s in [*sub["steps"], *sub["outputs"]]]
    sources = {i.node for sub in made.subtopologies for i in sub.inputs if not i.upstream}
    assert sorted(told) == sorted(node.name for node in made.graph.nodes if node.name not in sources)


def guarantees(name: str) -> dict[str, str | None]:
    described = describe(PLANS[name])
    outputs = [output for sub in described["subtopologies"] for output in sub["outputs"]]
    assert all((output["guarantee"] == "deterministic") == (output["reason"] is None) for output in outputs)
    return {output["topic"]: output["reason"] for output in outputs}


def test_every_reason_is_told() -> None:
    assert guarantees("weak") == {
        "meet-in-state": "'a' and 'b' meet in the state of step 'joined'",
        "meet-behind-state": "'a' and 'b' meet behind the state of step 'once'",
        "several-windows": "what time makes at 'windows' and 'sessions' mixes with each other at 'both-windows'",
        "windows-and-records": "what time makes at 'windows' mixes with 'a' at 'windows-and-records'",
        "clock": "step 'reminder' acts on processing time",
        "answers": "step 'asked' may get other answers when it asks again",
        "weak-again-repartition": "step 'asked' may get other answers when it asks again",
        "made-of-answers": "it is made of 'again', which may hold repeats",
        "plain": None,
        "windows-only": None,
    }


def test_what_would_be_weak_leaves_through_an_outbox_if_exactly_once_is_promised() -> None:
    outputs = [o for sub in describe(PLANS["weak_once"])["subtopologies"] for o in sub["outputs"]]
    reasons = {output["topic"]: output["reason"] for output in outputs if output["guarantee"] == "outbox"}
    expected = {topic: reason for topic, reason in guarantees("weak").items() if reason is not None}
    del expected["made-of-answers"]  # of which there are no repeats any more
    assert reasons == expected
    assert {o["topic"] for o in outputs if o["guarantee"] == "deterministic"} == {
        "plain", "windows-only", "made-of-answers",
    }  # fmt: skip
    assert "at-least-once" not in describe_text(PLANS["weak_once"]) + describe_mermaid(PLANS["weak_once"])


def test_whose_dead_letters_leave_through_an_outbox_is_told() -> None:
    made = plan(enrichment().graph(), {"orders": 4, "customers": 4, "rates": 1}, guarantee=EXACTLY_ONCE)
    told = "records that fail go to enrichment-dead-letter, those of orders through an outbox"
    assert describe_text(made).splitlines()[1] == told


def test_what_is_not_mixed_with_what_is_weak_stays_deterministic() -> None:
    assert set(guarantees("card_spend").values()) == {None}
    assert guarantees("tables")["tables-everywhere-repartition"] is None


def test_tables_and_policies_are_marked() -> None:
    (sub,) = describe(PLANS["enrichment"])["subtopologies"]
    assert [(i["topic"], i["kind"], i["broadcast"], i["on_error"]) for i in sub["inputs"]] == [
        ("orders", "stream", False, "skip"),
        ("customers", "table", False, "dead-letter"),
        ("rates", "global table", True, "dead-letter"),
    ]
    policies = {step["name"]: step["on_error"] for step in sub["steps"]}
    assert policies["fast"] == "retry to 3 calls, then stop"
    assert policies["enriched"] == "dead-letter"
    text = describe_text(PLANS["enrichment"])
    assert text.splitlines()[1] == "records that fail go to enrichment-dead-letter"
    assert "read global table rates (1 partition, read whole by every task)" in text
    assert "write enriched-orders (2 partitions) as msgpack" in text


def test_topologies_without_dead_letters_have_no_topic_for_them() -> None:
    assert describe(PLANS["tables"])["dead_letter_topic"] is None
    assert "dead-letter" not in describe_text(PLANS["tables"]) + describe_mermaid(PLANS["tables"])


def test_a_chart_has_a_cylinder_for_every_state_and_marks_what_is_weak() -> None:
    lines = describe_mermaid(PLANS["weak"]).splitlines()
    stateful = [s for sub in describe(PLANS["weak"])["subtopologies"] for s in sub["steps"] if s["stateful"]]
    assert sum("[(" in line for line in lines) == len(stateful)
    assert sum("|at-least-once|" in line for line in lines) == len([r for r in guarantees("weak").values() if r])
    assert lines[-1].count(",") == len([r for r in guarantees("weak").values() if r]) - 1
    assert lines[-1].endswith(" atLeastOnce")
    assert '  d[\\"enrichment-dead-letter"\\]' in describe_mermaid(PLANS["enrichment"]).splitlines()


def test_nothing_depends_on_where_something_is_in_memory() -> None:
    for made in PLANS.values():
        assert " at 0x" not in describe_text(made) + describe_mermaid(made) + describe_json(made)


def test_state_is_told_in_words() -> None:
    assert state_of({}) == ""
    assert state_of({"within_ms": 90_000, "ttl_ms": 0, "table": True, "left": None, "on": False}) == (
        "within 90s, ttl 0ms, table"
    )
    assert state_of({"kind": [[1] * 50]}).endswith("...")
    assert state_of({"states": {"last": {"form": "value", "ttl": True}}}) == "states last (value, ttl)"
    assert state_of({"windows": "aligned", "size_ms": 60_000, "every_ms": 60_000}) == "windows tumbling, size 1m"
    assert (
        state_of({"windows": "aligned", "size_ms": 60_000, "every_ms": 1_000}) == "windows hopping, size 1m, every 1s"
    )
    assert state_of({"within_ms": [5_000, 5_000]}) == "within 5s"
    assert state_of({"keys": ["a", "b"], "size": 5}) == 'keys ["a", "b"], size 5'
