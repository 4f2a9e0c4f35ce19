"""Classes whose first values come in several threads at once."""

from __future__ import annotations

import subprocess
import sys

import pytest

RACE = """
import sys
import threading

sys.setswitchinterval(1e-6)
{definition}
start = threading.Barrier(8)


def first():
    start.wait()
    {decode}


threads = [threading.Thread(target=first) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""
"""Without preparation it crashes in four of ten runs."""
RUNS = 8

MANIFESTS = """
from headrace.checkpoint.manifest import FileRef, Manifest, decode, encode

data = encode(Manifest("spend", "0-3", 1, 1, 0, (FileRef("a", "spend/0-3/files/0000000001-" + 32 * "0", 1, "x"),)))
"""
META = """
import msgpack
from headrace.runtime.tasks.meta import read_meta
from headrace.topology.plan import TaskId

task = TaskId("spend", 0)
data = msgpack.packb({"format": 3, "task": str(task), "shapes": {}, "watermark": 0})
"""


@pytest.mark.parametrize(
    ("definition", "decode"), [(MANIFESTS, "decode(data, 'manifest')"), (META, "read_meta(data, task)")]
)
def test_the_first_values_come_together(definition: str, decode: str) -> None:
    code = RACE.format(definition=definition, decode=decode)
    for _ in range(RUNS):  # one after the other: where they compete, threads are seldom in each other's way
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert (run.returncode, run.stderr) == (0, "")
