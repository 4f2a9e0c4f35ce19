"""Groups, members, leases and committed offsets in one SQLite file, shared by the processes of a machine."""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from headrace.errors import CorruptError, FatalError, HeadraceError, InvalidError, RetriableError, SettingsError
from headrace.log.api import Committed, Lease
from headrace.log.embedded.files import locked_file, storage
from headrace.log.groups import Copy, GroupState, LeaseState, Member, check_lease
from headrace.record import TopicPartition

SCHEMA_VERSION = 2
_BUSY_TIMEOUT_S = 5.0
_SCHEMAS = {1: """
CREATE TABLE tokens (token INTEGER PRIMARY KEY AUTOINCREMENT);
CREATE TABLE groups (name TEXT PRIMARY KEY, generation INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE members (
    group_name TEXT NOT NULL, token INTEGER NOT NULL, member_id TEXT NOT NULL, counter INTEGER NOT NULL,
    session_timeout_ms INTEGER NOT NULL, units TEXT NOT NULL, PRIMARY KEY (group_name, token)
) WITHOUT ROWID;
CREATE TABLE leases (
    group_name TEXT NOT NULL, unit TEXT NOT NULL, epoch INTEGER NOT NULL, holder INTEGER NOT NULL,
    last_token INTEGER NOT NULL, last_member TEXT NOT NULL, PRIMARY KEY (group_name, unit)
) WITHOUT ROWID;
CREATE TABLE offsets (
    group_name TEXT NOT NULL, topic TEXT NOT NULL, partition INTEGER NOT NULL, "offset" INTEGER NOT NULL,
    metadata TEXT NOT NULL, PRIMARY KEY (group_name, topic, partition)
) WITHOUT ROWID;
""", 2: """
CREATE TABLE copies (
    group_name TEXT NOT NULL, unit TEXT NOT NULL, token INTEGER NOT NULL, PRIMARY KEY (group_name, unit, token)
) WITHOUT ROWID;
"""}  # fmt: skip
"""What each version adds to the one before. Processes of an older headrace that have the file open go on with it."""


