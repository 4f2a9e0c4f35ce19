"""``headrace checkpoints``: what could be restored, whether it is whole, and deleting it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headrace.cli.options import CheckpointsOption, JsonOption, load_settings
from headrace.cli.output import age, note, show_json, show_table, size
from headrace.clock import SystemClock
from headrace.errors import NotFoundError
from headrace.settings import Settings

if TYPE_CHECKING:
    from headrace.checkpoint.checkpoints import Checkpoints
    from headrace.checkpoint.manifest import Manifest
    from headrace.checkpoint.store import Objects


def list_checkpoints(
    topology: Annotated[
        str | None, typer.Argument(metavar="TOPOLOGY", help="Its name, or the --group that it ran with.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="All checkpoints that are kept, not the newest only.")] = False,
    checkpoints: CheckpointsOption = None,
    json: JsonOption = False,
) -> None:
    """List the checkpoints from which workers would continue.

    \b
    headrace checkpoints list
    headrace checkpoints list card-spend --checkpoints s3://bucket/prefix
    """
    settings = load_settings(checkpoints=checkpoints)
    objects = opened_objects(settings)
    names = objects.names("") if topology is None else [checked_topology(objects, topology, settings)]
    from headrace.checkpoint.checkpoints import Checkpoints

    problems: list[str] = []
    found: list[dict[str, Any]] = []
    now_ms = SystemClock().now_ms()
    for name in names:
        opened = Checkpoints(objects, name)
        found += [
            _row(name, manifest, now_ms) for task in opened.tasks() for manifest in _kept(opened, task, every, problems)
        ]
    if json:
        show_json(found)
    elif found:
        _show(found, with_topology=topology is None)
    else:
        note(f"there are no checkpoints in {settings.checkpoints}; `headrace run` makes them")
    for problem in problems:
        note(f"note: {problem}")


def opened_objects(settings: Settings) -> Objects:
    """Open the checkpoint store that the settings name; a directory must exist.

    Raises:
        NotFoundError: there is no such directory.
        SettingsError: it cannot be used.
    """
    if "://" not in settings.checkpoints and not Path(settings.checkpoints).is_dir():
        raise NotFoundError(
            f"there is no directory {settings.checkpoints} with checkpoints",
            remedy="Name another place with --checkpoints or HEADRACE_CHECKPOINTS",
        )
    from headrace.checkpoint.store import open_objects

    return open_objects(settings.checkpoints, os.environ)


def checked_topology(objects: Objects, topology: str | None, settings: Settings) -> str:
    """Return the topology that is meant: the one that was named, or the only one that there is.

    Raises:
        NotFoundError: it has no checkpoints, or there are several and none was named.
    """
    names = objects.names("")
    if topology is None and len(names) == 1:
        return names[0]
    if topology is None and names:
        raise NotFoundError(
            f"there are checkpoints of several topologies in {settings.checkpoints}: {', '.join(names)}",
            remedy="Say which one with --topology",
        )
    if topology is None or topology not in names:
        told = "any topology" if topology is None else repr(topology)
        raise NotFoundError(
            f"there are no checkpoints of {told} in {settings.checkpoints}",
            remedy=f"Check its name; there are checkpoints of: {', '.join(names) or 'nothing'}",
        )
    return topology


def checked_task(objects: Objects, topology: str, task: str) -> str:
    """Return ``task``.

    Raises:
        NotFoundError: it has no checkpoints.
    """
    tasks = objects.names(topology)
    if task not in tasks:
        raise NotFoundError(
            f"task {task!r} of topology {topology} has no checkpoints",
            remedy=f"Check its name; there are checkpoints of: {', '.join(tasks) or 'nothing'}",
        )
    return task


def _kept(opened: Checkpoints, task: str, every: bool, problems: list[str]) -> list[Manifest]:
    if every:
        return opened.manifests(task, problems)
    newest = opened.newest(task, problems)
    return [] if newest is None else [newest]


def _row(topology: str, manifest: Manifest, now_ms: int) -> dict[str, Any]:
    return {
        "topology": topology,
        "task": manifest.task,
        "number": manifest.number,
        "epoch": manifest.epoch,
        "created": manifest.created_ms,
        "age_ms": max(0, now_ms - manifest.created_ms),
        "files": len(manifest.files),
        "size_bytes": manifest.size_bytes,
        "positions": manifest.positions,
    }


def _show(found: list[dict[str, Any]], *, with_topology: bool) -> None:
    columns = ["task", "number", "epoch", "age", "files", "size", "positions"]
    rows = [
        [
            row["task"],
            str(row["number"]),
            str(row["epoch"]),
            age(row["age_ms"]),
            str(row["files"]),
            size(row["size_bytes"]),
            ", ".join(f"{partition} {offset:,}" for partition, offset in sorted(row["positions"].items())) or "-",
        ]
        for row in found
    ]
    if with_topology:
        columns = ["topology", *columns]
        rows = [[one["topology"], *row] for one, row in zip(found, rows, strict=True)]
    show_table("", columns, rows, right=["number", "epoch", "age", "files", "size"])
