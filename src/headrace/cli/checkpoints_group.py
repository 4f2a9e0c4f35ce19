"""``headrace checkpoints show|verify|delete``, and ``headrace checkpoints`` by itself, which lists."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from headrace.cli.checkpoints import checked_task, checked_topology, list_checkpoints, opened_objects
from headrace.cli.options import CheckpointsOption, JsonOption, LogOption, load_settings, log_exists, opened_log
from headrace.cli.output import LiveLine, age, moment, note, show_json, show_table, size
from headrace.clock import SystemClock
from headrace.errors import InvalidError, NotFoundError, SettingsError
from headrace.settings import Settings, duration_ms

if TYPE_CHECKING:
    from headrace.checkpoint.inspection import Deletion, Finding, Kept
    from headrace.checkpoint.manifest import Manifest
    from headrace.checkpoint.store import Objects

TopologyOption = Annotated[
    str | None,
    typer.Option("--topology", metavar="NAME", help="Its name, or the --group that it ran with, if there are several."),
]
NumberOption = Annotated[
    int | None, typer.Option("--number", min=1, metavar="N", help="That checkpoint, not the newest.")
]


class ListsByDefault(TyperGroup):
    """A group whose command ``list`` may be left out."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put ``list`` before arguments that begin with no command."""
        if not args or (args[0] not in self.commands and args[0] not in ("-h", "--help")):
            args = ["list", *args]
        return super().parse_args(ctx, args)


def about() -> None:
    """List, show, verify and delete checkpoints.

    \b
    headrace checkpoints
    headrace checkpoints card-spend --all
    headrace checkpoints show payments-0
    headrace checkpoints verify
    headrace checkpoints delete card-spend --all
    """


def show_checkpoint(
    task: Annotated[str, typer.Argument(metavar="TASK", help="Its name, such as payments-0.")],
    topology: TopologyOption = None,
    number: NumberOption = None,
    checkpoints: CheckpointsOption = None,
    json: JsonOption = False,
) -> None:
    """Show one checkpoint of a task.

    That is its positions, its files, and which of them it shares with the checkpoint before.

    \b
    headrace checkpoints show payments-0
    headrace checkpoints show payments-0 --number 41 --json
    """
    settings = load_settings(checkpoints=checkpoints)
    objects = opened_objects(settings)
    name = checked_topology(objects, topology, settings)
    kept = _kept(objects, name, checked_task(objects, name, task))
    wanted = max(kept.manifests, default=None) if number is None else number
    if wanted is None or wanted not in kept.manifests:
        told = ", ".join(map(str, sorted(kept.manifests)))
        raise NotFoundError(
            f"task {task} has no checkpoint{'' if number is None else f' {number}'} that can be read",
            remedy=f"There are: {told}" if told else "`headrace checkpoints verify` says what is wrong with them",
        )
    before = max((one for one in kept.manifests if one < wanted), default=None)
    shown = _described(kept.manifests[wanted], None if before is None else kept.manifests[before])
    if json:
        show_json(shown)
        return
    print(f"checkpoint {wanted} of task {task} of topology {name}")
    print(f"written {moment(shown['created'])}, {age(shown['age_ms'])} ago, under epoch {shown['epoch']}")
    print(f"{size(shown['size_bytes'])} in {len(shown['files'])} files, {size(shown['new_bytes'])} of them new")
    print()
    show_table("positions", ["partition", "next"], [[p, f"{o:,}"] for p, o in sorted(shown["positions"].items())],
               right=["next"])  # fmt: skip
    print()
    rows = [[one["name"], size(one["size_bytes"]), "shared" if one["shared"] else "new", one["object"]]
            for one in shown["files"]]  # fmt: skip
    told = "files" if before is None else f"files, compared with checkpoint {before}"
    show_table(told, ["file", "size", "", "object"], rows, right=["size"])
    if shown["info"]:
        print("\nwhat it says of its state")
        show_json(shown["info"])


