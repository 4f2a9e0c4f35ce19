"""What the leader of a group decides in a rebalance: who runs what, and who must hand over. Pure.

Kafka's group protocol revokes everything in every rebalance. Here nothing is revoked by it: a member says when it
joins what it holds, and keeps it. What is meant for another is only *asked for*: its holder takes a last checkpoint,
releases it and joins again, and in that rebalance the unit, now free, goes where it is meant to. So a rebalance stops
nobody, and what stays is not even touched.

Members carry what is known of all units (epoch, last holder) from one rebalance to the next, so that any of them can
lead. Epochs and generations grow with every change. When nobody is left who knows them, they begin anew above the
last epochs that were committed with positions, and no lower than the leader's clock in milliseconds: so they also grow
where two lives of a group follow each other within a second, and where the clock of the new leader is behind.

What is meant for another goes on where it is until that one has a copy of its state. Members say in the same way of
which units they have one; how long a holder waits for that it measures itself.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgpack

from headrace.errors import CorruptError
from headrace.log.api import Assign, Assignment, Lease
from headrace.log.groups import (
    NOBODY,
    Copy,
    GroupState,
    LeaseState,
    Member,
    acquired,
    due,
    leases,
    outgoing,
    successors,
    targets,
    wanted_copies,
)

VERSION = 2


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a unit."""

    epoch: int
    instance: str
    """Kafka's id of the member that held it last."""
    member_id: str


