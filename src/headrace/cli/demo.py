"""``headrace demo``: the whole way, from generated payments to results, in one command."""

from __future__ import annotations

import heapq
import shlex
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headrace.cli.consume import partitions_of, read_batches
from headrace.cli.failures import exit_code, show_error
from headrace.cli.options import opened_log
from headrace.cli.output import duration, moment, note, rate, show_table
from headrace.cli.partitioning import TopicWriter
from headrace.cli.progress import RunProgress, progress_bar
from headrace.clock import Clock, SystemClock
from headrace.demo.payments import Payments
from headrace.errors import HeadraceError, SettingsError
from headrace.serde.msgpack import Msgpack
from headrace.settings import Settings

if TYPE_CHECKING:
    from headrace.runtime.hosts.status import RunStatus

_TOPIC = "payments"
_PARTITIONS = 4
_MODULE = "headrace.demo.card_spend"
_DUPLICATES = 0.01
_LATE = 0.002
_TOP = 10
_ALERTS = 5
_BATCH = 4096


@dataclass(slots=True)
class _Results:
    """What the topology made."""

    windows: int = 0
    payments: int = 0
    total: float = 0.0
    alerts: int = 0
    top: list[dict[str, Any]] = field(default_factory=list)
    some_alerts: list[dict[str, Any]] = field(default_factory=list)


def demo(
    payments: Annotated[int, typer.Option(min=1, metavar="N", help="How many payments to make up.")] = 200_000,
    workers: Annotated[int, typer.Option(min=1, metavar="N", help="Processes that share the work.")] = 1,
    directory: Annotated[
        Path | None,
        typer.Option("--dir", metavar="DIR", help="Where everything goes and stays; else a temporary directory."),
    ] = None,
) -> None:
    """Make up card payments, process them and show the results.

    Payments come out of order, some twice and some too late. The topology is headrace.demo.card_spend: it drops
    repeats, sums by customer and minute, and raises an alert where somebody spends a lot.

    \b
    headrace demo
    headrace demo --dir ./headrace-demo --payments 1000000 --workers 2
    """
    clock = SystemClock()
    with _place(directory) as place:
        settings = Settings(
            log=str(place / "log"), checkpoints=str(place / "checkpoints"), state_dir=str(place / "state"),
            workers=workers, until_end=True, metrics_port=0,
        )  # fmt: skip
        fill_ms = _fill(settings, payments, clock)
        status, run_ms = _run(settings, clock)
        results = _results(settings, clock)
        _show(results, payments, status, fill_ms, run_ms)
        if directory is not None:
            _show_next(place)
    if directory is None:
        print("\nEverything was in a temporary directory and is gone. Keep it, and look around, with")
        print("  headrace demo --dir ./headrace-demo")


@contextmanager
def _place(directory: Path | None) -> Iterator[Path]:
    if directory is None:
        with tempfile.TemporaryDirectory(prefix="headrace-demo-") as made:
            yield Path(made)
        return
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise SettingsError(
            f"--dir {directory} exists and is not an empty directory", remedy="Name a new directory, or empty this one"
        )
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"--dir {directory} cannot be made: {error.strerror}") from error
    yield directory


def _fill(settings: Settings, count: int, clock: Clock) -> int:
    """Write the payments into the log and return how long that took."""
    begun_ms = clock.monotonic_ms()
    encode = Msgpack().encode_many
    bar = progress_bar()
    with opened_log(settings, clock, existing=False) as log, bar:
        task = bar.add_task("payments", total=count, told="written to the log")
        log.create_topic(_TOPIC, _PARTITIONS)
        writer = TopicWriter(log, _TOPIC, _PARTITIONS, _BATCH)
        made = Payments(count=count, duplicate_share=_DUPLICATES, late_share=_LATE)
        for batch in made.batches(4 * _BATCH):
            values = encode(batch)
            keys = [payment["customer_id"].encode() for payment in batch]
            writer.add([payment["at"] for payment in batch], keys, values, sum(map(len, keys)))
            bar.update(task, completed=writer.written)
            if bar.console.is_terminal:
                bar.refresh()
        writer.flush()
        log.flush()
    elapsed_ms = clock.monotonic_ms() - begun_ms
    note(f"{count:,} payments written to topic {_TOPIC} ({_PARTITIONS} partitions) in {duration(elapsed_ms)}")
    return elapsed_ms


