"""What a worker sees of every way in which S3 fails, that nothing is lost, and that it goes on once S3 is mended."""

import threading
import time

import pytest

from headrace.checkpoint.checkpoints import Checkpoints
from headrace.checkpoint.restore import DamagedFilesError
from headrace.checkpoint.store import open_objects
from headrace.errors import FencedError, RetriableError, SettingsError
from tests.s3 import servers
from tests.s3.servers import Fault

TASK = "0-0"
BIG = bytes(range(256)) * (6 * 4096)
"""More than one part of an upload."""


def xml(code):
    return f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>told</Message></Error>'.encode()


@pytest.fixture
def snapshot(tmp_path):
    made = []

    def make(**files):
        made.append(tmp_path / f"snapshot{len(made)}")
        made[-1].mkdir()
        for name, data in files.items():
            (made[-1] / name).write_bytes(data)
        return made[-1]

    return make


@pytest.fixture
def script(proxy):
    return proxy[1]


@pytest.fixture
def checkpoints(proxy, prefix):
    return Checkpoints(servers.opened(proxy[0], prefix), "spend")


@pytest.fixture
def owner(checkpoints, snapshot, script):
    """Of a task with one checkpoint; S3 has worked so far."""
    claimed = checkpoints.claim(TASK, 1, None, 0)
    saved = checkpoints.save(claimed, snapshot(base=b"base", new=b"1"), {"in/0": 1}, {}, 1)
    script.clear()
    return saved


def restored(checkpoints, directory):
    newest = checkpoints.newest(TASK)
    checkpoints.restore(newest, directory)
    return newest.positions["in/0"], {path.name: path.read_bytes() for path in directory.iterdir()}


REFUSED = [403, 401]
PASSING = [500, 503, "cut before", "hang"]


@pytest.mark.parametrize("kind", PASSING)
@pytest.mark.parametrize("where", ["files/", "manifests/"])
def test_a_save_that_s3_fails_is_made_again(checkpoints, owner, snapshot, script, tmp_path, kind, where):
    script.faults.append(Fault("PUT|POST", where, kind, body=xml("SlowDown")))
    files = {"base": b"base", "new": b"2"}
    with pytest.raises(RetriableError, match="could not write"):
        checkpoints.save(owner, snapshot(**files), {"in/0": 2}, {}, 2)
    assert checkpoints.newest(TASK) == owner
    script.clear()
    saved = checkpoints.save(owner, snapshot(**files), {"in/0": 2}, {}, 3)
    # What went up before does not go up again.
    assert sum("files/" in path for _, path in script.seen) == (1 if where == "files/" else 0)
    checkpoints.prune(saved)
    assert restored(checkpoints, tmp_path / "store") == (2, files)


@pytest.mark.parametrize("kind", [500, 503, "cut before"])
def test_a_short_fault_is_not_noticed(checkpoints, owner, snapshot, script, tmp_path, kind):
    script.faults += [Fault("PUT", "files/", kind, times=1), Fault("GET", "list-type", kind, times=1)]
    saved = checkpoints.save(owner, snapshot(base=b"base", new=b"2"), {"in/0": 2}, {}, 2)
    script.faults.append(Fault("GET", "files/", kind, times=1))
    assert restored(checkpoints, tmp_path / "store")[0] == saved.positions["in/0"] == 2


@pytest.mark.parametrize("status", REFUSED)
def test_what_s3_forbids_is_a_setting_to_mend(checkpoints, owner, snapshot, script, tmp_path, status):
    script.faults.append(Fault(".*", "spend", status, body=xml("AccessDenied")))
    for call in (
        lambda: checkpoints.save(owner, snapshot(new=b"2"), {"in/0": 2}, {}, 2),
        lambda: checkpoints.newest(TASK),
        lambda: checkpoints.restore(owner, tmp_path / "store"),
        lambda: checkpoints.prune(owner),
    ):
        with pytest.raises(SettingsError, match="permission to read, write, list and delete"):
            call()
    script.clear()
    assert checkpoints.save(owner, snapshot(new=b"2"), {"in/0": 2}, {}, 3).number == owner.number + 1


