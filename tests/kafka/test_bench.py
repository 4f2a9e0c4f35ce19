"""The benchmarks on Kafka, at a size that says nothing but that they work."""

from __future__ import annotations

import json
from contextlib import closing

from bench.card_spend import fill
from bench.kafka import restart, throughput
from headrace.clock import SystemClock
from headrace.log.kafka.log import KafkaLog
from tests.kafka.clean import wipe
from tests.kafka.site import KafkaSite


def test_the_throughput_of_a_worker(tmp_path, kafka) -> None:
    wipe(kafka)
    url = f"kafka://{kafka}"
    with closing(KafkaLog(url, clock=SystemClock())) as log:
        fill(log, 3_000)
    results = [throughput.measure("keyed", url, 3_000), json.loads(throughput.once("repartitioned", url, 3_000))]
    for result in results:
        assert all(result[part] > 0 for part in ("events_per_s", "client", "reading", "sending", "job"))
        # One thread cannot take more than there was.
        assert sum(result[part] for part in ("reading", "sending", "job")) < result["took_s"] / 3_000 * 1e6
    counted = sum(record.value["payments"] for record in KafkaSite(tmp_path, kafka).read("spend-per-minute"))
    assert counted == 3_000, "the second run found what the first one wrote"
    assert throughput.row("keyed", "Kafka", results).count("|") == throughput.HEADING.splitlines()[0].count("|")


def test_the_pause_of_a_rolling_restart(tmp_path, kafka) -> None:
    wipe(kafka)
    fast = {"HEADRACE_CHECKPOINT_INTERVAL": "500ms", "HEADRACE_HEARTBEAT_INTERVAL": "300ms"}
    found, restarts = restart.measure(
        tmp_path, f"kafka://{kafka}", state_mb=2, workers=2, each=1, calm_s=0.3, settings=fast
    )
    assert len(restarts) == 2
    assert [pause.task for pause in found] == ["in-0", "in-1"]
    for pause in found:
        assert pause.gaps, "every task was on a worker that was stopped"
        assert pause.state_mb > 0.9
        assert 0 < pause.waited < 30_000
    assert restart.table(found).count("in-") == 2
