"""``headrace describe``: how a topology will run."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from headrace.cli.failures import load
from headrace.cli.options import (
    GuaranteeOption,
    LogOption,
    RepartitionPartitionsOption,
    TransactionsOption,
    load_settings,
    log_exists,
    opened_log,
)
from headrace.cli.output import note
from headrace.cli.produce import DEFAULT_PARTITIONS
from headrace.clock import SystemClock
from headrace.settings import Settings


class Format(StrEnum):
    """How a topology is drawn."""

    TEXT = "text"
    MERMAID = "mermaid"
    JSON = "json"


def describe(
    module: Annotated[str, typer.Argument(metavar="MODULE[:NAME]", help="Where the topology is, as for import.")],
    form: Annotated[Format, typer.Option("--format", help="How to draw it.")] = Format.TEXT,
    partitions: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Partitions of the topics it reads; else what the log says, or 4."),
    ] = None,
    log: LogOption = None,
    repartition_partitions: RepartitionPartitionsOption = None,
    guarantee: GuaranteeOption = None,
    transactions: TransactionsOption = None,
) -> None:
    """Show the steps, topics and tasks of a topology.

    It names for each output what holds after a crash: deterministic, outbox, transactional or at-least-once, and why.

    \b
    headrace describe topologies.card_spend
    headrace describe topologies.card_spend --format mermaid
    headrace describe topologies.card_spend --guarantee exactly-once
    """
    from headrace.topology import describe as drawing
    from headrace.topology.plan import plan, source_topics

    settings = load_settings(
        log=log, repartition_partitions=repartition_partitions, guarantee=guarantee, transactions=transactions
    )
    graph = load(module).graph()
    names = list(dict.fromkeys(source_topics(graph)))
    if partitions is not None:
        counts = dict.fromkeys(names, partitions)
    else:
        counts = _counts(names, settings)
    planned = plan(
        graph, counts, settings.repartition_partitions, guarantee=settings.guarantee, transactions=settings.transactions
    )
    draw = {
        Format.TEXT: drawing.describe_text,
        Format.MERMAID: drawing.describe_mermaid,
        Format.JSON: drawing.describe_json,
    }
    print(draw[form](planned))


def _counts(names: list[str], settings: Settings) -> dict[str, int]:
    counts: dict[str, int] = {}
    if settings.log != "memory://" and log_exists(settings):
        with opened_log(settings, SystemClock()) as opened:
            counts = {name: info.partitions for name, info in opened.topics().items() if name in names}
    missing = [name for name in names if name not in counts]
    if missing:
        note(
            f"note: not in the log {settings.log}, so drawn with {DEFAULT_PARTITIONS} partitions: {', '.join(missing)}"
            "; --partitions gives another number"
        )
    return {name: counts.get(name, DEFAULT_PARTITIONS) for name in names}
