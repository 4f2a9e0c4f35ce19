"""``headrace topics --grow-to`` and ``headrace rescale``."""

import itertools

import msgspec
import pytest

from headrace.record import TopicPartition

HEAD = """
from headrace import Topology, agg
topology = Topology("shop")
"""
KEYED = 'topology.stream("orders", keyed_by="who").aggregate(n=agg.count(), name="totals").to("totals-out")\n'
BY = 'topology.stream("orders").key_by("id", key=int, name="by").aggregate(n=agg.count(), name="ids").to("ids-out")\n'
RUN = ("--until-end", "--metrics-port", "0", "--fsync", "never")
NAMES = [f"customer-{n}" for n in range(20)]

_number = itertools.count()


@pytest.fixture
def module(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)

    def write(*lines: str) -> str:
        name = f"rescaled_{next(_number)}"
        (tmp_path / f"{name}.py").write_text(HEAD + "".join(lines))
        return name

    return write


def order(headrace, *options):
    rows = [{"id": n % 7, "who": who} for n, who in enumerate(NAMES)]
    stdin = msgspec.json.Encoder().encode_lines(rows)
    assert headrace("produce", "orders", "--key", "who", *options, stdin=stdin).code == 0


def told(ran) -> str:
    return " ".join((ran.out + ran.err).split())


def counts(headrace, topic) -> set:
    return {(record["key"], record["value"]["n"]) for record in headrace("consume", topic).records}


def test_a_topic_grows_and_its_state_follows(headrace, module):
    name = module(KEYED)
    order(headrace, "--partitions", "2")
    assert headrace("run", name, *RUN).code == 0
    assert "there is nothing to do" in told(headrace("rescale", name))
    grown = headrace("topics", "orders", "--grow-to", "3", "--json")
    assert len(grown.json[0]["partitions"]) == 3
    planned = headrace("plan", name)
    assert planned.code == 1
    assert "RESCALE totals" in told(planned)
    assert "'orders' had 2 partitions and has 3" in told(planned)
    refused = headrace("run", name, *RUN)
    assert refused.code == 2
    assert f"headrace rescale {name}" in told(refused)
    asked = headrace("rescale", name)
    assert asked.code == 0
    assert "totals orders 2 -> 3" in told(asked)
    assert "nothing was changed; --yes does it" in told(asked)
    assert headrace("plan", name).code == 1
    done = headrace("rescale", name, "--yes")
    assert done.code == 0, told(done)
    assert "3 tasks have their state where their keys are" in told(done)
    assert headrace("plan", name).code == 0
    order(headrace)
    assert headrace("run", name, *RUN).code == 0
    assert counts(headrace, "totals-out") == {(who, n) for who in NAMES for n in (1, 2)}


def test_what_a_crash_left_of_a_growth_is_swept(headrace, log, tmp_path):
    order(headrace, "--partitions", "2")
    left = tmp_path / ".headrace" / "log" / "topics" / "orders" / "2"
    left.mkdir()
    (left / "end").write_bytes(b"half")
    assert headrace("topics", "orders", "--grow-to", "3").code == 0
    assert log.end_offset(TopicPartition("orders", 2)) == 0
    order(headrace)
    assert log.end_offset(TopicPartition("orders", 2)) > 0


def test_internal_topics_get_more_partitions(headrace, module):
    name = module(BY)
    order(headrace, "--partitions", "2")
    assert headrace("run", name, *RUN).code == 0
    refused = headrace("run", name, *RUN, "--repartition-partitions", "4")
    assert refused.code == 2
    done = headrace("rescale", name, "--partitions", "4", "--yes")
    assert done.code == 0, told(done)
    assert "internal topic shop-by-repartition grows from 2 to 4 partitions" in told(done)
    order(headrace)
    assert headrace("run", name, *RUN).code == 0
    found = [record["value"]["n"] for record in headrace("consume", "ids-out").records]
    assert len(found) == 2 * len(NAMES)
    assert max(found) == 6
    assert headrace("rescale", name, "--partitions", "2", "--yes").code == 2


def test_state_may_begin_empty_instead(headrace, module):
    name = module(KEYED)
    order(headrace, "--partitions", "2")
    assert headrace("run", name, *RUN).code == 0
    assert headrace("topics", "orders", "--grow-to", "3").code == 0
    order(headrace)
    assert headrace("run", name, *RUN, "--allow-reset", "totals").code == 0
    assert headrace("run", name, *RUN).code == 0
    found = counts(headrace, "totals-out")
    assert {who for who, n in found} == set(NAMES)
    assert {n for _, n in found} == {1}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["topics", "--grow-to", "3"], "--grow-to is for one topic"),
        (["topics", "orders", "--grow-to", "1"], "cannot shrink to 1"),
        (["topics", "nothing", "--grow-to", "3"], "no topic nothing"),
        (["rescale", "no_such_module"], "no module 'no_such_module'"),
    ],
)
def test_wrong_use(headrace, arguments, message):
    order(headrace, "--partitions", "2")
    ran = headrace(*arguments)
    assert ran.code == 2
    assert message in told(ran)
