"""Exactly-once with real processes, of which any is killed at any time, where no replay repeats what was made."""

from __future__ import annotations

import os
import random
import signal
import subprocess
from collections import Counter
from functools import partial
from pathlib import Path

import msgspec
import pytest

from headrace.record import ID_HEADER, JoinedBytes, Record, RecordBatch, TopicPartition
from tests.e2e.harness import Site, kill_all, wait_for, workers_of

COUNT = 4_000
PARTITIONS = 3
COMMAND = ("run", "tests.e2e.uncertain", "--workers", "2", "--guarantee", "exactly-once")
SMALL = {"HEADRACE_CHECKPOINT_INTERVAL": "100ms", "HEADRACE_BATCH_RECORDS": "40"}
"""Small steps and many checkpoints, so that a kill hits something."""


def fill(site: Site, first: int, count: int) -> None:
    log = site.open()
    log.create_topic("questions", PARTITIONS)
    for partition in range(PARTITIONS):
        ids = range(first + partition, first + count, PARTITIONS)
        values = JoinedBytes.of([msgspec.msgpack.encode({"id": n, "at": n}) for n in ids])
        log.append(TopicPartition("questions", partition), RecordBatch(list(ids), [None] * len(ids), values))
    log.flush()
    log.close()


def by_id(records: list[Record]) -> list[Record]:
    """Return records without repeats; those with one id must be alike."""
    found: dict[bytes, Record] = {}
    for record in records:
        first = found.setdefault(dict(record.headers)[ID_HEADER], record)
        assert (first.key, first.value) == (record.key, record.value), "one id, two records"
    return list(found.values())


def check(site: Site, count: int) -> int:
    """Check that every question has one answer, and every answer was counted once; return how many were repeated."""
    written = site.read("answers")
    answers = by_id(written)
    assert sorted(record.value["id"] for record in answers) == list(range(count))
    times: dict[str, list[int]] = {}
    for record in by_id(site.read("times")):
        times.setdefault(record.key, []).append(record.value["times"])
    given = Counter(record.value["answer"] for record in answers)
    assert {answer: sorted(counts) for answer, counts in times.items()} == {
        answer: list(range(1, n + 1)) for answer, n in given.items()
    }
    return len(written) - len(answers)


def asked(site: Site) -> int:
    """Return how many questions have been read, by the last checkpoints."""
    log = site.open()
    try:
        found = log.group("uncertain").committed().items()
        return sum(position.offset for partition, position in found if partition.topic == "questions")
    finally:
        log.close()


def reached(site: Site, goal: int, process: subprocess.Popen[str]) -> bool:
    return asked(site) >= goal or process.poll() is not None


def test_every_record_counts_once_though_its_answer_is_another_each_time(tmp_path: Path) -> None:
    site = Site(tmp_path)
    fill(site, 0, COUNT)
    rng = random.Random(5)
    kills = 0
    process = site.start(*COMMAND, **SMALL)
    try:
        while (done := asked(site)) < COUNT:
            wait_for(partial(reached, site, min(done + rng.randrange(1, 1_500), COUNT), process))
            if process.poll() is not None:
                pytest.fail(process.communicate()[0])
            if rng.random() < 0.5:
                kill_all(process)
                process = site.start(*COMMAND, **SMALL)
            elif kills < 5:  # a supervisor gives up when six workers die within a minute
                os.kill(rng.choice(wait_for(partial(workers_of, process))), signal.SIGKILL)
            else:
                process.send_signal(signal.SIGTERM)
                output, _ = process.communicate(timeout=60)
                assert process.returncode == 0, output
                process = site.start(*COMMAND, **SMALL)
            kills += 1
    finally:
        kill_all(process)
    assert kills > 1
    site.run(*COMMAND, "--until-end")
    check(site, COUNT)
    fill(site, COUNT, 300)
    site.run(*COMMAND, "--until-end")
    check(site, COUNT + 300)


def test_a_run_to_the_end_writes_everything_once(tmp_path: Path) -> None:
    site = Site(tmp_path)
    fill(site, 0, 3_000)
    site.run("run", "tests.e2e.uncertain", "--until-end", HEADRACE_GUARANTEE="exactly-once")
    assert check(site, 3_000) == 0
