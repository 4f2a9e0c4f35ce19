"""``headrace dead-letter``: what is told about records that failed, and how they go back."""

import contextlib
import os
from collections.abc import Iterable
from typing import Any

import msgspec
import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from headrace.cli.dead_letter import replay_letters
from headrace.cli.letters import Done, done_with, group_of
from headrace.errors import CorruptError
from headrace.log.api import Committed
from headrace.record import JoinedBytes, Origin, RecordBatch, TopicPartition
from headrace.testing.conformance.log_support import read_all

LETTERS = "shop-dead-letter"
TIME = 1_700_000_000_000


def letter(number: int, /, step: str = "parse", **said: Any) -> dict[str, Any]:
    """What a dead letter has, as columns of a batch."""
    own = said.pop("own", (("trace", b"t-%d" % number),))
    headers = {
        "headrace-error": "ValueError", "headrace-error-at": "shop.py:12", "headrace-step": step,
        "headrace-topic": "orders", "headrace-partition": "1", "headrace-offset": str(number), "headrace-attempt": "1",
        **{f"headrace-{name.replace('_', '-')}": value for name, value in said.items()},
    }  # fmt: skip
    told = tuple((name, value.encode()) for name, value in headers.items() if value is not None)
    return {"timestamp": TIME + number, "value": {"n": number}, "headers": own + told}


def made_by_time() -> dict[str, Any]:
    return letter(99, "window", topic=None, partition=None, offset=None, made="time", error_at=None)


def fill(log, letters: Iterable[dict[str, Any]], partition: int = 0, start: int = 0) -> None:
    rows = list(letters)
    batch = RecordBatch(
        [row["timestamp"] for row in rows],
        [b"k%d" % row["value"]["n"] for row in rows],
        JoinedBytes.of([msgspec.msgpack.encode(row["value"]) for row in rows]),
        [row["headers"] for row in rows],
        Origin("shop/parse/orders-1/dead-letter/orders/1", range(start, start + len(rows))),
    )
    log.append(TopicPartition(LETTERS, partition), batch)


@pytest.fixture
def shop(log, headrace):
    """Four letters in partition 0, one of them made by time, and one of another step in partition 1."""
    log.create_topic("orders", 2)
    log.create_topic("shop-by-customer-repartition", 3)
    log.create_topic(LETTERS, 2)
    fill(log, [letter(7), letter(8), made_by_time(), letter(9, error="KeyError: no field 'x'", error_at=None)])
    there = {"topic": "shop-by-customer-repartition", "partition": "2", "attempt": "3"}
    fill(log, [letter(4, "total", **there)], partition=1)
    return headrace


def arrived(log, topic: str, partition: int) -> list[tuple[bytes | None, Any, int, dict[str, bytes]]]:
    reader = log.reader(TopicPartition(topic, partition), 0)
    found = [
        (key, msgspec.msgpack.decode(value), timestamp, dict(headers))
        for batch in read_all(reader)
        for key, value, timestamp, headers in zip(
            batch.keys, batch.values.split(), batch.timestamps, batch.headers, strict=True
        )
    ]
    reader.close()
    return found


def counts(log) -> list[int]:
    orders = [log.end_offset(TopicPartition("orders", 1)), log.end_offset(TopicPartition("orders", 0))]
    return [*orders, log.end_offset(TopicPartition("shop-by-customer-repartition", 2))]


def states(headrace) -> list[str]:
    return [row["state"] for row in headrace("dead-letter", "list", "shop", "--format", "json").json["records"]]


def test_list_tells_everything_and_sums_up(shop):
    found = shop("dead-letter", "list", "shop", "--format", "json").json
    assert found["records"][0] == {
        "partition": 0, "offset": 0, "timestamp": TIME + 7, "step": "parse", "topic": "orders", "source_partition": 1,
        "source_offset": 7, "error": "ValueError", "error_at": "shop.py:12", "attempt": 1, "state": "waiting",
    }  # fmt: skip
    assert [(row["partition"], row["offset"], row["state"]) for row in found["records"]] == [
        (0, 0, "waiting"), (0, 1, "waiting"), (0, 2, "not replayable"), (0, 3, "waiting"), (1, 0, "waiting"),
    ]  # fmt: skip
    assert found["summary"] == [
        {"step": "parse", "error": "KeyError: no field 'x'", "waiting": 1, "replayed": 0, "not replayable": 0},
        {"step": "parse", "error": "ValueError", "waiting": 2, "replayed": 0, "not replayable": 0},
        {"step": "total", "error": "ValueError", "waiting": 1, "replayed": 0, "not replayable": 0},
        {"step": "window", "error": "ValueError", "waiting": 0, "replayed": 0, "not replayable": 1},
    ]