@dataclass(frozen=True, slots=True)
class Claim:
    """What a member says when it joins."""

    member_id: str
    joined_ms: int
    """When it joined first; of two members with one id, the later one counts."""
    units: Sequence[str]
    """What it can run; nothing if it retires."""
    held: Mapping[str, int] = field(default_factory=dict)
    """What it holds: epoch by unit."""
    known: Mapping[str, Known] = field(default_factory=dict)
    generation: int = 0
    """The last generation that it was part of, and who else was."""
    instances: Sequence[str] = ()
    copied: Sequence[str] = ()
    """Units of others of which it has a copy."""
    standby_copies: int = 0
    """How many members should have a copy of each unit, as it was told."""

    def encode(self) -> bytes:
        """Return the bytes that go to the leader."""
        known = {unit: [k.epoch, k.instance, k.member_id] for unit, k in self.known.items()}
        return msgpack.packb(  # type: ignore[no-any-return]
            [VERSION, self.member_id, self.joined_ms, list(self.units), dict(self.held), known, self.generation,
             list(self.instances), list(self.copied), self.standby_copies]
        )  # fmt: skip

    @classmethod
    def decode(cls, data: bytes) -> Claim:
        """Return what was encoded.

        Raises:
            CorruptError: it makes no sense, or another version wrote it.
        """
        member_id, joined_ms, units, held, known, generation, instances, *copies = _unpacked(data, "claim")
        return cls(
            member_id, joined_ms, units, held, {unit: Known(*fields) for unit, fields in known.items()}, generation,
            instances, *copies,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Grant:
    """What the leader tells a member."""

    member_id: str
    generation: int
    leases: Mapping[str, int]
    """Epoch by unit."""
    revoked: Sequence[str]
    """What of it is meant for another who is ready for it."""
    known: Mapping[str, Known]
    instances: Sequence[str]
    fenced: bool = False
    """True if a later member has its id."""
    outgoing: Sequence[str] = ()
    """What of it is meant for others."""
    incoming: Sequence[str] = ()
    """What others hold and is meant for it."""
    copies: Sequence[str] = ()
    """Units of others of which it should have a copy."""

    def encode(self) -> bytes:
        """Return the bytes that go to the member."""
        known = {unit: [k.epoch, k.instance, k.member_id] for unit, k in self.known.items()}
        return msgpack.packb(  # type: ignore[no-any-return]
            [VERSION, self.member_id, self.generation, dict(self.leases), list(self.revoked), known,
             list(self.instances), self.fenced, list(self.outgoing), list(self.incoming), list(self.copies)]
        )  # fmt: skip

    @classmethod
    def decode(cls, data: bytes) -> Grant:
        """Return what was encoded.

        Raises:
            CorruptError: it makes no sense, or another version wrote it.
        """
        member_id, generation, held, revoked, known, instances, fenced, *rest = _unpacked(data, "grant")
        of = {unit: Known(*fields) for unit, fields in known.items()}
        return cls(member_id, generation, held, revoked, of, instances, fenced, *rest)

    def assignment(
        self, released: Collection[str] = (), overdue: Collection[str] = (), *, confirmed: bool = True
    ) -> Assignment:
        """Return what the member should run.

        Args:
            released: What it has released since.
            overdue: What it has kept long enough for its next holder.
            confirmed: Whether the group has heard of it within its session.
        """
        held = {unit: Lease(unit, epoch) for unit, epoch in sorted(self.leases.items()) if unit not in released}
        going = frozenset(self.outgoing) & held.keys()
        return Assignment(
            self.generation, held, going.intersection([*overdue, *self.revoked]), going, frozenset(self.incoming),
            frozenset(self.copies), confirmed,
        )  # fmt: skip


def begins_anew(claims: Mapping[str, Claim]) -> bool:
    """Return whether no member knows anything of the group's life so far."""
    return not any(claim.known or claim.generation for claim in claims.values())


def grants(claims: Mapping[str, Claim], assign: Assign, begin: int) -> dict[str, Grant]:
    """Decide a rebalance.

    Args:
        claims: What every member says, by Kafka's id of it.
        assign: Says which member should have which unit.
        begin: Where epochs and generations begin if no member knows any: more than the group has ever reached.

    Returns:
        What to tell each of them.
    """
    order = sorted(claims, key=lambda instance: (claims[instance].joined_ms, instance))
    latest = {claims[instance].member_id: instance for instance in order}
    alive = [instance for instance in order if latest[claims[instance].member_id] == instance]
    tokens = {instance: token for token, instance in enumerate(order, NOBODY + 1)}
    strangers = max(tokens.values(), default=NOBODY) + 1

    generations = [claim.generation for claim in claims.values()]
    before = {instance for c in claims.values() if c.generation == max(generations) for instance in c.instances}
    generation = (max(generations, default=0) or begin) + (before != set(alive))

    known = _known(claims)
    base = max((k.epoch for k in known.values()), default=begin)
    units = {}
    for unit in sorted({unit for claim in claims.values() for unit in claim.units} | known.keys()):
        k = known.get(unit, Known(base, "", ""))
        holds = k.instance in alive and claims[k.instance].held.get(unit) == k.epoch
        token = tokens.get(k.instance, strangers)
        units[unit] = LeaseState(unit, k.epoch, token if holds else NOBODY, token, k.member_id)
    members = {tokens[i]: Member(tokens[i], claims[i].member_id, 0, 0, frozenset(claims[i].units)) for i in alive}
    copies = frozenset(Copy(unit, tokens[i]) for i in alive for unit in claims[i].copied)
    state = GroupState(generation, members, units, copies)
    chosen = targets(state, assign)
    for instance in alive:
        state = acquired(state, tokens[instance], chosen)
    return _told(claims, state, tokens, alive, assign)


def _told(
    claims: Mapping[str, Claim], state: GroupState, tokens: Mapping[str, int], alive: Sequence[str], assign: Assign
) -> dict[str, Grant]:
    """Return what to tell each member of what was decided."""
    chosen = targets(state, assign)
    following = {n: successors(state, assign, n) for n in {claims[instance].standby_copies for instance in alive} if n}
    instances = {token: instance for instance, token in tokens.items()}
    after = {
        lease.unit: Known(lease.epoch, instances.get(lease.last_token, ""), lease.last_member)
        for lease in state.leases.values()
        if lease.last_member
    }
    told = {}
    for instance, claim in claims.items():
        if instance not in alive:
            told[instance] = Grant(claim.member_id, state.generation, {}, (), after, alive, fenced=True)
            continue
        token = tokens[instance]
        going = outgoing(state, token, chosen)
        # Nobody waits here: only what another is ready for goes now.
        ready = due(state, chosen, dict.fromkeys(going, 0), 0, 1)
        told[instance] = Grant(
            claim.member_id, state.generation, {unit: lease.epoch for unit, lease in leases(state, token).items()},
            sorted(ready), after, alive, outgoing=sorted(going),
            incoming=sorted(wanted_copies(state, token, chosen, {})),
            copies=sorted(wanted_copies(state, token, chosen, following.get(claim.standby_copies, {}))),
        )  # fmt: skip
    return told


def _known(claims: Mapping[str, Claim]) -> dict[str, Known]:
    """Return the latest that any member knows of each unit."""
    known: dict[str, Known] = {}
    for claim in claims.values():
        for unit, k in claim.known.items():
            if unit not in known or k.epoch > known[unit].epoch:
                known[unit] = k
    return known


def _unpacked(data: bytes, what: str) -> list[Any]:
    fields: list[Any]
    try:
        version, *fields = msgpack.unpackb(data)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise CorruptError(f"a {what} in the group makes no sense: another program uses the group") from error
    if version != VERSION:
        raise CorruptError(
            f"a {what} in the group has format {version}, and this headrace knows {VERSION}",
            remedy="Run workers of one version",
        )
    return fields
