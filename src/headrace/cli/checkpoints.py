"""``headrace checkpoints``: what could be restored."""

from __future__ import annotations

import dataclasses
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


def checkpoints(
    topology: Annotated[
        str | None, typer.Argument(metavar="[TOPOLOGY]", help="Its name, or the --group that it ran with.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="All checkpoints that are kept, not the newest only.")] = False,
    checkpoints: CheckpointsOption = None,
    json: JsonOption = False,
) -> None:
    """List the checkpoints from which workers would continue.

    \b
    headrace checkpoints
    headrace checkpoints card-spend --checkpoints s3://bucket/prefix
    """
    settings = load_settings(checkpoints=checkpoints)
    names = _names(settings)
    if topology is not None and topology not in names:
        raise NotFoundError(
            f"there are no checkpoints of {topology!r} in {settings.checkpoints}",
            remedy=f"Check its name; there are checkpoints of: {', '.join(names) or 'nothing'}",
        )
    from headrace.app import open_checkpoints

    problems: list[str] = []
    found: list[dict[str, Any]] = []
    now_ms = SystemClock().now_ms()
    for name in names if topology is None else [topology]:
        opened = open_checkpoints(dataclasses.replace(settings, group=""), name)
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


def _names(settings: Settings) -> list[str]:
    if "://" not in settings.checkpoints and not Path(settings.checkpoints).is_dir():
        raise NotFoundError(
            f"there is no directory {settings.checkpoints} with checkpoints",
            remedy="Name another place with --checkpoints or HEADRACE_CHECKPOINTS",
        )
    from headrace.checkpoint.store import open_objects

    return list(open_objects(settings.checkpoints, os.environ).names(""))


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
