"""Stored state that makes no sense is damage: never the fault of a record, no crash, and no endless loop."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path
from random import Random

import pytest
from hypothesis import given

from headrace.errors import CorruptError, FatalError, HeadraceError, InvalidError, RecordError
from headrace.log.embedded.format import BatchEncoder
from headrace.record import JoinedBytes, Origin, Progress, RecordBatch, TopicPartition, control_batch
from headrace.runtime.tasks.meta import META_KEY, read_meta
from headrace.runtime.tasks.outbox import decode_append, encode_append
from headrace.state import keys
from headrace.state.memory import decode_snapshot, encode_snapshot
from headrace.testing.driver import TopologyTestDriver
from headrace.topology.plan import TaskId
from tests.fuzz.damage import FACTOR, damaged, examples, outcome, seeds, within
from tests.operators.compositions import Recipe, Step, topology_of

TWO_SOURCES = ("join", "as_of", "table_join", "lookup", "foreign")
KINDS = (
    "deduplicate", "window", "in_order", "process", "join", "as_of", "running", "table_join", "lookup", "foreign",
    "key_by",
)  # fmt: skip


class Run:
    """A topology of one step, into whose stored state damage comes half-way."""

    def __init__(self, kind: str, rng: Random, cache_bytes: int) -> None:
        self.rng = rng
        step = Step(kind, 0, 1, rng.randrange(72), rng.randrange(72))
        self.recipe = Recipe((step,), rng.choice([1, 100]), "skip", 2 if kind in TWO_SOURCES else 1)
        self.driver = TopologyTestDriver(topology_of(self.recipe), cache_bytes=cache_bytes)
        self.number = 0
        self.send(15, 0)
        self.driver.checkpoint()

    def send(self, count: int, base: int) -> None:
        for source in range(self.recipe.sources):
            values = []
            for _ in range(count):
                at = (base + self.rng.randrange(60) + 100) * self.recipe.unit
                values.append({"k": self.rng.choice("abc"), "n": self.number, "at": at})
                self.number += 1
            self.driver.send_many(f"in-{source}", values)

    def go_on(self) -> None:
        with within(10):
            self.driver.crash()
            self.send(10, 30)
            self.send(10, 90)
            self.driver.end_input()

    def stored(self) -> list[tuple[dict[bytes, bytes], bytes]]:
        return [(rows, key) for rows in self.driver._checkpoints.values() for key in sorted(rows)]


@pytest.mark.parametrize("kind", KINDS)
@examples(40)
@given(rng=seeds)
def test_damaged_rows_end_in_an_error_of_the_right_kind_or_in_nothing(kind: str, rng: Random) -> None:
    run = Run(kind, rng, rng.choice([0, 2**20]))
    rows, key = rng.choice(run.stored())
    values, row_keys = list(rows.values()), [other[2:] for other in rows]
    if rng.random() < 0.8:
        rows[key] = damaged(rng, rows[key], values)
    else:
        rows[key[:2] + damaged(rng, key[2:], row_keys)] = rows.pop(key)
    try:
        run.go_on()
    except RecordError:
        raise
    except HeadraceError:
        pass
    # What hides in untyped values is found by nobody but the user's code, which may fail on it.


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"key_by"}))
@pytest.mark.parametrize("bad", [b"\xc1\xc1", b"\x91" * 5000, b"\xdd\xff\xff\xff\xff"], ids=["none", "deep", "huge"])
def test_no_record_is_skipped_because_of_a_row_that_makes_no_sense(kind: str, bad: bytes) -> None:
    for seed in range(3):
        run = Run(kind, Random(seed), 0)
        run.driver.skipped.clear()
        found = [(rows, key) for rows, key in run.stored() if rows[key] and key != META_KEY]
        if not found:
            continue  # a table of a topic keeps nothing by itself
        for rows, key in found:
            rows[key] = bad
        with pytest.raises(CorruptError) as caught:
            run.go_on()
        assert "the stored state of " in caught.value.message
        assert "-1" in caught.value.message or "joined" in caught.value.message, "the step is named"
        assert "--checkpoints" in caught.value.remedy
        assert not run.driver.skipped


@examples(400)
@given(seeds)
def test_what_a_task_keeps_beside_is_whole_or_damaged(rng: Random) -> None:
    run = _KEPT
    data = damaged(rng, rng.choice(run), run)
    _, told = outcome(lambda: read_meta(data, TaskId("in-0", 0)), CorruptError, InvalidError)
    assert not told or "in-0-0" in told


def _kept() -> list[bytes]:
    runs = [Run(kind, Random(1), 0) for kind in ("window", "process", "foreign")]
    return [rows[META_KEY] for run in runs for rows in run.driver._checkpoints.values()]


_KEPT = _kept()


@examples(500)
@given(seeds)
def test_a_snapshot_in_memory_is_what_was_written_or_damaged(rng: Random) -> None:
    rows = [{b"%d" % n: rng.randbytes(rng.randrange(30)) for n in range(size)} for size in (0, 1, 9)]
    good = [encode_snapshot(sorted(some.items())) for some in rows]
    data = damaged(rng, rng.choice(good), good)
    with within(5):
        found, told = outcome(lambda: decode_snapshot(data, "here"), CorruptError, FatalError)
    assert "here" in told if told else found in rows


@examples(300)
@given(seeds)
def test_parts_of_keys_are_read_or_damaged(rng: Random) -> None:
    good = [keys.encode_bytes(b"a\0b") + keys.encode_time(77), keys.encode_time(2**64 - 1), b""]
    data = damaged(rng, rng.choice(good), good)
    for read in (lambda: keys.decode_time(data), lambda: keys.decode_bytes(data), lambda: keys.decode_times([data])):
        try:
            read()
        except CorruptError:
            pass


ROCKSDB = Path(__file__).with_name("rocksdb_damage.py")


def test_damaged_rocksdb_files_never_end_the_process() -> None:
    """In a process of its own, with little memory: another process sees whether it crashes, hangs or grows."""
    command = [sys.executable, str(ROCKSDB), "7", str(int(60 * FACTOR))]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60 + 15 * FACTOR, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.strip().endswith("examples")


def test_what_nothing_closes_is_damage_and_no_endless_loop() -> None:
    for seed in range(40):
        run = Run("window", Random(seed), 0)
        ((rows, _), *_) = run.stored()
        slots = [key for key, value in rows.items() if not value]
        if not slots:
            continue
        for key in slots:
            del rows[key]
        with within(10):
            run.driver.crash()
            _, told = outcome(run.driver.end_input, CorruptError)
        if "something is open that nothing closes" in told:
            return
    pytest.fail("no kind of window has an agenda any more")


@examples(400)
@given(seeds)
def test_a_row_of_an_outbox_can_be_appended_or_is_damaged(rng: Random) -> None:
    batches = [
        RecordBatch([5, 9], [b"k", None], JoinedBytes.of([b"v", None]), [(("a", b"1"),), ()], Origin("t/s/0", [1, 2])),
        RecordBatch([7] * 20, [b"k"] * 20, JoinedBytes.of([b"value"] * 20)), control_batch(Progress(5, False, -1), 9),
    ]  # fmt: skip
    good = [encode_append((TopicPartition("out", 0), batch)) for batch in batches]
    with within(5):
        found, _ = outcome(partial(decode_append, damaged(rng, rng.choice(good), good)), CorruptError)
        if found is not None and len(found[1]):
            BatchEncoder().encode(found[1])
