"""Decisions of consumer groups: pure functions from what is known of a group to what changes.

A member is known by its token, a number that is never used twice, so that a member that died and joined again under
the same id is another one. Whoever stores a group applies these functions inside one transaction.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from headrace.errors import FencedError
from headrace.log.api import Assign, GroupMember, Lease

NOBODY = 0
"""The token that no member has."""


@dataclass(frozen=True, slots=True)
class Member:
    """One member as the group's store knows it."""

    token: int
    member_id: str
    counter: int
    """How often it said that it lives."""
    session_timeout_ms: int
    units: frozenset[str]
    """What it can run."""


@dataclass(frozen=True, slots=True)
class LeaseState:
    """One unit: who holds it, and the number that fences older owners. It is kept when nobody holds the unit."""

    unit: str
    epoch: int
    holder: int
    """The token of the member that holds it, or ``NOBODY``."""
    last_token: int
    """The token of the member that held it last; the epoch is that member's."""
    last_member: str


class Copy(NamedTuple):
    """A member has on its own disk what the last checkpoint of a unit that it does not hold consists of."""

    unit: str
    token: int


@dataclass(frozen=True, slots=True)
class GroupState:
    """All that is shared by the members of a group."""

    generation: int = 0
    members: Mapping[int, Member] = field(default_factory=dict)
    """By token."""
    leases: Mapping[str, LeaseState] = field(default_factory=dict)
    """By unit."""
    copies: frozenset[Copy] = frozenset()


class Sighting(NamedTuple):
    """When an observer first saw a member's counter at its present value."""

    counter: int
    since_ms: int
    """By the observer's own monotonic clock."""


def joined(state: GroupState, member: Member) -> GroupState:
    """Add a member; an earlier one of the same id is replaced and loses what it holds."""
    replaced = [token for token, other in state.members.items() if other.member_id == member.member_id]
    rest = removed(state, replaced)
    return replace(rest, generation=state.generation + 1, members={**rest.members, member.token: member})


def removed(state: GroupState, tokens: Iterable[int]) -> GroupState:
    """Take members away and free what they hold; members that are gone already change nothing."""
    gone = {token for token in tokens if token in state.members}
    if not gone:
        return state
    free = {unit: replace(lease, holder=NOBODY) for unit, lease in state.leases.items() if lease.holder in gone}
    members = {token: member for token, member in state.members.items() if token not in gone}
    copies = frozenset(copy for copy in state.copies if copy.token not in gone)
    return GroupState(state.generation + 1, members, {**state.leases, **free}, copies)


def retired(state: GroupState, token: int) -> GroupState:
    """Let a member get nothing more: what it holds is meant for others from now on."""
    member = state.members.get(token)
    if member is None or not member.units:
        return state
    idle = replace(member, units=frozenset())
    return replace(state, generation=state.generation + 1, members={**state.members, token: idle})


def copied(state: GroupState, token: int, unit: str) -> GroupState:
    """Note that a member has a copy of what a unit's checkpoint consists of."""
    copy = Copy(unit, token)
    if token not in state.members or copy in state.copies:
        return state
    return replace(state, copies=state.copies | {copy})


def forgotten(state: GroupState, token: int, wanted: Collection[str]) -> GroupState:
    """Drop the note of a member's copies of all units but those of which it should have one."""
    rest = frozenset(copy for copy in state.copies if copy.token != token or copy.unit in wanted)
    return state if rest == state.copies else replace(state, copies=rest)


def released(state: GroupState, token: int, unit: str) -> GroupState:
    """Free a unit if that member holds it."""
    lease = state.leases.get(unit)
    if lease is None or lease.holder != token:
        return state
    return replace(state, leases={**state.leases, unit: replace(lease, holder=NOBODY)})


def observed(seen: Mapping[int, Sighting], state: GroupState, now_ms: int) -> dict[int, Sighting]:
    """Bring an observer's sightings up to date; who is gone is forgotten."""
    sightings = {}
    for token, member in state.members.items():
        before = seen.get(token)
        unchanged = before is not None and before.counter == member.counter
        sightings[token] = before if before is not None and unchanged else Sighting(member.counter, now_ms)
    return sightings


def silent(seen: Mapping[int, Sighting], state: GroupState, now_ms: int) -> frozenset[int]:
    """Return the tokens of the members whose counter stood still for their session timeout."""
    return frozenset(
        token
        for token, member in state.members.items()
        if token in seen
        and seen[token].counter == member.counter
        and now_ms - seen[token].since_ms >= member.session_timeout_ms
    )


def targets(state: GroupState, assign: Assign) -> dict[str, str]:
    """Return which member should hold each unit.

    Units are assigned among the members that can run them, which differ only while a new version is rolled out.
    """
    kinds: dict[frozenset[str], list[str]] = {}
    for member in state.members.values():
        kinds.setdefault(member.units, []).append(member.member_id)
    capable: dict[str, list[frozenset[str]]] = {}
    for kind in kinds:
        for unit in kind:
            capable.setdefault(unit, []).append(kind)
    alike: dict[tuple[frozenset[str], ...], list[str]] = {}
    for unit in sorted(capable):
        alike.setdefault(tuple(capable[unit]), []).append(unit)
    last = {unit: lease.last_member for unit, lease in sorted(state.leases.items())}
    chosen: dict[str, str] = {}
    for able, units in alike.items():
        members = sorted(name for kind in able for name in kinds[kind])
        chosen.update(assign(members, units, {unit: last[unit] for unit in units if unit in last}))
    return chosen


