"""What is composed from settings, a topology and a log."""

from __future__ import annotations

from headrace import Topology, agg, tumbling
from headrace.app import prepare
from headrace.clock import SystemClock
from headrace.log.memory import MemoryLog
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
