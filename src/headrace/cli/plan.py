"""``headrace plan``: what a deploy would do to the state that checkpoints keep."""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headrace.cli.failures import FAILED, load
from headrace.cli.options import (
    AllowResetOption,
    CheckpointsOption,
    GroupOption,
    JsonOption,
    LogOption,
    RepartitionPartitionsOption,
    load_settings,
    log_exists,
    opened_log,
)
from headrace.cli.output import note, show_json, show_table
from headrace.cli.produce import DEFAULT_PARTITIONS
from headrace.clock import SystemClock
from headrace.settings import Settings

if TYPE_CHECKING:
    from headrace.dsl.builder import Topology
    from headrace.log.api import Log
    from headrace.topology.change import Change, Loss, StepChange
    from headrace.topology.plan import Plan

_MEANINGS = {
    "KEEP": "goes on where it was",
    "MIGRATE": "goes on, and stored values are brought to the new version",
    "NEW": "was not there before, and begins empty, or is read from its start",
    "GONE": "is no longer there, and nothing is lost with it",
    "RESCALE": "its state must be moved to other partitions first",
    "RESET": "what was kept would be lost",
    "UNKNOWN": "is looked at when the task is restored",
}


def plan(
    module: Annotated[str, typer.Argument(metavar="MODULE[:NAME]", help="Where the topology is, as for import.")],
    every: Annotated[bool, typer.Option("--all", help="Steps that keep nothing too.")] = False,
    log: LogOption = None,
    checkpoints: CheckpointsOption = None,
    group: GroupOption = None,
    repartition_partitions: RepartitionPartitionsOption = None,
    allow_reset: AllowResetOption = None,
    json: JsonOption = False,
) -> None:
    """Show what a deploy would keep, migrate or lose.

    It compares the topology with its newest checkpoints, and changes nothing. The exit code is 0 if nothing would be
    lost, and 1 if `headrace run` would refuse.

    \b
    headrace plan topologies.card_spend
    headrace plan topologies.card_spend --checkpoints s3://bucket/prefix --json
    """
    settings = load_settings(
        log=log, checkpoints=checkpoints, group=group, repartition_partitions=repartition_partitions,
        allow_reset=allow_reset,
    )  # fmt: skip
    from headrace.app import open_checkpoints
    from headrace.runtime.workers.changing import find_change, remedy
    from headrace.topology.change import compare

    topology = load(module)
    with ExitStack() as stack:
        exists = settings.log != "memory://" and log_exists(settings)
        opened = stack.enter_context(opened_log(settings, SystemClock())) if exists else None
        planned = _planned(topology, opened, settings)
        if "://" in settings.checkpoints or Path(settings.checkpoints).exists():
            change = find_change(planned, open_checkpoints(settings, topology.name), opened)
        else:
            change = compare(planned, [])
    losses = change.losses(settings.resets)
    if json:
        shown = dataclasses.asdict(change)
        show_json({**shown, "refused": bool(losses), "losses": [dataclasses.asdict(loss) for loss in losses]})
    else:
        _show(change, losses, settings, every=every)
        if losses:
            print(f"\n{remedy(change, settings.resets, module)}.")
    if losses:
        raise typer.Exit(FAILED)


def _planned(topology: Topology, opened: Log | None, settings: Settings) -> Plan:
    from headrace.app import examine
    from headrace.topology.plan import plan as cut
    from headrace.topology.plan import source_topics

    graph = topology.graph()
    names = list(dict.fromkeys(source_topics(graph)))
    known = {} if opened is None else {name: info.partitions for name, info in opened.topics().items()}
    missing = [name for name in names if name not in known]
    if opened is not None and not missing:
        return examine(topology, opened, settings)
    note(f"note: not in the log {settings.log}, so taken to have {DEFAULT_PARTITIONS} partitions: {', '.join(missing)}")
    counts = {name: known.get(name, DEFAULT_PARTITIONS) for name in names}
    return cut(graph, counts, settings.repartition_partitions, known)


def _show(change: Change, losses: list[Loss], settings: Settings, *, every: bool) -> None:
    print(f"{change.topology}: {_headline(change, losses, settings)}\n")
    steps = [step for step in change.steps if every or step.verdict != "-"]
    if steps:
        rows = [[step.verdict, step.step, step.kind, step.subtopology, _with_line(step)] for step in steps]
        _show_table(["state", "step", "kind", "sub-topology", "detail"], rows)
    else:
        print("no step keeps state")
    print()
    topics = [[t.verdict, t.topic, _counts(t.before, t.now), t.detail] for t in change.topics]
    _show_table(["topics", "topic", "partitions", "detail"], topics)
    print()
    tasks = [[t.verdict, t.subtopology, _counts(t.before or None, t.now or None), t.detail] for t in change.tasks]
    _show_table(["tasks", "sub-topology", "tasks", "detail"], tasks)
    verdicts = {s.verdict for s in steps} | {t.verdict for t in change.topics} | {t.verdict for t in change.tasks}
    print()
    for verdict, meaning in _MEANINGS.items():
        if verdict in verdicts:
            print(f"{verdict}: {meaning}")


def _show_table(columns: list[str], rows: list[list[str]]) -> None:
    """Show a table without its last column if that says nothing."""
    width = len(columns) if any(row[-1] for row in rows) else len(columns) - 1
    show_table("", columns[:width], [row[:width] for row in rows])


def _headline(change: Change, losses: list[Loss], settings: Settings) -> str:
    if losses:
        names = ", ".join(dict.fromkeys(loss.name for loss in losses))
        if all(loss.rescalable for loss in losses):
            return f"REFUSED until state is moved to where its keys are: {names}"
        return f"REFUSED, a deploy would lose what was kept at {names}"
    if change.first:
        return f"the first deploy, there are no checkpoints in {settings.checkpoints}"
    lost = change.losses()
    if lost:
        return f"a deploy loses only what it may: {', '.join(dict.fromkeys(loss.name for loss in lost))}"
    return "a deploy loses nothing"


def _with_line(step: StepChange) -> str:
    told = bool(step.location) and step.verdict != "KEEP"
    return " ".join(text for text in (step.detail, f"({step.location})" if told else "") if text)


def _counts(before: int | None, now: int | None) -> str:
    if before == now or before is None:
        return str(now)
    return f"{before} before" if now is None else f"{before} -> {now}"
