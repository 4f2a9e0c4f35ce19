"""Nexmark: check the topologies against DuckDB, measure them, or write the events to files.

``python -m bench.nexmark --check --events 100000 --rate 1000 --disorder-ms 500``
``python -m bench.nexmark --bench --events 1000000 --repeats 3``
``python -m bench.nexmark --write nexmark --events 1000000``, for ``headrace produce`` and tools that read files
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import duckdb
import msgspec

from bench.nexmark.comparing import differences, rows_of
from bench.nexmark.events import Nexmark, side_input
from bench.nexmark.queries import QUERIES, answer, load
from bench.nexmark.running import Result, fill, run_on_a_copy, run_query, written
from bench.nexmark.topologies.sources import DISORDER
from headrace.settings import duration_ms

TOPICS = ("persons", "auctions", "bids")


def write(site: Nexmark, folder: Path) -> dict[str, int]:
    """Write one file a topic into ``folder``, which is made if it is not there, and return how many lines each has."""
    folder.mkdir(parents=True, exist_ok=True)
    encoder = msgspec.json.Encoder()
    counts = dict.fromkeys(TOPICS, 0)
    for topic in TOPICS:
        (folder / f"{topic}.ndjson").write_bytes(b"")
    for batch in site.batches():
        lists: tuple[Sequence[object], ...] = batch
        for topic, events in zip(TOPICS, lists, strict=True):
            counts[topic] += len(events)
            with (folder / f"{topic}.ndjson").open("ab") as file:
                file.write(encoder.encode_lines(events))
    looked_up = side_input()
    (folder / "side_input.ndjson").write_bytes(encoder.encode_lines(looked_up))
    return {**counts, "side_input": len(looked_up)}


def check(site: Nexmark, numbers: Sequence[int]) -> bool:
    """Run each query over a log on disk, print a table, and return whether all rows are those of DuckDB."""
    print(f"{'query':<6}{'rows':>10}{'events/s':>12}  equal to DuckDB")
    equal = True
    with tempfile.TemporaryDirectory() as folder, duckdb.connect() as connection:
        log = Path(folder, "log")
        fill(log, site)
        load(connection, site.all())
        for number in numbers:
            result = run_query(number, log)
            found = rows_of(number, written(number, log))
            differing = differences(answer(connection, number), found)
            equal = equal and not differing
            print(f"q{number:<5}{len(found):>10,}{result.events_per_s:>12,.0f}  {'no' if differing else 'yes'}")
            for line in differing:
                print(f"      {line}", flush=True)
    return equal


def measure(site: Nexmark, numbers: Sequence[int], repeats: int) -> None:
    """Run each query so many times, in turn, each time in a process of its own, and print a table."""
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}; {site.count:,} events\n")
    found: dict[int, list[Result]] = {number: [] for number in numbers}
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        fill(log, site)
        for _ in range(repeats):
            for number in numbers:
                command = [sys.executable, "-m", "bench.nexmark", "--one", str(number), "--log", str(log)]
                process = subprocess.run(command, check=False, capture_output=True, text=True)
                if process.returncode:
                    raise SystemExit(f"query {number} failed:\n{process.stderr}")
                found[number].append(msgspec.json.decode(process.stdout.splitlines()[-1], type=Result))
    print("| query | events read | records written | events/s, median | spread | most memory |")
    print("| --- | --- | --- | --- | --- | --- |")
    for number, results in found.items():
        rates = [result.events_per_s for result in results]
        print(
            f"| {number} | {results[0].events:,} | {results[0].rows:,} | {statistics.median(rates):,.0f} "
            f"| {min(rates):,.0f} - {max(rates):,.0f} | {max(result.rss_mb for result in results):,.0f} MB |"
        )


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--check", action="store_true", help="compare what each query writes with DuckDB's answer")
    what.add_argument("--bench", action="store_true", help="measure each query, one worker, a process for each run")
    what.add_argument("--write", type=Path, metavar="DIR", help="write the events there as newline-delimited JSON")
    what.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--events", type=int, default=1_000_000, help="persons, auctions and bids together")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate", type=int, default=10_000, help="events per second of event time")
    parser.add_argument("--disorder-ms", type=int, default=0, help="how long after it happened an event may arrive")
    parser.add_argument("--query", type=int, nargs="*", default=[*QUERIES], choices=QUERIES, help="all if not given")
    parser.add_argument("--repeats", type=int, default=3, help="of every query when it is measured")
    parser.add_argument("--log", type=Path, help=argparse.SUPPRESS)
    return parser


def main() -> None:
    parser = arguments()
    given = parser.parse_args()
    site = Nexmark(count=given.events, seed=given.seed, rate=given.rate, disorder_ms=given.disorder_ms)
    if given.one is not None:
        print(msgspec.json.encode(run_on_a_copy(given.one, given.log)).decode())
    elif given.write is not None:
        for topic, count in write(site, given.write).items():
            print(f"{topic:<12}{count:>12,}")
    elif given.disorder_ms > duration_ms(DISORDER, "DISORDER"):
        parser.error(f"the topologies allow for {DISORDER} of disorder: what is later is late")
    elif given.bench:
        measure(site, given.query, given.repeats)
    elif not check(site, given.query):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
