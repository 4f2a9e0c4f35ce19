"""What leaders decide, over long lives of groups; and bytes of an earlier version."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from headrace.errors import CorruptError
from headrace.log.kafka.leading import Claim, Grant, Known, grants
from headrace.runtime.assignment import assign

GOLDEN = Path(__file__).parent / "golden"
UNITS = [f"t-{i}" for i in range(6)]


class Member:
    """What a member remembers between two rebalances."""

    standby_copies = 0
    units = UNITS

    def __init__(self, name, now_ms):
        self.name, self.joined_ms = name, now_ms
        self.grant = Grant(name, 0, {}, (), {}, ())
        self.released = set()
        self.copied = set()

    def kept(self):
        return {unit: epoch for unit, epoch in self.grant.leases.items() if unit not in self.released}

    def claim(self):
        held = self.kept()
        self.released = set()
        claim = Claim(
            self.name, self.joined_ms, self.units, held, self.grant.known, self.grant.generation, self.grant.instances,
            sorted(self.copied), self.standby_copies,
        )  # fmt: skip
        return Claim.decode(claim.encode())


def rebalance(members, now_s):
    told = grants({instance: member.claim() for instance, member in members.items()}, assign, now_s)
    for instance, member in members.items():
        member.grant = Grant.decode(told[instance].encode())


@pytest.mark.parametrize("seed", range(30))
def test_lives_of_groups(seed):
    rng = Random(seed)
    members, made, now_s = {}, 0, 1000
    owners = {}
    for _ in range(60):
        now_s += rng.randint(1, 30)
        what = rng.random()
        if what < 0.3 or not members:
            made += 1
            members[f"kafka-{made}"] = Member(f"m{made}", now_s * 1000)
        elif what < 0.5:
            del members[rng.choice(sorted(members))]
        if members:
            release(members, rng, 0.7)
            kept = {instance: member.kept() for instance, member in members.items()}
            rebalance(members, now_s)
            check_one_rebalance(members, kept, owners)
    if members:
        check_calm(members, rng, now_s + 100)


def release(members, rng, share):
    """Let some members release what they were asked for."""
    for member in members.values():
        if rng.random() < share:
            member.released = set(member.grant.outgoing)


def check_one_rebalance(members, kept, owners):
    """Nobody lost what it had not released, no unit has two holders, and epochs grow with every change of owner."""
    held = [unit for member in members.values() for unit in member.grant.leases]
    assert len(held) == len(set(held)), "a unit has two holders"
    for instance, member in members.items():
        assert member.grant.leases.items() >= kept[instance].items(), "what was not released was taken away"
        for unit, epoch in member.grant.leases.items():
            holder, last = owners.get(unit, ("", 0))
            assert epoch >= last if holder == instance else epoch > last, "an epoch did not grow"
            owners[unit] = instance, epoch


def check_calm(members, rng, now_s):
    """Once everything asked for is released, all is spread evenly, and a rebalance changes nothing."""
    for _ in range(3):
        release(members, rng, 1)
        rebalance(members, now_s)
    assert sorted(unit for member in members.values() for unit in member.grant.leases) == UNITS
    shares = [len(member.grant.leases) for member in members.values()]
    assert max(shares) - min(shares) <= 1
    before = {instance: (member.grant.generation, member.kept()) for instance, member in members.items()}
    rebalance(members, now_s + 100)
    assert {i: (member.grant.generation, member.kept()) for i, member in members.items()} == before
    assert not any(member.grant.outgoing for member in members.values())


def test_a_unit_goes_when_its_next_holder_has_a_copy():
    """Until then it is not asked for; how long that may take, its holder knows."""
    members = {"kafka-a": Member("a", 1000)}
    rebalance(members, 1)
    members["kafka-b"] = Member("b", 2000)
    rebalance(members, 2)
    one, two = members.values()
    assert one.grant.revoked == []
    assert len(one.grant.outgoing) == 3
    assert two.grant.incoming == two.grant.copies == one.grant.outgoing
    first, second, _ = one.grant.outgoing
    two.copied = {first}
    rebalance(members, 3)
    assert one.grant.revoked == [first]
    waiting = one.grant.assignment(overdue={second})
    assert waiting.revoked == {first, second}
    assert one.grant.assignment({first}).outgoing == set(one.grant.outgoing) - {first}


def test_what_a_member_that_retires_holds_is_meant_for_others():
    members = {"kafka-a": Member("a", 1000)}
    rebalance(members, 1)
    one = members["kafka-a"]
    one.units = []
    rebalance(members, 2)
    assert one.grant.revoked == one.grant.outgoing == UNITS, "there is nobody to wait for"
    members["kafka-b"] = two = Member("b", 2000)
    rebalance(members, 3)
    assert (one.grant.revoked, one.grant.outgoing, two.grant.incoming) == ([], UNITS, UNITS)
    one.released, two.copied = {"t-0"}, {"t-0", "t-1"}
    rebalance(members, 4)
    assert set(two.grant.leases) == {"t-0"}
    assert one.grant.revoked == ["t-1"]


def test_who_would_take_over_should_have_a_copy():
    members = {f"kafka-{i}": Member(f"m{i}", 1000 + i) for i in range(3)}
    for member in members.values():
        member.standby_copies = 1
    for now_s in range(3):
        release(members, Random(1), 1)
        rebalance(members, now_s)
    lost = set(members["kafka-0"].grant.leases)
    copies = {instance: set(member.grant.copies) & lost for instance, member in members.items()}
    assert set().union(*copies.values()) == lost
    del members["kafka-0"]
    rebalance(members, 9)
    for instance, member in members.items():
        assert set(member.grant.leases) & lost == copies[instance]


def test_the_later_of_two_with_one_name_counts():
    members = {"kafka-b": Member("m", 1000)}
    rebalance(members, 1)
    first = members["kafka-b"].grant
    members["kafka-a"] = Member("m", 2000)
    rebalance(members, 3)
    assert members["kafka-b"].grant.fenced
    assert members["kafka-a"].grant.leases == {unit: epoch + 1 for unit, epoch in first.leases.items()}


def test_a_group_that_begins_anew_has_later_epochs():
    members = {"kafka-a": Member("m", 1000)}
    rebalance(members, 1_700_000_000)
    again = {"kafka-b": Member("m", 2000)}
    rebalance(again, 1_700_000_010)
    before, after = members["kafka-a"].grant, again["kafka-b"].grant
    assert all(after.leases[unit] > epoch for unit, epoch in before.leases.items())
    assert after.generation > before.generation


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x92\x63\x01", b"range"])
def test_what_others_say_is_refused(data):
    with pytest.raises(CorruptError):
        Claim.decode(data)
    with pytest.raises(CorruptError):
        Grant.decode(data)


def test_the_formats_are_what_they_were():
    known = {"t-0": Known(7, "kafka-1", "m1")}
    claim = Claim("m1", 1_700_000_000_000, ["t-0", "t-1"], {"t-0": 7}, known, 3, ["kafka-1"])
    claim = replace(claim, copied=["t-1"], standby_copies=1)
    others = ["kafka-1", "kafka-2"]
    grant = Grant("m1", 3, {"t-0": 7}, ["t-0"], known, others, outgoing=["t-0"], incoming=["t-1"], copies=["t-1"])
    assert (GOLDEN / "claim-v2.bin").read_bytes() == claim.encode()
    assert (GOLDEN / "grant-v2.bin").read_bytes() == grant.encode()
    assert Claim.decode(claim.encode()) == claim
    assert Grant.decode(grant.encode()) == grant


def test_workers_of_two_versions_do_not_mix():
    with pytest.raises(CorruptError, match="format 1, and this headrace knows 2"):
        Claim.decode((GOLDEN / "claim-v1.bin").read_bytes())
    with pytest.raises(CorruptError, match="format 1, and this headrace knows 2"):
        Grant.decode((GOLDEN / "grant-v1.bin").read_bytes())
