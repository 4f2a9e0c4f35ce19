"""Whatever a person can get wrong: told with place and remedy, ended with the right code, and nothing lost by it."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.harness import Site
from tests.e2e.small import COUNTING, Telling, counted, counting, counts_of, found, module, put, rows

GOOD = rows(400)


def run(site: Site, *arguments: str, **environment: str) -> tuple[int, str]:
    """Run a topology to the end of its input and return exit code and what was printed, as one line."""
    process = site.start("run", *arguments, "--until-end", **found(site), **environment)
    output, _ = process.communicate(timeout=60)
    return process.returncode, " ".join(output.split())


# --- records


BAD: dict[str, tuple[Any, str]] = {
    "undecodable": (b"\xc1", "DecodeError"),
    "no-time": ({"k": "k0"}, "'at'"),
    "before-1970": ({"k": "k0", "at": -5}, "before 1970"),
    "year-9999": ({"k": "k0", "at": 253_402_300_799_000}, "beyond the year 2199"),
    "text-as-time": ({"k": "k0", "at": "noon-4711"}, "whole milliseconds"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_record_stops(tmp_path: Path, kind: str) -> None:
    site = Site(tmp_path)
    record, told = BAD[kind]
    put(site, [*GOOD[:230], record, *GOOD[230:]])
    code, output = run(site, counting(site))
    assert code == 1
    assert told in output
    assert "step 'in' failed on the record at partition in/0, offset 230" in output
    assert "nothing is lost" in output
    assert 'on_error="skip"' in output
    assert "4711" not in output


def test_after_a_stop_bad_records_can_be_skipped(tmp_path: Path) -> None:
    site = Site(tmp_path)
    put(site, [*GOOD[:230], *(record for record, _ in BAD.values()), *GOOD[230:]])
    code, _ = run(site, counting(site), "--batch-records", "50")
    assert code == 1
    code, output = run(site, counting(site, ', on_error="skip"'))
    assert code == 0, output
    assert f"{len(BAD)} errors" in output
    assert counted(site) == counts_of(GOOD)


RAISING = """
from headrace import Topology

topology = Topology("raising")


def checked(value):
    if value["i"] == 233:
        raise ValueError(f"no {{value['i']}} please")
    return value


topology.stream("in").map(checked, on_error="{policy}").to("out")
"""


@pytest.mark.parametrize("workers", ["1", "2"])
def test_user_code_that_raises(tmp_path: Path, workers: str) -> None:
    site = Site(tmp_path)
    put(site, GOOD, partitions=2)
    code, output = run(site, module(site, RAISING.format(policy="stop")), "--workers", workers)
    assert code == 1
    assert f'File "{site.folder}/job.py", line 9, in checked raise ValueError' in output
    assert "step 'in-map-checked' failed on the record at partition in/" in output
    assert f"ValueError at {site.folder}/job.py:9" in output
    assert "no 233 please" not in output
    assert "headrace/" not in output.replace(str(site.folder), "")
    code, output = run(site, module(site, RAISING.format(policy="skip")), "--workers", workers)
    assert code == 0, output
    assert "1 errors" in output
    there = {record.value["i"] for record in site.read("out")}
    assert there == {row["i"] for row in GOOD} - {233}


# --- use

TWO = "from headrace import Topology\na = Topology('a')\nb = Topology('b')\n"
TWINS = """
from headrace import Topology
topology = Topology("twins")
topology.stream("in").map(dict, name="same").filter(bool, name="same").to("out")
"""


@pytest.mark.parametrize(
    ("text", "arguments", "told"),
    [
        (COUNTING.format(policy="", more="").replace('"in"', '"elsewhere"'), [], "headrace produce elsewhere"),
        ("x = 1\n", [], 'Assign one: topology = Topology("my-topology")'),
        (TWO, [], "has several topologies: a, b. Say which one: job:a"),
        (None, [], "there is no module 'job' here"),
        (TWINS, [], "'same'"),
        (TWINS, ["--batch-records", "few"], "--batch-records"),
    ],
    ids=["topic", "no-topology", "two", "no-module", "twins", "option"],
)
def test_wrong_use(tmp_path: Path, text: str | None, arguments: list[str], told: str) -> None:
    site = Site(tmp_path)
    put(site, GOOD[:10])
    if text is not None:
        module(site, text)
    code, output = run(site, "job", *arguments)
    assert code == 2, output
    assert told in output
    assert "Traceback" not in output


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_metrics_port_in_use(tmp_path: Path, workers: str) -> None:
    site = Site(tmp_path)
    put(site, GOOD)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code, output = run(site, counting(site), "--metrics-port", port, "--workers", workers)
    assert code == 2, output
    assert f"port {port} on 127.0.0.1 is in use" in output
    assert "--metrics-port" in output


@pytest.mark.parametrize(("place", "code"), [("checkpoints", 2), ("state", 1)])
def test_a_place_that_cannot_be_written(tmp_path: Path, place: str, code: int) -> None:
    site = Site(tmp_path)
    put(site, GOOD)
    name = counting(site)
    (site.folder / place).write_text("a file stands here")
    variable = {"checkpoints": "HEADRACE_CHECKPOINTS", "state": "HEADRACE_STATE_DIR"}[place]
    was, output = run(site, name)
    assert was == code, output
    assert str(site.folder / place) in output
    assert variable in output
    assert "Traceback" not in output
    (site.folder / place).unlink()
    assert run(site, name)[0] == 0
    assert counted(site) == counts_of(GOOD)


# --- what changed between two runs

REPARTITIONED = """
from headrace import Topology, agg, tumbling