def test_a_missing_bucket_is_not_an_empty_one(server, prefix):
    objects = open_objects(f"s3://nowhere/{prefix}", servers.environment(server))
    checkpoints = Checkpoints(objects, "spend")
    for call in (
        lambda: checkpoints.newest(TASK),
        lambda: checkpoints.claim(TASK, 1, None, 0),
        lambda: objects.read("a"),
        lambda: objects.names("a"),
        lambda: objects.create("a", b""),
    ):
        with pytest.raises(SettingsError, match=r"bucket of s3://nowhere/.* does not exist"):
            call()


def test_another_region_is_named(checkpoints, owner, script):
    script.faults.append(Fault(".*", "spend", 301))
    with pytest.raises(SettingsError, match="AWS_REGION"):
        checkpoints.newest(TASK)


def test_a_commit_whose_answer_is_lost_is_known_later(checkpoints, owner, snapshot, script, tmp_path):
    script.faults.append(Fault("PUT", "manifests/", "hang after", times=1))
    files = {"base": b"base", "new": b"2"}
    with pytest.raises(RetriableError):
        checkpoints.save(owner, snapshot(**files), {"in/0": 2}, {}, 2)
    files["new"] = b"3"
    saved = checkpoints.save(owner, snapshot(**files), {"in/0": 3}, {}, 3)
    assert saved.number == owner.number + 2
    checkpoints.prune(saved)
    assert restored(checkpoints, tmp_path / "store") == (3, files)


@pytest.mark.parametrize("kind", ["cut after", "error after"])
def test_a_condition_that_failed_because_of_the_first_attempt_is_no_other_owner(checkpoints, script, kind):
    """S3 wrote, the answer was lost or 500, and the client's own second attempt met 412."""
    checkpoints.claim("warm", 1, None, 0)
    script.faults.append(Fault("PUT", "manifests/", kind, times=1))
    claimed = checkpoints.claim(TASK, 1, None, 0)
    assert checkpoints.newest(TASK) == claimed
    assert sum(method == "PUT" and "0-0/manifests" in path for method, path in script.seen) == 2


@pytest.mark.parametrize("status", [409, 412])
def test_a_refused_condition_is_looked_into(checkpoints, owner, snapshot, script, status):
    """409 is what S3 says while another write to the name is under way, which may yet fail."""
    script.faults.append(Fault("PUT", "manifests/", status, times=1, body=xml("ConditionalRequestConflict")))
    with pytest.raises(RetriableError, match="neither be written nor read"):
        checkpoints.save(owner, snapshot(new=b"2"), {"in/0": 2}, {}, 2)
    assert checkpoints.save(owner, snapshot(new=b"2"), {"in/0": 2}, {}, 3).number == owner.number + 1


def test_an_owner_of_the_past_is_shut_out(server, checkpoints, owner, snapshot, prefix):
    later = Checkpoints(servers.opened(server, prefix), "spend")
    claimed = later.claim(TASK, 2, later.newest(TASK), 2)
    with pytest.raises(FencedError):
        checkpoints.save(owner, snapshot(new=b"9"), {"in/0": 9}, {}, 3)
    with pytest.raises(FencedError):
        checkpoints.prune(owner)
    assert later.sweep(claimed) == 1
    assert later.newest(TASK) == claimed


@pytest.mark.parametrize("kind", ["flip", 404])
def test_damage_on_the_way_is_found(checkpoints, owner, script, tmp_path, kind):
    script.faults.append(Fault("GET", "files/", kind, body=xml("NoSuchKey")))
    with pytest.raises(DamagedFilesError) as raised:
        checkpoints.restore(owner, tmp_path / "store")
    assert raised.value.objects <= {ref.object for ref in owner.files}
    assert not (tmp_path / "store").exists()
    script.clear()
    assert restored(checkpoints, tmp_path / "store")[0] == 1


