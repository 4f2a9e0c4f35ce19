"""What a scrape of a running topology shows, and what /live and /ready say through its life."""

from __future__ import annotations

import signal
from collections import Counter
from itertools import dropwhile
from pathlib import Path
from zlib import crc32

from prometheus_client.parser import text_string_to_metric_families

from headrace.clock import SystemClock
from headrace.metrics import FAMILIES
from tests.e2e import language
from tests.e2e.harness import Site, committed
from tests.e2e.small import Telling, ask, found, module, put, rows
from tests.ports import free_port

TOPOLOGY = """
from headrace import Topology, agg, tumbling

topology = Topology("shown", on_error="skip")
clean = topology.stream("in", keyed_by="k", time="at").deduplicate(by="i", within="1h")
clean.window(tumbling("10ms")).aggregate(n=agg.count()).to("windows")
clean.map(lambda v: v["i"], name="number").to("numbers")
clean.key_by("i", key=int, name="by-number").window(tumbling("10ms")).aggregate(n=agg.count()).to("again")
"""

SETTINGS = {
    "HEADRACE_CHECKPOINT_INTERVAL": "100ms",
    "HEADRACE_HEARTBEAT_INTERVAL": "100ms",
    "HEADRACE_SESSION_TIMEOUT": "1500ms",
    "HEADRACE_BATCH_RECORDS": "100",
}

Sample = tuple[dict[str, str], float]
Samples = dict[str, list[Sample]]


def scrape(port: int) -> dict[str, list[Sample]]:
    """Return the samples of every metric, by name without the prefix."""
    families: dict[str, list[Sample]] = {}
    for family in text_string_to_metric_families(ask(port, "/metrics")[1]):
        for sample in family.samples:
            families.setdefault(sample.name.removeprefix("headrace_"), []).append((sample.labels, sample.value))
    return families


def total(samples: dict[str, list[Sample]], name: str, **labels: str) -> float:
    return sum(v for found, v in samples.get(name, []) if labels.items() <= found.items())


def values(samples: dict[str, list[Sample]], name: str) -> list[float]:
    return [value for _, value in samples[name]]


def test_two_workers_on_one_port(tmp_path: Path, promtool) -> None:
    site = Site(tmp_path)
    clock = SystemClock()
    begun_ms = clock.now_ms()
    # Times of today, so that lags in seconds are small numbers.
    good = [{**row, "at": begun_ms - 60_000 + row["at"]} for row in rows(2_000, keys=50)]
    late = [
        {"k": key, "at": begun_ms - 90_000, "i": 10_000 + n} for n, key in enumerate(sorted({r["k"] for r in good}))
    ]
    port = free_port()
    put(site, [], partitions=2)
    running = Telling(
        site.start(
            "run", module(site, TOPOLOGY), "--workers", "2", "--metrics-port", str(port), **found(site), **SETTINGS
        )
    )
    try:
        # Only then, because the counters of a task go with it.
        running.until(lambda: [value for _, value in scrape(port).get("tasks_owned", [])] == [2, 2])
        put(site, [*good, *good[-7:], *late, b"\xc1", b"\xc1"], partitions=2)
        records = len(good) + 7 + len(late) + 2
        running.until(lambda: total(scrape(port), "records_in_total", topic="in") == records)
        running.until(lambda: ask(port, "/ready")[0] == 200)
        running.until(lambda: committed(site, "shown") > records)
        running.until(lambda: total(scrape(port), "records_in_total", topic="shown-by-number-repartition") >= 2_050)
        running.until(lambda: total(scrape(port), "checkpoint_duration_seconds_count") >= 4)
        running.until(lambda: [value for _, value in scrape(port).get("lag_records", [])] == [0] * 4)
        running.until(lambda: len(scrape(port).get("watermark_lag_seconds", [])) == 4)
        text = ask(port, "/metrics")[1]
        shown = scrape(port)
        assert ask(port, "/live")[0] == 200
    finally:
        running.process.send_signal(signal.SIGTERM)
        states = [ask(port, "/ready")[0] for _ in iter(lambda: running.process.poll() is None, False)]
        code = running.end()
    assert code == 0, running.text
    # The signal may take effect a moment after the first question.
    assert set(dropwhile(lambda state: state == 200, states)) <= {503, 0}, "ready while draining"

    checked = promtool("check", "metrics", stdin=text)
    assert checked.returncode == 0, checked.stdout + checked.stderr

    assert total(shown, "records_out_total", step="in-to-numbers") == total(shown, "records_in_total", topic="in") - 9
    assert total(shown, "record_errors_total", step="in", policy="skip") == 2
    assert total(shown, "late_records_total") >= len(late)
    assert {labels["partition"] for labels, _ in shown["lag_records"]} == {"0", "1"}
    assert set(values(shown, "lag_seconds")) == {0}
    check_times(shown, begun_ms, (clock.now_ms() - begun_ms) / 1000)
    check_work(shown, records, (clock.now_ms() - begun_ms) / 1000)
    check_labels(shown)


