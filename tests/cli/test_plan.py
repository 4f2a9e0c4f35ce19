"""``headrace plan``, and what ``headrace run`` refuses to lose."""

import dataclasses
import itertools

import msgspec
import pytest

from headrace.checkpoint.checkpoints import Checkpoints
from headrace.checkpoint.manifest import encode, manifest_path
from headrace.checkpoint.store import open_objects
from headrace.log.embedded.files import read_versioned_json, write_json

HEAD = """
import msgspec
from headrace import Topology, agg, tumbling

topology = Topology("shop")
orders = topology.stream("orders", keyed_by="who")
"""
TOTALS = 'orders.aggregate(n=agg.count(), name="totals").to("totals-out")\n'
ONCE = 'orders.deduplicate(by="id", within="1h", name="once").to("once-out")\n'
MOST = 'orders.aggregate(most=agg.max("id"), name="{name}").to("most-out")\n'
BY_ID = 'orders.key_by("id", key=int, name="{name}").aggregate(n=agg.count(), name="{step}").to("by-id-out")\n'

_number = itertools.count()


@pytest.fixture
def deploy(headrace, tmp_path, monkeypatch):
    """Write a module with these lines, and run a command on it."""
    monkeypatch.syspath_prepend(tmp_path)

    def begin(command: str, *lines: str, options: tuple[str, ...] = ()):
        name = f"shop_{next(_number)}"
        (tmp_path / f"{name}.py").write_text(HEAD + "".join(lines))
        if command == "run":
            options = (*options, "--until-end", "--metrics-port", "0", "--fsync", "never")
        ran = headrace(command, name, *options)
        ran.module = name
        ran.told = " ".join((ran.out + ran.err).split())
        return ran

    return begin


def order(headrace, *ids, who="ada"):
    rows = [{"id": i, "who": who} for i in ids]
    stdin = msgspec.json.Encoder().encode_lines(rows)
    assert headrace("produce", "orders", "--key", "who", "--partitions", "2", stdin=stdin).code == 0


def last(headrace, topic):
    return headrace("consume", topic).records[-1]["value"]


def manifests(tmp_path) -> dict[str, int]:
    opened = Checkpoints(open_objects(str(tmp_path / ".headrace" / "checkpoints"), {}), "shop")
    return {task: opened.newest(task).number for task in opened.tasks()}


def test_the_first_deploy(deploy, headrace):
    ran = deploy("plan", TOTALS)
    assert ran.code == 0
    assert "shop: the first deploy" in ran.told
    assert "NEW totals aggregate orders (" in ran.told
    assert f"{ran.module}.py:7)" in ran.told
    assert "taken to have 4 partitions: orders" in ran.told
    order(headrace, 1)
    ran = deploy("plan", TOTALS)
    assert ran.code == 0
    assert "taken to have" not in ran.told


def test_what_is_the_same_is_kept(deploy, headrace):
    order(headrace, 1)
    assert deploy("run", TOTALS, ONCE).code == 0
    ran = deploy("plan", TOTALS, ONCE, 'orders.map(dict, name="copy").to("copies")\n')
    assert ran.code == 0
    assert "a deploy loses nothing" in ran.told
    assert "KEEP totals aggregate" in ran.told
    assert "copy" not in ran.out
    shown = deploy("plan", TOTALS, ONCE, 'orders.map(dict, name="copy").to("copies")\n', options=("--all",))
    assert "- copy map orders" in shown.told


def test_a_renamed_step_is_refused_and_allowed_by_its_name(deploy, headrace, tmp_path):
    order(headrace, 5, 3)
    assert deploy("run", TOTALS, MOST.format(name="most")).code == 0
    before = manifests(tmp_path)
    planned = deploy("plan", TOTALS, MOST.format(name="highest"))
    assert planned.code == 1
    assert "REFUSED, a deploy would lose what was kept at most" in planned.told
    assert 'give it name="most" to keep its state' in planned.told
    assert "--allow-reset most" in planned.told
    refused = deploy("run", TOTALS, MOST.format(name="highest"))
    assert refused.code == 2
    assert "step 'most': it is not in the topology any more" in refused.told
    assert f"headrace plan {refused.module}" in refused.told
    assert manifests(tmp_path) == before
    order(headrace, 1)
    allowed = ("--allow-reset", "no-such-step,most")
    assert deploy("run", TOTALS, MOST.format(name="highest"), options=allowed).code == 0
    assert last(headrace, "totals-out")["n"] == 3
    assert last(headrace, "most-out")["most"] == 1
    order(headrace, 0)
    assert deploy("run", TOTALS, MOST.format(name="highest"), options=allowed).code == 0
    assert last(headrace, "most-out")["most"] == 1
    assert deploy("run", TOTALS, MOST.format(name="highest")).code == 0
    # What was removed left nothing behind under its name.
    swap = ("--allow-reset", "highest")
    order(headrace, 0)
    assert deploy("run", TOTALS, MOST.format(name="most"), options=swap).code == 0
    assert last(headrace, "most-out")["most"] == 0