class SqliteGroupStore:
    """Keeps groups in ``groups.sqlite``; one connection to write for all threads, which take turns, and one to read.

    A member also holds the lock on a file of its own for as long as its process lives, so that the others see at
    once when it was killed.

    Args:
        directory: The directory of the log.
        durable: Force changes of leases to the disk, so that no power cut makes an epoch come back.
    """

    def __init__(self, directory: Path, *, durable: bool = True) -> None:
        self._path = directory / "groups.sqlite"
        self._members = directory / "members"
        self._lock = threading.RLock()
        self._reader_lock = threading.Lock()
        self._alive: dict[int, int] = {}
        with storage("the group database", directory):
            self._members.mkdir(exist_ok=True)
        # Switching to WAL does not wait for others who do the same, so they take turns.
        with self._errors(), locked_file(directory / "groups.lock"):
            self._db = sqlite3.connect(
                self._path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
            )
            try:
                self._prepare()
                self._reader = sqlite3.connect(
                    self._path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
                )
            except BaseException:
                self._db.close()
                raise
            self._durable = durable
            self._inode = os.stat(self._path).st_ino

    def state(self, group: str) -> GroupState:
        """Return what is known of a group."""
        with self._reading() as reader:
            return self._load(reader, group)

    def update(self, group: str, change: Callable[[GroupState], GroupState]) -> GroupState:
        """Replace the state of a group by what ``change`` makes of it, and return that."""
        with self._transaction("IMMEDIATE", durable=self._durable):
            before = self._load(self._db, group)
            after = change(before)
            if after is not before:
                self._store(group, before, after)
            return after

    def names(self) -> list[str]:
        """Return the groups that have members or committed offsets, sorted."""
        with self._reading() as reader:
            rows = reader.execute("SELECT group_name FROM members UNION SELECT group_name FROM offsets ORDER BY 1")
            return [name for (name,) in rows]

    def admit(self) -> int:
        """Return a token that was never used, and hold the lock that shows that its owner lives."""
        with self._transaction("IMMEDIATE"):
            token = self._db.execute("INSERT INTO tokens DEFAULT VALUES").lastrowid
            self._db.execute("DELETE FROM tokens")
        assert token is not None
        with storage("joining a group", self._members):
            fd = os.open(self._lock_file(token), os.O_RDWR | os.O_CREAT, 0o666)
            fcntl.flock(fd, fcntl.LOCK_EX)
        with self._lock:
            self._alive[token] = fd
        return token

    def dismiss(self, token: int) -> None:
        """Remove the lock of a member that is gone; idempotent."""
        with suppress(OSError):
            self._lock_file(token).unlink(missing_ok=True)
        with self._lock:
            fd = self._alive.pop(token, None)
        if fd is not None:
            os.close(fd)

    def dead(self, tokens: Sequence[int]) -> frozenset[int]:
        """Return those whose process no longer holds its lock."""
        return frozenset(token for token in tokens if token not in self._alive and self._is_unlocked(token))

    def beat(self, group: str, token: int) -> None:
        """Add one to a member's counter."""
        with self._transaction("IMMEDIATE"):
            self._db.execute(
                "UPDATE members SET counter = counter + 1 WHERE group_name = ? AND token = ?", (group, token)
            )

    def commit(self, group: str, token: int, lease: Lease, offsets: Mapping[TopicPartition, Committed]) -> None:
        """Record offsets if the member holds the lease."""
        with self._transaction("IMMEDIATE"):
            row = self._db.execute(
                "SELECT unit, epoch, holder, last_token, last_member FROM leases WHERE group_name = ? AND unit = ?",
                (group, lease.unit),
            ).fetchone()
            check_lease(None if row is None else LeaseState(*row), token, lease, group)
            self._db.executemany(
                "INSERT OR REPLACE INTO offsets VALUES (?, ?, ?, ?, ?)",
                [(group, *partition, *committed) for partition, committed in offsets.items()],
            )

    def committed(self, group: str) -> dict[TopicPartition, Committed]:
        """Return what was committed last."""
        with self._reading() as reader:
            rows = reader.execute(
                'SELECT topic, partition, "offset", metadata FROM offsets WHERE group_name = ? ORDER BY 1, 2', (group,)
            )
            return {TopicPartition(topic, number): Committed(offset, text) for topic, number, offset, text in rows}

    def close(self) -> None:
        """Close the database, and let go of the members that did not leave; idempotent."""
        with self._lock:
            while self._alive:
                os.close(self._alive.popitem()[1])
            self._db.close()
        with self._reader_lock:
            self._reader.close()

    def _prepare(self) -> None:
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("BEGIN IMMEDIATE")
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        for later in range(version + 1, SCHEMA_VERSION + 1):
            for statement in filter(str.strip, _SCHEMAS[later].split(";")):
                self._db.execute(statement)
            self._db.execute(f"PRAGMA user_version = {later}")
        self._db.execute("COMMIT")
        if version > SCHEMA_VERSION:
            raise InvalidError(
                f"the group database {self._path} has schema {version}, and this headrace supports {SCHEMA_VERSION}",
                remedy="Upgrade headrace",
            )

    def _load(self, connection: sqlite3.Connection, group: str) -> GroupState:
        execute = connection.execute
        generation = execute("SELECT generation FROM groups WHERE name = ?", (group,)).fetchone()
        if generation is None:
            return GroupState()
        members = execute(
            "SELECT token, member_id, counter, session_timeout_ms, units FROM members WHERE group_name = ?", (group,)
        )
        leases = execute(
            "SELECT unit, epoch, holder, last_token, last_member FROM leases WHERE group_name = ?", (group,)
        )
        copies = execute("SELECT unit, token FROM copies WHERE group_name = ?", (group,))
        return GroupState(
            generation[0],
            {row[0]: Member(row[0], row[1], row[2], row[3], frozenset(json.loads(row[4]))) for row in members},
            {lease[0]: LeaseState(*lease) for lease in leases},
            frozenset(Copy(*row) for row in copies),
        )

    def _store(self, group: str, before: GroupState, after: GroupState) -> None:
        execute = self._db.execute
        execute("INSERT OR REPLACE INTO groups VALUES (?, ?)", (group, after.generation))
        for token in before.members.keys() - after.members.keys():
            execute("DELETE FROM members WHERE group_name = ? AND token = ?", (group, token))
        for token in after.members.keys() & before.members.keys():
            able = after.members[token].units
            if able != before.members[token].units:
                texts = (json.dumps(sorted(able)), group, token)
                execute("UPDATE members SET units = ? WHERE group_name = ? AND token = ?", texts)
        for token in after.members.keys() - before.members.keys():
            member = after.members[token]
            units = json.dumps(sorted(member.units))
            row = (group, token, member.member_id, member.counter, member.session_timeout_ms, units)
            execute("INSERT INTO members VALUES (?, ?, ?, ?, ?, ?)", row)
        changed = [lease for unit, lease in after.leases.items() if before.leases.get(unit) != lease]
        self._db.executemany(
            "INSERT OR REPLACE INTO leases VALUES (?, ?, ?, ?, ?, ?)",
            [(group, x.unit, x.epoch, x.holder, x.last_token, x.last_member) for x in changed],
        )
        for copy in sorted(before.copies - after.copies):
            execute("DELETE FROM copies WHERE group_name = ? AND unit = ? AND token = ?", (group, *copy))
        for copy in sorted(after.copies - before.copies):
            execute("INSERT INTO copies VALUES (?, ?, ?)", (group, *copy))

    def _lock_file(self, token: int) -> Path:
        return self._members / f"{token}.lock"

    def _is_unlocked(self, token: int) -> bool:
        try:
            fd = os.open(self._lock_file(token), os.O_RDONLY)
        except OSError:
            return False  # without the file only the heartbeat can tell
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        else:
            return True
        finally:
            os.close(fd)

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """Read through a connection of its own: readers wait for no writer, of this process or of another."""
        with self._reader_lock, self._errors():
            self._check_file()
            self._reader.execute("BEGIN DEFERRED")
            try:
                yield self._reader
            finally:
                self._reader.execute("ROLLBACK")

    @contextmanager
    def _transaction(self, kind: str, *, durable: bool = False) -> Iterator[None]:
        with self._lock, self._errors():
            self._check_file()
            self._db.execute("PRAGMA synchronous = FULL" if durable else "PRAGMA synchronous = NORMAL")
            self._db.execute(f"BEGIN {kind}")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):
                    self._db.execute("ROLLBACK")
                raise

    def _check_file(self) -> None:
        # Without this, processes that opened the file before and after it was deleted would form two groups.
        try:
            same = os.stat(self._path).st_ino == self._inode
        except FileNotFoundError:
            same = False
        if not same:
            raise CorruptError(
                f"the group database {self._path} was deleted or replaced while it was in use",
                remedy="Stop every worker of this log, then start them again",
            )

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise _database_error(error, self._path) from error
        except (UnicodeDecodeError, json.JSONDecodeError) as error:  # what SQLite did not notice
            raise _damaged(self._path) from error


def _database_error(error: sqlite3.Error, path: Path) -> HeadraceError:
    code = getattr(error, "sqlite_errorcode", None)
    primary = None if code is None else code & 0xFF
    text = f"the group database {path} failed: {error}"
    if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return RetriableError(f"the group database {path} stayed locked for {_BUSY_TIMEOUT_S:g} s")
    if primary == sqlite3.SQLITE_FULL:
        return RetriableError(text, remedy="Free space on the disk")
    if primary in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return _damaged(path)
    if primary in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH):
        return SettingsError(text, remedy="Run as the user who owns the directory")
    if isinstance(error, sqlite3.ProgrammingError):
        return InvalidError(f"the log {path.parent} is closed")
    return _damaged(path) if "decode to UTF-8" in text else FatalError(text)


def _damaged(path: Path) -> CorruptError:
    return CorruptError(
        f"the group database {path} is damaged",
        remedy="Stop every worker of this log and delete the file; checkpoints hold all positions that matter",
    )
