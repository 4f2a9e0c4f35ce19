"""Records that are larger than a topic takes: refused where they are made, by the policy of the step that made them."""

from __future__ import annotations

import json
import subprocess
from contextlib import closing

import msgspec
import pytest

from headrace.record import JoinedBytes, RecordBatch, TopicPartition
from tests.e2e.harness import HEADRACE, ROOT
from tests.e2e.small import found, module
from tests.kafka.clean import alter, wipe
from tests.kafka.site import KafkaSite

BLOWN_UP = """
from headrace import Topology

topology = Topology("job"{policy})
topology.stream("in").map(lambda r: {{"i": r["i"], "x": "x" * r["size"]}}).to("out")
"""
THROUGH = """
from headrace import Topology, agg

topology = Topology("job")
topology.stream("in").map(lambda r: r | {"x": "x" * r["size"]}).key_by("k").aggregate(n=agg.count()).to("out")
"""


@pytest.fixture
def site(tmp_path, kafka):
    wipe(kafka)
    site = KafkaSite(tmp_path, kafka)
    with closing(site.open()) as log:
        for topic in ("in", "out"):
            log.create_topic(topic, 1)
        alter(kafka, "out", "max.message.bytes", 20_000)
        values = [{"i": i, "k": "k", "size": 30_000 if i == 3 else 10} for i in range(6)]
        encoded = JoinedBytes.of([msgspec.msgpack.encode(value) for value in values])
        log.append(TopicPartition("in", 0), RecordBatch([1] * 6, [None] * 6, encoded))
    return site


def run(site, code):
    process = site.start("run", "job", "--until-end", **found(site))
    output, _ = process.communicate(timeout=100)
    assert process.returncode == code, output
    return output


def test_an_output_that_is_too_large_ends_the_worker(site):
    module(site, BLOWN_UP.format(policy=""), "job")
    told = run(site, 1)
    assert "step 'in-to-out'" in told
    assert "partition in/0, offset 3" in told
    assert "topic out takes about 30," in told
    assert "at most 20,000 (max.message.bytes)" in told
    assert f"{site.folder}/job.py:5" in told
    assert "nothing is lost" in told
    assert "xxx" not in told
    alter(site.address, "out", "max.message.bytes", 100_000)
    run(site, 0)
    assert [record.value["i"] for record in site.read("out")] == list(range(6))


@pytest.mark.parametrize("policy", ["skip", "dead-letter"])
def test_an_output_that_is_too_large_is_left_out(site, policy):
    module(site, BLOWN_UP.format(policy=f', on_error="{policy}"'), "job")
    run(site, 0)
    assert [record.value["i"] for record in site.read("out")] == [0, 1, 2, 4, 5]
    letters = site.read("job-dead-letter")
    assert [letter.value["i"] for letter in letters] == ([3] if policy == "dead-letter" else [])


def test_internal_topics_take_more_than_others(site):
    """What comes from a record may be larger than the record, and nobody else sees it."""
    with closing(site.open()) as log:
        value = msgspec.msgpack.encode({"i": 7, "k": "k", "size": 3_000_000})
        log.append(TopicPartition("in", 0), RecordBatch([1], [None], JoinedBytes.of([value])))
    module(site, THROUGH, "job")
    run(site, 0)
    assert site.read("out")[-1].value["n"] == 7


def test_a_line_that_is_too_large(site):
    """It is named, and what comes before it is written."""
    lines = "".join(json.dumps({"n": n, "x": "x" * size}) + "\n" for n, size in enumerate((1, 2, 1_200_000, 3)))
    command = [HEADRACE, "produce", "words", "--partitions", "1"]
    ran = subprocess.run(
        command, env=site.environment(), input=lines, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 1, ran.stderr
    assert "line 3 of standard input" in ran.stderr
    assert "takes about 1,200," in ran.stderr
    assert "at most 1,048,588 (max.message.bytes)" in ran.stderr
    assert "2 records before it written to words" in ran.stderr
    assert "xxx" not in ran.stderr
    assert [record.value["n"] for record in site.read("words")] == [0, 1]