def test_a_changed_step_begins_empty_where_it_may(deploy, headrace, monkeypatch):
    order(headrace, 5, 3)
    assert deploy("run", TOTALS, MOST.format(name="most")).code == 0
    changed = MOST.format(name="most").replace("agg.max", "agg.min")
    planned = deploy("plan", TOTALS, changed)
    assert planned.code == 1
    assert "RESET most" in planned.told
    assert "'most' was max and is min" in planned.told
    assert f"{planned.module}.py:8" in planned.told
    refused = deploy("run", TOTALS, changed)
    assert refused.code == 2
    assert f"{refused.module}.py:8" in refused.told
    order(headrace, 9)
    monkeypatch.setenv("HEADRACE_ALLOW_RESET", "most")
    assert deploy("plan", TOTALS, changed).code == 0
    assert deploy("run", TOTALS, changed).code == 0
    assert last(headrace, "most-out")["most"] == 9
    # The variable may stay: what is kept now is not lost again.
    order(headrace, 7)
    assert deploy("run", TOTALS, changed).code == 0
    assert last(headrace, "most-out")["most"] == 7
    assert last(headrace, "totals-out")["n"] == 4


def test_a_subtopology_that_is_gone_is_given_up_for_good(deploy, headrace):
    order(headrace, 1)
    assert deploy("run", TOTALS, BY_ID.format(name="by-id", step="per-id")).code == 0
    renamed = BY_ID.format(name="by-number", step="per-id")
    refused = deploy("run", TOTALS, renamed)
    assert refused.code == 2
    assert "step 'per-id': it would begin empty here: its state is that of sub-topology 'by-id'" in refused.told
    order(headrace, 1)
    assert deploy("run", TOTALS, renamed, options=("--allow-reset", "per-id")).code == 0
    assert last(headrace, "by-id-out")["n"] == 1
    assert deploy("run", TOTALS, renamed).code == 0
    order(headrace, 1, 1)
    back = BY_ID.format(name="by-id", step="per-id")
    assert deploy("run", TOTALS, back).code == 2
    assert deploy("run", TOTALS, back, options=("--allow-reset", "per-id")).code == 0
    assert last(headrace, "by-id-out")["n"] == 2


def test_a_repartition_that_comes_back_goes_on_where_it_was(deploy, headrace):
    plain = 'orders.key_by("id", key=int, name="by-id").to("by-id-out")\n'
    order(headrace, 1, 2)
    assert deploy("run", TOTALS, plain).code == 0
    order(headrace, 3)
    assert deploy("run", TOTALS).code == 0
    order(headrace, 1, 2)
    assert deploy("run", TOTALS, plain).code == 0
    assert sorted(record["value"]["id"] for record in headrace("consume", "by-id-out").records) == [1, 1, 2, 2]


def test_a_changed_class_is_refused_before_anything_starts(deploy, headrace):
    kept = """
class Seen(msgspec.Struct):
    {field}: int

def see(value, context, seen):
    seen.value = Seen(value["id"])
    return []

from headrace import ValueState
orders.process(see, name="see", seen=ValueState(Seen)).to("out")
"""
    order(headrace, 1)
    assert deploy("run", kept.format(field="number")).code == 0
    refused = deploy("run", kept.format(field="count"))
    assert refused.code == 2
    assert "field 'number' is gone" in refused.told
    assert deploy("run", kept.format(field="count"), options=("--allow-reset", "see")).code == 0


def test_json(deploy, headrace):
    order(headrace, 5)
    assert deploy("run", TOTALS).code == 0
    ran = deploy("plan", MOST.format(name="totals"), options=("--json",))
    assert ran.code == 1
    found = ran.json
    assert found["refused"]
    assert [(step["step"], step["verdict"]) for step in found["steps"]] == [("totals", "RESET")]
    assert [loss["name"] for loss in found["losses"]] == ["totals"]
    assert found["topics"][0]["before"] == found["topics"][0]["now"] == 2
    kept = deploy("plan", TOTALS, options=("--json",)).json
    assert not kept["refused"]