def check_times(shown: Samples, begun_ms: int, since_s: float) -> None:
    """Check what is a time, a lag or an age."""
    for value in values(shown, "watermark_lag_seconds"):
        assert 57 < value < 61 + since_s
    for value in values(shown, "watermark_timestamp_seconds"):
        assert begun_ms / 1000 - 61 < value < begun_ms / 1000 + since_s
    assert set(values(shown, "watermark_holder_info")) == {1}
    assert all(
        begun_ms / 1000 < value < begun_ms / 1000 + since_s for value in values(shown, "checkpoint_timestamp_seconds")
    )
    assert all(0 <= value < since_s for value in values(shown, "checkpoint_age_seconds"))
    assert all(0 < value < since_s for value in values(shown, "restore_duration_seconds"))


def check_work(shown: Samples, records: int, since_s: float) -> None:
    """Check what counts batches, checkpoints and tasks."""
    batches = total(shown, "batch_records_count")
    assert batches >= records / 100
    assert total(shown, "batch_records_sum") >= total(shown, "records_in_total")
    assert (
        batches
        == total(shown, "batch_duration_seconds_count")
        == total(shown, "batch_duration_seconds_bucket", le="+Inf")
    )
    assert 0 < total(shown, "batch_duration_seconds_sum") < since_s * 2
    assert 0 < total(shown, "checkpoint_duration_seconds_sum") < since_s * 8
    assert min(values(shown, "checkpoint_size_bytes")) > 500
    assert total(shown, "checkpoint_uploaded_bytes_total") >= total(shown, "checkpoint_size_bytes") / 2
    assert len(shown["restore_duration_seconds"]) == 4
    assert min(values(shown, "state_bytes")) > 0
    assert all(0 < value <= 1 for value in values(shown, "cache_hit_ratio"))
    lookups = total(shown, "cache_hits_total") + total(shown, "cache_misses_total")
    assert lookups > 0
    assert min(values(shown, "rebalances_total")) >= 1
    assert values(shown, "worker_up") == [1, 1]
    assert sum(values(shown, "tasks_owned")) == 4
    assert total(shown, "checkpoint_failures_total") == 0
    assert 0 <= total(shown, "blocked_seconds_total") < since_s, "appends that took their time, and none refused"


def check_labels(shown: Samples) -> None:
    """Check that labels are bounded and that nothing is missing."""
    tasks = {"in-0", "in-1", "by-number-0", "by-number-1"}
    bounded = {
        "worker": {"0", "1"}, "topology": {"shown"}, "task": tasks, "partition": {"0", "1"},
        "topic": {"in", "shown-by-number-repartition"}, "policy": {"skip"}, "reason": {"log", "calls", "checkpoint"},
    }  # fmt: skip
    for name, samples in shown.items():
        for labels, _ in samples:
            for label, value in labels.items():
                if label in bounded:
                    assert value in bounded[label], (name, labels)
                else:
                    assert label in {"le", "step", "store", "version", "python"}, (name, labels)
    plain = {name.removesuffix("_count") for name in shown}
    never = {
        "blocked_seconds_total",
        "outbox_records",
        "outbox_bytes",
        "standby_bytes",
        "standby_lag_checkpoints",
        "standby_age_seconds",
        "slow_step_seconds",
    }
    assert set(FAMILIES) - plain <= never


