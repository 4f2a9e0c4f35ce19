"""The decisions of groups, without a store."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from headrace.errors import FencedError
from headrace.log.api import Lease, Membership
from headrace.log.groups import (
    GroupState,
    Member,
    Sighting,
    acquired,
    copied,
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
from headrace.log.membership import StoredGroup
from headrace.log.memory import MemoryGroupStore, MemoryLog
from headrace.record import TopicPartition
from headrace.testing.conformance.log_support import TIMEOUT_MS, StillClock, assign_evenly


def member(token: int, name: str, units: str = "ab", counter: int = 0) -> Member:
    return Member(token, name, counter, 1000, frozenset(units))


def test_joining_again_frees_what_the_older_incarnation_held() -> None:
    state = joined(GroupState(), member(1, "m"))
    state = acquired(state, 1, {"a": "m", "b": "m"})
    state = joined(state, member(2, "m"))
    assert {lease.holder for lease in state.leases.values()} == {0}
    state = acquired(state, 2, {"a": "m", "b": "m"})
    assert leases(state, 2) == {"a": Lease("a", 2), "b": Lease("b", 2)}


def test_what_changes_nothing_returns_the_same_state() -> None:
    state = acquired(joined(GroupState(), member(1, "m")), 1, {"a": "m"})
    assert removed(state, [7]) is state
    assert released(state, 1, "b") is state
    assert released(state, 2, "a") is state
    assert acquired(state, 1, {"a": "m", "b": "other"}) is state


def test_silence_is_counted_from_the_last_change_that_was_seen() -> None:
    state = joined(GroupState(), member(1, "m"))
    seen = observed({}, state, 100)
    assert seen == {1: Sighting(0, 100)}
    assert observed(seen, state, 500) == seen
    assert silent(seen, state, 1099) == frozenset()
    assert silent(seen, state, 1100) == {1}
    beaten = GroupState(1, {1: member(1, "m", counter=1)})
    assert silent(seen, beaten, 9999) == frozenset()
    assert observed(seen, beaten, 600) == {1: Sighting(1, 600)}
    assert observed(seen, GroupState(), 600) == {}


def test_units_are_assigned_among_those_who_can_run_them() -> None:
    state = joined(joined(GroupState(), member(1, "old", "ab")), member(2, "new", "abc"))
    chosen = targets(state, assign_evenly)
    assert chosen["c"] == "new"
    assert sorted(chosen) == ["a", "b", "c"]
    assert targets(GroupState(), assign_evenly) == {}


def two_members() -> GroupState:
    """Return a group where ``m`` holds what is meant for ``n`` as well."""
    return joined(acquired(joined(GroupState(), member(1, "m")), 1, {"a": "m", "b": "m"}), member(2, "n"))


def test_a_unit_goes_when_its_next_holder_has_a_copy_or_after_a_time() -> None:
    state, chosen = two_members(), {"a": "m", "b": "n"}
    assert outgoing(state, 1, chosen) == {"b"}
    since = waited({}, outgoing(state, 1, chosen), 100)
    assert since == {"b": 100}
    assert waited(since, {"b"}, 700) == since
    assert due(state, chosen, since, 699, 600) == frozenset()
    assert due(state, chosen, since, 700, 600) == {"b"}
    assert due(copied(state, 2, "a"), chosen, since, 100, 600) == frozenset(), "a copy of another unit"
    assert due(copied(state, 1, "b"), chosen, since, 100, 600) == frozenset(), "a copy that another has"
    assert due(copied(state, 2, "b"), chosen, since, 100, 600) == {"b"}
    assert due(state, {"a": "m"}, since, 100, 600) == {"b"}, "nobody to wait for"
    assert waited(since, (), 800) == {}


def test_copies_are_forgotten_with_their_member_and_when_they_are_not_wanted() -> None:
    state = copied(copied(two_members(), 2, "a"), 2, "b")
    assert copied(state, 2, "a") is state
    assert copied(state, 7, "a") is state, "a member that was removed has no copies"
    assert forgotten(state, 2, {"a", "b"}) is state
    assert forgotten(state, 1, ()) is state
    assert {copy.unit for copy in forgotten(state, 2, {"b"}).copies} == {"b"}
    assert removed(state, [2]).copies == frozenset()


def test_a_member_that_retires_keeps_what_it_holds_and_gets_nothing_more() -> None:
    before = two_members()
    state = retired(before, 1)
    assert retired(state, 1) is state
    assert retired(state, 7) is state
    chosen = targets(state, assign_evenly)
    assert chosen == {"a": "n", "b": "n"}
    assert leases(state, 1) == leases(before, 1)
    assert outgoing(state, 1, chosen) == {"a", "b"}
    assert wanted_copies(state, 2, chosen, {}) == {"a", "b"}
    freed = released(state, 1, "a")
    assert acquired(freed, 1, {"a": "m"}) is freed
    alone = retired(removed(state, [2]), 1)
    assert outgoing(alone, 1, targets(alone, assign_evenly)) == {"a", "b"}


def test_those_who_would_take_over_keep_copies() -> None:
    state = joined(two_members(), member(3, "o"))
    chosen = targets(state, assign_evenly)
    following = successors(state, assign_evenly, 2)
    for unit, owner in chosen.items():
        (token,) = (token for token, other in state.members.items() if other.member_id == owner)
        first, second = following[unit]
        assert first == targets(removed(state, [token]), assign_evenly)[unit]
        assert {owner, first, second} == {"m", "n", "o"}
    assert all(line[:1] == following[unit][:1] for unit, line in successors(state, assign_evenly, 1).items())
    assert successors(removed(state, [2, 3]), assign_evenly, 2) == {"a": (), "b": ()}
    wanted = wanted_copies(state, 3, chosen, following)
    assert wanted == {"a", "b"}
    assert wanted_copies(state, 1, chosen, following) == frozenset(), "what one holds needs no copy"


def test_clocks_that_differ_do_not_matter() -> None:
    """Members whose clocks are years apart, and run at different speeds, judge silence each by its own."""
    store = MemoryGroupStore()
    here, there = StillClock(1_000), StillClock(4_000_000_000_000)
    one = StoredGroup("g", store, here).join("one", {"a": []}, assign_evenly, session_timeout_ms=TIMEOUT_MS)
    two = StoredGroup("g", store, there).join("two", {"a": []}, assign_evenly, session_timeout_ms=TIMEOUT_MS)
    for _ in range(5):
        # By the clock of the second, the first says that it lives just in time; its own clock stands still.
        assert one.poll().leases.keys() == {"a"}
        assert two.poll().leases == {}
        there.time_ms += TIMEOUT_MS - 1
        one.heartbeat()
    here.time_ms += 100 * TIMEOUT_MS
    two.heartbeat()
    assert one.poll().leases.keys() == {"a"}, "whose own time passes loses nothing"
    two.poll()
    there.time_ms += TIMEOUT_MS
    assert two.poll().leases.keys() == {"a"}
    with pytest.raises(FencedError):
        one.poll()


class Groups(RuleBasedStateMachine):
    """Members come, go, fall silent and are fenced; nobody ever shares a unit or an epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = StillClock()
        self.log = MemoryLog(self.clock)
        self.group = self.log.group("g")
        self.units: dict[str, list[TopicPartition]] = {unit: [] for unit in "abcde"}
        self.live: dict[str, Membership] = {}
        self.incarnations = 0
        self.owners: dict[tuple[str, int], int] = {}
        self.known: dict[str, int] = {}
        self.retired: set[str] = set()
        self.held: dict[str, dict[str, Lease]] = {}

    @rule(name=st.sampled_from("xyz"))
    def join(self, name: str) -> None:
        self.live[name] = self.group.join(
            name, self.units, assign_evenly, session_timeout_ms=TIMEOUT_MS, handoff_timeout_ms=TIMEOUT_MS // 2,
            standby_copies=1,
        )  # fmt: skip
        self.incarnations += 1
        self.known[name] = self.incarnations
        self.retired.discard(name)
        self.held[name] = {}

    @rule(name=st.sampled_from("xyz"), release=st.booleans())
    def poll(self, name: str, release: bool) -> None:
        if name not in self.live:
            return
        try:
            got = self.live[name].poll()
        except FencedError:
            del self.live[name], self.held[name]
            return
        for unit, lease in got.leases.items():
            owner = self.owners.setdefault((unit, lease.epoch), self.known[name])
            assert owner == self.known[name]
        for unit, lease in self.held[name].items():
            assert got.leases[unit] == lease, "a unit was taken from a live member"
        self.held[name] = dict(got.leases)
        assert got.revoked <= got.outgoing <= got.leases.keys()
        assert got.incoming <= got.copies
        assert not got.copies & got.leases.keys()
        if release:
            for unit in got.revoked:
                self.live[name].release(unit)
                del self.held[name][unit]

    @rule(name=st.sampled_from("xyz"), unit=st.sampled_from("abcde"))
    def copy(self, name: str, unit: str) -> None:
        if name in self.live:
            self.live[name].copied(unit)

    @rule(name=st.sampled_from("xyz"))
    def retire(self, name: str) -> None:
        if name in self.live:
            self.live[name].retire()
            self.retired.add(name)

    @rule(name=st.sampled_from("xyz"))
    def leave(self, name: str) -> None:
        if name in self.live:
            self.live.pop(name).leave()
            del self.held[name]

    @rule(name=st.sampled_from("xyz"))
    def beat(self, name: str) -> None:
        if name in self.live:
            self.live[name].heartbeat()

    @rule(part=st.sampled_from([1, 2, 4]))
    def wait(self, part: int) -> None:
        self.clock.time_ms += TIMEOUT_MS // part

    @invariant()
    def nobody_shares_a_unit(self) -> None:
        held = [unit for member in self.group.members() for unit in member.units]
        assert len(held) == len(set(held))

    def teardown(self) -> None:
        for _ in range(6):
            for name in list(self.live):
                self.beat(name)
                self.poll(name, release=True)
            self.clock.time_ms += TIMEOUT_MS // 2
        for name in self.retired & self.held.keys():
            assert not self.held[name], "whoever retired hands over all in the end"
        if self.live.keys() - self.retired:
            held = [unit for name in self.live for unit in self.held[name]]
            silent_members = {m.member_id for m in self.group.members()} - self.live.keys()
            assert silent_members or sorted(held) == sorted(self.units)


TestGroups = Groups.TestCase
TestGroups.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