def test_several_workers_are_refused_too(deploy, headrace):
    order(headrace, 5)
    assert deploy("run", TOTALS).code == 0
    ran = deploy("run", MOST.format(name="most"), options=("--workers", "2"))
    assert ran.code == 2
    assert "--allow-reset totals" in ran.told


def test_checkpoints_of_before_shapes_were_kept(deploy, headrace, tmp_path):
    order(headrace, 5, 3)
    assert deploy("run", TOTALS, MOST.format(name="most")).code == 0
    objects = open_objects(str(tmp_path / ".headrace" / "checkpoints"), {})
    opened = Checkpoints(objects, "shop")
    for task in opened.tasks():
        manifest = opened.newest(task)
        info = {name: value for name, value in manifest.info.items() if name != "shape"}
        older = dataclasses.replace(manifest, number=manifest.number + 1, info=info)
        assert objects.create(manifest_path("shop", task, older.number), encode(older))
    planned = deploy("plan", TOTALS, MOST.format(name="most"))
    assert planned.code == 0
    assert "UNKNOWN most" in planned.told
    assert "does not say for how many partitions it was made" in deploy("rescale", TOTALS).told
    changed = MOST.format(name="most").replace("agg.max", "agg.min")
    refused = deploy("run", TOTALS, changed)
    assert refused.code == 1
    assert "was changed in a way its stored state cannot follow" in refused.told
    order(headrace, 9)
    assert deploy("run", TOTALS, changed, options=("--allow-reset", "most")).code == 0
    assert last(headrace, "most-out")["most"] == 9
    assert last(headrace, "totals-out")["n"] == 3
    assert "KEEP most" in deploy("plan", TOTALS, changed).told


def test_a_hint_is_given_only_where_it_helps(deploy, headrace):
    windows = 'orders.window(tumbling("{size}")).aggregate(n=agg.count()).to("windows")\n'
    order(headrace, 1)
    head = "from headrace import tumbling\n"
    assert deploy("run", head, windows.format(size="1m")).code == 0
    ran = deploy("plan", head, windows.format(size="2m"))
    assert ran.code == 1
    assert "'orders-tumbling-120000ms'" in ran.told
    assert "keeps other state and cannot go on with it" in ran.told
    assert "give it name=" not in ran.told
    assert "shows the whole" not in ran.told
    refused = deploy("run", head, windows.format(size="2m"), options=("--allow-reset", "orders-tumbling-2m"))
    assert refused.code == 2
    assert "--allow-reset names orders-tumbling-2m now, where nothing would be lost" in refused.told
    assert refused.told.endswith(f"`headrace plan {refused.module}` shows the whole.")


def test_checkpoints_of_another_log_are_refused(deploy, headrace, tmp_path):
    order(headrace, 1)
    assert deploy("run", TOTALS).code == 0
    (tmp_path / ".headrace" / "log").rename(tmp_path / "other")
    order(headrace, 1)
    for command in ("plan", "run"):
        ran = deploy(command, TOTALS)
        assert ran.code == 2
        assert "belongs to another log than this one" in ran.told


def made_by_an_older_version(path):
    """Take away the id of a topic."""
    content = read_versioned_json(path, 9)
    del content["id"]
    write_json(path, content)


def test_a_topic_that_shrank_cannot_be_given_up(deploy, headrace, log, tmp_path):
    order(headrace, 1)
    assert deploy("run", TOTALS).code == 0
    assert "detail" not in deploy("plan", TOTALS).out
    log.delete_topic("orders")
    log.create_topic("orders", 1)
    ran = deploy("plan", TOTALS)
    assert ran.code == 2
    assert "topic orders was deleted and made again" in ran.told
    made_by_an_older_version(tmp_path / ".headrace" / "log" / "topics" / "orders" / "topic.json")
    ran = deploy("plan", TOTALS)
    assert ran.code == 1
    assert "it is not the topic that was read" in ran.told
    assert "what it would lose at orders cannot be given up by its name" in ran.told
    assert "--allow-reset" not in ran.told
    assert "headrace rescale" not in ran.told


def test_a_file_where_checkpoints_should_be_is_not_taken_for_none(deploy, headrace, tmp_path):
    order(headrace, 1)
    (tmp_path / ".headrace" / "checkpoints").touch()
    ran = deploy("plan", TOTALS)
    assert ran.code == 2
    assert "checkpoints cannot be written to the directory" in ran.told
