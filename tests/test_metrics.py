"""The metrics that a worker exposes."""

import re

import pytest
from prometheus_client.parser import text_string_to_metric_families

from headrace.metrics import FAMILIES, Metrics, merge_expositions
from headrace.record import MIN_WATERMARK, TopicPartition

LABELS = {"topology", "task", "step", "topic", "partition", "store", "policy", "reason", "version", "python"}
TASK = {"topology": "card-spend", "task": "0_1"}


def samples(exposition: bytes, name: str) -> list[tuple[dict[str, str], float]]:
    return [
        (sample.labels, sample.value)
        for family in text_string_to_metric_families(exposition.decode())
        for sample in family.samples
        if sample.name == f"headrace_{name}"
    ]


def filled() -> Metrics:
    """Use every method once, so that every family has a series."""
    metrics = Metrics("1.2.3")
    task = metrics.task("card-spend", "0_1")
    source = task.input("payments", 1)
    source.read(10)
    source.lag(90, 2.5)
    source.lost(3)
    task.batch(10, 0.02)
    task.blocked(0.5)
    task.watermark(60_000, 61_500, TopicPartition("payments", 1))
    task.checkpointed(62_000, 0.3, 1000, 5000)
    task.checkpoint_age(7)
    task.checkpoint_failed()
    task.restoring(10, 100)
    task.restored(1.5, fetched_bytes=60, reused_bytes=40, fallbacks=1)
    task.discarded()
    task.unsaved(4.0)
    task.slowed()
    task.step_lasts(61.0)
    task.waits("log", True)
    task.state_bytes(9000)
    task.outbox(20, 3000)
    store = task.store("spend")
    store.looked_up(hits=3, misses=1)
    store.cached(4096)
    step = metrics.step("card-spend", "spend")
    step.sent(4)
    step.late(2)
    step.retried(1)
    step.failed("skip")
    metrics.copy("card-spend", "0_2").followed(9000, 1, 4.5)
    worker = metrics.worker("card-spend")
    worker.up(True)
    worker.owned(3)
    worker.rebalanced()
    return metrics


def test_every_family_is_reported_by_some_method() -> None:
    exposed = {
        sample.name.removeprefix("headrace_")
        for family in text_string_to_metric_families(filled().exposition().decode())
        for sample in family.samples
    }
    for family in FAMILIES.values():
        assert (f"{family.name}_count" if family.kind == "histogram" else family.name) in exposed, family.name


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_a_family_follows_the_naming_rules(family) -> None:
    assert re.fullmatch(r"[a-z]+(_[a-z]+)*", family.name)
    assert (family.kind == "counter") == family.name.endswith("_total")
    assert not re.search(r"_(ms|milliseconds|kb|mb|percent|count|sum|bucket)(_|$)", family.name), "base units only"
    assert family.labels, "it says of what"
    assert set(family.labels) <= LABELS, "labels are bounded"
    assert family.help.endswith(".")
    assert list(family.buckets) == sorted(family.buckets)


def test_values_carry_their_labels_and_base_units() -> None:
    exposition = filled().exposition()
    assert samples(exposition, "records_in_total") == [({**TASK, "topic": "payments", "partition": "1"}, 10)]
    assert samples(exposition, "lag_seconds") == [({**TASK, "topic": "payments", "partition": "1"}, 2.5)]
    assert samples(exposition, "watermark_timestamp_seconds") == [(TASK, 60)]
    assert samples(exposition, "watermark_lag_seconds") == [(TASK, 1.5)]
    assert samples(exposition, "checkpoint_timestamp_seconds") == [(TASK, 62)]
    assert samples(exposition, "cache_hit_ratio") == [({**TASK, "store": "spend"}, 0.75)]
    assert samples(exposition, "record_errors_total")[0][0]["policy"] == "skip"
    assert samples(exposition, "build_info")[0][0]["version"] == "1.2.3"


def test_no_created_series_are_exposed() -> None:
    assert b"_created" not in filled().exposition()


def test_two_workers_in_one_process_share_nothing() -> None:
    filled()
    assert samples(Metrics().exposition(), "records_in_total") == []


def test_counters_start_at_zero_and_gauges_stay_away_until_they_are_set() -> None:
    metrics = Metrics()
    metrics.task("card-spend", "0_1").input("payments", 1)
    exposition = metrics.exposition()
    assert samples(exposition, "records_in_total")[0][1] == 0
    assert samples(exposition, "checkpoint_failures_total")[0][1] == 0
    assert samples(exposition, "lag_records") == []
    assert samples(exposition, "watermark_lag_seconds") == []


