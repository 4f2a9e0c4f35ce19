"""Alarms against a direct computation, on a made-up series always and on real ones where they are at hand."""

import csv
import itertools
import os
import re
import statistics
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from headrace.testing import TopologyTestDriver
from topologies import cloudwatch_alarms
from topologies.cloudwatch_alarms import ALARMS, Alarm, Datum, state_of, topology

HERE = Path(__file__).parent
REAL = Path(os.environ.get("AWS_CLOUDWATCH_SERIES", HERE.parents[2] / "shared" / "data" / "aws_cloudwatch"))
MINUTE = 60_000
FIVE = 5 * MINUTE


def alarms_of(data: Iterable[Datum], cut: int = 4096) -> list[dict[str, Any]]:
    """Run the topology to the end and return what it wrote, by metric and time."""
    driver = TopologyTestDriver(topology, batch_records=cut)
    driver.send_many("metrics", sorted(data, key=lambda datum: datum.at))
    driver.end_input()
    assert not driver.late
    changes = [record.value for record in driver.read("alarms")]
    return sorted(changes, key=lambda change: (change["metric"], change["at"]))


def computed(metric: str, data: Iterable[Datum]) -> list[tuple[str, int, str, str]]:
    """Work out the changes of one metric period by period, from one period before the first to the last that counts."""
    alarm = ALARMS.get(metric, cloudwatch_alarms.DEFAULT)
    values: dict[int, list[float]] = {}
    for datum in data:
        if datum.metric == metric:
            values.setdefault(datum.at // FIVE, []).append(datum.value)
    statistic = {
        "Average": lambda v: sum(v) / len(v), "Sum": sum, "Minimum": min, "Maximum": max, "SampleCount": len,
    }[alarm.statistic]  # fmt: skip
    breaches = {
        "GreaterThanThreshold": lambda v: v > alarm.threshold,
        "GreaterThanOrEqualToThreshold": lambda v: v >= alarm.threshold,
        "LessThanThreshold": lambda v: v < alarm.threshold,
        "LessThanOrEqualToThreshold": lambda v: v <= alarm.threshold,
    }[alarm.comparison]
    count, needed = alarm.evaluation_periods, alarm.datapoints_to_alarm
    marks = "-" * count
    state = state_from(marks, alarm, needed, "INSUFFICIENT_DATA")
    changes = []
    for period in range(min(values), max(values) + count + 1):
        mark = "-" if period not in values else "X" if breaches(statistic(values[period])) else "0"
        marks = (marks + mark)[-count:]
        before, state = state, state_from(marks, alarm, needed, state)
        if state != before:
            changes.append((metric, (period + 1) * FIVE, before, state))
    return changes


def state_from(marks: str, alarm: Alarm, needed: int, before: str) -> str:
    if alarm.treat_missing_data == "breaching":
        marks = marks.replace("-", "X")
    elif alarm.treat_missing_data == "notBreaching":
        marks = marks.replace("-", "0")
    elif alarm.treat_missing_data == "ignore":
        if marks.count("X") < needed and re.search(f"^-*$|^[0-]*(X[X-]{{{needed - 1},}})$", marks):
            return before
    elif set(marks) == {"-"}:
        return "INSUFFICIENT_DATA"
    elif re.search(f"^[0-]*(X[X-]{{{needed - 1},}})$", marks):
        return "ALARM"
    return "ALARM" if marks.count("X") >= needed else "OK"


def brief(change: dict[str, Any]) -> tuple[str, int, str, str]:
    return change["metric"], change["at"], change["previous"], change["state"]


def made_up() -> list[Datum]:
    with (HERE / "made_up_metrics.csv").open(encoding="utf-8") as file:
        return [Datum(r["metric"], float(r["value"]), int(r["minute"]) * MINUTE) for r in csv.DictReader(file)]


def test_alarms_are_raised_and_cleared() -> None:
    found = [(metric, at // MINUTE, before, now) for metric, at, before, now in map(brief, alarms_of(made_up()))]
    assert found == [
        ("batch.failures", 5, "INSUFFICIENT_DATA", "OK"),
        ("batch.failures", 20, "OK", "ALARM"),
        ("batch.failures", 305, "ALARM", "OK"),  # nothing was heard of it for more than four hours
        ("cache.hits", 5, "INSUFFICIENT_DATA", "OK"),
        ("cache.hits", 25, "OK", "ALARM"),  # of the last three one is missing, the others breach
        ("cache.hits", 30, "ALARM", "OK"),
        ("cache.hits", 35, "OK", "ALARM"),  # nothing came since the last breach, three periods ago
        ("cache.hits", 40, "ALARM", "INSUFFICIENT_DATA"),
        ("db.cpu", 5, "INSUFFICIENT_DATA", "OK"),
        ("db.cpu", 20, "OK", "ALARM"),  # 3 of 5, and not one after the other
        ("db.cpu", 30, "ALARM", "OK"),
        ("db.cpu", 60, "OK", "INSUFFICIENT_DATA"),  # the gap is longer than what is evaluated
        ("db.cpu", 205, "INSUFFICIENT_DATA", "OK"),
        ("db.cpu", 215, "OK", "ALARM"),  # one breach, and nothing for two periods since
        ("db.cpu", 230, "ALARM", "INSUFFICIENT_DATA"),
        ("web.errors", 20, "OK", "ALARM"),  # sums of 7, 12, nothing and 11
        ("web.errors", 25, "ALARM", "OK"),
        ("worker.heartbeat", 5, "ALARM", "OK"),
        ("worker.heartbeat", 20, "OK", "ALARM"),
        ("worker.heartbeat", 25, "ALARM", "OK"),
        ("worker.heartbeat", 40, "OK", "ALARM"),
    ]


def test_they_are_what_a_direct_computation_says() -> None:
    data = made_up()
    metrics = sorted({datum.metric for datum in data})
    assert list(map(brief, alarms_of(data))) == [c for metric in metrics for c in computed(metric, data)]


def test_an_ignored_gap_outlives_every_window_and_a_restart() -> None:
    data = [datum for datum in made_up() if datum.metric == "batch.failures"]
    driver = TopologyTestDriver(topology, cache_bytes=0)
    for datum in data:
        driver.send("metrics", datum)
        driver.restart()
    driver.end_input()
    found = [brief(record.value) for record in driver.read("alarms")]
    assert found == computed("batch.failures", data)
    assert len(found) == 3


@pytest.mark.parametrize("cut", [1, 5])
def test_batches_make_no_difference(cut: int) -> None:
    assert alarms_of(made_up(), cut) == alarms_of(made_up())


def test_a_change_says_why() -> None:
    reasons = {(change["metric"], change["at"] // MINUTE): change["reason"] for change in alarms_of(made_up())}
    assert reasons["web.errors", 20] == "2 of the last 3 datapoints breached the threshold of 10"
    assert reasons["db.cpu", 60] == "no datapoint in the last 5 periods"
    assert reasons["db.cpu", 215] == "no datapoint within the threshold for 3 periods, since one that breached"


STATES = [
    # The last three periods, what is needed, and the state if missing data is missing, breaching, notBreaching, and
    # ignore, where "-" stands for the state before.
    ("XX0", 3, "OK", "OK", "OK", "OK"),
    ("0--", 3, "OK", "OK", "OK", "OK"),
    ("---", 3, "INSUFFICIENT_DATA", "ALARM", "OK", "-"),
    ("XXX", 3, "ALARM", "ALARM", "ALARM", "ALARM"),
    ("X--", 3, "ALARM", "ALARM", "OK", "-"),
    ("--X", 3, "OK", "ALARM", "OK", "OK"),
    ("-X-", 3, "OK", "ALARM", "OK", "OK"),
    ("X0X", 2, "ALARM", "ALARM", "ALARM", "ALARM"),
    ("--0", 2, "OK", "ALARM", "OK", "OK"),
    ("-X-", 2, "ALARM", "ALARM", "OK", "-"),
    ("X-0", 2, "OK", "ALARM", "OK", "OK"),
    ("0-X", 2, "OK", "ALARM", "OK", "OK"),
]


@pytest.mark.parametrize(("marks", "needed", "missing", "breaching", "not_breaching", "ignored"), STATES)
def test_missing_data(marks: str, needed: int, missing: str, breaching: str, not_breaching: str, ignored: str) -> None:
    values = [{"X": 2.0, "0": 0.0, "-": None}[mark] for mark in marks]
    treatments = [("missing", missing), ("breaching", breaching), ("notBreaching", not_breaching)]
    for treatment, expected in treatments:
        alarm = Alarm(threshold=1, datapoints_to_alarm=needed, treat_missing_data=treatment)  # type: ignore[arg-type]
        assert state_of(alarm, values, "OK")[0] == expected, treatment
    alarm = Alarm(threshold=1, datapoints_to_alarm=needed, treat_missing_data="ignore")
    for before in ("OK", "ALARM", "INSUFFICIENT_DATA"):
        expected = before if ignored == "-" else ignored
        assert state_of(alarm, values, before)[0] == expected, before  # type: ignore[arg-type]


@pytest.mark.skipif(not REAL.is_dir(), reason=f"the real series are not at {REAL.name} in the folder beside this one")
def test_real_series(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seventeen series, each with an alarm of another kind whose threshold its values cross now and then."""
    data: list[Datum] = []
    kinds = itertools.cycle(itertools.product(
        ["GreaterThanThreshold", "LessThanOrEqualToThreshold"],
        ["missing", "breaching", "notBreaching", "ignore"],
        [(1, 1), (3, 2), (5, 3), (4, 4)],
    ))  # fmt: skip
    names = itertools.cycle(["Average", "Sum", "Minimum", "Maximum"])
    paths = sorted(REAL.glob("*.csv"))
    for path in paths:
        with path.open(encoding="utf-8") as file:
            rows = [
                Datum(path.stem, float(row["value"]), int(moment.timestamp() * 1000))
                for row in csv.DictReader(file)
                for moment in [datetime.fromisoformat(row["timestamp"]).replace(tzinfo=UTC)]
            ]
        data += rows
        comparison, treatment, (count, needed) = next(kinds)
        for _ in range(4):
            next(kinds)
        values = [row.value for row in rows]
        monkeypatch.setitem(ALARMS, path.stem, Alarm(
            threshold=statistics.fmean(values) + statistics.pstdev(values) / 2, comparison=comparison,
            statistic=next(names), evaluation_periods=count, datapoints_to_alarm=needed, treat_missing_data=treatment,
        ))  # fmt: skip
    found = list(map(brief, alarms_of(data)))
    assert found == [
        change for path in paths for change in computed(path.stem, [d for d in data if d.metric == path.stem])
    ]
    assert len(paths) == 17
    assert len(found) > 1000
    assert {state for _, _, _, state in found} == {"OK", "ALARM", "INSUFFICIENT_DATA"}
