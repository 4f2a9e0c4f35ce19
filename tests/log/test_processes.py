"""Several processes on one embedded log, some of which are killed; and disks that are full or forbidden."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from headrace.clock import SystemClock
from headrace.errors import CorruptError, FencedError, InvalidError, RetriableError
from headrace.log.api import Committed, Lease, TopicConfig
from headrace.log.embedded.coordinator import SqliteGroupStore
from headrace.log.embedded.log import EmbeddedLog
from headrace.log.groups import copied, retired
from headrace.record import TopicPartition
from headrace.testing.conformance.log_support import StillClock, assign_evenly, make_batch, read_all, values_of

PART = TopicPartition("payments", 0)
DEADLINE_S = 20
UNITS: dict[str, list[TopicPartition]] = {"a": [], "b": []}

PRELUDE = """
import os, resource, signal, sys
from pathlib import Path
from headrace.clock import SystemClock
from headrace.errors import RetriableError
from headrace.log.api import TopicConfig
from headrace.log.embedded.log import EmbeddedLog
from headrace.record import TopicPartition
from headrace.testing.conformance.log_support import assign_evenly, make_batch, read_all, values_of
PART = TopicPartition("payments", 0)
log = EmbeddedLog(Path(sys.argv[1]), clock=SystemClock(), fsync="never")
def say(text):
    print(text, flush=True)