def test_list_is_a_table_for_people(shop):
    lines = shop("dead-letter", "list", "shop").out.splitlines()
    assert lines[0] == "shop: 5 records failed"
    assert lines[2].split() == [
        "0", "0", "2023-11-14", "22:13:20Z", "parse", "orders/1", "7", "ValueError", "at", "shop.py:12", "1", "waiting",
    ]  # fmt: skip
    assert lines[4].split()[4:6] == ["window", "-"]
    assert lines[-1].split() == ["window", "ValueError", "0", "0", "1"]


def test_list_can_be_narrowed(shop):
    found = shop("dead-letter", "list", "shop", "--step", "parse", "--limit", "1", "--format", "json").json
    assert [row["offset"] for row in found["records"]] == [3]
    assert sum(row["waiting"] for row in found["summary"]) == 3
    assert "the newest 2" in shop("dead-letter", "list", "shop", "--limit", "1").out.splitlines()[0]
    ran = shop("dead-letter", "list", "shop", "--step", "nonsense")
    assert (ran.code, ran.out) == (0, "")
    assert "no dead letters of shop from step nonsense" in ran.err


def test_show_tells_the_error_the_line_and_the_record(shop):
    text = shop("dead-letter", "show", "shop", "0", "1").out
    for told in (
        "shop-dead-letter/0 offset 1: waiting", "error      ValueError", "line       shop.py:12", "step       parse",
        "read from  orders/1 8", "timestamp  2023-11-14 22:13:20Z", "attempt    1", "  trace: t-8",
        "  headrace-step: parse", 'key\n"k8"', 'value\n{\n  "n": 8\n}',
    ):  # fmt: skip
        assert told in text
    found = shop("dead-letter", "show", "shop", "0", "2", "--format", "json", "--key-serde", "bytes").json
    assert (found["state"], found["error_at"], found["topic"]) == ("not replayable", None, None)
    assert found["key"] == {"base64": "azk5"}
    assert ["headrace-made", "time"] in found["headers"]


def test_show_without_a_place_shows_the_newest(shop):
    assert shop("dead-letter", "show", "shop", "--format", "json").json["source_offset"] == 9


def test_replay_sends_the_records_back_as_they_were(shop, log):
    ran = shop("dead-letter", "replay", "shop")
    assert ran.code == 0
    assert ran.out.splitlines() == [
        "4 records replayed",
        "topic                         records",
        "orders                              3",
        "shop-by-customer-repartition        1",
    ]
    assert "1 record left out, which windows or timers made" in ran.err
    assert counts(log) == [3, 0, 1]
    assert arrived(log, "orders", 1) == [
        (b"k%d" % n, {"n": n}, TIME + n, {"trace": b"t-%d" % n, "headrace-attempt": b"1"}) for n in (7, 8, 9)
    ]
    assert arrived(log, "shop-by-customer-repartition", 2)[0][3] == {"trace": b"t-4", "headrace-attempt": b"3"}
    reader = log.reader(TopicPartition("orders", 1), 0)
    assert all(batch.origin is None and batch.progress is None for batch in read_all(reader))
    reader.close()


def test_a_second_replay_sends_only_what_came_since(shop, log):
    shop("dead-letter", "replay", "shop")
    assert states(shop) == ["replayed", "replayed", "not replayable", "replayed", "replayed"]
    ran = shop("dead-letter", "replay", "shop")
    assert (ran.code, ran.out) == (0, "0 records replayed\n")
    assert "nothing that was not replayed before; --again" in ran.err
    fill(log, [letter(10)])
    assert shop("dead-letter", "replay", "shop").out.startswith("1 record replayed\n")
    assert [row[1]["n"] for row in arrived(log, "orders", 1)] == [7, 8, 9, 10]
    assert shop("dead-letter", "replay", "shop", "--again", "--step", "total").out.startswith("1 record replayed\n")
    assert counts(log) == [4, 0, 2]
    (group,) = shop("groups", "shop-dead-letter-replay", "--json").json
    assert (group["lag"], group["members"]) == (0, [])


