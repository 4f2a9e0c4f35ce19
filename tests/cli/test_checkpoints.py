"""``headrace checkpoints``: list, show, verify and delete."""

import pytest

from headrace.checkpoint.checkpoints import Checkpoints
from headrace.checkpoint.manifest import manifest_path
from headrace.checkpoint.store import open_objects
from headrace.clock import SystemClock
from headrace.record import TopicPartition
from headrace.testing.conformance.log_support import assign_evenly

DAY_MS = 86_400_000


@pytest.fixture
def objects(tmp_path):
    return open_objects(str(tmp_path / ".headrace" / "checkpoints"), {})


@pytest.fixture
def made(objects, tmp_path):
    """Two tasks of ``shop`` with three checkpoints each: the claim, one of ten days ago, one of now."""
    now_ms = SystemClock().now_ms()
    for task in ("orders-0", "orders-1"):
        checkpoints = Checkpoints(objects, "shop")
        current = checkpoints.claim(task, 1, None, now_ms - 10 * DAY_MS)
        for turn, created_ms in ((1, now_ms - 10 * DAY_MS), (2, now_ms)):
            directory = tmp_path / f"{task}-{turn}"
            directory.mkdir()
            (directory / "base.sst").write_bytes(task.encode() * 1000)
            (directory / "new.sst").write_bytes(f"{task} {turn}".encode())
            current = checkpoints.save(current, directory, {"orders/0": 10 * turn}, {"finished": -1}, created_ms)
    return now_ms


def numbers(objects, task):
    return [manifest.number for manifest in Checkpoints(objects, "shop").manifests(task)]


def test_list_may_be_left_out(headrace, made):
    listed = headrace("checkpoints", "list", "shop", "--json").json
    assert [(one["task"], one["number"]) for one in listed] == [("orders-0", 3), ("orders-1", 3)]
    for arguments in ([], ["shop"], ["list"]):
        found = headrace("checkpoints", *arguments, "--json").json
        assert [(one["task"], one["number"]) for one in found] == [("orders-0", 3), ("orders-1", 3)]
    assert headrace("checkpoints").out.splitlines()[0].split()[0] == "topology"


@pytest.mark.parametrize("command", ["list", "show", "verify", "delete"])
def test_every_command_shows_an_example(headrace, command):
    assert f"\n  headrace checkpoints {command}" in headrace("checkpoints", command, "--help").out
    assert command in headrace("checkpoints", "--help").out.partition("Commands:")[2].split()


def test_show_says_what_is_new(headrace, made):
    shown = headrace("checkpoints", "show", "orders-0", "--json").json
    assert (shown["number"], shown["epoch"], shown["positions"]) == (3, 1, {"orders/0": 20})
    assert {one["name"]: one["shared"] for one in shown["files"]} == {"base.sst": True, "new.sst": False}
    assert shown["new_bytes"] == len("orders-0 2")
    assert shown["info"] == {"finished": -1}
    text = headrace("checkpoints", "show", "orders-0", "--number", "2").out
    assert "checkpoint 2 of task orders-0 of topology shop" in text
    assert "10 d ago" in text
    ran = headrace("checkpoints", "show", "orders-0", "--number", "9")
    assert ran.code == 2
    assert "There are: 1, 2, 3" in ran.err


def test_names_that_are_not_there_are_told(headrace, made, objects):
    assert "there are checkpoints of: orders-0, orders-1" in headrace("checkpoints", "show", "orders-7").err
    Checkpoints(objects, "other").claim("a-0", 1, None, 0)
    ran = headrace("checkpoints", "show", "orders-0")
    assert (ran.code, "--topology" in ran.err) == (2, True)
    assert headrace("checkpoints", "show", "orders-0", "--topology", "shop").code == 0
    assert "there are checkpoints of: other, shop" in headrace("checkpoints", "delete", "nothing", "--all").err


