"""What the consumer groups of every log must do; part of ``LogContract``."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest

from headrace.errors import FencedError
from headrace.log.api import Assignment, Committed, Lease, Log, Membership
from headrace.record import TopicPartition
from headrace.testing.conformance.log_support import (
    PART,
    TIMEOUT_MS,
    UNITS,
    LogFixtures,
    StillClock,
    assign_evenly,
    until,
)


class GroupContract(LogFixtures):
    """Groups: who runs what, and what was committed."""

    def join(
        self, log: Log, member_id: str, units: Sequence[str] = ("a", "b"), *, handoff_timeout_ms: int = 0,
        standby_copies: int = 0,
    ) -> Membership:  # fmt: skip
        """Join the group ``g``."""
        some = {unit: UNITS.get(unit, []) for unit in units}
        return log.group("g").join(
            member_id, some, assign_evenly, session_timeout_ms=TIMEOUT_MS, handoff_timeout_ms=handoff_timeout_ms,
            standby_copies=standby_copies,
        )  # fmt: skip

    def test_one_member_gets_everything(self, log: Log) -> None:
        """A lone member holds every unit, under the first epoch."""
        member = self.join(log, "m1")
        got = member.poll()
        first = got.leases["a"].epoch
        assert first > 0
        assert got.leases == {"a": Lease("a", first), "b": Lease("b", first)}
        assert got.revoked == frozenset()
        assert member.poll() == got
        assert member.member_id == "m1"
        member.leave()

    def test_units_move_after_release(self, log: Log, other: Log) -> None:
        """A unit that is meant for another stays until it is released, and the others are not interrupted."""
        one = self.join(log, "m1")
        first = one.poll()
        two = self.join(other, "m2")
        assert two.poll().leases == {}
        asked = one.poll()
        assert asked.generation > first.generation
        assert asked.leases == first.leases
        (moving,) = asked.revoked
        (staying,) = set(first.leases) - asked.revoked
        assert two.poll().leases == {}
        one.release(moving)
        one.release(moving)
        epoch = first.leases[staying].epoch
        assert one.poll() == Assignment(asked.generation, {staying: Lease(staying, epoch)}, frozenset())
        assert two.poll().leases == {moving: Lease(moving, epoch + 1)}
        assert one.poll().leases == {staying: Lease(staying, epoch)}
        assert [tuple(m) for m in log.group("g").members()] == [("m1", (staying,)), ("m2", (moving,))]
        one.leave()
        assert two.poll().leases == {staying: Lease(staying, epoch + 1), moving: Lease(moving, epoch + 1)}
        two.leave()

    def test_a_unit_stays_until_its_next_holder_has_a_copy(self, log: Log, other: Log, clock: StillClock) -> None:
        """With a time for hand-offs, a unit moves when its state is there already, or when that time is over."""
        one = self.join(log, "m1", handoff_timeout_ms=TIMEOUT_MS)
        assert one.poll().leases.keys() == {"a", "b"}
        two = self.join(other, "m2")
        asked = one.poll()
        assert asked.revoked == frozenset()
        (moving,) = asked.outgoing
        coming = two.poll()
        assert coming.incoming == coming.copies == {moving}
        two.copied(moving)
        two.copied(moving)
        assert one.poll().revoked == {moving}
        two.leave()
        assert one.poll().outgoing == frozenset()
        three = self.join(other, "m3")
        asked = one.poll()
        assert asked.outgoing
        assert asked.revoked == frozenset()
        self.pass_time(clock, TIMEOUT_MS - 1)
        three.heartbeat()
        assert one.poll().revoked == frozenset()
        self.pass_time(clock, 1)
        assert one.poll().revoked == asked.outgoing
        three.leave()
        one.leave()

    def test_a_member_that_retires_gets_nothing_more(self, log: Log, other: Log) -> None:
        """What it holds is meant for others, and what it releases does not come back."""
        one = self.join(log, "m1")
        one.poll()
        one.retire()
        assert one.poll().revoked == {"a", "b"}, "there is nobody to wait for"
        two = self.join(other, "m2")
        assert two.poll().incoming == {"a", "b"}
        one.retire()
        one.release("a")
        assert one.poll().leases.keys() == {"b"}
        assert two.poll().leases.keys() == {"a"}
        one.leave()
        assert two.poll().leases.keys() == {"a", "b"}
        two.leave()

    def test_the_one_who_would_take_over_keeps_a_copy(self, log: Log, other: Log) -> None:
        """With standby copies, it is the member that gets the unit when its holder goes."""
        members = [self.join(log, name, list(UNITS), standby_copies=1) for name in ("m1", "m2", "m3")]
        for _ in range(3):
            for member in members:
                for unit in member.poll().revoked:
                    member.release(unit)
        first, *rest = members
        lost = first.poll().leases.keys()
        assert lost
        copies = {member.member_id: member.poll().copies for member in rest}
        first.leave()
        for member in rest:
            assert member.poll().leases.keys() & lost == copies[member.member_id] & lost
        for member in rest:
            member.leave()

    def test_leaving_frees_everything(self, log: Log, other: Log) -> None:
        """What a member held goes to the others under a new epoch."""
        one = self.join(log, "m1")
        held = one.poll()
        one.leave()
        one.leave()
        two = self.join(other, "m2")
        got = two.poll()
        assert all(got.leases[unit].epoch > held.leases[unit].epoch for unit in ("a", "b"))
        assert got.generation > held.generation
        with pytest.raises(FencedError):
            one.poll()
        two.leave()

    def test_a_silent_member_is_removed(self, log: Log, other: Log, clock: StillClock) -> None:
        """A member whose heartbeat stands still for the session timeout loses its units, and learns of it."""
        one = self.join(log, "m1")
        held = one.poll()
        two = self.join(other, "m2")
        two.poll()
        self.pass_time(clock, TIMEOUT_MS - 1)
        assert two.poll().leases == {}
        self.pass_time(clock, 1)
        assert two.poll().leases.keys() == {"a", "b"}
        assert [member.member_id for member in log.group("g").members()] == ["m2"]
        one.heartbeat()
        with pytest.raises(FencedError):
            one.poll()
        with pytest.raises(FencedError):
            one.commit(next(iter(held.leases.values())), {PART: Committed(1)})
        again = self.join(log, "m1")
        two.leave()
        assert again.poll().leases["a"].epoch == 3
        again.leave()

    def test_a_heartbeat_keeps_a_member(self, log: Log, other: Log, clock: StillClock) -> None:
        """A member that says that it lives stays, from whatever thread, and even if it does not poll."""
        one = self.join(log, "m1")
        leases = one.poll().leases
        two = self.join(other, "m2")
        for _ in range(5):
            two.poll()
            self.pass_time(clock, TIMEOUT_MS - 1)
            thread = threading.Thread(target=one.heartbeat)
            thread.start()
            thread.join()
        assert two.poll().leases == {}
        assert one.poll().leases == leases
        one.leave()
        two.leave()

    def test_the_observer_measures_silence_itself(self, log: Log, other: Log, clock: StillClock) -> None:
        """Whoever looks for the first time has seen nothing stand still yet."""
        one = self.join(log, "m1")
        one.poll()
        self.pass_time(clock, 100 * TIMEOUT_MS)
        two = self.join(other, "m2")
        assert two.poll().leases == {}
        assert one.poll().leases.keys() == {"a", "b"}
        one.leave()
        two.leave()

    def test_a_member_that_joins_again_is_another(self, log: Log, other: Log) -> None:
        """A new member of the same id replaces the old one under a new epoch."""
        one = self.join(log, "m1")
        lease = one.poll().leases["a"]
        again = self.join(other, "m1")
        with pytest.raises(FencedError):
            one.poll()
        assert again.poll().leases["a"] == Lease("a", lease.epoch + 1)
        with pytest.raises(FencedError):
            one.commit(lease, {PART: Committed(1)})
        one.leave()
        assert again.poll().leases["a"] == Lease("a", lease.epoch + 1)
        again.leave()

    def test_a_released_unit_returns_under_its_epoch(self, log: Log) -> None:
        """The epoch changes on a change of owner only."""
        one = self.join(log, "m1")
        lease = one.poll().leases["a"]
        one.release("a")
        assert one.poll().leases["a"] == lease
        one.leave()

    def test_the_generation_grows_with_every_change(self, log: Log, other: Log) -> None:
        """Joining and leaving make a new generation; nothing else does."""
        one = self.join(log, "m1")
        seen = [one.poll().generation, one.poll().generation]
        one.release("a")
        seen.append(one.poll().generation)
        two = self.join(other, "m2")
        seen.append(one.poll().generation)
        two.leave()
        seen.append(one.poll().generation)
        assert seen[0] == seen[1] == seen[2] < seen[3] < seen[4]
        one.leave()

    def test_units_go_only_to_those_who_run_them(self, log: Log, other: Log) -> None:
        """A member gets no unit that it did not name."""
        one = self.join(log, "m1", ["a", "b"])
        two = self.join(other, "m2", ["a", "b", "c"])
        for member in (one, two, one, two):
            asked = member.poll()
            for unit in asked.revoked:
                member.release(unit)
        assert "c" in two.poll().leases
        assert set(one.poll().leases) | set(two.poll().leases) == {"a", "b", "c"}
        one.leave()
        two.leave()

    def test_offsets_are_committed_under_a_lease(self, log: Log, other: Log) -> None:
        """What the holder commits is what others read; a lease of another epoch or a released one is fenced."""
        one = self.join(log, "m1")
        lease = one.poll().leases["a"]
        one.commit(lease, {PART: Committed(5, "meta")})
        one.commit(lease, {PART: Committed(7), TopicPartition("payments", 1): Committed(2, "x")})
        expected = {PART: Committed(7), TopicPartition("payments", 1): Committed(2, "x")}
        assert other.group("g").committed() == expected
        with pytest.raises(FencedError):
            one.commit(Lease("a", lease.epoch - 1), {PART: Committed(1)})
        with pytest.raises(FencedError):
            one.commit(Lease("nothing", 1), {PART: Committed(1)})
        one.release("a")
        with pytest.raises(FencedError):
            one.commit(lease, {PART: Committed(1)})
        one.leave()
        assert log.group("g").committed() == expected

    def test_groups_are_listed(self, log: Log, other: Log) -> None:
        """A group is listed while it has members or committed offsets."""
        assert log.groups() == []
        assert log.group("nobody").members() == []
        assert log.group("nobody").committed() == {}
        one = self.join(log, "m1")
        until(lambda: other.groups() == ["g"])
        lease = one.poll().leases["a"]
        one.leave()
        until(lambda: other.groups() == [])
        two = log.group("f").join("m", UNITS, assign_evenly, session_timeout_ms=TIMEOUT_MS)
        again = self.join(log, "m2")
        again.commit(again.poll().leases["a"], {PART: Committed(lease.epoch)})
        again.leave()
        until(lambda: other.groups() == ["f", "g"])
        two.leave()
        until(lambda: other.groups() == ["g"])