topology = Topology("repartitioned")
topology.stream("in", time="at").key_by("k").window(tumbling("10ms")).aggregate(n=agg.count()).to("out")
"""


def test_another_number_of_internal_partitions(tmp_path: Path) -> None:
    site = Site(tmp_path)
    put(site, GOOD)
    name = module(site, REPARTITIONED)
    assert run(site, name, "--repartition-partitions", "2")[0] == 0
    put(site, rows(200, start=400))
    code, output = run(site, name, "--repartition-partitions", "3")
    assert code == 2
    assert "has 2 partitions, but this topology wants 3" in output
    assert "Run with --repartition-partitions 2" in output
    assert run(site, name, "--repartition-partitions", "2")[0] == 0
    assert counted(site) == counts_of(rows(600))


def test_changed_aggregates_of_a_step(tmp_path: Path) -> None:
    site = Site(tmp_path)
    put(site, GOOD)
    assert run(site, counting(site))[0] == 0
    put(site, rows(200, start=400))
    code, output = run(site, counting(site, more=', latest=agg.max("i")'))
    assert code == 2, output
    assert "was changed in a way its stored state cannot follow" in output
    assert "Take the change back to keep it" in output
    assert "--allow-reset " in output
    assert run(site, counting(site))[0] == 0
    assert counted(site) == counts_of(rows(600))


def test_checkpoints_of_another_log(tmp_path: Path) -> None:
    site, other = Site(tmp_path / "a"), Site(tmp_path / "b")
    other.folder.mkdir()
    put(site, GOOD)
    put(other, rows(700))
    assert run(site, counting(site))[0] == 0
    code, output = run(site, counting(site), "--log", str(other.log))
    assert code == 2, output
    assert "belongs to another log than this one" in output
    assert "--checkpoints" in output
    put(site, rows(200, start=400))
    assert run(site, counting(site))[0] == 0
    assert counted(site) == counts_of(rows(600))


def test_a_log_of_a_newer_version(tmp_path: Path) -> None:
    site = Site(tmp_path)
    put(site, GOOD)
    marker = site.log / "headrace-log.json"
    before = marker.read_text()
    marker.write_text('{"format": 99}')
    code, output = run(site, counting(site))
    assert code == 2
    assert f"{marker} has format 99" in output
    assert "Upgrade headrace" in output
    marker.write_text(before)
    assert run(site, counting(site))[0] == 0
    assert counted(site) == counts_of(GOOD)


def test_a_damaged_batch(tmp_path: Path) -> None:
    site = Site(tmp_path)
    put(site, GOOD)
    (segment,) = (site.log / "topics" / "in" / "0").glob("*.log")
    data = segment.read_bytes()
    segment.write_bytes(data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :])
    code, output = run(site, counting(site))
    assert code == 1
    assert str(segment) in output
    assert "byte " in output
    segment.write_bytes(data)
    assert run(site, counting(site))[0] == 0
    assert counted(site) == counts_of(GOOD)


# --- full disks

WIDE = """
from hashlib import sha256

from headrace import Topology, agg, tumbling

topology = Topology("wide")
everything = topology.stream("in", keyed_by="k", time="at")
everything.map(lambda v: {**v, "why": "x" * 2000}).to("wide")
noise = agg.collect(lambda v: b"".join(sha256(b"%d-%d" % (v["i"], n)).digest() for n in range(30)))
everything.window(tumbling("3s")).aggregate(noise=noise).map(lambda w: len(w["noise"])).to("sizes")
"""
"""2 MB of output and 1 MB of state per thousand records."""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], check=False)
    if mounted.returncode:
        pytest.skip("a small disk can only be made by root")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.parametrize("place", ["log", "state", "checkpoints"])
def test_a_full_disk_is_waited_for(tmp_path: Path, small_disk: Path, place: str) -> None:
    site = Site(tmp_path)
    put(site, rows(3000), batch=500)
    shutil.move(site.log, small_disk / "log") if place == "log" else (small_disk / place).mkdir()
    (site.folder / place).symlink_to(small_disk / place)
    process = site.start(
        "run", module(site, WIDE), "--until-end", "--checkpoint-interval", "20ms", "--batch-records", "100",
        **found(site),
    )  # fmt: skip
    telling = Telling(process)
    try:
        telling.wait_for("task ")
        assert "disk" in telling.text or "No space left" in telling.text, telling.text
        assert "Free space" in telling.text or "space left" in telling.text
        subprocess.run(["mount", "-o", "remount,size=60m", str(small_disk)], check=True)
        assert telling.end() == 0, telling.text
    finally:
        process.kill()
        telling.end()
    by_id = {dict(record.headers)["headrace-id"]: record.value["i"] for record in site.read("wide")}
    assert sorted(by_id.values()) == list(range(3000))
    sizes = {dict(record.headers)["headrace-id"]: record.value for record in site.read("sizes")}
    assert sum(sizes.values()) == 3000
    assert len(sizes) == 10