def verify_checkpoints(
    task: Annotated[str | None, typer.Argument(metavar="TASK", help="One task, not all.")] = None,
    topology: TopologyOption = None,
    checkpoints: CheckpointsOption = None,
    json: JsonOption = False,
) -> None:
    """Read every file of every checkpoint and check it.

    It says what is damaged, missing or named by no checkpoint, and exits with 1 if a checkpoint cannot be used. Files
    that no checkpoint names do no harm: a running task uploads them before it names them, and the next worker that
    takes the task deletes what was left behind.

    \b
    headrace checkpoints verify
    headrace checkpoints verify payments-0 --topology card-spend
    """
    settings = load_settings(checkpoints=checkpoints)
    objects = opened_objects(settings)
    names = objects.names("") if topology is None and task is None else [checked_topology(objects, topology, settings)]
    from headrace.checkpoint.inspection import Fault, verify

    found: list[dict[str, Any]] = []
    checked = 0
    line = LiveLine(SystemClock())
    for name in names:
        for one in objects.names(name) if task is None else [checked_task(objects, name, task)]:
            kept = _kept(objects, name, one)
            checked += len(kept.manifests) + len(kept.unreadable)

            def tell(done: int, whole: int, where: str = f"{name} {one}") -> None:
                line.show(f"{where}: {size(done)} of {size(whole)}")

            found += [_finding(name, finding) for finding in verify(objects, name, kept, tell)]
    line.clear()
    harmful = [one for one in found if one["fault"] != Fault.UNREFERENCED]
    if json:
        show_json(found)
    else:
        if found:
            columns = ["topology", "task", "fault", "size", "checkpoints", "object"]
            rows = [[one["topology"], one["task"], one["fault"], size(one["size_bytes"]),
                     ", ".join(map(str, one["checkpoints"])) or "-", one["object"]] for one in found]  # fmt: skip
            show_table("", columns, rows, right=["size"])
        told = f"{_count(len(harmful), 'object')} at fault" if harmful else "all of them whole"
        note(f"{_count(checked, 'checkpoint')}, {told}")
    if harmful:
        raise typer.Exit(1)


