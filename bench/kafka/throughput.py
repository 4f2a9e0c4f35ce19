"""How many events a second one worker takes from a Kafka topic to another, and what the CPU is spent on.

The jobs of ``bench.card_spend``, on a broker that this starts (or that HEADRACE_TEST_KAFKA names: it is emptied). Every
run has a process of its own; runs on Kafka and on the embedded log are interleaved. CPU time is that of the client's
thread, that of the processing thread in reading (taking records apart) and sending (putting them together), in the
rest of the job, that of all other threads (RocksDB, checkpoints), and that of the broker's process.

``python -m bench.kafka.throughput --records 1000000 --repeats 3``
``python -m bench.kafka.throughput --records 500000 --profile keyed``, to see which functions take it
"""

from __future__ import annotations

import argparse
import cProfile
import io
import json
import os
import platform
import pstats
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, cast

from bench.card_spend import BATCH, FORMS, fill, fill_directory
from bench.kafka.metering import CLIENT_THREAD, Meter, MeteredLog, broker_process, burnt, client_cpu_s
from headrace import run
from headrace.clock import SystemClock
from headrace.log.api import Log
from headrace.log.opening import open_log
from headrace.settings import Settings
from tests.kafka.broker import LONG_LIFE, broker
from tests.kafka.clean import wipe

PARTS = ("client", "reading", "sending", "job", "others")
_TOP = 30
_TIMER = time.thread_time


def measure(form: str, url: str, records: int) -> dict[str, float]:
    """Run one form in this process, which is there for nothing else; CPU in microseconds an event."""
    meter = Meter()
    with tempfile.TemporaryDirectory() as folder:
        if not url.startswith("kafka://"):
            url = str(shutil.copytree(url, f"{folder}/log"))
        cpu, main = time.process_time(), time.thread_time()
        began = time.perf_counter()
        with closing(open_log(Settings(log=url), SystemClock())) as log:
            status = run(
                FORMS[form](), log=cast(Log, MeteredLog(log, meter)), checkpoints=f"{folder}/checkpoints",
                state_dir=f"{folder}/state", group=f"{form}-{uuid.uuid4()}", until_end=True, metrics_port=0,
            )  # fmt: skip
            client = client_cpu_s()
        took = time.perf_counter() - began
        cpu, main = time.process_time() - cpu, time.thread_time() - main
    assert status.records_in == records, status
    spent = {
        "client": client, "reading": meter.read_s, "sending": meter.send_s,
        "job": main - meter.read_s - meter.send_s, "others": cpu - main - client,
    }  # fmt: skip
    return {"events_per_s": records / took, "took_s": took} | {name: spent[name] / records * 1e6 for name in PARTS}


@contextmanager
def profiled() -> Iterator[dict[str, cProfile.Profile]]:
    """Profile the calling thread and the client's, by CPU time."""
    own, client = cProfile.Profile(_TIMER), cProfile.Profile(_TIMER)

    def begin(*_: Any) -> None:
        if threading.current_thread().name == CLIENT_THREAD:
            client.enable()
        else:
            sys.setprofile(None)

    threading.setprofile(begin)
    own.enable()
    try:
        yield {"processing thread": own, "client's thread": client}
    finally:
        own.disable()
        threading.setprofile(None)


def profile(form: str, url: str, records: int) -> str:
    """Return which functions take the CPU; the figures include what profiling itself takes."""
    told = io.StringIO()
    with profiled() as profiles:
        measure(form, url, records)
    for name, taken in profiles.items():
        told.write(f"\n{form}, {name}\n")
        pstats.Stats(taken, stream=told).strip_dirs().sort_stats("tottime").print_stats(_TOP)
    return told.getvalue()


def empty(url: str) -> None:
    """Delete what an earlier run has written."""
    with closing(open_log(Settings(log=url), SystemClock())) as log:
        for topic in log.topics():
            if topic != "payments":
                log.delete_topic(topic)


def once(form: str, url: str, records: int, option: str = "--one") -> str:
    """Run one form in a process of its own, on a log that has nothing but the payments; return what it said."""
    if url.startswith("kafka://"):
        empty(url)
    command = [sys.executable, "-m", "bench.kafka.throughput", option, form, "--log", url, "--records", str(records)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def compare(
    address: str, directory: Path, forms: list[str], records: int, repeats: int, batch_records: int = BATCH
) -> list[str]:
    """Run the forms on both logs in turns, and return the rows of a table."""
    urls = {"Kafka": f"kafka://{address}", "embedded": str(directory)}
    wipe(address)
    with closing(open_log(Settings(log=urls["Kafka"]), SystemClock())) as log:
        print(f"filling Kafka: {fill(log, records, batch_records):,.0f} records/s")
    print(f"filling the embedded log: {fill_directory(directory, records):,.0f} records/s", flush=True)
    process = broker_process()
    found: dict[tuple[str, str], list[dict[str, float]]] = {(form, log): [] for form in forms for log in urls}
    for _ in range(repeats):
        for (form, where), results in found.items():
            with burnt(process) as broker_s:
                result = json.loads(once(form, urls[where], records).splitlines()[-1])
            if where == "Kafka" and broker_s:
                result["broker"] = broker_s[0] / records * 1e6
            results.append(result)
            parts = ", ".join(f"{part} {result[part]:.2f}" for part in (*PARTS, "broker") if part in result)
            print(f"  {form}, {where}: {result['events_per_s']:,.0f} events/s; us/event: {parts}", flush=True)
    return [row(form, where, results) for (form, where), results in found.items()]


def row(form: str, where: str, results: list[dict[str, float]]) -> str:
    """Return a row of the table: medians, and what share of the worker's CPU time the log has."""
    rates = [result["events_per_s"] for result in results]
    spent = {part: statistics.median(result[part] for result in results) for part in results[0]}
    share = (spent["client"] + spent["reading"] + spent["sending"]) / sum(spent[part] for part in PARTS)
    columns = [f"{spent[part]:.2f}" if part in spent else "" for part in (*PARTS, "broker")]
    return (
        f"| {form}, {where} | {statistics.median(rates):,.0f} | {min(rates):,.0f} - {max(rates):,.0f} "
        f"| {' | '.join(columns)} | {share:.0%} |"
    )


HEADING = (
    "| job and log | events/s, median | spread | client's thread | reading | sending | job | other threads | broker "
    "| share of the log |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch", type=int, default=BATCH, help="payments in each of Kafka's record batches")
    parser.add_argument("--forms", nargs="*", default=["keyed", "repartitioned"], choices=FORMS)
    parser.add_argument("--profile", choices=FORMS, help="run this form once and say which functions take the time")
    parser.add_argument("--one", choices=FORMS, help=argparse.SUPPRESS)
    parser.add_argument("--profile-one", choices=FORMS, help=argparse.SUPPRESS)
    parser.add_argument("--log", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given.one, given.log, given.records)))
        return
    if given.profile_one:
        print(profile(given.profile_one, given.log, given.records))
        return
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}; {given.records:,} payments"
    )
    with tempfile.TemporaryDirectory() as folder, broker(Path(folder), LONG_LIFE) as address:
        if given.profile:
            wipe(address)
            url = f"kafka://{address}"
            with closing(open_log(Settings(log=url), SystemClock())) as log:
                fill(log, given.records, given.batch)
            print(once(given.profile, url, given.records, "--profile-one"))
            return
        rows = compare(address, Path(folder, "log"), given.forms, given.records, given.repeats, given.batch)
    print("\nCPU in microseconds an event:\n")
    print("\n".join([HEADING, *rows]))


if __name__ == "__main__":
    main()
