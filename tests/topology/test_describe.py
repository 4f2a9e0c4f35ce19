"""What ``headrace describe`` prints, compared with files in ``golden``.

After a wanted change: ``HEADRACE_GOLDEN=write pytest tests/topology/test_describe.py``, then read the difference.
"""

import json
import os
from pathlib import Path

import msgspec
import pytest

from headrace import Json, Topology, agg, session, tumbling
from headrace.topology.describe import describe_json, describe_mermaid, describe_text
from headrace.topology.plan import Plan, plan
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


PLANS = {
    "card_spend": plan(card_spend.topology.graph(), {"payments": 4}),
    "everything": plan(everything().graph(), {"clicks": 2, "other-clicks": 3}, 6),
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
