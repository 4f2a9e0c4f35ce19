"""A directory that is full or may not be written any more; in a process of its own, whose rights and limits go."""

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from headrace.checkpoint.checkpoints import Checkpoints
from headrace.checkpoint.store import open_objects

SCRIPT = """
import os, resource, sys
from pathlib import Path
from headrace.checkpoint.checkpoints import Checkpoints
from headrace.checkpoint.store import open_objects
from headrace.errors import RetriableError, SettingsError

folder, how = Path(sys.argv[1]), sys.argv[2]
place = folder / "checkpoints"
checkpoints = Checkpoints(open_objects(str(place), {}), "t")

def snapshot(turn):
    directory = folder / f"s{turn}"
    directory.mkdir()
    (directory / "base").write_bytes(b"b" * 200_000)
    (directory / "new").write_bytes(b"%d" % turn * 150_000)
    return directory

first = checkpoints.save(checkpoints.claim("0-0", 1, None, 0), snapshot(1), {"in/0": 1}, {}, 1)
following = snapshot(2)

def fails(kind, told):
    try:
        checkpoints.save(first, following, {"in/0": 2}, {}, 2)
    except kind as error:
        assert told in str(error), str(error)
    else:
        raise AssertionError("it was saved")

inside = [path for path in place.rglob("*") if path.is_dir()]
if how == "full":
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    fails(RetriableError, "could not write")
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
else:
    for path in inside:
        path.chmod(0o555)
    root = os.getuid() == 0  # who may write everywhere
    if root:
        os.seteuid(65534)
    fails(SettingsError, "permission to read, write, list and delete")
    if root:
        os.seteuid(0)
    for path in inside:
        path.chmod(0o755)

assert checkpoints.newest("0-0") == first
checkpoints.restore(first, folder / "old")
saved = checkpoints.save(first, following, {"in/0": 2}, {}, 3)
checkpoints.prune(saved)
checkpoints.restore(saved, folder / "new")
assert (folder / "new" / "new").read_bytes() == b"2" * 150_000
named = {ref.object for one in checkpoints.manifests("0-0") for ref in one.files}
there = {str(path.relative_to(place)) for path in (place / "t" / "0-0" / "files").iterdir()}
assert there == named, there - named
"""


@pytest.mark.parametrize("how", ["full", "forbidden"])
def test_nothing_is_lost_and_it_goes_on_once_mended(how):
    # Not in pytest's own folder, which is closed to other users.
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        command = [sys.executable, "-c", SCRIPT, folder, how]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert ran.returncode == 0, ran.stderr


def test_what_a_kill_leaves_of_an_upload_is_swept(tmp_path):
    objects = open_objects(str(tmp_path), {})
    checkpoints = Checkpoints(objects, "t")
    claimed = checkpoints.claim("0-0", 1, None, 0)
    half = tmp_path / "t" / "0-0" / "files" / ("0000000001-" + "0" * 32 + "#1")
    half.parent.mkdir()
    half.write_bytes(b"half")
    assert checkpoints.sweep(claimed) == 0, "it may be under way"
    assert checkpoints.sweep(checkpoints.claim("0-0", 2, claimed, 1)) == 1
    assert not half.exists()