def delete_checkpoints(
    topology: Annotated[str, typer.Argument(metavar="TOPOLOGY", help="Its name, or the --group that it ran with.")],
    every: Annotated[bool, typer.Option("--all", help="All checkpoints of all its tasks.")] = False,
    task: Annotated[str | None, typer.Option(metavar="TASK", help="All checkpoints of this task.")] = None,
    number: Annotated[int | None, typer.Option(min=1, metavar="N", help="With --task: this checkpoint only.")] = None,
    older_than: Annotated[
        str | None, typer.Option(metavar="DURATION", help="Those that are older, but never a task's newest.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    log: LogOption = None,
    checkpoints: CheckpointsOption = None,
    json: JsonOption = False,
) -> None:
    """Delete checkpoints of a topology that does not run.

    A task without checkpoints begins anew: with empty state, at the first records that the log still has, so that
    its results are made and sent once more.

    \b
    headrace checkpoints delete card-spend --older-than 7d
    headrace checkpoints delete card-spend --task payments-0 --number 41
    headrace checkpoints delete card-spend --all --yes
    """
    if [every, task is not None, older_than is not None].count(True) != 1 or (number is not None and task is None):
        raise SettingsError(
            "say what to delete", remedy="Give one of --all, --task TASK (with --number N for one) and --older-than 7d"
        )
    age_ms = None if older_than is None else duration_ms(older_than, "--older-than")
    settings = load_settings(checkpoints=checkpoints, log=log)
    objects = opened_objects(settings)
    name = checked_topology(objects, topology, settings)
    tasks = objects.names(name) if task is None else [checked_task(objects, name, task)]
    _refuse_if_it_runs(settings, name, log_given=log is not None)
    from headrace.checkpoint.inspection import carry_out

    chosen, consequence = _chosen(objects, name, tasks, number=number, age_ms=age_ms)
    counts = {
        "manifests": sum(len(one.manifests) for one in chosen),
        "files": sum(len(one.files) for one in chosen),
        "size_bytes": sum(one.size_bytes for one in chosen),
    }
    told = (
        f"{_count(counts['manifests'], 'checkpoint')} of {name} with {_count(counts['files'], 'file')}, "
        f"{size(counts['size_bytes'])}"
    )
    if any(counts.values()) and not yes:
        if not sys.stdin.isatty():
            raise SettingsError(f"this would delete {told}. {consequence}", remedy="Add --yes to do it")
        note(consequence)
        typer.confirm(f"delete {told}?", abort=True)
    for one in chosen:
        carry_out(objects, one)
    if json:
        show_json({"topology": name, **counts})
    else:
        print(f"deleted {told}" if any(counts.values()) else f"nothing of {name} is to be deleted")


def commands() -> Iterator[tuple[str, Any]]:
    """Yield the commands of ``headrace checkpoints`` by name."""
    yield "list", list_checkpoints
    yield "show", show_checkpoint
    yield "verify", verify_checkpoints
    yield "delete", delete_checkpoints


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _kept(objects: Objects, topology: str, task: str) -> Kept:
    from headrace.checkpoint.inspection import read_kept

    return read_kept(objects, topology, task)


def _described(manifest: Manifest, before: Manifest | None) -> dict[str, Any]:
    earlier = set() if before is None else {ref.object for ref in before.files}
    files = [
        {"name": ref.name, "size_bytes": ref.size, "object": ref.object, "shared": ref.object in earlier}
        for ref in manifest.files
    ]
    return {
        "topology": manifest.topology,
        "task": manifest.task,
        "number": manifest.number,
        "epoch": manifest.epoch,
        "created": manifest.created_ms,
        "age_ms": max(0, SystemClock().now_ms() - manifest.created_ms),
        "size_bytes": manifest.size_bytes,
        "new_bytes": sum(ref.size for ref in manifest.files if ref.object not in earlier),
        "positions": manifest.positions,
        "files": files,
        "info": manifest.info,
    }


def _finding(topology: str, finding: Finding) -> dict[str, Any]:
    return {
        "topology": topology,
        "task": finding.task,
        "fault": finding.fault,
        "object": finding.path,
        "size_bytes": finding.size_bytes,
        "checkpoints": list(finding.checkpoints),
    }


def _chosen(
    objects: Objects, topology: str, tasks: Sequence[str], *, number: int | None, age_ms: int | None
) -> tuple[list[Deletion], str]:
    """Return what to delete, and what that means."""
    from headrace.checkpoint.inspection import deletion, everything

    if age_ms is not None:
        until_ms = SystemClock().now_ms() - age_ms
        chosen = []
        for task in tasks:
            kept = _kept(objects, topology, task)
            newest = max(kept.manifests, default=None)
            old = [n for n, one in kept.manifests.items() if one.created_ms < until_ms and n != newest]
            chosen.append(deletion(topology, kept, old))
        return chosen, "Tasks continue from their newest checkpoint, and cannot fall back to these"
    if number is not None:
        kept = _kept(objects, topology, tasks[0])
        there = {*kept.manifests, *kept.unreadable}
        if number not in there:
            raise NotFoundError(
                f"task {tasks[0]} of topology {topology} has no checkpoint {number}",
                remedy=f"There are: {', '.join(map(str, sorted(there)))}",
            )
        left = [one for one in kept.manifests if one != number]
        if left and number > max(left):
            consequence = f"The task goes back to checkpoint {max(left)}, and does again what it did since"
        elif left:
            consequence = f"The task continues from checkpoint {max(left)}, and cannot fall back to this one"
        else:
            consequence = _ANEW
        return [deletion(topology, kept, [number])], consequence
    return [everything(objects, topology, tasks)], _ANEW


_ANEW = (
    "State is lost: the tasks begin anew with empty state, at the first records that the log still has, and make and "
    "send their results once more"
)


def _refuse_if_it_runs(settings: Settings, topology: str, *, log_given: bool) -> None:
    if not log_given and (not log_exists(settings) or settings.log == "memory://"):
        note(f"note: there is no log in {settings.log}, so whether {topology} runs was not checked")
        return
    with opened_log(settings, SystemClock()) as opened:
        members = opened.group(topology).members() if topology in opened.groups() else []
    if members:
        raise InvalidError(
            f"{topology} runs: its group has {len(members)} member{'s' * (len(members) != 1)}",
            remedy="Stop its workers first; one that was killed counts until its session timeout has passed",
        )