def test_verify_finds_what_is_damaged_missing_foreign_or_left_over(headrace, made, objects):
    ran = headrace("checkpoints", "verify")
    assert (ran.code, ran.out) == (0, "")
    assert "6 checkpoints, all of them whole" in ran.err
    objects.create("shop/orders-0/files/0000000001-" + "0" * 32, b"left over")
    ran = headrace("checkpoints", "verify", "--json")
    assert ran.code == 0
    assert [(one["task"], one["fault"]) for one in ran.json] == [("orders-0", "unreferenced")]
    newest = Checkpoints(objects, "shop").newest("orders-0")
    base, new = (ref.object for ref in newest.files)
    data = bytearray(objects.read(base))
    data[500] ^= 1
    objects.delete([base, new])
    objects.create(base, bytes(data))
    ran = headrace("checkpoints", "verify", "orders-0", "--json")
    assert ran.code == 1
    faults = {one["object"]: (one["fault"], one["checkpoints"]) for one in ran.json}
    assert faults[base] == ("damaged", [2, 3])
    assert faults[new] == ("missing", [3])
    assert headrace("checkpoints", "verify", "orders-1").code == 0
    foreign, own = manifest_path("shop", "orders-1", 3), manifest_path("shop", "orders-0", 3)
    objects.create(manifest_path("shop", "orders-0", 4), objects.read(foreign))
    objects.delete([own])
    objects.create(own, b"{}")
    ran = headrace("checkpoints", "verify", "orders-0")
    assert ran.code == 1
    assert "foreign" in ran.out
    assert "damaged" in ran.out


def test_delete_wants_to_be_told_what_and_confirmed(headrace, made, objects):
    for arguments in ([], ["--all", "--task", "orders-0"], ["--all", "--number", "1"], ["--older-than", "soon"]):
        assert headrace("checkpoints", "delete", "shop", *arguments).code == 2
    ran = headrace("checkpoints", "delete", "shop", "--all")
    assert ran.code == 2
    assert "6 checkpoints of shop with 6 files" in ran.err
    assert "State is lost" in ran.err
    assert "--yes" in ran.err
    assert numbers(objects, "orders-0") == [1, 2, 3]


def test_delete_refuses_a_log_that_was_named_and_is_not_there(headrace, made, objects, tmp_path):
    ran = headrace("checkpoints", "delete", "shop", "--all", "--yes", "--log", tmp_path / "misspelt")
    assert ran.code == 2
    assert "there is no log in" in ran.err
    assert objects.names("shop")


def test_delete_by_age_never_takes_the_newest(headrace, made, objects):
    ran = headrace("checkpoints", "delete", "shop", "--older-than", "7d", "--yes", "--json")
    assert ran.json == {"topology": "shop", "manifests": 4, "files": 2, "size_bytes": 20}
    assert numbers(objects, "orders-0") == numbers(objects, "orders-1") == [3]
    assert headrace("checkpoints", "verify").code == 0
    ran = headrace("checkpoints", "delete", "shop", "--older-than", "0s", "--yes", "--json")
    assert ran.json["manifests"] == 0


def test_delete_one_goes_back_to_the_one_before(headrace, made, objects, tmp_path):
    arguments = ["checkpoints", "delete", "shop", "--task", "orders-0", "--number", "3"]
    assert "goes back to checkpoint 2" in headrace(*arguments).err
    assert headrace(*arguments, "--yes").code == 0
    checkpoints = Checkpoints(objects, "shop")
    newest = checkpoints.newest("orders-0")
    assert newest.number == 2
    checkpoints.restore(newest, tmp_path / "restored")
    assert headrace("checkpoints", "verify").code == 0
    assert headrace(*arguments, "--yes").code == 2


def test_delete_all_leaves_nothing(headrace, made, objects):
    assert headrace("checkpoints", "delete", "shop", "--task", "orders-1", "--yes").code == 0
    assert objects.names("shop") == ["orders-0"]
    assert headrace("checkpoints", "delete", "shop", "--all", "--yes").code == 0
    assert objects.list("shop") == {}
    assert objects.names("") == []


def test_what_runs_is_not_deleted(headrace, made, objects, log):
    log.create_topic("orders", 1)
    partition = TopicPartition("orders", 0)
    member = log.group("shop").join("worker-1", {"orders-0": [partition]}, assign_evenly, session_timeout_ms=60_000)
    ran = headrace("checkpoints", "delete", "shop", "--all", "--yes")
    assert ran.code == 2
    assert "shop runs: its group has 1 member" in ran.err
    assert numbers(objects, "orders-0") == [1, 2, 3]
    member.leave()
    assert headrace("checkpoints", "delete", "shop", "--all", "--yes").code == 0


def test_s3_without_a_region_is_refused_at_once(headrace, monkeypatch):
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    for command in (["list"], ["verify"], ["delete", "shop", "--all"]):
        ran = headrace("checkpoints", *command, "--checkpoints", "s3://bucket/prefix")
        assert ran.code == 2
        assert "AWS_REGION" in ran.err
