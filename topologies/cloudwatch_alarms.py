"""Metric data in, alarms raised and cleared out, by the rules of Amazon CloudWatch.

Every ``PERIOD`` each metric gets one datapoint, a statistic of what was reported in it. An alarm is in ``ALARM`` while
``datapoints_to_alarm`` of the last ``evaluation_periods`` datapoints breach its threshold, else ``OK``; a change of
state is one record in ``alarms``. Windows gather the datapoints that count, and a ``Process`` remembers the state of
each metric, which may have to outlive all of them: ``treat_missing_data="ignore"`` keeps it as it is.

Difference from CloudWatch: it may look further back for real datapoints than ``evaluation_periods`` where some are
missing; here exactly those are evaluated. Before its first datapoint a metric counts as missing.
"""

from collections.abc import Iterator
from datetime import timedelta
from operator import ge, gt, le, lt
from typing import Any, Literal

import msgspec

from headrace import Context, Process, Topology, ValueState, agg, hopping, tumbling

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
    treat_missing_data: Literal["missing", "ignore", "breaching", "notBreaching"] = "missing"


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
    "batch.failures": Alarm(threshold=0, evaluation_periods=2, datapoints_to_alarm=2, treat_missing_data="ignore"),
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


class Change(msgspec.Struct):
    """A change of state of one metric."""

    metric: str
    state: State
    previous: State
    at: int  # ms since the epoch
    reason: str


def state_of(alarm: Alarm, datapoints: list[float | None], current: State) -> tuple[State, str]:
    """Return the state that the last datapoints make of the current one, and the reason.

    Args:
        alarm: The rules.
        datapoints: As many as are evaluated, oldest first and None where one is missing.
        current: The state until now.
    """
    breaches = BREACHES[alarm.comparison]
    marks = [None if value is None else breaches(value, alarm.threshold) for value in datapoints]
    count, needed = len(marks), alarm.datapoints_to_alarm
    if alarm.treat_missing_data in ("breaching", "notBreaching"):
        marks = [alarm.treat_missing_data == "breaching" if mark is None else mark for mark in marks]
    breaching = marks.count(True)
    reason = f"{breaching} of the last {count} datapoints breached the threshold of {alarm.threshold:g}"
    if breaching >= needed:
        return "ALARM", reason
    # Waiting for more would help nothing if all that came since the first breach were breaches too.
    oldest = marks.index(True) if True in marks else count
    undecided = count - oldest >= needed and False not in marks[oldest:]
    absent = all(mark is None for mark in marks)
    if alarm.treat_missing_data == "ignore" and (absent or undecided):
        return current, reason
    if absent:
        return "INSUFFICIENT_DATA", f"no datapoint in the last {count} periods"
    if undecided:
        return "ALARM", f"no datapoint within the threshold for {count - oldest} periods, since one that breached"
    return "OK", reason


class StateChanges(Process[dict[str, Any], Change]):
    """Turns the datapoints of the last periods into changes of state."""

    state = ValueState(str)

    def on_record(self, record: dict[str, Any], context: Context) -> Iterator[Change]:
        metric, end = record["key"], record["window_end"]
        alarm = ALARMS.get(metric, DEFAULT)
        values = {point["window_end"]: point[alarm.statistic] for point in record["datapoints"]}
        latest = [values.get(end - age * PERIOD_MS) for age in reversed(range(alarm.evaluation_periods))]
        nothing: State = state_of(alarm, [None] * alarm.evaluation_periods, "INSUFFICIENT_DATA")[0]
        previous: Any = self.state.value or nothing
        state, reason = state_of(alarm, latest, previous)
        self.state.value = state
        if state != previous:
            yield Change(metric, state, previous, end, reason)


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
    .process(StateChanges)
    .to("alarms")
)
