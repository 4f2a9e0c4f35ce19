"""Groups on a real broker, as the workers and Kafka's own tools see them."""

from __future__ import annotations

import asyncio
import time
from random import Random

import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.admin import AIOKafkaAdminClient

from headrace.clock import SystemClock
from headrace.errors import FencedError, HeadraceError
from headrace.log.api import Committed
from headrace.log.kafka.log import KafkaLog
from headrace.log.kafka.options import KafkaOptions
from headrace.record import TopicPartition
from headrace.testing.conformance.log_support import assign_evenly, make_batch, until
from tests.kafka.clean import wipe

UNITS = {f"t-{i}": [TopicPartition("payments", i)] for i in range(4)}


@pytest.fixture
def open_log(kafka):
    wipe(kafka)
    opened = []

    def open_one(clock=None, **options):
        opened.append(KafkaLog(f"kafka://{kafka}", clock=clock or SystemClock(), options=KafkaOptions(**options)))
        return opened[-1]

    open_one().create_topic("payments", 4)
    yield open_one
    for log in opened:
        log.close()


def join(log, name, timeout_ms=3000):
    return log.group("g").join(name, UNITS, assign_evenly, session_timeout_ms=timeout_ms)


def settled(*members, shares):
    """Poll all members, release what they are asked for, until each has its share."""

    def check():
        for member in members:
            for unit in member.poll().revoked:
                member.release(unit)
        return [len(member.poll().leases) for member in members] == shares

    until(check)


def test_what_stays_is_not_touched(open_log):
    """A rebalance is no interruption: whoever keeps a unit keeps its lease all the while."""
    one = join(open_log(), "m1")
    settled(one, shares=[4])
    before = one.poll().leases
    two = join(open_log(), "m2")
    seen = []

    def halfway():
        got = one.poll()
        seen.append(got.leases)
        two.poll()
        return got.revoked

    until(halfway)
    assert all(leases == before for leases in seen)
    settled(one, two, shares=[2, 2])
    after = one.poll().leases
    assert all(before[unit] == lease for unit, lease in after.items())
    assert all(lease.epoch > before[unit].epoch for unit, lease in two.poll().leases.items())
    one.commit(after["t-0"], {TopicPartition("payments", 0): Committed(1)})
    one.leave()
    settled(two, shares=[4])
    two.leave()


def test_work_that_takes_long_costs_no_membership(open_log):
    """Nobody polls, but the heartbeat comes; the group settles meanwhile."""
    one = join(open_log(), "m1", 1000)
    settled(one, shares=[4])
    two = join(open_log(), "m2", 1000)
    end = time.monotonic() + 2.2
    while time.monotonic() < end:
        one.heartbeat()
        two.heartbeat()
        time.sleep(0.2)
    assert len(one.poll().leases) == 4
    assert len(one.poll().revoked) == 2
    one.leave()
    two.leave()


class Behind(SystemClock):
    """The clock of a machine that nobody has set."""

    def now_ms(self):
        return super().now_ms() - 3_600_000


class Ahead(SystemClock):
    """A clock that can be put forward."""

    ahead_ms = 0

    def monotonic_ms(self):
        return super().monotonic_ms() + self.ahead_ms


def test_who_stood_still_past_its_session_does_not_know_what_it_holds(open_log):
    clock = Ahead()
    member = join(open_log(clock), "one")
    settled(member, shares=[4])
    assert member.poll().confirmed
    clock.ahead_ms += 3_000
    found = member.poll()
    assert len(found.leases) == 4
    assert not found.confirmed
    until(lambda: member.poll().confirmed)
    member.leave()


def test_epochs_grow_from_one_life_of_a_group_to_the_next(open_log):
    """Commands follow each other within a second, and each is all of the group there is."""
    log, last = open_log(), {}
    for _ in range(3):
        member = join(log, "m1")
        settled(member, shares=[4])
        held = {unit: lease.epoch for unit, lease in member.poll().leases.items()}
        assert all(epoch > last.get(unit, 0) for unit, epoch in held.items())
        last = held
        member.leave()


