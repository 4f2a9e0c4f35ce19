"""Consumer groups over whatever stores them: the shell around the decisions of ``log.groups``."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from headrace.clock import Clock
from headrace.errors import FencedError
from headrace.log.api import Assign, Assignment, Committed, GroupMember, Lease, Membership
from headrace.log.groups import (
    GroupState,
    Member,
    Sighting,
    acquired,
    assignment,
    check_member,
    described,
    joined,
    observed,
    released,
    removed,
    silent,
    targets,
)
from headrace.record import TopicPartition


class GroupStore(Protocol):
    """Keeps groups; every method is one transaction and may be called from any thread."""

    def state(self, group: str) -> GroupState:
        """Return what is known of a group."""
        ...

    def update(self, group: str, change: Callable[[GroupState], GroupState]) -> GroupState:
        """Replace the state of a group by what ``change`` makes of it, and return that."""
        ...

    def admit(self) -> int:
        """Return a token that was never used, and show that its owner lives until ``dismiss`` or the process dies."""
        ...

    def dismiss(self, token: int) -> None:
        """Drop what ``admit`` made, here or in a process that died; idempotent."""
        ...

    def dead(self, tokens: Sequence[int]) -> frozenset[int]:
        """Return those whose process is known to have died."""
        ...

    def beat(self, group: str, token: int) -> None:
        """Add one to a member's counter; nothing happens if it was removed."""
        ...

    def commit(self, group: str, token: int, lease: Lease, offsets: Mapping[TopicPartition, Committed]) -> None:
        """Record offsets if the member holds the lease, else raise ``FencedError``."""
        ...

    def committed(self, group: str) -> dict[TopicPartition, Committed]:
        """Return what was committed last."""
        ...


class StoredGroup:
    """A consumer group; see ``log.api.Group``."""

    def __init__(self, name: str, store: GroupStore, clock: Clock) -> None:
        self.name = name
        self._store = store
        self._clock = clock

    def join(
        self, member_id: str, units: Mapping[str, Sequence[TopicPartition]], assign: Assign, *,
        session_timeout_ms: int,
    ) -> Membership:  # fmt: skip
        """Become a member that can run any of ``units``; an earlier member of the same id is fenced."""
        token = self._store.admit()
        member = Member(token, member_id, 0, session_timeout_ms, frozenset(units))
        try:
            self._store.update(self.name, lambda state: joined(state, member))
        except BaseException:
            self._store.dismiss(token)
            raise
        return StoredMembership(self.name, member, assign, self._store, self._clock)

    def members(self) -> list[GroupMember]:
        """Return the members and what they hold, sorted by id."""
        return described(self._store.state(self.name))

    def committed(self) -> dict[TopicPartition, Committed]:
        """Return what was committed last for each partition."""
        return self._store.committed(self.name)


class StoredMembership:
    """One worker's membership; see ``log.api.Membership``."""

    def __init__(self, group: str, member: Member, assign: Assign, store: GroupStore, clock: Clock) -> None:
        self.member_id = member.member_id
        self._group = group
        self._token = member.token
        self._assign = assign
        self._store = store
        self._clock = clock
        self._lock = threading.Lock()
        self._seen: dict[int, Sighting] = {}
        self._left = False

    def heartbeat(self) -> None:
        """Say that this member lives."""
        if not self._left:
            self._store.beat(self._group, self._token)

    def poll(self) -> Assignment:
        """Observe the group, take what is free and meant for this member, and return what it should run."""
        with self._lock:
            state = self._store.state(self._group)
            check_member(state, self._token, self.member_id, self._group)
            now_ms = self._clock.monotonic_ms()
            seen = self._seen = observed(self._seen, state, now_ms)
            others = [token for token in state.members if token != self._token]
            dead = self._store.dead(others)

            def turn(state: GroupState) -> GroupState:
                check_member(state, self._token, self.member_id, self._group)
                # Judged again inside the transaction: who has just said that it lives stays.
                gone = (silent(seen, state, now_ms) | dead) - {self._token}
                rest = removed(state, gone)
                return acquired(rest, self._token, targets(rest, self._assign))

            after = turn(state)
            if after is not state:
                before, after = state, self._store.update(self._group, turn)
                for token in before.members.keys() - after.members.keys():
                    self._store.dismiss(token)
            return assignment(after, self._token, targets(after, self._assign))

    def release(self, unit: str) -> None:
        """Give up a unit; idempotent."""
        self._store.update(self._group, lambda state: released(state, self._token, unit))

    def commit(self, lease: Lease, offsets: Mapping[TopicPartition, Committed]) -> None:
        """Record positions for lag and tools."""
        if self._left:
            raise FencedError(f"member {self.member_id} left group {self._group}", remedy="Join again")
        self._store.commit(self._group, self._token, lease, offsets)

    def leave(self) -> None:
        """Release everything and leave; idempotent."""
        if self._left:
            return
        self._left = True
        try:
            self._store.update(self._group, lambda state: removed(state, [self._token]))
        finally:
            self._store.dismiss(self._token)