@pytest.mark.parametrize(
    ("arguments", "sent", "expected"),
    [
        (["--step", "total"], [0, 0, 1], ["waiting", "waiting", "waiting", "replayed"]),
        (["--partition", "0", "--offset", "1"], [1, 0, 0], ["waiting", "replayed", "waiting", "waiting"]),
        (["--partition", "1"], [0, 0, 1], ["waiting", "waiting", "waiting", "replayed"]),
        (["--limit", "2"], [2, 0, 0], ["replayed", "replayed", "waiting", "waiting"]),
        (["--limit", "3"], [3, 0, 0], ["replayed", "replayed", "replayed", "waiting"]),
    ],
)
def test_some_can_be_chosen_and_the_rest_goes_later(shop, log, arguments, sent, expected):
    assert shop("dead-letter", "replay", "shop", *arguments).code == 0
    assert counts(log) == sent
    assert [state for state in states(shop) if state != "not replayable"] == expected
    assert shop("dead-letter", "replay", "shop").out.startswith(f"{4 - sum(sent)} record")
    assert counts(log) == [3, 0, 1]
    assert "0 records replayed" in shop("dead-letter", "replay", "shop", *arguments[:4]).out


def test_a_dry_run_does_nothing(shop, log):
    ran = shop("dead-letter", "replay", "shop", "--dry-run", "--step", "parse")
    assert ran.out.splitlines()[0] == "3 records would be replayed"
    assert counts(log) == [0, 0, 0]
    assert log.group(group_of("shop")).committed() == {}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["list", "shopp"], "there are dead letters of: shop"),
        (["show", "shop", "0"], "Give both, or neither"),
        (["show", "shop", "0", "9"], "no dead letter at offset 9 of partition 0"),
        (["show", "shop", "5", "0"], "has no partition 5"),
        (["replay", "shop", "--offset", "1"], "--offset needs --partition"),
        (["replay", "shop", "--offset", "9", "--partition", "0"], "no dead letter at offset 9 of partition 0"),
        (["replay", "nothing"], "there are dead letters of: shop"),
        (["list", "shop", "--limit", "0"], "--limit"),
        (["list", "shop", "--log", "elsewhere"], "no log in elsewhere"),
        (["nonsense"], "nonsense"),
    ],
)
def test_wrong_use_has_exit_code_two(shop, arguments, told):
    ran = shop("dead-letter", *arguments)
    assert (ran.code, ran.out) == (2, "")
    assert told in " ".join(ran.err.split())


def test_without_letters_there_is_nothing_to_show(log, headrace):
    log.create_topic(LETTERS, 1)
    assert headrace("dead-letter", "list", "shop").err == "there are no dead letters of shop\n"
    assert headrace("dead-letter", "list", "shop", "--format", "json").json["records"] == []
    assert headrace("dead-letter", "show", "shop").code == 2
    assert headrace("dead-letter", "replay", "shop").out == "0 records replayed\n"


def test_a_topic_that_is_gone_is_told_before_anything_of_the_portion_is_sent(shop, log):
    log.delete_topic("shop-by-customer-repartition")
    ran = shop("dead-letter", "replay", "shop")
    assert ran.code == 2
    assert "was read from shop-by-customer-repartition/2, which is not there any more" in " ".join(ran.err.split())
    assert log.end_offset(TopicPartition("orders", 1)) == 0
    assert shop("dead-letter", "replay", "shop", "--step", "parse").code == 0
    assert log.end_offset(TopicPartition("orders", 1)) == 3


def test_two_replays_at_a_time_are_refused(shop, log):
    other = log.group(group_of("shop")).join(
        "other", {"replay": []}, lambda members, units, last: dict.fromkeys(units, "other"), session_timeout_ms=60_000
    )
    assert "replay" in other.poll().leases
    ran = shop("dead-letter", "replay", "shop")
    assert ran.code == 2
    assert "are being replayed by another command" in ran.err
    assert counts(log) == [0, 0, 0]
    other.leave()
    assert shop("dead-letter", "replay", "shop").code == 0


def test_a_topic_made_anew_begins_anew(shop, log):
    shop("dead-letter", "replay", "shop")
    log.delete_topic(LETTERS)
    log.create_topic(LETTERS, 2)
    fill(log, [letter(20)])
    assert states(shop) == ["waiting"]
    assert shop("dead-letter", "replay", "shop").out.startswith("1 record replayed")


def test_records_that_are_no_letters_do_no_harm(shop, log):
    log.append(TopicPartition(LETTERS, 1), RecordBatch([1], [None], JoinedBytes.of([None])))
    fill(log, [letter(5, offset="x", attempt="often")])
    found = shop("dead-letter", "list", "shop", "--format", "json").json["records"]
    assert [(row["source_offset"], row["attempt"]) for row in found if row["offset"] == 4] == [(None, 1)]
    found = found[-1]
    assert (found["step"], found["error"], found["state"]) == ("-", "-", "not replayable")
    assert "2 records left out" in shop("dead-letter", "replay", "shop").err