def test_epochs_grow_though_the_next_clock_is_behind(open_log):
    one = join(open_log(), "m1")
    settled(one, shares=[4])
    lease = one.poll().leases["t-0"]
    one.commit(lease, {TopicPartition("payments", 0): Committed(1, "end=1")})
    one.leave()
    again = join(open_log(Behind()), "m1")
    settled(again, shares=[4])
    assert all(taken.epoch > lease.epoch for taken in again.poll().leases.values())
    again.leave()
    assert open_log().group("g").committed() == {TopicPartition("payments", 0): Committed(1, "end=1")}


def test_what_other_programs_see(open_log, kafka):
    log = open_log()
    member = join(log, "m1")
    settled(member, shares=[4])
    part = TopicPartition("payments", 2)
    log.append(part, make_batch([b"a", b"b"]))
    lease = member.poll().leases["t-2"]
    member.commit(lease, {part: Committed(1, "end=2")})

    async def look():
        admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
        await admin.start()
        try:
            offsets = await admin.list_consumer_group_offsets("g")
            described = (await admin.describe_consumer_groups(["g"]))[0].groups[0]
            return offsets, described
        finally:
            await admin.close()

    offsets, described = asyncio.run(look())
    assert offsets == {("payments", 2): (1, f"end=2 epoch={lease.epoch}")}
    assert described[2:5] == ("Stable", "consumer", "headrace")
    assert [tuple(m) for m in log.group("g").members()] == [("m1", tuple(sorted(UNITS)))]
    member.leave()


def test_groups_of_other_programs_are_shown(open_log, kafka):
    log = open_log()

    async def look():
        consumer = AIOKafkaConsumer("payments", bootstrap_servers=kafka, group_id="other", client_id="them")
        await consumer.start()
        try:
            while not consumer.assignment():
                await asyncio.sleep(0.01)
            return await asyncio.to_thread(lambda: (log.groups(), log.group("other").members()))
        finally:
            await consumer.stop()

    names, members = asyncio.run(look())
    assert names == ["other"]
    assert [tuple(m) for m in members] == [("them", tuple(f"payments/{i}" for i in range(4)))]


def test_a_group_that_another_program_uses_is_refused(open_log, kafka):
    log = open_log()

    async def look():
        consumer = AIOKafkaConsumer("payments", bootstrap_servers=kafka, group_id="g")
        await consumer.start()
        try:
            while not consumer.assignment():
                await asyncio.sleep(0.01)
            return await asyncio.to_thread(refused)
        finally:
            await consumer.stop()

    def refused():
        member = join(log, "m1")
        with pytest.raises(HeadraceError, match="group g") as raised:
            until(lambda: member.poll().leases)
        assert not isinstance(raised.value, FencedError)
        member.leave()

    asyncio.run(look())


def test_members_that_come_and_go_by_the_tenth_of_a_second(open_log):
    """Who stays keeps what it has, and once the others are gone it is soon left in peace."""
    stays = join(open_log(), "stays", 5000)
    settled(stays, shares=[4])
    rng, logs, guests, kept, gaps = Random(5), [open_log() for _ in range(4)], {}, {}, 0
    generations, end = set(), time.monotonic() + 4
    while time.monotonic() < end:
        place = rng.randrange(len(logs))
        if place not in guests:
            guests[place] = join(logs[place], f"guest-{rng.random()}", 500)
        elif rng.random() < 0.3:
            guests.pop(place).leave()
        elif rng.random() < 0.1:
            del guests[place]  # nobody says any more that it lives
        look_end = time.monotonic() + 0.1
        while time.monotonic() < look_end:
            for guest in guests.values():
                obey(guest)
            given = obey(stays)
            now = stays.poll()
            generations.add(now.generation)
            gaps += any(now.leases.get(unit) != lease for unit, lease in kept.items() if unit not in given)
            kept = now.leases
            time.sleep(0.005)
    assert gaps == 0, "what it was not asked for was taken away"
    assert len(generations) > 5
    for guest in guests.values():
        guest.leave()
    settled(stays, shares=[4])
    last = stays.poll().generation
    until(lambda: stays.poll().generation == last and not stays.poll().revoked)


def obey(member):
    """Release what a member is asked for, unless it was taken for dead, and return that."""
    try:
        revoked = member.poll().revoked
        for unit in revoked:
            member.release(unit)
        return revoked
    except FencedError:
        return frozenset()
