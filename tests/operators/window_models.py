"""What windows should give, record by record and as plainly as possible, without any of the operators' code.

Every model takes the records of one partition in log order, as dicts with ``k``, ``id``, ``n`` and ``at``; the
watermark is the highest ``at`` so far less the allowed disorder. It returns ``(timestamp, result)`` in order, and the
late records.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

Event = dict[str, Any]
Found = tuple[list[tuple[int, dict[str, Any]]], list[Event]]
WindowsOf = Callable[[int], list[tuple[int, int]]]
"""(time) -> (start, end) of its windows."""


def with_watermarks(events: list[Event], disorder: int) -> Iterator[tuple[Event, int]]:
    highest = -1
    for event in events:
        yield event, max(-1, highest - disorder)
        highest = max(highest, event["at"])


def result_of(key: str, start: int, end: int, members: list[Event], **more: Any) -> dict[str, Any]:
    in_time = sorted(members, key=lambda event: event["at"])
    numbers = [event["n"] for event in members]
    return {
        "key": key, "window_start": start, "window_end": end, "n": len(members), "total": sum(numbers),
        "mean": sum(numbers) / len(numbers), "first": in_time[0]["id"], "all": [event["n"] for event in in_time],
        **more,
    }  # fmt: skip


def closing(events: list[Event], windows_of: WindowsOf, *, disorder: int, lateness: int) -> Found:
    windows: dict[tuple[int, int, str], list[Event]] = {}
    late = []
    for event, watermark in with_watermarks(events, disorder):
        found = windows_of(event["at"])
        if found and all(end + lateness <= watermark for _, end in found):
            late.append(event)
        for start, end in found:
            if end + lateness > watermark:
                windows.setdefault((end, start, event["k"]), []).append(event)
    return [(e - 1, result_of(k, s, e, windows[e, s, k])) for e, s, k in sorted(windows)], late


def sliding(events: list[Event], size: int, *, disorder: int, lateness: int) -> Found:
    in_time, late = [], []
    for event, watermark in with_watermarks(events, disorder):
        (late if watermark >= event["at"] + 1 + lateness else in_time).append(event)
    found = []
    for t, key in sorted({(event["at"], event["k"]) for event in in_time}):
        members = [event for event in in_time if event["k"] == key and t - size < event["at"] <= t]
        found.append((t, result_of(key, max(0, t + 1 - size), t + 1, members)))
    return found, late


def counting(events: list[Event], size: int, *, disorder: int) -> Found:
    stamped = [{**event, "at": max(event["at"], watermark)} for event, watermark in with_watermarks(events, disorder)]
    found = []
    for key in sorted({event["k"] for event in stamped}):
        mine = sorted((event for event in stamped if event["k"] == key), key=lambda event: event["at"])
        for start in range(0, len(mine) - size + 1, size):
            members = mine[start : start + size]
            end = members[-1]["at"] + 1
            found.append((end - 1, result_of(key, members[0]["at"], end, members)))
    return sorted(found, key=lambda item: (item[0], item[1]["key"])), []


@dataclass
class Group:
    """The records of one open window of one key, when it is to be reported, and whether its predicate was true."""

    members: list[Event] = field(default_factory=list)
    due: int | None = None
    fired: bool = False


Name = tuple[int, int, str]
"""The end, the start and the key of a window."""


class TimeWindows:
    """Open windows that follow from a record's time."""

    def __init__(self, windows_of: WindowsOf, lateness: int) -> None:
        self.windows_of = windows_of
        self.lateness = lateness
        self.open: dict[Name, Group] = {}

    def add(self, event: Event, watermark: int) -> list[Name] | None:
        found = self.windows_of(event["at"])
        names = [(end, start, event["k"]) for start, end in found if end + self.lateness > watermark]
        for name in names:
            self.open.setdefault(name, Group()).members.append(event)
        return sorted(names) if names or not found else None

    def closed(self, name: Name) -> Any:
        return name

    def reported(self, name: Name) -> Any:
        return name


class Sessions:
    """Open sessions; a name is gone when its session has grown."""

    def __init__(self, gap: int, lateness: int) -> None:
        self.gap = gap
        self.lateness = lateness
        self.open: dict[Name, Group] = {}

    def add(self, event: Event, watermark: int) -> list[Name] | None:
        at, gap = event["at"], self.gap
        near = [n for n in self.open if n[2] == event["k"] and n[1] - gap < at < n[0]]
        if not near and at + gap + self.lateness <= watermark:
            return None
        groups = [self.open.pop(name) for name in sorted(near, key=lambda n: n[1])]
        members = [event for group in groups for event in group.members] + [event]
        due = min((group.due for group in groups if group.due is not None), default=None)
        times = [event["at"] for event in members]
        name = (max(times) + gap, min(times), event["k"])
        self.open[name] = Group(members, due, any(group.fired for group in groups))
        return [name]

    def closed(self, name: Name) -> Any:
        return name[0], name[2]

    def reported(self, name: Name) -> Any:
        return name[2], name[1]


@dataclass
class Emitting:
    """Windows that emit before they close: ``every`` if an interval is given, ``when`` if a predicate, else always."""

    state: TimeWindows | Sessions
    disorder: int
    every: int = 0
    predicate: Callable[[dict[str, Any]], bool] | None = None
    out: list[tuple[int, dict[str, Any]]] = field(default_factory=list)

    def run(self, events: list[Event]) -> Found:
        late = []
        for event, watermark in with_watermarks(events, self.disorder):
            self.act(watermark)
            names = self.state.add(event, watermark)
            if names is None:
                late.append(event)
            for name in names or []:
                self.changed(name, max(event["at"], watermark))
        self.act(10**9)
        return self.out, late

    def emit(self, name: Name, timestamp: int, **more: Any) -> None:
        self.out.append((timestamp, self.result(name, **more)))

    def result(self, name: Name, **more: Any) -> dict[str, Any]:
        end, start, key = name
        return result_of(key, start, end, self.state.open[name].members, **more)

    def changed(self, name: Name, at: int) -> None:
        group = self.state.open[name]
        if self.every:
            due = (at // self.every + 1) * self.every
            group.due = due if group.due is None else min(due, group.due)
        elif self.predicate is None:
            self.emit(name, at)
        elif not group.fired and self.predicate(self.result(name)):
            group.fired = True
            self.emit(name, at, final=False)

    def act(self, watermark: int) -> None:
        """Do everything that is due, the first things first, and closes before reports."""
        wait = self.state.lateness
        while True:
            closes = [(name[0] + wait, 0, self.state.closed(name), name) for name in self.state.open]
            reports = [(group.due, 1, (), ()) for group in self.state.open.values() if group.due is not None]
            at, kind, _, name = min([*closes, *reports], default=(watermark + 1, 0, (), ()))
            if at > watermark:
                return
            if kind == 0:
                if self.every or self.state.open[name].fired:
                    self.emit(name, name[0] - 1, final=True)
                del self.state.open[name]
                continue
            due = [name for name, group in self.state.open.items() if group.due == at]
            for name in sorted(due, key=self.state.reported):
                self.emit(name, max(0, at - wait - 1), final=False)
                self.state.open[name].due = None
