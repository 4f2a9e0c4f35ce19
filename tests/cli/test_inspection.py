"""``headrace demo``, and the commands that look at what it leaves behind."""

import contextlib
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from headrace.cli.main import app
from headrace.cli.output import show_table
from headrace.log.api import Committed
from headrace.record import TopicPartition

COUNT = 3000


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> tuple[Path, str]:
    """The directory of a demonstration, and what it printed."""
    place = tmp_path_factory.mktemp("demo") / "there"
    ran = CliRunner().invoke(app, ["demo", "--payments", str(COUNT), "--dir", str(place)])
    assert ran.exit_code == 0, ran.output
    return place, ran.stdout


def totals(text: str) -> dict[str, int]:
    return {
        line[:20].strip(): int(line[20:].split()[0].replace(",", ""))
        for line in text.partition("Totals")[2].splitlines()[2:]
        if line.startswith(("payments", "counted", "repeats", "late", "windows", "alerts"))
    }


def test_the_demo_accounts_for_every_payment(demo, headrace):
    place, text = demo
    found = totals(text)
    assert found["payments written"] == found["payments processed"] == COUNT
    assert found["counted in windows"] + found["repeats dropped"] + found["late ones left out"] == COUNT
    assert found["repeats dropped"] > 0
    windows = headrace("consume", "spend-per-minute", "--log", place / "log").records
    assert len(windows) == found["windows"]
    assert sum(window["value"]["payments"] for window in windows) == found["counted in windows"]
    top = max(window["value"]["total"] for window in windows)
    assert f"{top:,.2f}" in text.partition("The most spent")[2].splitlines()[2]


def test_what_the_demo_suggests_works(demo, headrace):
    _, text = demo
    commands = [line.split()[1:] for line in text.splitlines() if line.startswith("  headrace ")]
    assert {command[0] for command in commands} >= {"consume", "topics", "groups", "checkpoints", "describe"}
    for command in commands:
        assert headrace(*command).code == 0, command


def test_without_dir_the_demo_leaves_nothing(headrace, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    ran = headrace("demo", "--payments", "500")
    assert ran.code == 0, ran.err
    assert "is gone" in ran.out
    assert list(tmp_path.iterdir()) == []


def test_the_demo_touches_no_directory_with_something_in_it(headrace, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("x")
    ran = headrace("demo", "--dir", "mine")
    assert ran.code == 2
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["file"]


def test_topics(demo, headrace):
    log = ["--log", demo[0] / "log"]
    found = {topic["topic"]: topic for topic in headrace("topics", *log, "--json").json}
    assert sorted(found) == ["alerts", "payments", "spend-per-minute"]
    assert found["payments"]["records"] == COUNT
    assert [line.split()[0] for line in headrace("topics", *log).out.splitlines()] == ["topic", *sorted(found)]
    (one,) = headrace("topics", "payments", *log, "--json").json
    assert sum(p["end"] - p["start"] for p in one["partitions"]) == COUNT
    rows = headrace("topics", "payments", *log).out.splitlines()[2:]
    assert [row.split()[0] for row in rows] == ["0", "1", "2", "3"]
    ran = headrace("topics", "payment", *log)
    assert ran.code == 2
    assert "topics there: alerts, payments, spend-per-minute" in " ".join(ran.err.split())


def test_groups_after_a_run(demo, headrace):
    log = ["--log", demo[0] / "log"]
    (group,) = headrace("groups", *log, "--json").json
    assert (group["group"], group["lag"], group["members"]) == ("card-spend", 0, [])
    assert sum(partition["committed"] for partition in group["partitions"]) == COUNT
    assert "nobody runs it now" in headrace("groups", "card-spend", *log).out
    ran = headrace("groups", "card", *log)
    assert ran.code == 2
    assert "groups there: card-spend" in " ".join(ran.err.split())


def test_groups_with_members_and_lag(headrace, log):
    log.create_topic("p", 2)
    headrace("produce", "p", "--partitions", "2", stdin="1\n" * 10)
    parts = [TopicPartition("p", 0), TopicPartition("p", 1)]
    units = {"task-0": [parts[0]], "task-1": [parts[1]]}
    member = log.group("g").join(
        "worker-a", units, lambda members, units, before: dict.fromkeys(units, members[0]), session_timeout_ms=10_000
    )
    lease = member.poll().leases["task-0"]
    member.commit(lease, {parts[0]: Committed(log.end_offset(parts[0]) - 1 if log.end_offset(parts[0]) else 0)})
    (group,) = headrace("groups", "g", "--json").json
    assert group["members"] == [{"member": "worker-a", "units": ["task-0", "task-1"]}]
    assert group["lag"] == (1 if log.end_offset(parts[0]) else 0)
    assert "worker-a  task-0, task-1" in headrace("groups", "g").out
    assert headrace("groups").out.splitlines()[1].split() == ["g", "1", "2", str(group["lag"])]
    log.delete_topic("p")
    (group,) = headrace("groups", "g", "--json").json
    assert group["partitions"][0]["end"] is None
    assert headrace("groups", "g").out.splitlines()[-1].split()[-2:] == ["-", "-"]
    member.leave()


def test_an_empty_log_says_how_to_fill_it(headrace, log):
    for command in ("topics", "groups"):
        ran = headrace(command)
        assert (ran.code, ran.out) == (0, "")
        assert "headrace" in ran.err
        assert headrace(command, "--json").json == []


def test_checkpoints(demo, headrace):
    place = ["--checkpoints", demo[0] / "checkpoints"]
    found = headrace("checkpoints", "card-spend", *place, "--json").json
    assert [one["task"] for one in found] == [f"payments-{number}" for number in range(4)]
    assert sum(sum(one["positions"].values()) for one in found) == COUNT
    assert all(one["files"] and one["size_bytes"] and one["epoch"] == 1 for one in found)
    every = headrace("checkpoints", "card-spend", *place, "--json", "--all").json
    assert len(every) > len(found)
    rows = headrace("checkpoints", *place).out.splitlines()[1:]
    assert [row.split()[:2] for row in rows] == [["card-spend", one["task"]] for one in found]
    ran = headrace("checkpoints", "card", *place)
    assert ran.code == 2
    assert "there are checkpoints of: card-spend" in " ".join(ran.err.split())


def test_a_damaged_checkpoint_is_told_and_passed_over(demo, headrace, tmp_path):
    import shutil

    shutil.copytree(demo[0] / "checkpoints", tmp_path / "copy")
    newest = max((tmp_path / "copy" / "card-spend" / "payments-0" / "manifests").iterdir())
    newest.write_bytes(b"{}")
    ran = headrace("checkpoints", "card-spend", "--checkpoints", "copy", "--json")
    assert ran.code == 0
    assert len(ran.json) == 4
    assert "is damaged and was passed over" in ran.err


def test_a_table_on_a_terminal_is_drawn(monkeypatch):
    primary, secondary = os.openpty()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    with open(secondary, "w", encoding="utf-8") as terminal, contextlib.redirect_stdout(terminal):
        show_table("a title", ["name", "count"], [["[red]x", "1"]], right=["count"])
    text = os.read(primary, 65536).decode()
    os.close(primary)
    assert "[red]x" in text
    assert "┃" in text
