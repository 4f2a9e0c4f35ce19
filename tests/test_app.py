"""What is composed from settings, a topology and a log."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace import FatalError, Topology, agg, run, tumbling
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