def test_a_download_that_breaks_off_goes_on_or_is_a_passing_fault(checkpoints, owner, snapshot, script, tmp_path):
    saved = checkpoints.save(owner, snapshot(big=BIG), {"in/0": 2}, {}, 2)
    script.faults.append(Fault("GET", "files/", "truncate", times=1))
    try:
        checkpoints.restore(saved, tmp_path / "store")
    except RetriableError:
        checkpoints.restore(saved, tmp_path / "store")
    assert (tmp_path / "store" / "big").read_bytes() == BIG
    script.faults.append(Fault("GET", "files/", "truncate"))
    with pytest.raises(RetriableError):
        checkpoints.restore(saved, tmp_path / "again")
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize("kind", [503, "cut before", "cut after"])
def test_a_large_file_goes_up_in_parts_that_may_fail(checkpoints, owner, snapshot, script, tmp_path, kind):
    script.faults.append(Fault("PUT", "partNumber=2", kind, times=1))
    saved = checkpoints.save(owner, snapshot(big=BIG), {"in/0": 2}, {}, 2)
    assert sum("partNumber" in path for _, path in script.seen) >= 3
    assert restored(checkpoints, tmp_path / "store") == (2, {"big": BIG})
    script.clear()
    script.faults.append(Fault("PUT", "partNumber=2", 500))
    bigger = BIG + b"!"
    with pytest.raises(RetriableError):
        checkpoints.save(saved, snapshot(big=bigger), {"in/0": 3}, {}, 3)
    script.clear()
    checkpoints.save(saved, snapshot(big=bigger), {"in/0": 3}, {}, 3)
    assert restored(checkpoints, tmp_path / "again") == (3, {"big": bigger})


def test_a_prune_that_failed_half_way_is_ended_by_the_next(server, checkpoints, owner, snapshot, script, prefix):
    second = checkpoints.save(owner, snapshot(new=b"2"), {"in/0": 2}, {}, 2)
    third = checkpoints.save(second, snapshot(new=b"3"), {"in/0": 3}, {}, 3)
    script.faults.append(Fault("DELETE|POST", "files/|delete", 500))
    with pytest.raises(RetriableError):
        checkpoints.prune(third)
    script.clear()
    fourth = checkpoints.save(third, snapshot(new=b"4"), {"in/0": 4}, {}, 4)
    checkpoints.prune(fourth)
    named = {ref.object for manifest in checkpoints.manifests(TASK) for ref in manifest.files}
    assert set(servers.opened(server, prefix).list(f"spend/{TASK}/files")) == named


def test_silence_ends_within_the_budget(checkpoints, owner, script):
    script.faults.append(Fault(".*", "spend", "hang"))
    began = time.monotonic()
    with pytest.raises(RetriableError):
        checkpoints.newest(TASK)
    assert time.monotonic() - began < 10


def test_a_store_that_ignores_conditions_is_refused(proxy, script, prefix):
    script.faults.append(Fault("PUT", "headrace-checkpoints", "ignore condition"))
    checkpoints = Checkpoints(servers.opened(proxy[0], prefix), "spend")
    with pytest.raises(SettingsError, match="If-None-Match"):
        checkpoints.claim(TASK, 1, None, 0)
    script.clear()
    checkpoints.claim(TASK, 1, None, 0)


def test_many_workers_may_start_at_once(server, prefix):
    claimed = []

    def start(epoch):
        claimed.append(Checkpoints(servers.opened(server, prefix), "spend").claim(f"0-{epoch}", epoch, None, 0))

    threads = [threading.Thread(target=start, args=(epoch,)) for epoch in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(claimed) == 8
    assert servers.opened(server, prefix).names("") == ["spend"]
