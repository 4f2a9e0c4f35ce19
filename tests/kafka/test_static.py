"""Static members: they may be away for a moment, and nothing of theirs goes to others meanwhile."""

from __future__ import annotations

import signal
from contextlib import suppress
from functools import partial

import pytest

from headrace.cli.options import opened_log
from headrace.clock import SystemClock
from headrace.errors import FencedError, HeadraceError, SettingsError
from headrace.log.kafka.log import KafkaLog
from headrace.log.kafka.options import KafkaOptions
from headrace.record import TopicPartition
from headrace.settings import Settings
from headrace.testing.conformance.log_support import assign_evenly, until
from tests.e2e.harness import wait_for
from tests.kafka.clean import wipe
from tests.kafka.machines import Machine, beyond, check, fed, holders, positions
from tests.kafka.machines import machines as machines_with
from tests.kafka.site import KafkaSite
from tests.kafka.test_groups import settled

UNITS = {f"t-{i}": [TopicPartition("payments", i)] for i in range(5)}
LONG_MS = 60_000
"""A session that no test lives to see the end of."""
SESSION_MS = 110_000
PATIENT = {"HEADRACE_SESSION_TIMEOUT": f"{SESSION_MS}ms"}


class Machines:
    """Machines that join a group, each with a connection of its own."""

    def __init__(self, kafka):
        self._url = f"kafka://{kafka}"
        self.logs = []
        self.members = []

    def join(self, slot, process, timeout_ms=LONG_MS):
        self.logs.append(KafkaLog(self._url, clock=SystemClock(), options=KafkaOptions(instance_id=slot)))
        group = self.logs[-1].group("g")
        self.members.append(group.join(process, UNITS, assign_evenly, session_timeout_ms=timeout_ms))
        return self.members[-1]

    def close(self):
        """Let every member leave for good, or the broker would keep the group for as long as a session."""
        for member in self.members:
            member.retire()
            with suppress(HeadraceError):
                member.leave()
        for log in self.logs:
            log.close()


@pytest.fixture
def machines(kafka):
    wipe(kafka)
    made = Machines(kafka)
    log = KafkaLog(f"kafka://{kafka}", clock=SystemClock())
    log.create_topic("payments", len(UNITS))
    log.close()
    yield made
    made.close()


def moved_up(member, before):
    """Return whether a member has what another process had before, under later epochs."""
    now = member.poll().leases
    return now.keys() == before.keys() and all(lease.epoch > before[unit].epoch for unit, lease in now.items())


def test_it_comes_back_and_nothing_moves(machines):
    """The process that comes is fenced off from the one that went; nobody else learns of it."""
    one, two = machines.join("slot-1", "m1-100"), machines.join("slot-2", "m2-200")
    settled(one, two, shares=[3, 2])
    held, others = one.poll().leases, two.poll().leases
    machines.logs[0].close()  # as if it had been killed
    again = machines.join("slot-1", "m1-300")
    until(lambda: [moved_up(again, held), two.poll().leases == others] == [True, True])
    first = again.poll().leases
    three = machines.join("slot-3", "m3-400")
    settled(again, two, three, shares=[2, 2, 1])
    assert again.poll().leases.items() <= first.items(), "it kept what it has through the next rebalance"
    assert two.poll().leases == others


def test_of_two_with_one_instance_id_the_older_ends(machines):
    """Were it to join again, as after a session that ran out, the two would drive each other out for ever."""
    one = machines.join("slot-1", "m1")
    settled(one, shares=[5])
    before = one.poll().leases
    again = machines.join("slot-1", "m2")
    until(lambda: moved_up(again, before))

    said = []

    def ended():
        try:
            return one.poll() is None
        except SettingsError as error:
            return said.append(str(error)) or said

    until(ended)
    assert "HEADRACE_KAFKA_INSTANCE_ID=slot-1" in said[0]
    one.leave()
    settled(again, shares=[5])


def test_one_that_retires_is_not_waited_for(machines):
    """It leaves for good, though its session has long to run."""
    one, two = machines.join("slot-1", "m1"), machines.join("slot-2", "m2")
    settled(one, two, shares=[3, 2])
    one.retire()

    def handed_over():
        two.poll()
        for unit in one.poll().revoked:
            one.release(unit)
        return not one.poll().leases

    until(handed_over)
    one.leave()
    settled(two, shares=[5])
    until(lambda: [member.member_id for member in machines.logs[-1].group("g").members()] == ["m2"])


def test_one_whose_session_ran_out_joins_again(machines):
    one, two = machines.join("slot-1", "m1", 1000), machines.join("slot-2", "m2")
    settled(one, two, shares=[3, 2])
    until(lambda: len(two.poll().leases) == 5)

    def fenced():
        try:
            return one.poll() is None
        except FencedError:
            return True

    until(fenced)
    one.leave()
    again = machines.join("slot-1", "m1")
    settled(again, two, shares=[2, 3])


def test_a_command_takes_nobodys_place(machines, kafka, monkeypatch):
    """It runs where a worker runs, perhaps with the same environment; `rescale` joins the group to see who is there."""
    one = machines.join("slot-1", "m1")
    settled(one, shares=[5])
    before = one.poll().leases
    monkeypatch.setenv("HEADRACE_KAFKA_INSTANCE_ID", "slot-1")
    with opened_log(Settings(log=f"kafka://{kafka}"), SystemClock()) as log:
        command = log.group("g").join("rescale", {}, assign_evenly, session_timeout_ms=LONG_MS)

        until(lambda: one.poll().generation == command.poll().generation)
        assert [member.member_id for member in log.group("g").members()] == ["m1", "rescale"]
        assert one.poll().leases == before
        command.leave()


def held_by(log, machine):
    """Return the tasks of a machine's worker."""
    members = log.group("card-spend").members()
    return next((member.units for member in members if member.member_id.endswith(f"-{machine.process.pid}")), ())


def test_workers_with_places_of_their_own(tmp_path, kafka):
    """One is killed and comes back to its tasks and its disk; another with its id drives it out; the last one retires.

    All of that takes far less than a session.
    """
    wipe(kafka)
    site = KafkaSite(tmp_path, kafka)
    first, second, twin = (
        Machine(site, name, PATIENT | {"HEADRACE_KAFKA_INSTANCE_ID": slot})
        for name, slot in (("one", "slot-1"), ("two", "slot-2"), ("elsewhere", "slot-1"))
    )
    with fed(site) as log, machines_with(first, second, twin):
        first.start()
        second.start()
        wait_for(lambda: holders(log) == [2, 2])
        wait_for(partial(beyond, log, positions(log), 200))
        begun_ms, others = SystemClock().monotonic_ms(), held_by(log, second)
        first.end(signal.SIGKILL)
        first.start()
        wait_for(lambda: len(held_by(log, first)) == 2)
        wait_for(partial(beyond, log, positions(log), 200))
        assert held_by(log, second) == others
        twin.start()
        output, _ = first.process.communicate(timeout=60)
        assert first.process.returncode == 1, output
        assert "HEADRACE_KAFKA_INSTANCE_ID=slot-1" in output
        first.process = None
        wait_for(lambda: len(held_by(log, twin)) == 2)
        wait_for(partial(beyond, log, positions(log), 200))
        twin.end(signal.SIGTERM)
        wait_for(lambda: holders(log) == [4])
        wait_for(partial(beyond, log, positions(log), 200))
        assert SystemClock().monotonic_ms() - begun_ms < SESSION_MS, "nobody waited for a session to run out"
        second.end(signal.SIGTERM)
    check(site)