"""


@contextmanager
def process(directory: Path, script: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run ``script`` in a process of its own, which is killed when the block ends."""
    command = [sys.executable, "-c", PRELUDE + script, str(directory), *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        try:
            yield child
        finally:
            child.kill()


def line(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


def finish(child: subprocess.Popen[str]) -> None:
    assert child.wait(DEADLINE_S) == 0


@pytest.fixture
def log(tmp_path: Path) -> Iterator[EmbeddedLog]:
    log = EmbeddedLog(tmp_path / "log", clock=SystemClock(), fsync="never")
    log.create_topic("payments", 1, TopicConfig(segment_bytes=20_000))
    yield log
    log.close()


def all_values(log: EmbeddedLog) -> list[bytes | None]:
    reader = log.reader(PART, 0)
    batches = read_all(reader)
    reader.close()
    assert [offset for batch in batches for offset in batch.offsets] == list(range(log.end_offset(PART)))
    return values_of(batches)


APPEND = """
say("ready")
sys.stdin.readline()
for i in range(int(sys.argv[3])):
    log.append(PART, make_batch([f"{sys.argv[2]} {i} {j}".encode() for j in range(5)]))
"""


def test_appenders_in_several_processes_take_turns(log: EmbeddedLog, tmp_path: Path) -> None:
    with (
        process(tmp_path / "log", APPEND, "p", "150") as one,
        process(tmp_path / "log", APPEND, "q", "150") as two,
        process(tmp_path / "log", APPEND, "r", "150") as three,
    ):
        children = (one, two, three)
        for child in children:
            assert line(child) == "ready"
        for child in children:
            assert child.stdin is not None
            child.stdin.write("go\n")
            child.stdin.flush()
        reader = log.reader(PART, 0)
        followed: list[bytes | None] = []
        while len(followed) < 3 * 150 * 5:
            followed.extend(values_of(read_all(reader)))
            if all(child.poll() is not None for child in children):
                followed.extend(values_of(read_all(reader)))
                break
        reader.close()
        for child in children:
            finish(child)
    values = all_values(log)
    assert values == followed
    assert len(list((tmp_path / "log" / "topics" / "payments" / "0").glob("*.log"))) > 2
    for start in range(0, len(values), 5):
        batch = [value.decode().split() for value in values[start : start + 5] if value is not None]
        assert len({(name, i) for name, i, _ in batch}) == 1
        assert [int(j) for _, _, j in batch] == list(range(5))
    for name in (b"p", b"q", b"r"):
        own = [int(value.split()[1]) for value in values if value is not None and value.startswith(name)]
        assert own == sorted(own)


ENDLESS = """
i = 0
while True:
    log.append(PART, make_batch([f"{i} {j}".encode() * 50 for j in range(20)]))
    i += 1
    if i == 3:
        say("going")
"""


@pytest.mark.parametrize("attempt", range(4))
def test_an_appender_that_is_killed_leaves_whole_batches(log: EmbeddedLog, tmp_path: Path, attempt: int) -> None:
    with process(tmp_path / "log", ENDLESS) as child:
        assert line(child) == "going"
        target = log.end_offset(PART) + 20 * (attempt + 1)
        while log.end_offset(PART) < target:
            assert child.poll() is None
        child.send_signal(signal.SIGKILL)
        child.wait(DEADLINE_S)
    end = log.end_offset(PART)
    assert end % 20 == 0
    at = log.append(PART, make_batch([b"next"]))
    assert at in (end, end + 20)
    assert all_values(log)[-1] == b"next"


CREATE = """
say("ready")
sys.stdin.readline()
for i in range(20):
    assert log.create_topic(f"topic{i}", 2).partitions == 2
    log.append(TopicPartition(f"topic{i}", 1), make_batch([b"x"]))
"""


def test_processes_may_create_the_same_topics(log: EmbeddedLog, tmp_path: Path) -> None:
    with process(tmp_path / "log", CREATE) as one, process(tmp_path / "log", CREATE) as two:
        for child in (one, two):
            assert line(child) == "ready"
        for child in (one, two):
            assert child.stdin is not None
            child.stdin.write("go\n")
            child.stdin.flush()
        for child in (one, two):
            finish(child)
    assert len(log.topics()) == 21
    assert all(log.end_offset(TopicPartition(f"topic{i}", 1)) == 2 for i in range(20))


MEMBER = """
member = log.group("g").join("victim", {"a": [], "b": []}, assign_evenly, session_timeout_ms=3_600_000)
say(sorted(member.poll().leases.items()))
sys.stdin.readline()
"""


def test_a_member_that_is_killed_loses_its_units_at_once(log: EmbeddedLog, tmp_path: Path) -> None:
    heir = log.group("g").join("heir", UNITS, assign_evenly, session_timeout_ms=3_600_000)
    heir.leave()
    with process(tmp_path / "log", MEMBER) as child:
        assert "epoch=1" in line(child)
        heir = log.group("g").join("heir", UNITS, assign_evenly, session_timeout_ms=3_600_000)
        assert heir.poll().leases == {}
        child.send_signal(signal.SIGKILL)
        child.wait(DEADLINE_S)
    assert heir.poll().leases == {"a": Lease("a", 2), "b": Lease("b", 2)}
    with process(tmp_path / "log", MEMBER.replace("victim", "heir")) as child:
        assert "epoch=3" in line(child)
        with pytest.raises(FencedError):
            heir.poll()


def test_a_member_that_leaves_no_lock_file_behind(log: EmbeddedLog, tmp_path: Path) -> None:
    member = log.group("g").join("m", UNITS, assign_evenly, session_timeout_ms=1000)
    assert len(list((tmp_path / "log" / "members").iterdir())) == 1
    member.leave()
    assert list((tmp_path / "log" / "members").iterdir()) == []


FULL = """
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
log.append(PART, make_batch([b"a" * 100]))
path = next(Path(sys.argv[1], "topics", "payments", "0").glob("*.log"))
size = path.stat().st_size
unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 500, unlimited[1]))
for _ in range(3):
    try:
        log.append(PART, make_batch([b"b" * 2000]))
    except RetriableError as error:
        assert "topic payments, partition 0" in str(error) and str(path.parent) in str(error), error
    else:
        raise SystemExit("the append passed")
    assert (path.stat().st_size, log.end_offset(PART)) == (size, 1)
assert log.append(PART, make_batch([b"c"])) == 1
resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
assert log.append(PART, make_batch([b"b" * 2000])) == 2
reader = log.reader(PART, 0)
assert [len(value) for value in values_of(read_all(reader))] == [100, 1, 2000]
say("done")
"""


def test_a_full_disk_makes_nothing_visible(log: EmbeddedLog, tmp_path: Path) -> None:
    with process(tmp_path / "log", FULL) as child:
        assert line(child) == "done"
        finish(child)
    assert log.append(PART, make_batch([b"d"])) == 3


ROLL_FULL = """
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
log.create_topic("small", 1, TopicConfig(segment_bytes=200))
part = TopicPartition("small", 0)
log.append(part, make_batch([b"a" * 100]))
unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (10, unlimited[1]))
try:
    log.append(part, make_batch([b"b" * 100]))
except RetriableError:
    pass
else:
    raise SystemExit("the append passed")
resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
assert log.append(part, make_batch([b"c" * 100])) == 1
reader = log.reader(part, 0)
assert [value[:1] for value in values_of(read_all(reader))] == [b"a", b"c"]
say("done")
"""


def test_a_disk_that_is_full_at_a_roll_makes_nothing_visible(log: EmbeddedLog, tmp_path: Path) -> None:
    with process(tmp_path / "log", ROLL_FULL) as child:
        assert line(child) == "done"
        finish(child)


FORBIDDEN = """
from headrace.errors import SettingsError
log.append(PART, make_batch([b"a"]))
log.close()
os.setuid(65534)
try:
    EmbeddedLog(Path(sys.argv[1]), clock=SystemClock()).append(PART, make_batch([b"b"]))
except SettingsError as error:
    say("refused " + str(error))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_forbidden_directory_is_a_settings_error(log: EmbeddedLog, tmp_path: Path) -> None:
    with process(tmp_path / "log", FORBIDDEN) as child:
        assert line(child).startswith("refused")


def test_a_group_database_that_was_deleted_is_corrupt(log: EmbeddedLog, tmp_path: Path) -> None:
    member = log.group("g").join("m", UNITS, assign_evenly, session_timeout_ms=1000)
    (tmp_path / "log" / "groups.sqlite").unlink()
    for call in (member.heartbeat, member.poll, lambda: member.release("a")):
        with pytest.raises(CorruptError, match="deleted"):
            call()


def test_a_group_database_that_is_damaged_is_corrupt(tmp_path: Path) -> None:
    (tmp_path / "groups.sqlite").write_bytes(b"not a database at all" * 500)
    with pytest.raises(CorruptError, match=r"groups\.sqlite"):
        SqliteGroupStore(tmp_path)


def test_a_group_database_of_the_first_version_goes_on(tmp_path: Path) -> None:
    shutil.copy(Path(__file__).parent / "golden" / "groups-v1.sqlite", tmp_path / "groups.sqlite")
    store = SqliteGroupStore(tmp_path)
    state = store.state("g")
    assert {member.member_id for member in state.members.values()} == {"m1"}
    assert [(x.unit, x.epoch, x.last_member) for x in state.leases.values()] == [("a", 1, "m1"), ("b", 1, "m1")]
    assert store.committed("g") == {TopicPartition("payments", 0): Committed(5, "meta")}
    (token,) = state.members
    after = store.update("g", lambda state: retired(copied(state, token, "b"), token))
    store.close()
    again = SqliteGroupStore(tmp_path)
    assert again.state("g") == after
    again.close()


STOP_IN_AN_APPEND = """
import fcntl, os, signal
log.append(PART, make_batch([b"first"]))
appender = log._appenders[PART]
def stopped(end, encoded, write=appender._write):
    say("stops")
    os.kill(os.getpid(), signal.SIGSTOP)
    return write(end, encoded)
appender._write = stopped
log.append(PART, make_batch([b"second"]))
"""


def test_a_process_that_is_stopped_in_an_append_holds_the_others_up_for_a_bounded_time(
    log: EmbeddedLog, tmp_path: Path
) -> None:
    clock = SystemClock()
    with process(tmp_path / "log", STOP_IN_AN_APPEND) as child:
        assert line(child) == "stops"
        os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOWAIT)
        begun_ms = clock.monotonic_ms()
        with pytest.raises(RetriableError, match=f"process {child.pid} holds the lock"):
            log.append(PART, make_batch([b"third"]))
        assert clock.monotonic_ms() - begun_ms < 10_000
        begun_ms = clock.monotonic_ms()
        for _ in range(5):
            with pytest.raises(RetriableError):
                log.append(PART, make_batch([b"third"]))
        assert clock.monotonic_ms() - begun_ms < 1_500, "it is known by now"
        child.send_signal(signal.SIGCONT)
        finish(child)
        log.append(PART, make_batch([b"third"]))
    assert all_values(log) == [b"first", b"second", b"third"]


STOP_IN_A_TRANSACTION = """
import os, signal
member = log.group("g").join("stopped", {}, assign_evenly, session_timeout_ms=100000)
def stop(state):
    say("stops")
    os.kill(os.getpid(), signal.SIGSTOP)
    return state
log._group_store().update("g", stop)
member.leave()
"""


def test_a_process_that_is_stopped_in_a_transaction_does_not_hold_up_those_who_look(
    log: EmbeddedLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.log.embedded.coordinator._BUSY_TIMEOUT_S", 0.3)
    clock = SystemClock()
    member = log.group("g").join("m", UNITS, assign_evenly, session_timeout_ms=500)
    leases = member.poll().leases
    other = log.group("g").join("n", {}, assign_evenly, session_timeout_ms=500)
    with process(tmp_path / "log", STOP_IN_A_TRANSACTION) as child:
        assert line(child) == "stops"
        os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOWAIT)
        member.poll()
        begun_ms = clock.monotonic_ms()
        with ThreadPoolExecutor(1) as pool:
            beat = pool.submit(member.heartbeat)
            assert member.poll().leases == leases
            assert clock.monotonic_ms() - begun_ms < 200, "looking waits for nobody"
            assert isinstance(beat.exception(), RetriableError)
        while clock.monotonic_ms() - begun_ms < 600:
            with pytest.raises(RetriableError):
                member.heartbeat()
        child.send_signal(signal.SIGCONT)
        finish(child)
    # Nobody could say that he lives: whoever looks first must not take the others for dead.
    assert member.poll().leases == leases
    assert [m.member_id for m in log.group("g").members()] == ["m", "n"]
    other.leave()
    member.leave()


def test_a_newer_group_database_is_refused(log: EmbeddedLog, tmp_path: Path) -> None:
    log.groups()
    database = sqlite3.connect(tmp_path / "log" / "groups.sqlite")
    database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(InvalidError, match="Upgrade"):
        SqliteGroupStore(tmp_path / "log")


def test_a_locked_group_database_is_retriable(
    log: EmbeddedLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.log.embedded.coordinator._BUSY_TIMEOUT_S", 0.05)
    log.groups()
    database = sqlite3.connect(tmp_path / "log" / "groups.sqlite", isolation_level=None)
    database.execute("BEGIN IMMEDIATE")
    with pytest.raises(RetriableError, match="locked"):
        log.group("g").join("m", UNITS, assign_evenly, session_timeout_ms=1000)
    database.execute("ROLLBACK")
    database.close()
    log.group("g").join("m", UNITS, assign_evenly, session_timeout_ms=1000).leave()


JOIN = """
say("ready")
sys.stdin.readline()
for i in range(15):
    member = log.group("g").join(sys.argv[2], {"a": [], "b": []}, assign_evenly, session_timeout_ms=60_000)
    for unit, lease in member.poll().leases.items():
        member.commit(lease, {TopicPartition(unit, 0): Committed(lease.epoch)})
        member.heartbeat()
    member.leave()
"""


def test_members_of_several_processes_take_turns(log: EmbeddedLog, tmp_path: Path) -> None:
    script = "from headrace.log.api import Committed" + JOIN
    with process(tmp_path / "log", script, "x") as one, process(tmp_path / "log", script, "y") as two:
        for child in (one, two):
            assert line(child) == "ready"
        for child in (one, two):
            assert child.stdin is not None
            child.stdin.write("go\n")
            child.stdin.flush()
        for child in (one, two):
            finish(child)
    assert log.group("g").members() == []
    assert list((tmp_path / "log" / "members").iterdir()) == []
    member = log.group("g").join("z", UNITS, assign_evenly, session_timeout_ms=60_000)
    leases = member.poll().leases
    committed = log.group("g").committed()
    assert all(committed[TopicPartition(unit, 0)].offset == lease.epoch - 1 for unit, lease in leases.items())
    member.leave()


def test_the_clock_is_the_only_time(tmp_path: Path) -> None:
    log = EmbeddedLog(tmp_path / "log", clock=StillClock(5), fsync="never")
    log.create_topic("payments", 1)
    log.append(PART, make_batch([b"x"]))
    segment = next((tmp_path / "log" / "topics" / "payments" / "0").glob("*.log"))
    assert int.from_bytes(segment.read_bytes()[12:20], "little") == 5
    log.close()