def _run(settings: Settings, clock: Clock) -> tuple[RunStatus, int]:
    from headrace.app import run_spec

    begun_ms = clock.monotonic_ms()
    progress = RunProgress(clock, until_end=True, label="card-spend")
    try:
        with progress:
            status = run_spec(_MODULE, settings, progress.update)
    except HeadraceError as error:
        show_error(error)
        raise typer.Exit(exit_code(error, running=True)) from None
    elapsed_ms = clock.monotonic_ms() - begun_ms
    if status.total is not None and status.records_in < status.total:
        note("stopped before the end: the results are those of the payments so far")
    return status, elapsed_ms


def _results(settings: Settings, clock: Clock) -> _Results:
    results = _Results()
    with opened_log(settings, clock) as log:
        for windows in _values(log, "spend-per-minute"):
            results.windows += len(windows)
            results.payments += sum(window["payments"] for window in windows)
            results.total += sum(window["total"] for window in windows)
            results.top = heapq.nlargest(_TOP, [*results.top, *windows], key=lambda window: window["total"])
        for alerts in _values(log, "alerts"):
            results.alerts += len(alerts)
            results.some_alerts += alerts[: _ALERTS - len(results.some_alerts)]
    return results


def _values(log: Any, topic: str) -> Iterator[list[dict[str, Any]]]:
    decode = Msgpack().decode_many
    for batch, _ in read_batches(log, partitions_of(log, topic), lambda log, partition: log.start_offset(partition)):
        if batch is None:
            return
        yield decode(batch.values)


def _show(results: _Results, count: int, status: RunStatus, fill_ms: int, run_ms: int) -> None:
    print()
    _show_windows("The most spent by one customer in one minute", results.top)
    if results.alerts:
        print()
        _show_windows(f"Alerts (more than 5,000 in a minute): {len(results.some_alerts)} of {results.alerts:,}",
                      results.some_alerts)  # fmt: skip
    repeated = max(0, status.records_in - status.late - results.payments)
    rows = [
        ["payments written", f"{count:,}", f"{rate(count, fill_ms)}, making them up included"],
        [
            "payments processed",
            f"{status.records_in:,}",
            f"{rate(status.records_in, run_ms)}, from start-up to the last checkpoint",
        ],
        ["counted in windows", f"{results.payments:,}", f"{results.total:,.2f} in all"],
        ["repeats dropped", f"{repeated:,}", "the same transaction_id within an hour"],
        ["late ones left out", f"{status.late:,}", "their window had closed"],
        ["windows", f"{results.windows:,}", "topic spend-per-minute"],
        ["alerts", f"{results.alerts:,}", "topic alerts"],
    ]
    print()
    show_table("Totals", ["what", "count", "note"], rows, right=["count"])


def _show_windows(title: str, windows: list[dict[str, Any]]) -> None:
    rows = [[str(w["key"]), moment(w["window_start"]), f"{w['total']:,.2f}", f"{w['payments']:,}"] for w in windows]
    show_table(title, ["customer", "minute from", "total", "payments"], rows, right=["total", "payments"])


def _show_next(place: Path) -> None:
    log, kept = shlex.quote(str(place / "log")), shlex.quote(str(place / "checkpoints"))
    print(f"\nEverything is in {place}: the log in log, checkpoints in checkpoints. Now try")
    for command in (
        f"headrace consume spend-per-minute --log {log} --limit 5",
        f"headrace consume alerts --log {log} --from -2",
        f"headrace topics --log {log}",
        f"headrace groups card-spend --log {log}",
        f"headrace checkpoints card-spend --checkpoints {kept}",
        f"headrace describe {_MODULE} --log {log}",
    ):
        print(f"  {command}")
