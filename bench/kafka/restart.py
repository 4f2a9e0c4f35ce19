"""How long each task pauses while all workers are restarted, one after the other, on Kafka and under a steady load.

The job and the load of ``bench.handoff``. Every worker is stopped by SIGTERM, started again as soon as its process has
ended, and given time to take back its share before the next one's turn comes. A task moves at least twice when its
worker is restarted. For each task: how often it moved, the longest gap between the last record on one worker and the
first on the next one, and the longest time that any record waited, moved or not.

``python -m bench.kafka.restart --state-mb 1024 --workers 3``
"""

from __future__ import annotations

import argparse
import shutil
import signal
import statistics
import subprocess
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from bench.handoff import Bench, Load, wait
from headrace.checkpoint.checkpoints import Checkpoints
from headrace.checkpoint.store import open_objects
from headrace.record import TopicPartition
from tests.kafka.broker import LONG_LIFE, broker
from tests.kafka.clean import wipe


@dataclass(frozen=True)
class Pause:
    """What a task went through; milliseconds."""

    task: str
    state_mb: float
    gaps: list[int]
    """One for each time it moved."""
    waited: int


@dataclass(frozen=True)
class Restart:
    """How long one worker took; seconds."""

    ended: float
    """From SIGTERM to the end of its process."""
    shared: float
    """From its start until all workers have equal shares again."""


def roll(bench: Bench, workers: list[subprocess.Popen[bytes]], calm_s: float, *, keep_disk: bool) -> list[Restart]:
    """Restart every worker, one after the other; those that take their places stand in ``workers`` afterwards."""
    done = []
    for number, worker in enumerate(workers):
        begun = time.monotonic()
        worker.send_signal(signal.SIGTERM)
        worker.wait(60)
        ended = time.monotonic()
        disk = {"HEADRACE_STATE_DIR": str(bench.folder / f"state-{number + 1}")} if keep_disk else {}
        workers[number] = bench.start(**disk)
        wait(lambda: bench.shared({worker.pid for worker in workers}), "the tasks do not come back")
        done.append(Restart(ended - begun, time.monotonic() - ended))
        time.sleep(calm_s)
    return done


def pauses(bench: Bench, outputs: list[dict[str, Any]], sent: int) -> list[Pause]:
    """Return what each task went through while ``sent`` records of each were processed."""
    checkpoints = Checkpoints(open_objects(str(bench.folder / "checkpoints"), {}), "handoff")
    rows_of: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for row in outputs:
        if row["n"] >= 0:
            rows_of[row["p"]].append(row)
    found = []
    for partition, rows in sorted(rows_of.items()):
        rows.sort(key=lambda row: int(row["n"]))
        if [row["n"] for row in rows] != list(range(sent)):
            raise SystemExit(f"of {sent} records of partition {partition}, {len(rows)} were processed")
        pairs = pairwise(rows)
        gaps = [after["done"] - before["done"] for before, after in pairs if before["pid"] != after["pid"]]
        task = f"in-{partition}"
        manifest = checkpoints.newest(task)
        size_mb = manifest.size_bytes / 1024**2 if manifest is not None else 0
        found.append(Pause(task, size_mb, gaps, max(row["done"] - row["sent"] for row in rows)))
    return found


def measure(
    folder: Path, log: str, state_mb: int, workers: int, *, each: int = 2, calm_s: float = 2, keep_disk: bool = True,
    settings: dict[str, str] | None = None,
) -> tuple[list[Pause], list[Restart]]:  # fmt: skip
    """Fill the state of ``each`` tasks a worker, restart all workers, and return what the tasks went through."""
    bench = Bench(folder, log, workers * each, settings or {})
    try:
        running = [bench.start() for _ in range(workers)]
        keys = bench.fill(state_mb)
        bench.settle(*running)
        offset = bench.log.end_offset(TopicPartition("out", 0))
        with Load(bench, keys) as load:
            time.sleep(calm_s)
            restarts = roll(bench, running, calm_s, keep_disk=keep_disk)
        bench.log.flush()
        wait(lambda: bench.lag() == 0, "the workers do not catch up")
        found = pauses(bench, bench.outputs(offset), load.sent)
        bench.stop()
        return found, restarts
    finally:
        bench.kill()
        bench.log.close()


def table(found: list[Pause]) -> str:
    """Return the table of tasks."""
    lines = ["| task | state | moves | longest gap between workers | longest wait of a record |", "|-|-|-|-|-|"]
    for pause in found:
        gap = f"{max(pause.gaps)} ms" if pause.gaps else "-"
        lines.append(f"| {pause.task} | {pause.state_mb:.0f} MB | {len(pause.gaps)} | {gap} | {pause.waited} ms |")
    gaps = [gap for pause in found for gap in pause.gaps] or [0]
    waited = [pause.waited for pause in found]
    told = [f"{max(times)} ms, median {statistics.median(times):.0f} ms" for times in (gaps, waited)]
    moves = sum(len(pause.gaps) for pause in found)
    lines.append(f"| all | {sum(pause.state_mb for pause in found):.0f} MB | {moves} | {told[0]} | {told[1]} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--state-mb", type=int, default=1024)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--each", type=int, default=2, help="tasks a worker")
    parser.add_argument("--checkpoint-interval", default="10s")
    parser.add_argument("--calm-s", type=float, default=5, help="how long the load goes on after each restart")
    parser.add_argument("--fresh-disk", action="store_true", help="start each worker with nothing on its disk")
    parser.add_argument("--dir", type=Path, help="where; else a temporary directory")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="restart-", dir=options.dir))
    (folder / "kafka").mkdir()
    try:
        with broker(folder / "kafka", LONG_LIFE) as address:
            wipe(address)
            found, restarts = measure(
                folder, f"kafka://{address}", options.state_mb, options.workers, each=options.each,
                calm_s=options.calm_s, keep_disk=not options.fresh_disk,
                settings={"HEADRACE_CHECKPOINT_INTERVAL": options.checkpoint_interval},
            )  # fmt: skip
        disk = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1024**3
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(table(found))
    for number, restart in enumerate(restarts, 1):
        print(f"worker {number}: ended {restart.ended:.1f} s after SIGTERM, equal shares {restart.shared:.1f} s later")
    print(f"{disk:.1f} GB of disk, with Kafka's and what several copies share counted for each")


if __name__ == "__main__":
    main()
