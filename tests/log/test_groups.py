"""The decisions of groups, without a store."""

from __future__ import annotations

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
    assignment,
    joined,
    observed,
    released,
    removed,
    silent,
    targets,
)
from headrace.log.memory import MemoryLog
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
    assert assignment(state, 2, {}).leases == {"a": Lease("a", 2), "b": Lease("b", 2)}


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
        self.held: dict[str, dict[str, Lease]] = {}

    @rule(name=st.sampled_from("xyz"))
    def join(self, name: str) -> None:
        self.live[name] = self.group.join(name, self.units, assign_evenly, session_timeout_ms=TIMEOUT_MS)
        self.incarnations += 1
        self.known[name] = self.incarnations
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
        assert got.revoked <= got.leases.keys()
        if release:
            for unit in got.revoked:
                self.live[name].release(unit)
                del self.held[name][unit]

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
        for _ in range(4):
            for name in list(self.live):
                self.poll(name, release=True)
        if self.live:
            held = [unit for name in self.live for unit in self.held[name]]
            silent_members = {m.member_id for m in self.group.members()} - self.live.keys()
            assert silent_members or sorted(held) == sorted(self.units)


TestGroups = Groups.TestCase
TestGroups.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