def test_a_task_that_comes_back_is_shown_again(tmp_path: Path) -> None:
    site = Site(tmp_path)
    put(site, rows(100), partitions=2)
    name = module(site, TOPOLOGY)
    port, other_port = free_port(), free_port()
    started = []
    try:
        for at, share in ((port, 4), (other_port, 2)):
            started.append(Telling(site.start("run", name, "--metrics-port", str(at), **found(site), **SETTINGS)))
            started[-1].until(lambda at=at, share=share: [v for _, v in scrape(at).get("tasks_owned", [])] == [share])
        first, second = started
        first.until(lambda: values(scrape(port), "tasks_owned") == [2])
        assert len({labels["task"] for labels, _ in scrape(port)["lag_records"]}) == 2
        second.process.send_signal(signal.SIGTERM)
        assert second.end() == 0
        first.until(lambda: len({labels["task"] for labels, _ in scrape(port)["lag_records"]}) == 4)
        assert len(scrape(port)["restore_duration_seconds"]) == 4
        first.process.send_signal(signal.SIGTERM)
        assert first.end() == 0
    finally:
        for telling in started:
            telling.process.kill()
            telling.end()


def test_what_the_steps_of_the_language_show(tmp_path: Path) -> None:
    site = Site(tmp_path)
    topics = language.clicks_and_articles(3, 3_000)
    language.fill(site, topics, {"articles": 6})
    port = free_port()
    running = Telling(
        site.start("run", "tests.e2e.visits", "--workers", "2", "--metrics-port", str(port), **SETTINGS)
    )  # fmt: skip
    try:
        running.until(lambda: total(scrape(port), "records_out_total", step="clicks-to-asked") == 2_969)
        running.until(lambda: values(scrape(port), "tasks_owned") == [5, 5])
        running.until(lambda: set(values(scrape(port), "lag_records")) == {0})
        running.until(lambda: committed(site, "visits") >= 3_000)
        shown = scrape(port)
    finally:
        running.process.send_signal(signal.SIGTERM)
        code = running.end()
    assert code == 0, running.text

    bad, clicks = 31, 3_000
    assert shown["record_errors_total"] == [
        (labels, value) for labels, value in shown["record_errors_total"] if labels["policy"] == "dead-letter"
    ]
    assert total(shown, "record_errors_total", step="checked", policy="dead-letter") == bad
    assert total(shown, "retries_total") == total(shown, "retries_total", step="ask") == len(range(501, clicks, 501))
    assert total(shown, "late_records_total") == 0
    read = {(x["task"], x["partition"]): n for x, n in shown["records_in_total"] if x["topic"] == "articles"}
    of_partition = Counter(str(crc32(key.encode()) % 6) for key, _, _ in topics["articles"])
    assert read == {(f"clicks-{task}", str(n)): of_partition[str(n)] for task in range(4) for n in range(6)}
    stores = {labels["store"] for labels, _ in shown["cache_bytes"]}
    for step in ("process-Visits", "session-8000ms", "tumbling-60000ms", "hopping", "aggregate", "join-articles"):
        of_step = [store for store in stores if f"clicks-{step}" in store]
        lookups = [total(shown, f"cache_{kind}_total", store=s) for kind in ("hits", "misses") for s in of_step]
        assert sum(lookups) > 0, (step, stores)
    tasks = {*(f"clicks-{n}" for n in range(4)), *(f"clicks-by-article-{n}" for n in range(6))}
    assert {labels["task"] for labels, value in shown["state_bytes"] if value > 0} == tasks
