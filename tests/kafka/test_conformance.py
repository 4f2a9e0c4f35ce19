"""The suite for logs, on a real broker."""

import time
from contextlib import suppress

import pytest

from headrace.errors import FencedError
from headrace.log.api import Committed
from headrace.log.kafka.groups import _describe
from headrace.log.kafka.log import KafkaLog
from headrace.log.kafka.topics import LEAST_SEGMENT_BYTES
from headrace.testing.conformance.log import LogContract
from headrace.testing.conformance.log_support import PART, UNITS, assign_evenly, until
from tests.kafka.clean import wipe

CALM_S = 0.05
"""How long a group that seems to have settled is watched for a sign that it has not."""


class Patient:
    """A membership whose ``poll`` waits until the group has settled; meanwhile the others say that they live."""

    def __init__(self, member, everybody, log):
        self.inner = member
        self.everybody = everybody
        self.log = log
        self.member_id = member.member_id
        everybody.append(self)
        self.heartbeat, self.commit, self.release = member.heartbeat, member.commit, member.release
        self.retire, self.copied = member.retire, member.copied

    def poll(self):
        seen, since = None, time.monotonic()
        while seen is None or time.monotonic() - since < CALM_S:
            now = self.look()
            if now is None or now != seen:
                seen, since = now, time.monotonic()
            time.sleep(0.005)
        return self.inner.poll()

    def look(self):
        """Return what everybody holds, or None while somebody is about to join, or has not heard what came of it."""
        connection = self.log._connection
        state = connection.call(_describe(connection, "g"))[2]
        now, generations = [], set()
        for other in self.everybody:
            with suppress(FencedError):
                now.append(other.inner.poll())
                generations.add(other.inner._generation)
            if other.inner._rejoin_due is not None:
                return None
        quiet = state == "Stable" and len(generations) == 1 and all(assignment.generation for assignment in now)
        return now if quiet or not now else None

    def leave(self):
        self.inner.leave()
        if self in self.everybody:
            self.everybody.remove(self)


class TestKafka(LogContract):
    """Kafka."""

    least_segment_bytes = LEAST_SEGMENT_BYTES

    @pytest.fixture(autouse=True)
    def _broker(self, kafka):
        self.address = kafka
        self.everybody = []
        wipe(kafka)

    def open_log(self, directory, clock):
        return KafkaLog(f"kafka://{self.address}", clock=clock)

    def another_log(self, log, directory, clock):
        return KafkaLog(f"kafka://{self.address}", clock=clock)

    def join(self, log, member_id, units=("a", "b"), **options):
        some = {unit: UNITS.get(unit, []) for unit in units}
        member = log.group("g").join(member_id, some, assign_evenly, session_timeout_ms=1000, **options)
        clock = log._clock
        clock.time_ms += 2000  # who joins later is later
        return Patient(member, self.everybody, log)

    def test_a_silent_member_is_removed(self, log, other, clock):
        """The broker removes it; it learns of it when it says again that it lives."""
        one = self.join(log, "m1")
        held = one.poll()
        two = self.join(other, "m2")
        self.everybody.remove(one)
        until(lambda: two.inner.poll().leases.keys() == {"a", "b"}, 5)
        assert [member.member_id for member in log.group("g").members()] == ["m2"]

        def fenced():
            try:
                one.inner.poll()
            except FencedError:
                return True

        until(fenced)
        with pytest.raises(FencedError):
            one.commit(next(iter(held.leases.values())), {PART: Committed(1)})
        again = self.join(log, "m1")
        again.poll()
        two.leave()
        assert again.poll().leases["a"].epoch > held.leases["a"].epoch + 1
        again.leave()

    def test_a_heartbeat_keeps_a_member(self, log, other, clock):
        """From whatever thread, and even if it does not poll."""
        one = self.join(log, "m1")
        leases = one.poll().leases
        two = self.join(other, "m2")
        self.everybody.remove(one)
        end = time.monotonic() + 2
        while time.monotonic() < end:
            one.heartbeat()
            assert two.inner.poll().leases == {}
            time.sleep(0.1)
        assert one.inner.poll().leases == leases
        one.leave()
        two.leave()

    test_the_observer_measures_silence_itself = None  # the broker is the observer of everybody
