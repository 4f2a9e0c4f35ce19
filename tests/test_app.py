"""What is composed from settings, a topology and a log."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace import FatalError, Topology, agg, retry, run, tumbling
from headrace.app import prepare
from headrace.clock import SystemClock
from headrace.log.memory import MemoryLog
from headrace.record import JoinedBytes, RecordBatch, TopicPartition
from headrace.settings import Settings


def test_internal_topics_are_as_wide_as_the_sources_and_not_as_other_topics() -> None:
    log = MemoryLog(SystemClock())
    log.create_topic("clicks", 2)
    log.create_topic("somebody-else", 8)
    topology = Topology("t")
    by_page = topology.stream("clicks").key_by("page")
    by_page.window(tumbling("1m")).aggregate(views=agg.count()).to("views")
    assert prepare(topology, log, Settings()).internal_topics() == {"t-clicks-by-page-repartition": 2}
    assert log.topics()["views"].partitions == 2


def log_of(words: int) -> MemoryLog:
    log = MemoryLog(SystemClock())
    log.create_topic("words", 1)
    batch = RecordBatch([0] * words, [None] * words, JoinedBytes.of([b"word"] * words))
    log.append(TopicPartition("words", 0), batch)
    return log


async def shouted(word: str) -> str:
    if word == "bad":
        raise ValueError
    return word.upper()


def test_dead_letters_have_a_topic_of_their_own_that_is_kept_and_as_wide_as_the_sources(tmp_path: Path) -> None:
    log = MemoryLog(SystemClock())
    log.create_topic("words", 3)
    for number in range(3):
        batch = RecordBatch([5, 6], [b"k", None], JoinedBytes.of([b"good", b"bad"]), [(("a", b"1"),), ()])
        log.append(TopicPartition("words", number), batch)
    topology = Topology("shouting", on_error="dead-letter")
    topology.stream("words", value=str).map_async(shouted, retry=retry(2, backoff="1ms")).to("loud")
    done = run(
        topology, log=log, checkpoints=str(tmp_path / "c"), state_dir=str(tmp_path / "s"), until_end=True,
        metrics_port=0,
    )  # fmt: skip
    assert (done.state, done.errors, done.records_out) == ("finished", 3, 3)
    info = log.topics()["shouting-dead-letter"]
    assert (info.partitions, info.config.retention_ms) == (3, None)
    for number in range(3):
        read = log.reader(TopicPartition("shouting-dead-letter", number), 0).read(10)
        assert read is not None
        (letter,) = read.records("shouting-dead-letter", number)
        headers = dict(letter.headers)
        assert (letter.timestamp, letter.key, letter.value) == (6, None, b"bad")
        assert (headers["headrace-partition"], headers["headrace-tries"]) == (b"%d" % number, b"2")
    assert "again-dead-letter" not in log.topics()
    other = Topology("again", on_error="skip")
    other.stream("words", value=str).to("loud")
    prepare(other, log, Settings())
    assert "again-dead-letter" not in log.topics()


def test_a_log_that_lost_records_is_refused(tmp_path: Path) -> None:
    topology = Topology("shouting")
    topology.stream("words", value=str).map(str.upper).to("loud")
    settings = {
        "checkpoints": str(tmp_path / "c"), "state_dir": str(tmp_path / "s"), "until_end": True, "metrics_port": 0
    }  # fmt: skip
    assert run(topology, log=log_of(40), **settings).records_in == 40
    with pytest.raises(FatalError, match="up to offset 40, but the log ends at 10: it lost records"):
        run(topology, log=log_of(10), **settings)


def test_positions_that_were_not_committed_before_a_crash_are_committed_after_it(tmp_path: Path) -> None:
    """A crash between a manifest and the commit behind it leaves the group behind, although nothing is left to do."""
    topology = Topology("shouting")
    topology.stream("words", value=str).map(str.upper).to("loud")
    settings = {
        "checkpoints": str(tmp_path / "c"), "state_dir": str(tmp_path / "s"), "until_end": True, "metrics_port": 0
    }  # fmt: skip
    assert run(topology, log=log_of(40), **settings).records_in == 40
    uncommitted = log_of(40)
    assert run(topology, log=uncommitted, **settings).records_in == 0
    assert uncommitted.group("shouting").committed()[TopicPartition("words", 0)].offset == 40
