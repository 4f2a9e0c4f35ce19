"""Whether a topology survives a crash after every step: its outputs are those of a run without one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from headrace.dsl.builder import Topology
from headrace.record import ID_HEADER, Record
from headrace.testing.differences import Difference, differences, expectation, summary, table
from headrace.testing.driver import TopologyTestDriver
from headrace.topology.plan import Plan, at_least_once

Scenario = Callable[[TopologyTestDriver], object]
"""Sends records and moves time, but reads nothing."""

_Outputs = dict[str, list[Record]]
"""By topic, in the order in which they were written."""


@dataclass(frozen=True, slots=True)
class CrashDifference:
    """What one crash changes in one topic."""

    topic: str
    step: int
    """After which step tasks were lost; the first is 1."""
    steps: int
    """How many there are without a crash."""
    task: str
    """The task that made that step."""
    lost: tuple[str, ...]
    """The tasks that were lost; empty for all of them."""
    weakness: str | None
    """Why the topic is written at least once only; None if repeats in it are known by their ids."""
    found: list[Difference]
    by_outbox: bool = False
    """Whether what is written there waits for checkpoints."""

    def __str__(self) -> str:
        who = " and ".join(map(repr, self.lost)) or "every task"
        if self.by_outbox:
            promise = (
                "It is written through an outbox: repeats with one headrace-id were left out, order does not count."
            )
        elif self.weakness is None:
            promise = "Its edge is deterministic: repeats with one headrace-id are the same and were left out."
        else:
            promise = f"It is written at least once, because {self.weakness}; so repeats of whole rows were left out."
        arguments = "".join(f"{name!r}, " for name in self.lost)
        return (
            f"topic {self.topic!r} is not what it is without a crash if {who} is lost after step {self.step} of "
            f"{self.steps}, which task {self.task!r} made: {summary(self.found)}\n{promise}\n"
            f"driver.crash_after({arguments}steps={self.step}) does it again.\n\n{table(self.found)}"
        )


def assert_survives_crashes(
    topology: Topology | Callable[[], Topology],
    scenario: Scenario,
    *,
    checkpoint_every: int = 3,
    most: int = 40,
    latest: Collection[str] = (),
    batch_records: int = 2,
    **options: Any,
) -> None:
    """Fail unless the outputs of a scenario stay what they are whenever tasks are lost, apart from repeats.

    Use it where functions of your own keep something between records, call something outside, or take the time: a
    replay must make again what was made before.

    Args:
        topology: The topology; or what makes it anew for every run, if its functions keep anything themselves.
        scenario: Sends records to the driver, moves time, ends the input. It reads nothing. Time that ``advance_time``
            moves may close windows later after a crash, since a new task waits anew before it takes an input as idle.
        checkpoint_every: All tasks are checkpointed after so many steps, and a crash goes back to there; 0 for never.
        most: How many crashes are tried, spread over all steps: of all tasks, and of the one that made the step.
        latest: Topics in which a record replaces those before it with its key, so that only the last of each counts.
        batch_records: As for the driver, and few, so that there are many steps.
        options: Further arguments of the driver. With ``guarantee="exactly-once"`` repeats must be known by their ids,
            and be the same, in all topics, dead letters included.

    Raises:
        AssertionError: a crash changes something; the message says which, and shows what is missing and unexpected.

    Example:
        >>> from headrace import Topology, agg, tumbling
        >>> topology = Topology("page-views")
        >>> views = topology.stream("views", keyed_by="page", time="at")
        >>> views.window(tumbling("1m")).aggregate(views=agg.count()).to("views-per-minute")
        >>> def scenario(driver):
        ...     driver.send_many("views", [{"page": "/", "at": second * 1000} for second in range(0, 600, 7)])
        ...     driver.end_input()
        >>> assert_survives_crashes(topology, scenario, most=5)
    """
    __tracebackhide__ = True
    found = check_crashes(
        topology, scenario, checkpoint_every=checkpoint_every, most=most, latest=latest, batch_records=batch_records,
        **options,
    )  # fmt: skip
    if found:
        crashes = len({(one.step, one.lost) for one in found})
        more = f"\n\n{crashes} crashes change something; this is the first" if crashes > 1 else ""
        raise AssertionError(f"{found[0]}{more}")


def check_crashes(
    topology: Topology | Callable[[], Topology],
    scenario: Scenario,
    *,
    checkpoint_every: int = 3,
    most: int = 40,
    latest: Collection[str] = (),
    batch_records: int = 2,
    **options: Any,
) -> list[CrashDifference]:
    """Return what crashes change in the outputs of a scenario; see ``assert_survives_crashes``."""

    def driver() -> TopologyTestDriver:
        made = topology if isinstance(topology, Topology) else topology()
        return TopologyTestDriver(made, batch_records=batch_records, **options)

    undisturbed = driver()
    scenario(undisturbed)
    steps = undisturbed.steps
    expected = _outputs(undisturbed)
    weaknesses, waiting = _weaknesses(undisturbed.plan), _through_outboxes(undisturbed.plan)
    found: list[CrashDifference] = []
    for step, lost in _spread(list(_crashes(steps, several=len(undisturbed.tasks) > 1)), most):
        disturbed = driver()
        disturbed.checkpoint_every(steps=checkpoint_every)
        disturbed.crash_after(*lost, steps=step)
        scenario(disturbed)
        for topic, there in _outputs(disturbed).items():
            weakness, waits = weaknesses.get(topic, "it holds what failed"), topic in waiting
            if waits:
                changes = _changes_by_outbox(there, expected[topic], latest=topic in latest)
            else:
                changes = _changes(there, expected[topic], exact=weakness is None, latest=topic in latest)
            if changes:
                task = steps[step - 1]
                found.append(CrashDifference(topic, step, len(steps), task, lost, weakness, changes, waits))
    return found


def _crashes(steps: Sequence[str], *, several: bool) -> Iterator[tuple[int, tuple[str, ...]]]:
    for number, task in enumerate(steps, 1):
        yield number, ()
        if several:
            yield number, (task,)


def _spread(crashes: list[tuple[int, tuple[str, ...]]], most: int) -> list[tuple[int, tuple[str, ...]]]:
    """Return at most so many of them, evenly spread, the last among them."""
    count = min(most, len(crashes))
    return [crashes[(number + 1) * len(crashes) // count - 1] for number in range(count)]


def _outputs(driver: TopologyTestDriver) -> _Outputs:
    return {topic: driver.read(topic) for topic in driver.outputs}


def _weaknesses(plan: Plan) -> dict[str, str | None]:
    """Return for each topic that is written why it is written at least once only, None if it is deterministic."""
    weak = at_least_once(plan)
    found: dict[str, str | None] = {}
    for sink in plan.sinks():
        found[sink.topic] = found.get(sink.topic) or weak.get(sink.name)
    return found


def _through_outboxes(plan: Plan) -> set[str]:
    """Return the topics of which a repeat is the same record, but which another order may number in another way."""
    topics = {sink.topic for sink in plan.sinks() if sink.name in plan.outbox}
    letters = plan.dead_letter_topic()
    return topics if letters is None or not plan.waiting_letters else topics | {letters}


def _changes_by_outbox(there: list[Record], expected: list[Record], *, latest: bool) -> list[Difference]:
    repeats = _other_repeats(there)
    there, expected = _by_id(there), _by_id(expected)
    if latest:
        there, expected = _last_by_key(there), _last_by_key(expected)
    return repeats + differences(there, [expectation(record) for record in expected], ordered=False)


def _changes(there: list[Record], expected: list[Record], *, exact: bool, latest: bool) -> list[Difference]:
    if latest:
        there, expected = _last_by_key(there), _last_by_key(expected)
    elif exact:
        repeats = _other_repeats(there)
        there, expected = _by_id(there), _by_id(expected)
        return repeats + differences(there, [expectation(record) for record in expected])
    else:
        there, expected = _distinct(there), _distinct(expected)
    return differences(there, [expectation(record) for record in expected], ordered=False)


def _other_repeats(records: list[Record]) -> list[Difference]:
    """Return the records that are not what came before with the same id."""
    first: dict[tuple[str, int], Record] = {}
    found = []
    for place, record in enumerate(records):
        before = first.setdefault(_id(record), record)
        if _row(before) != _row(record):
            found.append(Difference("changed", place, record, expectation(before)))
    return found


def _by_id(records: list[Record]) -> list[Record]:
    """Return what each task wrote, in order, without repeats."""
    first: dict[tuple[str, int], Record] = {}
    for record in records:
        first.setdefault(_id(record), record)
    return [first[name] for name in sorted(first)]


def _distinct(records: list[Record]) -> list[Record]:
    return list({repr(_row(record)): record for record in records}.values())


def _last_by_key(records: list[Record]) -> list[Record]:
    return list({repr(record.key): record for record in records}.values())


def _row(record: Record) -> tuple[Any, Any, int]:
    return record.key, record.value, record.timestamp


def _id(record: Record) -> tuple[str, int]:
    source, _, position = dict(record.headers)[ID_HEADER].decode().rpartition("/")
    return source, int(position)
