"""Consumer groups over whatever stores them: the shell around the decisions of ``log.groups``."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from headrace.clock import Clock
from headrace.errors import FencedError, RetriableError
from headrace.log.api import Assign, Assignment, Committed, GroupMember, Lease, Membership
from headrace.log.groups import (
    GroupState,
    Member,
    Sighting,
    acquired,
    check_member,
    copied,
    described,
    due,
    forgotten,
    joined,
    leases,
    observed,
    outgoing,
    released,
    removed,
    retired,
    silent,
    successors,
    targets,
    waited,
    wanted_copies,
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
        session_timeout_ms: int, handoff_timeout_ms: int = 0, standby_copies: int = 0,
    ) -> Membership:  # fmt: skip
        """Become a member that can run any of ``units``; an earlier member of the same id is fenced."""
        token = self._store.admit()
        member = Member(token, member_id, 0, session_timeout_ms, frozenset(units))
        try:
            self._store.update(self.name, lambda state: joined(state, member))
        except BaseException:
            self._store.dismiss(token)
            raise
        return StoredMembership(self.name, member, assign, self._store, self._clock, handoff_timeout_ms, standby_copies)

    def members(self) -> list[GroupMember]:
        """Return the members and what they hold, sorted by id."""
        return described(self._store.state(self.name))

    def committed(self) -> dict[TopicPartition, Committed]:
        """Return what was committed last for each partition."""
        return self._store.committed(self.name)


class StoredMembership:
    """One worker's membership; see ``log.api.Membership``."""

    def __init__(
        self, group: str, member: Member, assign: Assign, store: GroupStore, clock: Clock, handoff_timeout_ms: int,
        standby_copies: int,
    ) -> None:  # fmt: skip
        self.member_id = member.member_id
        self._group = group
        self._token = member.token
        self._assign = assign
        self._store = store
        self._clock = clock
        self._handoff_timeout_ms = handoff_timeout_ms
        self._standby_copies = standby_copies
        self._lock = threading.Lock()
        self._seen: dict[int, Sighting] = {}
        self._waited: dict[str, int] = {}
        self._following: tuple[tuple[object, ...], dict[str, tuple[str, ...]]] = ((), {})
        self._deaf = False
        self._left = False

    def heartbeat(self) -> None:
        """Say that this member lives."""
        if self._left:
            return
        try:
            self._store.beat(self._group, self._token)
        except RetriableError:
            # The others could not say so either: nobody is judged by what this member saw up to now.
            self._deaf = True
            raise

    def poll(self) -> Assignment:
        """Observe the group, take what is free and meant for this member, and return what it should run."""
        with self._lock:
            state = self._store.state(self._group)
            check_member(state, self._token, self.member_id, self._group)
            now_ms = self._clock.monotonic_ms()
            if self._deaf:
                self._deaf, self._seen = False, {}
            seen = self._seen = observed(self._seen, state, now_ms)
            others = [token for token in state.members if token != self._token]
            dead = self._store.dead(others)

            def turn(state: GroupState) -> GroupState:
                check_member(state, self._token, self.member_id, self._group)
                # Judged again inside the transaction: who has just said that it lives stays.
                gone = (silent(seen, state, now_ms) | dead) - {self._token}
                rest = removed(state, gone)
                chosen = targets(rest, self._assign)
                after = acquired(rest, self._token, chosen)
                return forgotten(after, self._token, self._wanted(after, chosen))

            after = turn(state)
            if after is not state:
                before, after = state, self._store.update(self._group, turn)
                for token in before.members.keys() - after.members.keys():
                    self._store.dismiss(token)
            return self._assignment(after, now_ms)

    def _assignment(self, state: GroupState, now_ms: int) -> Assignment:
        chosen = targets(state, self._assign)
        going = outgoing(state, self._token, chosen)
        self._waited = waited(self._waited, going, now_ms)
        revoked = due(state, chosen, self._waited, now_ms, self._handoff_timeout_ms)
        coming = wanted_copies(state, self._token, chosen, {})
        wanted = self._wanted(state, chosen)
        return Assignment(state.generation, leases(state, self._token), revoked, going, coming, wanted)

    def _wanted(self, state: GroupState, chosen: Mapping[str, str]) -> frozenset[str]:
        return wanted_copies(state, self._token, chosen, self._successors(state))

    def _successors(self, state: GroupState) -> dict[str, tuple[str, ...]]:
        """Return who would take over each unit, worked out again only when the group has changed."""
        if not self._standby_copies:
            return {}
        facts = (state.generation, *sorted(state.leases.items()))
        if facts != self._following[0]:
            self._following = facts, successors(state, self._assign, self._standby_copies)
        return self._following[1]

    def retire(self) -> None:
        """Get nothing more, so that the others make ready for what this member holds; idempotent."""
        self._store.update(self._group, lambda state: retired(state, self._token))

    def copied(self, unit: str) -> None:
        """Say that this member has a copy of what the last checkpoint of a unit consists of; idempotent."""
        state = self._store.state(self._group)
        if copied(state, self._token, unit) is not state:
            self._store.update(self._group, lambda state: copied(state, self._token, unit))

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
