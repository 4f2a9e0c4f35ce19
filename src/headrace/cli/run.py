"""``headrace run``: run a topology."""

from __future__ import annotations

from typing import Annotated

import typer

from headrace.cli.failures import FAILED, INTERRUPTED, exit_code, load, show_error
from headrace.cli.options import (
    AllowResetOption,
    BatchRecordsOption,
    BlockCacheOption,
    CacheOption,
    CheckpointIntervalOption,
    CheckpointsOption,
    DrainTimeoutOption,
    FsyncOption,
    GroupOption,
    GuaranteeOption,
    HandoffTimeoutOption,
    HeartbeatIntervalOption,
    LogOption,
    LostRecordsOption,
    MetricsHostOption,
    MetricsPortOption,
    RepartitionPartitionsOption,
    SessionTimeoutOption,
    SlowStepOption,
    StandbyCopiesOption,
    StateDirOption,
    StepTimeoutOption,
    TransactionsOption,
    UnsavedLimitOption,
    UntilEndOption,
    WorkersOption,
    load_settings,
    log_exists,
    note_unknown_variables,
)
from headrace.cli.output import note
from headrace.cli.progress import RunProgress, summary
from headrace.clock import SystemClock
from headrace.errors import HeadraceError, NotFoundError
from headrace.settings import Settings


def run(
    module: Annotated[str, typer.Argument(metavar="MODULE[:NAME]", help="Where the topology is, as for import.")],
    log: LogOption = None,
    checkpoints: CheckpointsOption = None,
    state_dir: StateDirOption = None,
    group: GroupOption = None,
    workers: WorkersOption = None,
    until_end: UntilEndOption = None,
    metrics_host: MetricsHostOption = None,
    metrics_port: MetricsPortOption = None,
    checkpoint_interval: CheckpointIntervalOption = None,
    session_timeout: SessionTimeoutOption = None,
    heartbeat_interval: HeartbeatIntervalOption = None,
    drain_timeout: DrainTimeoutOption = None,
    handoff_timeout: HandoffTimeoutOption = None,
    standby_copies: StandbyCopiesOption = None,
    cache: CacheOption = None,
    block_cache: BlockCacheOption = None,
    batch_records: BatchRecordsOption = None,
    slow_step: SlowStepOption = None,
    step_timeout: StepTimeoutOption = None,
    repartition_partitions: RepartitionPartitionsOption = None,
    fsync: FsyncOption = None,
    guarantee: GuaranteeOption = None,
    transactions: TransactionsOption = None,
    lost_records: LostRecordsOption = None,
    unsaved_limit: UnsavedLimitOption = None,
    allow_reset: AllowResetOption = None,
) -> None:
    """Run a topology.

    It continues from its last checkpoint, and runs until SIGTERM or Ctrl-C, which drain it (a second Ctrl-C ends it at
    once), or with --until-end to the end of its input; stopped before that, it exits with 1. Durations are such as
    500ms, 30s or 1m, sizes such as 64MB. In brackets: the environment variable of an option.

    \b
    headrace run topologies.card_spend
    headrace run topologies.card_spend --workers 2 --until-end
    """
    settings = load_settings(
        log=log, checkpoints=checkpoints, state_dir=state_dir, group=group, workers=workers, until_end=until_end,
        metrics_host=metrics_host, metrics_port=metrics_port, checkpoint_interval_ms=checkpoint_interval,
        session_timeout_ms=session_timeout, heartbeat_interval_ms=heartbeat_interval, drain_timeout_ms=drain_timeout,
        handoff_timeout_ms=handoff_timeout, standby_copies=standby_copies, cache_bytes=cache,
        block_cache_bytes=block_cache, batch_records=batch_records, slow_step_ms=slow_step,
        step_timeout_ms=step_timeout, repartition_partitions=repartition_partitions, fsync=fsync,
        guarantee=guarantee, transactions=transactions, lost_records=lost_records,
        unsaved_limit_ms=unsaved_limit, allow_reset=allow_reset,
    )  # fmt: skip
    note_unknown_variables()
    from headrace.app import run_spec

    name = load(module).name
    _check_log(settings, name)
    clock = SystemClock()
    begun_ms = clock.monotonic_ms()
    progress = RunProgress(clock, until_end=settings.until_end, label=name)
    try:
        with progress:
            status = run_spec(module, settings, progress.update)
    except HeadraceError as error:
        show_error(error)
        raise typer.Exit(exit_code(error, running=progress.started)) from None
    except KeyboardInterrupt:
        note(f"{name} ended at once: the next run goes on from the last checkpoints, and does again what came after")
        raise typer.Exit(INTERRUPTED) from None
    note(summary(name, status, clock.monotonic_ms() - begun_ms))
    if status.total is not None and status.state == "stopped":
        raise typer.Exit(FAILED)


def _check_log(settings: Settings, topology: str) -> None:
    if not log_exists(settings) and settings.log != "memory://":
        raise NotFoundError(
            f"there is no log in {settings.log}, and topology {topology!r} has topics to read",
            remedy="Fill one with `headrace produce`, or give another with --log or HEADRACE_LOG",
        )
