"""What checkpoints cost: the keyed job with one every ten seconds against the same job with the last one only.

The runs are interleaved, each in a process of its own. The log must be long enough for several checkpoints.

``python -m bench.checkpoint_cost --records 20000000 --repeats 3``
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.card_spend import FORMS, fill_directory
from headrace import run
from headrace.checkpoint.checkpoints import Checkpoints
from headrace.checkpoint.store import open_objects

NEVER_MS = 24 * 3600 * 1000


def measure(form: str, log: Path, records: int, interval_ms: int) -> dict[str, float]:
    """Run one form in this process, which is there for nothing else."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "log")
        shutil.copytree(log, copy)
        topology = FORMS[form]()
        began = time.perf_counter()
        status = run(
            topology, log=str(copy), checkpoints=f"{folder}/checkpoints", state_dir=f"{folder}/state",
            checkpoint_interval_ms=interval_ms, until_end=True, metrics_port=0,
        )  # fmt: skip
        took = time.perf_counter() - began
        saved = Checkpoints(open_objects(f"{folder}/checkpoints", {}), topology.name)
        newest = [saved.newest(task) for task in saved.tasks()]
    assert status.records_in == records, status
    return {"events_per_s": records / took, "checkpoints": sum(found.number for found in newest if found)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--records", type=int, default=20_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--form", default="keyed", choices=list(FORMS))
    parser.add_argument("--interval-ms", type=int, default=10_000)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--log", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given.form, given.log, given.records, given.one)))
        return
    found: dict[int, list[float]] = {NEVER_MS: [], given.interval_ms: []}
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        print(f"filling the log: {fill_directory(log, given.records):,.0f} records/s", flush=True)
        for _ in range(given.repeats):
            for interval_ms, rates in found.items():
                command = [sys.executable, "-m", "bench.checkpoint_cost", "--one", str(interval_ms), "--log", str(log)]
                output = subprocess.run(
                    [*command, "--records", str(given.records), "--form", given.form],
                    check=True, capture_output=True, text=True,
                )  # fmt: skip
                result = json.loads(output.stdout.splitlines()[-1])
                rates.append(result["events_per_s"])
                every = "the last one only" if interval_ms == NEVER_MS else f"every {interval_ms / 1000:g} s"
                print(f"  {every}: {rates[-1]:,.0f} events/s, {result['checkpoints']} manifests", flush=True)
    without, with_them = found.values()
    ratios = [much / few for few, much in zip(without, with_them, strict=True)]
    print(
        f"medians {statistics.median(without):,.0f} and {statistics.median(with_them):,.0f} events/s; with them "
        f"{statistics.median(ratios):.3f} of the throughput (pairs: {', '.join(f'{ratio:.3f}' for ratio in ratios)})"
    )


if __name__ == "__main__":
    main()
