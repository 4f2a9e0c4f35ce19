"""What leaders decide, over long lives of groups; and bytes of an earlier version."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from headrace.errors import CorruptError
from headrace.log.kafka.leading import Claim, Grant, Known, grants
from headrace.runtime.workers.assignment import assign

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


def rebalance(members, now_ms):
    told = grants({instance: member.claim() for instance, member in members.items()}, assign, now_ms)
    for instance, member in members.items():
        member.grant = Grant.decode(told[instance].encode())


class Lives(RuleBasedStateMachine):
    """Members come, die, retire and come back as static ones; whoever is there takes part in each rebalance."""

    def __init__(self):
        super().__init__()
        self.members, self.made, self.now_ms = {}, 0, 1_700_000_000_000
        self.owners = {}

    def add(self, name=""):
        self.made += 1
        member = self.members[f"kafka-{self.made}"] = Member(name or f"m{self.made}", self.now_ms)
        return member

    def pick(self, place):
        return sorted(self.members)[place % len(self.members)]

    @rule(standby_copies=st.integers(0, 2))
    def comes(self, standby_copies):
        self.add().standby_copies = standby_copies

    @precondition(lambda self: self.members)
    @rule(place=st.integers(0, 20))
    def dies(self, place):
        del self.members[self.pick(place)]

    @precondition(lambda self: self.members)
    @rule(place=st.integers(0, 20))
    def retires(self, place):
        self.members[self.pick(place)].units = []

    @precondition(lambda self: self.members)
    @rule(place=st.integers(0, 20))
    def comes_back(self, place):
        """A static member: the broker tells the process what it told the one before, which is not its own."""
        before = self.members.pop(self.pick(place))
        again = self.add(before.name)
        again.grant = replace(before.grant, leases={}, revoked=(), outgoing=(), incoming=(), copies=())

    @precondition(lambda self: self.members)
    @rule(place=st.integers(0, 20), what=st.sampled_from(["revoked", "outgoing"]))
    def releases(self, place, what):
        member = self.members[self.pick(place)]
        member.released = set(getattr(member.grant, what))

    @precondition(lambda self: self.members)
    @rule(place=st.integers(0, 20), count=st.integers(1, 6))
    def copies(self, place, count):
        member = self.members[self.pick(place)]
        member.copied = set(member.grant.copies[:count])

    @precondition(lambda self: self.members)
    @rule(passed_ms=st.integers(1, 5000))
    def settle(self, passed_ms=1):
        self.now_ms += passed_ms
        kept = {instance: member.kept() for instance, member in self.members.items()}
        rebalance(self.members, self.now_ms)
        check_one_rebalance(self.members, kept, self.owners)

    def teardown(self):
        if any(member.units for member in self.members.values()):
            check_calm(self.members, self.settle)


TestLives = Lives.TestCase
TestLives.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


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


def check_calm(members, settle):
    """If members do what they are asked for, they soon have no reason to join again, and all is spread evenly."""
    settle()  # of what happened just now
    for _ in range(3):
        if not stirred(members):
            break
        settle()
    assert not stirred(members), "each rebalance asks for another"
    active = [member for member in members.values() if member.units]
    assert sorted(unit for member in active for unit in member.grant.leases) == UNITS
    shares = [len(member.grant.leases) for member in active]
    assert max(shares) - min(shares) <= 1
    before = {instance: (member.grant.generation, member.kept()) for instance, member in members.items()}
    settle()
    assert {i: (member.grant.generation, member.kept()) for i, member in members.items()} == before


def stirred(members):
    """Let members do what a rebalance asked of them, and return who joins again because of that."""
    found = []
    for instance, member in members.items():
        new = set(member.grant.incoming) - member.copied
        member.copied = set(member.grant.copies)
        member.released = set(member.grant.revoked)
        if new or member.released:
            found.append(instance)
    return found


def test_a_large_group_is_led_in_no_time():
    """The leader decides in the client's thread, which also fetches and says that the worker lives."""
    units = [f"t-{i}" for i in range(200)]
    members = {f"kafka-{i}": Member(f"m{i}", 1000 + i) for i in range(50)}
    for member in members.values():
        member.units, member.standby_copies = units, 1
    rebalance(members, 1)
    del members["kafka-7"], members["kafka-31"]
    members |= {f"kafka-{i}": Member(f"m{i}", 2000 + i) for i in range(50, 60)}
    begun = time.process_time()
    for _ in range(3):
        rebalance(members, 2)
    assert time.process_time() - begun < 3, "about 0.1 s each on a quiet machine"


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
        for member in members.values():
            member.released = set(member.grant.outgoing)
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
    """Two lives of a group may follow each other within the time that a command takes to join, leave and join."""
    members = {"kafka-a": Member("m", 1000)}
    rebalance(members, 1_700_000_000_000)
    again = {"kafka-b": Member("m", 2000)}
    rebalance(again, 1_700_000_000_002)
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
