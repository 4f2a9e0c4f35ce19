"""``headrace rescale``: move state to the partitions that its keys have now."""

from __future__ import annotations

from typing import Annotated

import typer

from headrace.cli.failures import load
from headrace.cli.options import (
    BlockCacheOption,
    CacheOption,
    CheckpointsOption,
    GroupOption,
    GuaranteeOption,
    LogOption,
    StateDirOption,
    TransactionsOption,
    load_settings,
    opened_log,
)
from headrace.cli.output import note, show_table
from headrace.clock import SystemClock


def rescale(
    module: Annotated[str, typer.Argument(metavar="MODULE[:NAME]", help="Where the topology is, as for import.")],
    partitions: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Give internal topics so many partitions, too.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do it; without, only say what would be done.")] = False,
    log: LogOption = None,
    checkpoints: CheckpointsOption = None,
    state_dir: StateDirOption = None,
    group: GroupOption = None,
    cache: CacheOption = None,
    block_cache: BlockCacheOption = None,
    guarantee: GuaranteeOption = None,
    transactions: TransactionsOption = None,
) -> None:
    """Move state to the partitions of its keys.

    When a topic needs more partitions: stop the topology with SIGTERM, give the topic its partitions, move the state,
    and run the topology again. Meanwhile producers may go on, if all of them know of the new partitions. Whatever was
    written for the partitions of before is read first; that makes results, as a run does, but closes no window that is
    still open.

    \b
    headrace topics payments --grow-to 8
    headrace rescale topologies.card_spend
    headrace rescale topologies.card_spend --yes
    """
    settings = load_settings(
        log=log, checkpoints=checkpoints, state_dir=state_dir, group=group, cache_bytes=cache,
        block_cache_bytes=block_cache, repartition_partitions=partitions, guarantee=guarantee,
        transactions=transactions,
    )  # fmt: skip
    from headrace.app import rescale_site
    from headrace.runtime.rescale import carry_out, find_moves

    topology = load(module)
    clock = SystemClock()
    with opened_log(settings, clock) as opened:
        site = rescale_site(topology, opened, settings, clock, note)
        moves = find_moves(site)
        if moves.none:
            note(f"{topology.name}: all state is where its keys are; there is nothing to do")
            return
        rows = [
            [step, name, f"{width.before} -> {width.now}"]
            for name, steps in moves.steps.items()
            for step, width in steps.items()
            if width.before != width.now
        ]
        if rows:
            show_table("", ["step", "sub-topology", "partitions"], rows)
        for name, width in moves.internal.items():
            note(f"internal topic {name} grows from {width.before} to {width.now} partitions")
        if not yes:
            note("nothing was changed; --yes does it")
            return
        written = carry_out(site, moves)
    note(f"{topology.name}: {written} tasks have their state where their keys are")