@pytest.mark.parametrize(("answer", "expected"), [(b"y\n", [3, 0, 0]), (b"n\n", [0, 0, 0])])
def test_a_terminal_is_asked(shop, log, monkeypatch, capsys, answer, expected):
    primary, secondary = os.openpty()
    with open(secondary, encoding="utf-8") as terminal, contextlib.suppress(typer.Abort):
        monkeypatch.setattr("sys.stdin", terminal)
        os.write(primary, answer)
        replay_letters("shop", step="parse")
    os.close(primary)
    assert capsys.readouterr().out.startswith("replay 3 records to orders? [y/N]: ")
    assert counts(log) == expected


def test_more_letters_than_are_sent_at_once_all_go(log, headrace):
    log.create_topic("orders", 2)
    log.create_topic(LETTERS, 1)
    for start in range(0, 2500, 500):
        fill(log, [letter(n) for n in range(start, start + 500)], start=start)
    assert headrace("dead-letter", "replay", "shop", "--limit", "1700").code == 0
    assert done_with(log, "shop") == {TopicPartition(LETTERS, 0): Done(1700)}
    assert headrace("dead-letter", "replay", "shop").out.startswith("800 records replayed")
    assert [row[1]["n"] for row in arrived(log, "orders", 1)] == list(range(2500))


@given(st.lists(st.sets(st.integers(0, 30)), max_size=5))
def test_what_is_done_is_what_was_said_to_be_done(portions):
    done = Done()
    said: set[int] = set()
    for portion in portions:
        done = done.with_offsets(portion)
        said |= portion
        assert [offset in done for offset in range(32)] == [offset in said for offset in range(32)]
        assert done.below not in said
        assert Done.parse(done.committed()) == done


def test_what_is_remembered_has_a_format():
    done = Done(4, ((6, 6), (8, 11)))
    assert done.committed() == Committed(4, "1 6 8-11")
    assert Done.parse(Committed(3)) == Done(3)
    for metadata in ("2 6", "1 x", "nonsense"):
        with pytest.raises(CorruptError, match="cannot be read"):
            Done.parse(Committed(4, metadata))


TOPOLOGY = """
from pathlib import Path

from headrace import Topology, agg, tumbling

topology = Topology("mended", on_error="dead-letter")


def checked(value):
    if value["n"] == 3 and not Path("mended").exists():
        raise ValueError(value)
    return value


numbers = topology.stream("numbers", time="at").map(checked)
numbers.to("good")
by_kind = numbers.key_by("kind").map(lambda v: {"kind": v["kind"], "ratio": 12 // v["n"]}, name="ratio")
by_kind.to("ratios")
"""


def test_from_failure_to_replay(headrace, log, tmp_path, monkeypatch):
    (tmp_path / "topology_that_is_mended.py").write_text(TOPOLOGY)
    monkeypatch.syspath_prepend(tmp_path)
    run = ["run", "topology_that_is_mended", "--until-end", "--metrics-port", "0", "--fsync", "never"]
    lines = [{"n": n, "kind": "ab"[n % 2], "at": TIME + n} for n in range(6)]
    headrace("produce", "numbers", "--time", "at", stdin=msgspec.json.Encoder().encode_lines(lines))
    assert headrace(*run).code == 0
    found = headrace("dead-letter", "list", "mended", "--format", "json").json
    assert sorted((row["step"], row["error"], row["attempt"], row["topic"]) for row in found["records"]) == [
        ("numbers-map-checked", "ValueError", 1, "numbers"),
        ("ratio", "ZeroDivisionError", 1, "mended-numbers-by-kind-repartition"),
    ]
    assert all("topology_that_is_mended.py:" in row["error_at"] for row in found["records"])
    (tmp_path / "mended").touch()
    assert headrace("dead-letter", "replay", "mended").out.startswith("2 records replayed")
    assert headrace(*run).code == 0
    assert sorted(row["value"]["n"] for row in headrace("consume", "good").records) == list(range(6))
    assert sorted(row["value"]["ratio"] for row in headrace("consume", "ratios").records) == [2, 3, 4, 6, 12]
    found = headrace("dead-letter", "list", "mended", "--format", "json").json["records"]
    assert [(row["step"], row["attempt"]) for row in found if row["state"] == "waiting"] == [("ratio", 2)]