def test_an_unknown_watermark_shows_no_value() -> None:
    metrics = filled()
    task = metrics.task("card-spend", "0_1")
    task.watermark(MIN_WATERMARK, 5)
    assert samples(metrics.exposition(), "watermark_timestamp_seconds") == []
    task.watermark(0, 5)
    assert samples(metrics.exposition(), "watermark_timestamp_seconds") == [(TASK, 0)]


def test_one_input_at_a_time_holds_the_watermark_back() -> None:
    metrics = Metrics()
    task = metrics.task("card-spend", "0_1")

    def holders() -> list[tuple[str, str]]:
        found = samples(metrics.exposition(), "watermark_holder_info")
        return [(labels["topic"], labels["partition"]) for labels, _ in found]

    task.watermark(1, 2, TopicPartition("payments", 0))
    task.watermark(1, 2, TopicPartition("payments", 1))
    assert holders() == [("payments", "1")]
    task.watermark(1, 2)
    assert holders() == []


def test_a_task_that_moved_away_leaves_no_series() -> None:
    metrics = filled()
    old = metrics.task("card-spend", "0_1")
    other = metrics.task("card-spend", "0_2")
    other.batch(1, 0.1)
    metrics.forget_task("card-spend", "0_1")
    old.batch(5, 1)
    old.input("payments", 1).read(5)
    old.input("refunds", 1).read(5)
    old.store("spend").cached(5)
    exposition = metrics.exposition()
    assert b'task="0_1"' not in exposition
    assert b'task="0_2"' in exposition
    assert samples(exposition, "records_out_total"), "what the tasks share stays"
    metrics.forget_task("card-spend", "0_1")


def test_a_task_that_comes_back_counts_from_zero() -> None:
    metrics = filled()
    metrics.forget_task("card-spend", "0_1")
    metrics.task("card-spend", "0_1").input("payments", 1).read(3)
    assert samples(metrics.exposition(), "records_in_total")[0][1] == 3


def test_merging_labels_every_series_with_its_worker() -> None:
    merged = merge_expositions({1: filled().exposition(), 0: filled().exposition()})
    assert [labels["worker"] for labels, _ in samples(merged, "records_in_total")] == ["0", "1"]
    lines = merged.decode().splitlines()
    heads = [line for line in lines if line.startswith("#")]
    assert len(heads) == len(set(heads)), "one HELP and one TYPE for each family"
    series = [line.rsplit(" ", 1)[0] for line in lines if not line.startswith("#")]
    assert len(series) == len(set(series))


def test_merging_keeps_each_family_in_one_piece() -> None:
    merged = merge_expositions({0: filled().exposition(), 1: filled().exposition()}).decode()
    seen: list[str] = []
    for line in merged.splitlines():
        if not line.startswith("#"):
            name = re.sub(r"_(bucket|sum|count)$", "", line.split("{")[0])
            if seen[-1:] != [name]:
                seen.append(name)
    assert len(seen) == len(set(seen))


def test_merging_shows_a_worker_that_did_not_answer_as_down() -> None:
    merged = merge_expositions({0: filled().exposition(), 1: None})
    assert [(labels["worker"], value) for labels, value in samples(merged, "worker_up")] == [("0", 1), ("1", 0)]
    assert samples(merge_expositions({0: None}), "worker_up")[0][1] == 0


def test_merging_keeps_odd_label_values() -> None:
    metrics = Metrics()
    metrics.step('a "quoted" \\ name\nwith a break', "ü").sent(1)
    merged = merge_expositions({0: metrics.exposition()})
    assert samples(merged, "records_out_total")[0][0]["topology"] == 'a "quoted" \\ name\nwith a break'


def test_merging_nothing_gives_nothing() -> None:
    assert merge_expositions({}) == b""


def test_promtool_accepts_one_worker(promtool) -> None:
    result = promtool("check", "metrics", stdin=filled().exposition().decode())
    assert result.returncode == 0, result.stdout + result.stderr


def test_promtool_accepts_merged_workers(promtool) -> None:
    merged = merge_expositions({0: filled().exposition(), 1: filled().exposition(), 2: None})
    result = promtool("check", "metrics", stdin=merged.decode())
    assert result.returncode == 0, result.stdout + result.stderr
