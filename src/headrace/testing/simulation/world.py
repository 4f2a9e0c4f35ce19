"""The world of one simulated run: machines, workers that come and go, time, and what goes wrong."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import cast

from headrace.checkpoint.checkpoints import Checkpoints
from headrace.log.memory import MemoryGroupStore
from headrace.metrics import Metrics
from headrace.record import TopicPartition
from headrace.runtime.workers.bounds import Bounds
from headrace.runtime.workers.calls import AsyncCalls
from headrace.runtime.workers.lifecycle import Phase
from headrace.runtime.workers.parts import Parts
from headrace.settings import Settings
from headrace.testing.simulation.baton import Baton
from headrace.testing.simulation.calls import JumpingLoop, SimulatedCalls
from headrace.testing.simulation.checks import Checks
from headrace.testing.simulation.copying import Line, Locks
from headrace.testing.simulation.damage import damage_file, rot, spoil
from headrace.testing.simulation.draws import Draws
from headrace.testing.simulation.faults import Chance, Event, Faults
from headrace.testing.simulation.life import Life, LifeClock
from headrace.testing.simulation.logs import SimulatedLog, WorkerGroupStore, WorkerLog, group_of
from headrace.testing.simulation.objects import SharedObjects, WorkerObjects
from headrace.testing.simulation.result import Violation
from headrace.testing.simulation.scenario import Input, Scenario
from headrace.testing.simulation.stores import SimulatedStores

_PROGRESS_MS = 120_000
"""Without faults, all that is left to do must be done within this virtual time."""
_LOOK_MS = 100
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True, kw_only=True)
class Course:
    """How one run goes, beside its faults."""

    workers: int
    settings: Settings
    input_ms: int
    """By when the last record has come."""
    faults_ms: int
    """By when nothing goes wrong any more, for the first time."""
    idle_ms: int
    """How long nothing happens after everything was read."""
    again_ms: int
    """How long operations go wrong in the bounded run that closes everything at the end."""
    pace: float
    longest_wait_ms: int
    shared_machine: bool
    copies: bool = False
    """Whether workers copy the state of tasks that may come to them."""
    tardy: bool = False
    """Whether the end of the input comes when inputs are idle already: then the clock decides what is late."""
    topic_first: str | None = None
    """A topic of which everything comes before the others."""


@dataclass
class World:
    """Everything that one run has."""

    scenario: Scenario
    draws: Draws
    course: Course
    faults: Faults
    folder: Path
    only: Collection[str] | None = None
    baton: Baton = field(default_factory=Baton)
    trace: list[str] = field(default_factory=list)
    violations: list[Violation] = field(default_factory=list)
    lives: list[Life] = field(default_factory=list)
    lost: int = 0
    started: int = 0
    late: int = 0

    def __post_init__(self) -> None:
        self.chance = Chance(self.draws, self.faults, self.only, self.course.faults_ms, self.course.input_ms)
        self.pace = self.course.pace
        self.longest_wait_ms = self.course.longest_wait_ms
        self.objects = SharedObjects()
        self.log = SimulatedLog(LifeClock(self.baton, 0, 0, 0.0))
        self.groups = MemoryGroupStore()
        self.checks = Checks(self.scenario, self.objects, self.violated)
        self.objects.watcher = self.checks
        self.bounds: Bounds | None = None
        self.loop = JumpingLoop() if self.scenario.asynchronous else None
        self._locks = Locks()
        self._moments = (number * 1_000_000 for number in count(1))
        self._numbers: Counter[str] = Counter()
        self._machines: Counter[str] = Counter()
        self._ending = False
        for topic, partitions in self.scenario.partitions.items():
            self.log.create_topic(topic, partitions)

    # --- what workers live in: see ``life.Surroundings``

    def tell(self, who: str, what: str) -> None:
        """Write a line of the trace."""
        self.trace.append(f"{self.baton.now / 1000:8.3f} {who:<5} {what}")

    def violated(self, check: str, message: str) -> None:
        """Note that something is not as it must be."""
        self.violations.append(Violation(check, message, self.baton.now))
        self.tell("check", f"VIOLATED {check}: {message}")

    def died(self, life: Life) -> None:
        """Unwind what a worker was at, and start another one in its place later."""
        aside = life.machine.with_name(life.machine.name + ".aside")
        if life.machine.exists():
            # What unwinds may tidy up, as no process that crashed does.
            life.machine.rename(aside)
        self.baton.kill(life)

        def put_back() -> None:
            if aside.exists():
                shutil.rmtree(life.machine, ignore_errors=True)
                aside.rename(life.machine)

        self.baton.after(-(10**9), put_back, tie=-1.0)
        if not self._ending or self.bounds is not None:
            self._later_again(life.member, crashed=True)

    def left(self, life: Life) -> None:
        """Start another worker in the place of one that left, unless it was to leave."""
        if not self._ending:
            self._later_again(life.member, crashed=False)

    # --- the run

    def run(self) -> None:
        """Go through the phases of a run, up to the first violation."""
        try:
            self._arrange_input()
            for number in range(self.course.workers):
                self._again_in(_LETTERS[number], int(3000 * self.draws.unit(f"join/{number}")))
            for event in self.chance.events:
                self.baton.after(event.at_ms, partial(self._happen, event))
            self._until(lambda: self.baton.now >= self.course.faults_ms)
            self._calm("nothing goes wrong any more")
            self._until(self._settled, "read everything")
            self._idle()
            self._end()
        finally:
            for life in self.lives:
                life.alive = False
            self.baton.close()
            if self.loop is not None and not self.baton.hangs:
                self.loop.close()

    def _idle(self) -> None:
        if self.course.idle_ms and not self.violations:
            self.tell("world", f"idles for {self.course.idle_ms} ms")
            end = self.baton.now + self.course.idle_ms
            self.longest_wait_ms = 500
            self._until(lambda: self.baton.now >= end)

    def _end(self) -> None:
        """Stop all workers, and close everything with new ones that run to the end of the input."""
        if self.violations:
            return
        self._ending = True
        for life in self._living():
            life.stop()
        self._until(lambda: not self._living(), "stop")
        if self.violations:
            return
        ends = {
            TopicPartition(topic, number): self.log.end_offset(TopicPartition(topic, number))
            for topic in dict.fromkeys(self.scenario.plan.source_topics())
            for number in range(self.scenario.partitions[topic])
        }
        self.bounds = Bounds(ends)
        self.longest_wait_ms = self.course.longest_wait_ms
        self.tell("world", "runs to the end of the input")
        self.chance.over = False
        begun = self.baton.now
        for number in range(1 + self.draws.whole("closers", 0, self.course.workers - 1)):
            self._again_in(_LETTERS[number], int(1000 * self.draws.unit(f"closer/{number}")))
        if self.course.again_ms and not self._none():
            self._until(lambda: self.baton.now >= begun + self.course.again_ms or self._finished())
        self._calm("nothing goes wrong any more")
        self._until(self._finished, "finish")

    def _none(self) -> bool:
        return self.faults == Faults.none()

    def _until(self, done: Callable[[], bool], wanted: str = "") -> None:
        """Run until something holds, which is looked at now and then, or there is a violation, or it takes too long."""
        if self.violations:
            return
        deadline = self.baton.now + _PROGRESS_MS if wanted else 2**62
        reached = False

        def look() -> None:
            nonlocal reached
            reached = done()
            if not reached and self.baton.now >= deadline:
                told = "\n".join(self.describe())
                self.violated("progress", f"the workers did not {wanted} within {_PROGRESS_MS // 1000} s:\n{told}")
            if not reached:
                self.baton.after(_LOOK_MS, look, tie=0.999)

        self.baton.after(0, look, tie=0.999)
        self.baton.run(lambda: reached or bool(self.violations))

    def _calm(self, told: str) -> None:
        self.tell("world", told)
        self.chance.over = True
        self.chance.over_since = self.baton.now
        for life in self.lives:
            life.frozen_until = min(life.frozen_until, self.baton.now)
            life.silent_until = min(life.silent_until, self.baton.now)

    # --- input

    def _arrange_input(self) -> None:
        for topic, rows in self.scenario.inputs.items():
            if not rows:
                continue
            chunks = self.draws.whole(f"chunks/{topic}", 1, min(len(rows), 25))
            cuts = sorted(self.draws.whole(f"cut/{topic}/{n}", 0, len(rows)) for n in range(chunks - 1))
            times = sorted(int(self.draws.unit(f"arrival/{topic}/{n}") * self.course.input_ms) for n in range(chunks))
            if self.course.tardy:
                late = self.course.input_ms // 5
                times = [time // 10 if time < 4 * late else time for time in times]
            if self.course.topic_first is not None:
                times = [0 if topic == self.course.topic_first else self.course.input_ms] * chunks
            for n, (start, end) in enumerate(zip([0, *cuts], [*cuts, len(rows)], strict=True)):
                self.baton.after(times[n], partial(self._arrive, rows[start:end]), tie=0.01 + n / 10**6, inline=True)

    def _arrive(self, rows: tuple[Input, ...]) -> None:
        for row in rows:
            self.log.append(row.partition, row.batch())
            self.log.keep(row.partition, self.log.end_offset(row.partition))
        if rows:
            self.tell("input", f"{len(rows)} records of {rows[0].partition.topic}")

    # --- workers

    def _living(self) -> list[Life]:
        return [life for life in self.lives if life.alive]

    def _later_again(self, member: str, *, crashed: bool) -> None:
        number = self._numbers[member]
        if self.chance.over:
            delay = 100
        else:
            delay = int(6000 * self.draws.unit(f"again/{member}/{number}") ** 2)
        if crashed and self.draws.unit(f"wiped/{member}/{number}") < 0.4:
            self._machines[self._machine_name(member)] += 1
        elif crashed:
            self._damage(member, number)
        self._again_in(member, delay)

    def _again_in(self, member: str, delay_ms: int) -> None:
        self._numbers[member] += 1
        number = self._numbers[member]

        def start() -> None:
            self.started += 1
            stops = self._ending and self.bounds is None
            if stops or any(life.member == member for life in self._living()):
                return
            name = self._machine_name(member)
            machine = self.folder / f"{name}{self._machines[name]}"
            life = Life(self, member, number, machine, self.bounds)
            self.lives = [*self._living(), life]
            life.begin(self._parts)

        self.baton.after(delay_ms, start, tie=0.2)

    def _machine_name(self, member: str) -> str:
        return "machine" if self.course.shared_machine else f"machine-{member}"

    def _damage(self, member: str, number: int) -> None:
        if self.draws.unit(f"damage/{member}/{number}") >= self.chance.damage:
            return
        name = self._machine_name(member)

        def strike() -> None:
            machine = self.folder / f"{name}{self._machines[name]}"
            files = sorted(machine.rglob("db/*"))
            in_use = any(life.machine == machine for life in self._living())
            if files and not in_use and self.chance.allows(f"damage@{member}.{number}"):
                path = self.draws.one(f"damaged/{member}/{number}", files)
                cut = damage_file(path, self.draws.unit(f"damaged-at/{member}/{number}"), self._moments)
                self.tell("world", f"damages {path.relative_to(self.folder)} at {cut}")

        self.baton.after(0, strike, tie=0.1)

    def _parts(self, life: Life) -> Parts:
        plan = self.scenario.plan
        store = WorkerGroupStore(self.groups, life, life.name, self.checks)
        log = WorkerLog(self.log, life, life.name, self.checks, lambda name: group_of(name, store, life.clock))
        objects = WorkerObjects(self.objects, life, life.name, self._moments)
        settings = self.settings_of(life)
        calls = None
        if self.loop is not None:
            asked = count()
            calls = SimulatedCalls(
                self.loop, life.clock, lambda: self.baton.now,
                lambda: self.draws.whole(f"{life.name}/call/{next(asked)}", 0, 400),
            )  # fmt: skip
        return Parts(
            plan=plan,
            log=log,
            group=log.group(plan.graph.name),
            checkpoints=Checkpoints(objects, plan.graph.name, threads=1),
            stores=SimulatedStores(life, self._moments),
            jobs=life.jobs,
            clock=life.clock,
            metrics=Metrics(),
            settings=settings,
            partitions=self.scenario.partitions,
            calls=cast("AsyncCalls | None", calls),
            copies=Line(life) if self.course.copies else None,
            lock=self._locks.of(life),
        )

    def settings_of(self, life: Life) -> Settings:
        """Return the settings of one worker."""
        return replace(self.course.settings, state_dir=str(life.machine))

    # --- what happens at a time

    def _happen(self, event: Event) -> None:
        living = [life for life in self._living() if life.worker is not None]
        if not living:
            return
        life = self.draws.one(f"who/{event.name}", living)
        share = self.draws.unit(f"how/{event.name}")
        if event.kind == "rot" and not self._may_rot():
            return
        if not self.chance.allows(event.name):
            return
        if event.kind == "crash":
            life.die("crashes")
        elif event.kind == "power":
            self._lose_power(event)
        elif event.kind == "pause":
            life.frozen_until = self.baton.now + 200 + int(share * 9000)
            self.tell(life.name, f"stands still for {life.frozen_until - self.baton.now} ms")
        elif event.kind == "silence":
            life.silent_until = self.baton.now + 500 + int(share * 9000)
            self.tell(life.name, f"gives no sign of life for {life.silent_until - self.baton.now} ms")
        elif event.kind == "drain":
            life.stop()
        elif event.kind == "spoil":
            self._spoil(life, event)
        elif event.kind == "rot":
            self._rot(event)

    def _lose_power(self, event: Event) -> None:
        for life in self._living():
            life.die("loses power")
        for partition in self.log.unflushed():
            lost = self.log.lose(partition, self.draws.unit(f"lost/{event.name}/{partition}"))
            if lost:
                self.lost += lost
                self.tell("world", f"{lost} records of {partition} are lost with the power")

    def _spoil(self, life: Life, event: Event) -> None:
        place = life.machine / self.scenario.plan.graph.name / "standby" / life.member
        done = spoil(place, self.draws, event.name, self._moments)
        if done is not None:
            self.tell("world", f"{done} of the copies of {life.name}")

    def _may_rot(self) -> bool:
        """Return whether all tasks may go back to the checkpoint before the last, and would repeat what they did."""
        early = self.bounds is None and self.baton.now <= self.course.input_ms
        return early and not (self.late or self.course.tardy or self.scenario.plan.outbox)

    def _rot(self, event: Event) -> None:
        for life in self._living():
            life.die("dies, and its disk with it")
        for member in _LETTERS[: self.course.workers]:
            self._machines[self._machine_name(member)] += 1
        for task in map(str, self.scenario.plan.tasks()):
            if self.draws.unit(f"{event.name}/{task}") < 0.7:
                done = rot(self.objects, self.checks, self.draws, event.name, self.scenario.plan.graph.name, task)
                if done is not None:
                    self.tell("world", f"{done} in the checkpoint store")

    # --- whether it is over

    def _settled(self) -> bool:
        """Return whether everything that came in was read and nothing waits."""
        found: set[str] = set()
        for life in self._living():
            if life.worker is None:
                continue
            for slot in life.worker.slots():
                task = slot.task
                if slot.phase is not Phase.RUNNING or task is None or slot.unsent or slot.parked:
                    return False
                if any(position < self.log.end_offset(p) for p, position in task.positions.items()):
                    return False
                found.add(str(slot.id))
        return found == set(map(str, self.scenario.plan.tasks()))

    def _finished(self) -> bool:
        return self.bounds is not None and self.started > 0 and not self._living() and not self._pending()

    def _pending(self) -> bool:
        return self._numbers.total() > self.started

    def describe(self) -> list[str]:
        """Return what every worker is at, for a report."""
        lines = []
        for life in self._living():
            if life.worker is None:
                lines.append(f"{life.name} is starting")
                continue
            slots = life.worker.slots()
            lines.append(f"{life.name} has {len(slots)} tasks")
            for slot in slots:
                what = [slot.phase.value]
                if slot.job is not None:
                    what.append("a job is under way")
                if slot.unsent:
                    what.append(f"{len(slot.unsent)} batches wait to be sent")
                if slot.task is not None:
                    if slot.parked:
                        what.append("waits for a call")
                    behind = {
                        str(p): f"{position} of {self.log.end_offset(p)}"
                        for p, position in slot.task.positions.items()
                        if position < self.log.end_offset(p)
                    }
                    what.append(f"has read {behind}" if behind else "has read everything")
                    what.append(f"watermark {slot.task.watermark}, finished {slot.task.finished}")
                lines.append(f"  {slot.id}: {', '.join(what)}")
        return lines or ["no worker lives"]
