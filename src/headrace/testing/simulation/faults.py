"""What can go wrong, how often, and when. Pure.

There are two kinds of faults. Some strike an operation: ``a.1:create#7:lost`` is the seventh ``create`` of the second
life of worker ``a``, whose answer gets lost. Others come at a time: ``power@0``. Each has a name that does not depend
on the others, so that a run can be repeated with some of them left out.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from headrace.testing.simulation.draws import Draws

CRASH_BEFORE, CRASH_AFTER = "crash-before", "crash-after"
FAIL, LOST, LATE, TWICE, HALF = "fail", "lost", "late", "twice", "half"
SLOW = "slow"

OPERATIONS: Mapping[str, tuple[str, ...]] = {
    "append": (FAIL,),
    "flush": (FAIL,),
    "read": (),
    "look": (),
    "trim": (),
    "create": (FAIL, LOST, LATE, TWICE),
    "upload": (FAIL, LOST, LATE, TWICE),
    "fetch": (FAIL,),
    "list": (FAIL,),
    "delete": (FAIL, HALF, LOST),
    "group": (FAIL,),
    "commit": (FAIL,),
    "open": (),
    "write": (FAIL,),
    "snapshot": (FAIL,),
}
"""By kind of operation, what may become of it beside a crash before or after its effect, and slowness."""

_RATES = {
    CRASH_BEFORE: 0.003, CRASH_AFTER: 0.003, FAIL: 0.02, LOST: 0.02, LATE: 0.02, TWICE: 0.02, HALF: 0.05, SLOW: 0.01,
}  # fmt: skip
"""How often each strikes where it can, in a run that has it in an ordinary measure."""
_MEASURES = (0.0, 0.0, 0.3, 1.0, 1.0, 3.0)
_RARE = {"read": 0.2, "look": 0.05, "group": 0.2, "append": 0.7}
"""Operations that are so many that less of them goes wrong."""


class Event(NamedTuple):
    """A fault that comes at a time."""

    name: str
    kind: str
    at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """How many faults a simulated run has. The seed of each run decides which of them it gets, some few and some many.

    Every field is a factor: 0 for never, 1 for the ordinary measure.
    """

    crashes: float = 1.0
    """Workers die, at a moment or in the middle of an operation, before or after its effect."""
    power: float = 1.0
    """All workers die at once, and what was not flushed is lost from the ends of partitions."""
    pauses: float = 1.0
    """A whole worker stands still, often for longer than its session timeout, and then goes on."""
    silences: float = 1.0
    """Only the heartbeat of a worker stands still."""
    drains: float = 1.0
    """Workers leave in order and come back."""
    log: float = 1.0
    """Appends and flushes are slow or fail."""
    checkpoints: float = 1.0
    """The checkpoint store fails, loses answers, and carries requests out late, twice or by half."""
    group: float = 1.0
    """The group cannot be reached."""
    disk: float = 1.0
    """The local disk is full, or damages what lies on it while a worker is down."""

    @classmethod
    def none(cls) -> Faults:
        """Return no faults at all."""
        return cls(
            crashes=0, power=0, pauses=0, silences=0, drains=0, log=0, checkpoints=0, group=0, disk=0
        )  # fmt: skip


_FIELD = {
    "append": "log", "flush": "log", "read": "log", "look": "log", "trim": "log", "create": "checkpoints",
    "upload": "checkpoints", "fetch": "checkpoints", "list": "checkpoints", "delete": "checkpoints", "group": "group",
    "commit": "group", "open": "disk", "write": "disk", "snapshot": "disk",
}  # fmt: skip

_EVENTS = {
    "crash": ("crashes", 5), "power": ("power", 1), "pause": ("pauses", 3), "silence": ("silences", 2),
    "drain": ("drains", 3),
}  # fmt: skip
"""By kind of event: its field, and the most that a run has of it in the ordinary measure."""


class Chance:
    """Decides by the seed what goes wrong in one run.

    Args:
        draws: The seed.
        faults: How much may go wrong.
        only: The names of the faults that may strike; None for all.
        end_ms: After this, nothing goes wrong any more.
    """

    def __init__(self, draws: Draws, faults: Faults, only: Collection[str] | None, end_ms: int) -> None:
        self._draws = draws
        self._only = None if only is None else frozenset(only)
        self._tables: dict[str, tuple[tuple[float, str], ...]] = {}
        self.injected: list[str] = []
        """The names of the faults that struck, in order."""
        self.over = False
        """Set when nothing goes wrong any more."""
        self.over_since = 0
        """When that was, in virtual milliseconds."""
        calm = draws.unit("calm") < 0.1
        measures = {
            name: 0.0 if calm else draws.one(f"measure/{name}", _MEASURES) for name in [*_RATES, *_EVENTS]
        }  # fmt: skip
        for kind, own in OPERATIONS.items():
            table: list[tuple[float, str]] = []
            reached = 0.0
            for name in (CRASH_BEFORE, CRASH_AFTER, SLOW, *own):
                factor = faults.crashes if name in (CRASH_BEFORE, CRASH_AFTER) else getattr(faults, _FIELD[kind])
                rate = min(0.3, _RATES[name] * measures[name] * factor * _RARE.get(kind, 1.0))
                if rate > 0:
                    reached += rate
                    table.append((reached, name))
            self._tables[kind] = tuple(table)
        self.events = self._planned(faults, measures, end_ms)
        self.damage = min(1.0, 0.3 * faults.disk)
        """How likely it is that a file of a machine is damaged while its worker is down."""

    def strikes(self, kind: str, operation: str, number: float) -> str | None:
        """Return what becomes of an operation, None if nothing is wrong with it."""
        if self.over:
            return None
        for reached, name in self._tables[kind]:
            if number < reached:
                return name if self.allows(f"{operation}:{name}") else None
        return None

    def allows(self, fault: str) -> bool:
        """Note that a fault strikes, unless it was left out; return whether it strikes."""
        if self.over or (self._only is not None and fault not in self._only):
            return False
        self.injected.append(fault)
        return True

    def _planned(self, faults: Faults, measures: Mapping[str, float], end_ms: int) -> list[Event]:
        events = []
        for kind, (field, most) in _EVENTS.items():
            measure = measures[kind] * getattr(faults, field)
            for number in range(round(self._draws.unit(f"count/{kind}") * (most + 0.5) * measure)):
                name = f"{kind}@{number}"
                events.append(Event(name, kind, self._draws.whole(f"at/{name}", 200, end_ms)))
        return sorted(events, key=lambda event: (event.at_ms, event.name))
