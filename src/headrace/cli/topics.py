"""``headrace topics`` and ``headrace groups``: what is in a log, and who reads it."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from headrace.cli.consume import partitions_of
from headrace.cli.options import JsonOption, LogOption, load_settings, opened_log
from headrace.cli.output import note, show_json, show_table
from headrace.clock import SystemClock
from headrace.errors import NotFoundError, SettingsError
from headrace.log.api import Log, TopicInfo
from headrace.record import TopicPartition


def topics(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="One topic, partition by partition.")] = None,
    grow_to: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Give the topic so many partitions. Stop first what reads and writes it by key, "
            "and then let `headrace rescale` move its state.",
        ),
    ] = None,
    log: LogOption = None,
    json: JsonOption = False,
) -> None:
    """List topics, or show one or give it partitions.

    \b
    headrace topics
    headrace topics payments --json
    headrace topics payments --grow-to 8
    """
    settings = load_settings(log=log)
    if grow_to is not None and name is None:
        raise SettingsError("--grow-to is for one topic", remedy="Name it: headrace topics payments --grow-to 8")
    with opened_log(settings, SystemClock()) as opened:
        if name is not None and grow_to is not None:
            opened.grow_topic(name, grow_to)
        known = opened.topics()
        if name is not None:
            partitions_of(opened, name)
            known = {name: known[name]}
        found = [_topic(opened, info) for info in known.values()]
    if json:
        show_json(found)
    elif name is not None:
        rows = [[str(p["partition"]), *_counts(p)] for p in found[0]["partitions"]]
        columns = ["partition", "start", "end", "records"]
        show_table(f"{name}: {found[0]['records']:,} records", columns, rows, right=columns)
    elif not found:
        note(f"the log {settings.log} has no topics; `headrace produce` makes one")
    else:
        rows = [[t["topic"], f"{len(t['partitions'])}", f"{t['records']:,}"] for t in found]
        show_table("", ["topic", "partitions", "records"], rows, right=["partitions", "records"])


def groups(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="One group, partition by partition.")] = None,
    log: LogOption = None,
    json: JsonOption = False,
) -> None:
    """List the consumer groups of the log, or one with its lag.

    The group of a topology has its name unless --group gave another.

    \b
    headrace groups
    headrace groups card-spend
    """
    settings = load_settings(log=log)
    with opened_log(settings, SystemClock()) as opened:
        known = opened.groups()
        if name is not None and name not in known:
            raise NotFoundError(
                f"there is no group {name!r} in the log {settings.log}",
                remedy=f"Check its name; groups there: {', '.join(known) or 'none'}",
            )
        found = [_group(opened, one) for one in (known if name is None else [name])]
    if json:
        show_json(found)
    elif name is not None:
        _show_group(found[0])
    elif not found:
        note(f"the log {settings.log} has no groups; `headrace run` makes one")
    else:
        rows = [
            [g["group"], str(len(g["members"])), str(sum(len(m["units"]) for m in g["members"])), f"{g['lag']:,}"]
            for g in found
        ]
        show_table("", ["group", "members", "units", "lag"], rows, right=["members", "units", "lag"])


def _topic(log: Log, info: TopicInfo) -> dict[str, Any]:
    partitions = []
    for number in range(info.partitions):
        partition = TopicPartition(info.name, number)
        start, end = log.start_offset(partition), log.end_offset(partition)
        partitions.append({"partition": number, "start": start, "end": end, "records": end - start})
    return {
        "topic": info.name,
        "records": sum(partition["records"] for partition in partitions),
        "partitions": partitions,
        "retention_ms": info.config.retention_ms,
        "retention_bytes": info.config.retention_bytes,
        "compact": info.config.compact,
    }


def _counts(partition: dict[str, int]) -> list[str]:
    return [f"{partition[column]:,}" for column in ("start", "end", "records")]


def _group(log: Log, name: str) -> dict[str, Any]:
    group = log.group(name)
    partitions: list[dict[str, Any]] = []
    for partition, committed in sorted(group.committed().items()):
        try:
            end: int | None = log.end_offset(partition)
        except NotFoundError:
            end = None  # the topic was deleted since
        lag = None if end is None else max(0, end - committed.offset)
        partitions.append({
            "topic": partition.topic, "partition": partition.partition, "committed": committed.offset, "end": end,
            "lag": lag,
        })  # fmt: skip
    return {
        "group": name,
        "members": [{"member": member.member_id, "units": list(member.units)} for member in group.members()],
        "lag": sum(partition["lag"] or 0 for partition in partitions),
        "partitions": partitions,
    }


def _show_group(group: dict[str, Any]) -> None:
    if group["members"]:
        rows = [[member["member"], ", ".join(member["units"]) or "-"] for member in group["members"]]
        show_table(f"{group['group']}: members", ["member", "units"], rows)
    else:
        print(f"{group['group']}: no members, so nobody runs it now")
    print()
    rows = [
        [p["topic"], str(p["partition"]), f"{p['committed']:,}",
         *("-" if p[column] is None else f"{p[column]:,}" for column in ("end", "lag"))]
        for p in group["partitions"]
    ]  # fmt: skip
    columns = ["topic", "partition", "committed", "end", "lag"]
    show_table(f"{group['group']}: lag {group['lag']:,}", columns, rows, right=columns[1:])