def successors(state: GroupState, assign: Assign, copies: int) -> dict[str, tuple[str, ...]]:
    """Return, for each unit, the members that would get it one after the other if its owner died, then the next.

    Args:
        state: Of the group.
        assign: Says who gets what.
        copies: How many to name.
    """
    tokens = {member.member_id: token for token, member in state.members.items()}
    plans: dict[frozenset[str], dict[str, str]] = {}

    def without(gone: frozenset[str]) -> dict[str, str]:
        if gone not in plans:
            plans[gone] = targets(removed(state, [tokens[name] for name in gone]), assign)
        return plans[gone]

    found: dict[str, tuple[str, ...]] = {}
    for unit, owner in without(frozenset()).items():
        line = [owner]
        while len(line) <= copies and (following := without(frozenset(line)).get(unit)) is not None:
            line.append(following)
        found[unit] = tuple(line[1:])
    return found


def wanted_copies(
    state: GroupState, token: int, chosen: Mapping[str, str], following: Mapping[str, Sequence[str]]
) -> frozenset[str]:
    """Return the units held by others of which a member should have a copy.

    Args:
        state: Of the group.
        token: The member's.
        chosen: Which member should hold each unit: what is meant for this one should be there when it comes.
        following: Which members would take over each unit.
    """
    me = state.members[token].member_id
    return frozenset(
        unit
        for unit, lease in state.leases.items()
        if lease.holder not in (NOBODY, token) and (chosen.get(unit) == me or me in following.get(unit, ()))
    )


def acquired(state: GroupState, token: int, chosen: Mapping[str, str]) -> GroupState:
    """Give a member the free units that are meant for it.

    The epoch grows when the unit was held last by another member, or by an earlier one of the same id.
    """
    me = state.members[token]
    taken: dict[str, LeaseState] = {}
    for unit, target in chosen.items():
        if target != me.member_id or unit not in me.units:
            continue
        lease = state.leases.get(unit, LeaseState(unit, 0, NOBODY, NOBODY, ""))
        if lease.holder == NOBODY:
            epoch = lease.epoch if lease.last_token == token else lease.epoch + 1
            taken[unit] = LeaseState(unit, epoch, token, token, me.member_id)
    return replace(state, leases={**state.leases, **taken}) if taken else state


def outgoing(state: GroupState, token: int, chosen: Mapping[str, str]) -> frozenset[str]:
    """Return the units that a member holds and that are not meant for it."""
    member = state.members[token]
    return frozenset(
        unit
        for unit, lease in state.leases.items()
        if lease.holder == token
        and (chosen.get(unit, member.member_id) != member.member_id or unit not in member.units)
    )


def waited(before: Mapping[str, int], units: Iterable[str], now_ms: int) -> dict[str, int]:
    """Return since when each of ``units`` is to go, by the observer's own clock; what stays is forgotten."""
    return {unit: before.get(unit, now_ms) for unit in sorted(units)}


def due(
    state: GroupState, chosen: Mapping[str, str], since: Mapping[str, int], now_ms: int, patience_ms: int
) -> frozenset[str]:
    """Return which of the units that are to go should go now.

    A unit goes on where it is until its next holder has a copy of its state, so that it pauses only for what changed
    since; but not for ever, and not if there is nobody to wait for.

    Args:
        state: Of the group.
        chosen: Which member should hold each unit.
        since: The units that are to go, and since when.
        now_ms: By the clock of ``since``.
        patience_ms: How long one waits at most.
    """
    names = {copy: state.members[copy.token].member_id for copy in state.copies if copy.token in state.members}
    there = {(copy.unit, name) for copy, name in names.items()}
    return frozenset(
        unit
        for unit, since_ms in since.items()
        if unit not in chosen or (unit, chosen[unit]) in there or now_ms - since_ms >= patience_ms
    )


def leases(state: GroupState, token: int) -> dict[str, Lease]:
    """Return what a member holds, by unit."""
    return {unit: Lease(unit, lease.epoch) for unit, lease in sorted(state.leases.items()) if lease.holder == token}


def check_member(state: GroupState, token: int, member_id: str, group: str) -> None:
    """Refuse a member that was removed.

    Raises:
        FencedError: it is no longer in the group.
    """
    if token not in state.members:
        raise FencedError(
            f"member {member_id} was removed from group {group}",
            remedy="Drop all tasks and join again; raise the session timeout if the member was only slow",
        )


def check_lease(held: LeaseState | None, token: int, lease: Lease, group: str) -> None:
    """Refuse what is written under a lease that is no longer held.

    Raises:
        FencedError: the unit has another owner or a newer epoch.
    """
    if held is None or held.holder != token or held.epoch != lease.epoch:
        now = "nobody" if held is None or held.holder == NOBODY else held.last_member
        epoch = 0 if held is None else held.epoch
        raise FencedError(
            f"unit {lease.unit} of group {group} is no longer held under epoch {lease.epoch}: "
            f"{now} holds it, and the epoch is {epoch}",
            remedy="Drop the task; its new owner continues from its last checkpoint",
        )


def described(state: GroupState) -> list[GroupMember]:
    """Return the members and what they hold, sorted by id."""
    held: dict[int, list[str]] = {token: [] for token in state.members}
    for unit, lease in sorted(state.leases.items()):
        if lease.holder in held:
            held[lease.holder].append(unit)
    members = [GroupMember(member.member_id, tuple(held[token])) for token, member in state.members.items()]
    return sorted(members)
