"""Metric data in, alarms raised and cleared out, by the rules of Amazon CloudWatch.

Every ``PERIOD`` each metric gets one datapoint, a statistic of what was reported in it. An alarm is in ``ALARM`` while
``datapoints_to_alarm`` of the last ``evaluation_periods`` datapoints breach its threshold, else ``OK``; a change of
state is one record in ``alarms``. The state follows from the last ``evaluation_periods`` alone, so nothing else need be
remembered: a window of one period more tells both the state now and the state before.

Differences from CloudWatch: it may look further back for real datapoints than ``evaluation_periods`` where some are
missing; here exactly those are evaluated. ``treat_missing_data="ignore"``, which keeps whatever the state was, cannot
be written this way: it needs a state per metric that outlives every window. Before its first datapoint a metric counts
as missing.
"""

from collections.abc import Iterator
from datetime import timedelta
from operator import ge, gt, le, lt
from typing import Any, Literal

import msgspec

from headrace import Topology, agg, hopping, tumbling

PERIOD = timedelta(minutes=5)

State = Literal["OK", "ALARM", "INSUFFICIENT_DATA"]


class Alarm(msgspec.Struct, frozen=True, kw_only=True):
    """When a metric alarms."""

    threshold: float
    comparison: Literal[
        "GreaterThanThreshold",
        "GreaterThanOrEqualToThreshold",
        "LessThanThreshold",
        "LessThanOrEqualToThreshold",
    ] = "GreaterThanThreshold"
    statistic: Literal["Average", "Sum", "Minimum", "Maximum", "SampleCount"] = "Average"
    evaluation_periods: int = 3
    datapoints_to_alarm: int = 3
    treat_missing_data: Literal["missing", "breaching", "notBreaching"] = "missing"


ALARMS = {
    "web.errors": Alarm(threshold=10, statistic="Sum", datapoints_to_alarm=2, treat_missing_data="notBreaching"),
    "worker.heartbeat": Alarm(
        threshold=1,
        comparison="LessThanThreshold",
        statistic="SampleCount",
        evaluation_periods=2,
        datapoints_to_alarm=2,
        treat_missing_data="breaching",
    ),
    "db.cpu": Alarm(threshold=90, statistic="Maximum", evaluation_periods=5, datapoints_to_alarm=3),
}
DEFAULT = Alarm(threshold=80)
"""For every metric that has no alarm of its own."""

MOST_PERIODS = max(alarm.evaluation_periods for alarm in [DEFAULT, *ALARMS.values()])
PERIOD_MS = PERIOD // timedelta(milliseconds=1)
BREACHES = {
    "GreaterThanThreshold": gt,
    "GreaterThanOrEqualToThreshold": ge,
    "LessThanThreshold": lt,
    "LessThanOrEqualToThreshold": le,
}


class Datum(msgspec.Struct):
    """One value of one metric, as it was reported."""

    metric: str
    value: float
    at: int  # ms since the epoch


def state_of(alarm: Alarm, datapoints: list[float | None]) -> tuple[State, str]:
    """Return the state that the last datapoints make, oldest first and None where one is missing, and the reason."""
    breaches = BREACHES[alarm.comparison]
    marks = [None if value is None else breaches(value, alarm.threshold) for value in datapoints]
    count, needed = len(marks), alarm.datapoints_to_alarm
    if alarm.treat_missing_data == "missing":
        if all(mark is None for mark in marks):
            return "INSUFFICIENT_DATA", f"no datapoint in the last {count} periods"
        # Waiting for more would help nothing if all that came since the first breach were breaches too.
        oldest = marks.index(True) if True in marks else count
        if count - oldest >= needed and False not in marks[oldest:]:
            return "ALARM", f"no datapoint within the threshold for {count - oldest} periods, since one that breached"
    else:
        marks = [alarm.treat_missing_data == "breaching" if mark is None else mark for mark in marks]
    breaching = marks.count(True)
    reason = f"{breaching} of the last {count} datapoints breached the threshold of {alarm.threshold:g}"
    return ("ALARM" if breaching >= needed else "OK"), reason


def changes(window: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the change of state at the end of a window, if there is one."""
    alarm = ALARMS.get(window["key"], DEFAULT)
    values = {point["window_end"]: point[alarm.statistic] for point in window["datapoints"]}
    end = window["window_end"]
    latest = [values.get(end - age * PERIOD_MS) for age in range(alarm.evaluation_periods, -1, -1)]
    previous, _ = state_of(alarm, latest[:-1])
    state, reason = state_of(alarm, latest[1:])
    if state != previous:
        yield {"metric": window["key"], "state": state, "previous": previous, "at": end, "reason": reason}


topology = Topology("cloudwatch-alarms")

datapoints = (
    topology.stream("metrics", value=Datum, keyed_by="metric", time="at", out_of_orderness="1m")
    .window(tumbling(PERIOD))
    .aggregate(
        Average=agg.mean("value"),
        Sum=agg.sum("value"),
        Minimum=agg.min("value"),
        Maximum=agg.max("value"),
        SampleCount=agg.count(),
    )
)
(
    datapoints.window(hopping((MOST_PERIODS + 1) * PERIOD, PERIOD))
    .aggregate(datapoints=agg.collect())
    .flat_map(changes)
    .to("alarms")
)
