"""What the operators should do, written as plainly as possible and without any of their code.

Every function takes the records of one partition in log order, as dicts with ``k`` (key), ``id``, ``n`` and ``at``, and
the watermark is always the highest ``at`` so far less the allowed disorder.
"""

from collections.abc import Iterator
from typing import Any

Event = dict[str, Any]


def with_watermarks(events: list[Event], disorder: int) -> Iterator[tuple[Event, int]]:
    """Yield each record with the watermark just before it."""
    highest = -1
    for event in events:
        yield event, max(-1, highest - disorder)
        highest = max(highest, event["at"])


def windows_of(at: int, size: int, every: int) -> list[int]:
    """Return the ends of the windows that hold ``at``, by looking at each start."""
    return [start + size for start in range(-size * every, at + 1, every) if start <= at < start + size]


def windowed(
    events: list[Event], *, size: int, every: int, disorder: int, lateness: int
) -> tuple[dict[tuple[str, int], list[Event]], list[Event]]:
    """Return the records of each (key, window end), and the late ones."""
    windows: dict[tuple[str, int], list[Event]] = {}
    late = []
    for event, watermark in with_watermarks(events, disorder):
        ends = windows_of(event["at"], size, every)
        if max(ends) + lateness <= watermark:
            late.append(event)
        for end in ends:
            if end + lateness > watermark:
                windows.setdefault((event["k"], end), []).append(event)
    return windows, late


def sessions(
    events: list[Event], *, gap: int, disorder: int, lateness: int
) -> tuple[list[tuple[str, int, int, list[Event]]], list[Event]]:
    """Return (key, start, end, records) of every session, and the late records."""
    open_: list[tuple[str, list[Event]]] = []
    closed: list[tuple[str, list[Event]]] = []
    late = []
    for event, watermark in with_watermarks(events, disorder):
        still_open = []
        for key, members in open_:
            is_over = max(m["at"] for m in members) + gap + lateness <= watermark
            (closed if is_over else still_open).append((key, members))
        at = event["at"]
        near = [
            (key, members)
            for key, members in still_open
            if key == event["k"] and min(m["at"] for m in members) - gap < at < max(m["at"] for m in members) + gap
        ]
        if not near and at + gap + lateness <= watermark:
            late.append(event)
            open_ = still_open
            continue
        merged = [m for _, members in near for m in members] + [event]
        open_ = [item for item in still_open if item not in near] + [(event["k"], merged)]
    found = [
        (key, min(m["at"] for m in members), max(m["at"] for m in members) + gap, members)
        for key, members in closed + open_
    ]
    return found, late


def sessions_of_sorted(events: list[Event], *, gap: int) -> list[tuple[str, int, int, list[Event]]]:
    """Return the sessions when nothing is late: cut each key's times where two neighbours are ``gap`` apart."""
    found = []
    for key in sorted({event["k"] for event in events}):
        mine = sorted((event for event in events if event["k"] == key), key=lambda event: event["at"])
        start = 0
        for i in range(1, len(mine) + 1):
            if i == len(mine) or mine[i]["at"] - mine[i - 1]["at"] >= gap:
                found.append((key, mine[start]["at"], mine[i - 1]["at"] + gap, mine[start:i]))
                start = i
    return found


def deduplicated(events: list[Event], *, within: int, disorder: int) -> list[Event]:
    """Return what is let through."""
    through: list[Event] = []
    for event, watermark in with_watermarks(events, disorder):
        repeat = any(
            seen["k"] == event["k"]
            and seen["id"] == event["id"]
            and abs(seen["at"] - event["at"]) < within
            and seen["at"] + within > watermark
            for seen in through
        )
        if not repeat:
            through.append(event)
    return through
