"""Topics that are deleted, made again or grow under a worker: it ends, says why, and counts nothing twice."""

from __future__ import annotations

from collections import Counter
from contextlib import closing

import msgspec
import pytest

from headrace.cli.partitioning import TopicWriter
from headrace.log.kafka.log import KafkaLog
from headrace.record import TopicPartition
from tests.e2e.small import found, module, rows, starting
from tests.kafka.clean import alter
from tests.kafka.test_card_spend import committed

TOTALS = """
from headrace import Topology, agg

topology = Topology("job")
topology.stream("in"{keyed}, time="at"){rekeyed}.aggregate(n=agg.count(), k=agg.max("k")).to("out")
"""
KEYED = TOTALS.format(keyed=', keyed_by="k"', rekeyed="")
REKEYED = TOTALS.format(keyed="", rekeyed='.key_by("k")')
PLAIN = """
from headrace import Topology

topology = Topology("job")
topology.stream("in").map(lambda r: {"k": r["k"], "n": r["i"]}).to("out")
"""


@pytest.fixture
def log(site):
    with closing(site.open()) as log:
        yield log


def put(log, records, partitions=1):
    """Append records to the topic ``in`` by their keys."""
    log.create_topic("in", partitions)
    writer = TopicWriter(log, "in", partitions, 50)
    values = [msgspec.msgpack.encode(record) for record in records]
    writer.add([record["at"] for record in records], [record["k"].encode() for record in records], values, 1)
    writer.flush()
    log.flush()


def totals(site):
    """Return the newest count of each key."""
    return {record.value["k"]: record.value["n"] for record in site.read("out")}


def counts(*parts):
    return dict(Counter(row["k"] for part in parts for row in part))


def run_again(site, *arguments, code):
    """Run to the end of the input, which must end with this code; return what it printed."""
    process = site.start("run", "job", "--until-end", *arguments, **found(site))
    output, _ = process.communicate(timeout=100)
    assert process.returncode == code, output
    return output


@pytest.mark.parametrize("writes", [True, False])
def test_an_output_is_deleted(site, log, writes):
    """A worker that has nothing to write learns of it too; and nobody makes the topic again but the next start."""
    module(site, KEYED, "job")
    one, two = rows(200), rows(300, start=200)
    put(log, one)
    with starting(site) as start:
        worker = start("job")
        worker.until(lambda: committed(log, "job") == 200)
        log.delete_topic("out")
        if writes:
            put(log, two)
        assert worker.end() == 1
        assert "topic out" in worker.text
        assert "deleted while it" in worker.text
        assert "from the last checkpoint on" in worker.text or "after the last checkpoint" in worker.text
    assert "out" not in log.topics()
    if not writes:
        put(log, two)
    run_again(site, code=0)
    assert totals(site) == counts(one, two)


def test_an_input_is_deleted(site, log):
    module(site, KEYED, "job")
    put(log, rows(200))
    with starting(site) as start:
        worker = start("job")
        worker.until(lambda: committed(log, "job") == 200)
        log.delete_topic("in")
        assert worker.end() == 1
        assert "topic in" in worker.text
        assert "deleted while it" in worker.text
        assert "--group" in worker.text
    assert "'in', which does not exist" in run_again(site, code=2)
    put(log, rows(250))
    told = run_again(site, code=2)
    assert "topic in was deleted and made again since the last checkpoint of task" in told
    assert "--group" in told
    log.delete_topic("out")
    run_again(site, "--group", "anew", code=0)
    assert totals(site) == counts(rows(250))


def test_an_input_is_deleted_and_made_again(site, log):
    """At once, and as long as it was: offsets do not tell, but its id does."""
    module(site, KEYED, "job")
    put(log, rows(200))
    with starting(site) as start:
        worker = start("job")
        worker.until(lambda: committed(log, "job") == 200)
        log.delete_topic("in")
        put(log, rows(200))
        assert worker.end() == 1
        assert "topic in" in worker.text or "in/0 went to offset 200" in worker.text
    assert totals(site) == counts(rows(200))
    assert "deleted and made again" in run_again(site, code=2)


def test_an_internal_topic_is_deleted(site, log):
    module(site, REKEYED, "job")
    put(log, rows(200))
    with starting(site) as start:
        worker = start("job")
        worker.until(lambda: "out" in log.topics() and totals(site) == counts(rows(200)))
        worker.until(lambda: committed(log, "job") > 200)
        (internal,) = [name for name in log.topics() if name.endswith("-repartition")]
        alter(site.address, internal, "retention.ms", 604_800_000)
        assert f"internal topic {internal} deletes records by itself" in run_again(site, code=2)
        log.delete_topic(internal)
        assert worker.end() == 1
        assert internal in worker.text
    told = run_again(site, code=2)
    assert f"internal topic {internal} was deleted since the last checkpoint" in told
    assert internal not in log.topics()


def test_a_keyed_input_grows(site, log):
    module(site, KEYED, "job")
    one, two = rows(200), rows(300, start=200)
    put(log, one, 2)
    with starting(site) as start:
        worker = start("job")
        worker.until(lambda: committed(log, "job") == 200)
        log.grow_topic("in", 4)
        put(log, two, 4)
        assert worker.end() == 1
        assert "topic in has 4 partitions now, and had 2" in worker.text
        assert "headrace rescale" in worker.text
    assert "headrace rescale" in run_again(site, code=2)
    site.run("rescale", "job", "--yes", **found(site))
    run_again(site, code=0)
    assert totals(site) == counts(one, two)


def test_an_input_without_keys_grows(site, log):
    """What keeps no state reads all partitions as soon as it is started again, and nothing twice."""
    module(site, PLAIN, "job")
    put(log, rows(200))
    with starting(site) as start:
        worker = start("job")
        worker.until(lambda: committed(log, "job") == 200)
        log.grow_topic("in", 2)
        put(log, rows(300, start=200), 2)
        assert worker.end() == 1
        assert "Start the workers of the topology again" in worker.text
    run_again(site, code=0)
    assert Counter(record.value["n"] for record in site.read("out")) == Counter(range(500))


def test_brokers_that_do_not_tell_ids(site, log, monkeypatch):
    """As before Kafka 2.8: partitions are known, ids are not."""
    from headrace.log.kafka import layouts

    monkeypatch.setattr(layouts._Request, "_CLASSES", layouts._Request._CLASSES[:1])
    put(log, rows(1), 3)
    assert log.layout(["in", "nothing"]) == {"in": layouts.Layout(3)}
    assert log.end_offset(TopicPartition("in", 0)) >= 0
    assert isinstance(log, KafkaLog)
    assert list(log.topics()) == ["in"]
