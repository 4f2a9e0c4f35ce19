"""The windows that a keyed stream can be cut into, and when their results leave."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

import msgspec

from headrace.dsl.definition import check_function, user_location
from headrace.errors import TopologyError
from headrace.operators.aggregate import Aggregate
from headrace.operators.aggregation import Windows
from headrace.operators.compiled import check_mergeable
from headrace.operators.custom import CustomWindows, WindowAssigner
from headrace.operators.emission import Emission, Every, When
from headrace.operators.windows import AlignedWindows, CountingWindows, SessionWindows, SlidingWindows
from headrace.settings import duration_ms

AnyWindows = AlignedWindows | SessionWindows | SlidingWindows | CountingWindows | WindowAssigner
"""What ``KeyedStream.window`` takes."""

_BUILT_IN = AlignedWindows | SessionWindows | SlidingWindows | CountingWindows


def tumbling(size: str | timedelta) -> AlignedWindows:
    """Cut time into windows of one size that follow each other.

    Windows are ``[start, end)`` and aligned to the epoch, UTC.

    Raises:
        TopologyError: the size is zero.
        SettingsError: it is not a duration.

    Example:
        >>> tumbling("1m").last_end(59_999), tumbling("1m").last_end(60_000)
        (60000, 120000)
    """
    size_ms = _at_least_one(size, "the size of a tumbling window", 'Write for example tumbling("1m")')
    return AlignedWindows(size_ms, size_ms)


def hopping(size: str | timedelta, every: str | timedelta) -> AlignedWindows:
    """Cut time into windows of one size that start at every ``every`` and so overlap.

    Args:
        size: How long a window is.
        every: How long after one window the next one starts; at most ``size``, so that no record is in none.

    Raises:
        TopologyError: one is zero, or ``every`` is longer than ``size``.
        SettingsError: one is not a duration.

    Example:
        >>> hopping("1m", "20s").windows_of(50_000)
        [(60000, 0), (80000, 20000), (100000, 40000)]
    """
    example = 'Write for example hopping("1m", "10s")'
    size_ms = _at_least_one(size, "the size of a hopping window", example)
    every_ms = _at_least_one(every, "the hop of a hopping window", example)
    if every_ms > size_ms:
        raise TopologyError(
            f"windows of {size_ms} ms every {every_ms} ms would leave records between them in no window "
            f"({user_location()})",
            remedy="Make the hop at most as long as the window",
        )
    return AlignedWindows(size_ms, every_ms)


def session(gap: str | timedelta) -> SessionWindows:
    """Put records that are less than ``gap`` apart into one window, ``[first, last + gap)``.

    Raises:
        TopologyError: the gap is zero.
        SettingsError: it is not a duration.

    Example:
        >>> session("30m").label
        'session-1800000ms'
    """
    return SessionWindows(_at_least_one(gap, "the gap of a session", 'Write for example session("30m")'))


def sliding(size: str | timedelta) -> SlidingWindows:
    """Look back over ``size`` at every record: a window ``[t + 1 - size, t + 1)`` for each time ``t`` of a key.

    There is one result for every key and every distinct time at which it has a record, over the records of that key in
    the window; it leaves when the watermark has passed ``t`` and the lateness. ``window_start`` is never below 0.

    A record is late if the window that ends with it had closed when it came. Then it counts in no window, not even in
    later ones that would hold it and are still open.

    Raises:
        TopologyError: the size is zero.
        SettingsError: it is not a duration.

    Example:
        >>> from headrace import Topology, agg
        >>> from headrace.testing import TopologyTestDriver
        >>> topology = Topology("t")
        >>> logins = topology.stream("logins", keyed_by="user", time="at")
        >>> logins.window(sliding("10s")).aggregate(n=agg.count()).to("recent-logins")
        >>> driver = TopologyTestDriver(topology)
        >>> driver.send_many("logins", [{"user": "ann", "at": at} for at in (1_000, 9_000, 15_000)])
        >>> driver.end_input()
        >>> [(r.value["window_start"], r.value["window_end"], r.value["n"]) for r in driver.read("recent-logins")]
        [(0, 1001, 1), (0, 9001, 2), (5001, 15001, 2)]
    """
    return SlidingWindows(_at_least_one(size, "the size of a sliding window", 'Write for example sliding("1m")'))


def counting(size: int) -> CountingWindows:
    """Put every ``size`` records of a key into one window, in the order of event time.

    Records are held back until nothing earlier can come, and then counted; those of one time count in the order in
    which they came. A full window leaves at once. A late record is not dropped: it counts as one of the watermark at
    which it came, and the aggregates see it with that time. ``window_start`` is the time of the window's first record,
    ``window_end`` that of its last plus 1.

    A window that is not full stays open, at the end of the input too. So a key takes up space for ever, unless the
    number of its records happens to be a multiple of ``size``.

    Raises:
        TopologyError: the size is no whole number of at least 1.

    Example:
        >>> from headrace import Topology, agg
        >>> from headrace.testing import TopologyTestDriver
        >>> topology = Topology("t")
        >>> scores = topology.stream("scores", keyed_by="player", time="at", out_of_orderness="5s")
        >>> scores.window(counting(2)).aggregate(points=agg.collect("points")).to("pairs")
        >>> driver = TopologyTestDriver(topology)
        >>> for at, points in [(2_000, 20), (1_000, 10), (3_000, 30)]:
        ...     driver.send("scores", {"player": "ann", "at": at, "points": points})
        >>> driver.end_input()
        >>> [record.value["points"] for record in driver.read("pairs")]
        [[10, 20]]
    """
    if type(size) is not int or size < 1:
        raise TopologyError(
            f"counting() needs a whole number of records, at least 1, not {size!r} ({user_location()})",
            remedy="Write for example counting(100)",
        )
    return CountingWindows(size)


def every(interval: str | timedelta) -> Every:
    """Emit a window's result again and again: a value of ``emit=``.

    At each multiple of ``interval``, since the epoch, that the watermark passes, the windows and keys that have taken
    records with times before it emit a result, unless an earlier one told of all of them already: in the order of
    windows and then of keys, sessions in the order of keys. Each window emits its last one when it closes. Results
    have one field more, ``final``: True for the last one of a window.

    A result is about everything that has come, also what has a time after the multiple. It carries the last timestamp
    that had to be complete for it, less the window's lateness, so that it is never late for what follows.

    Raises:
        TopologyError: the interval is zero.
        SettingsError: it is not a duration.

    Example:
        >>> from headrace import Topology, agg
        >>> from headrace.testing import TopologyTestDriver
        >>> topology = Topology("t")
        >>> sales = topology.stream("sales", keyed_by="shop", time="at")
        >>> sales.window(tumbling("1d")).aggregate(total=agg.sum("price"), emit=every("1h")).to("sales-so-far")
        >>> driver = TopologyTestDriver(topology)
        >>> for minute, price in [(10, 5), (50, 7), (70, 1), (200, 2)]:
        ...     driver.send("sales", {"shop": "a", "price": price, "at": minute * 60_000})
        >>> driver.end_input()
        >>> [(record.value["total"], record.value["final"]) for record in driver.read("sales-so-far")]
        [(13, False), (15, False), (15, True)]
    """
    return Every(_at_least_one(interval, "the interval of every()", 'Write for example every("10s")'))


def when(predicate: Callable[[dict[str, Any]], Any]) -> When:
    """Emit a window's result as soon as something is true of it, and once more at its close: a value of ``emit=``.

    The predicate is asked after every record, about the result as it is then, until it is true; then that result
    leaves at once. Windows in which it never became true emit nothing. Results have one field more, ``final``: False
    for the first one of a window, True for the one at its close, which may no longer fulfil the predicate.

    The first result carries the timestamp of the record that made it, or the watermark before that if it is more.
    A session that joins one which has emitted does not emit again before its close.

    Args:
        predicate: (result, without ``final``) -> whether it should leave. If it fails, the record does not count.

    Raises:
        TopologyError: it is no function, or an ``async`` one.

    Example:
        >>> from headrace import Topology, agg
        >>> from headrace.testing import TopologyTestDriver
        >>> topology = Topology("t")
        >>> failures = topology.stream("failed-logins", keyed_by="user", time="at")
        >>> attacks = failures.window(tumbling("1m")).aggregate(n=agg.count(), emit=when(lambda w: w["n"] >= 3))
        >>> attacks.to("attacks")
        >>> driver = TopologyTestDriver(topology)
        >>> driver.send_many("failed-logins", [{"user": "ann", "at": at} for at in (1_000, 2_000, 3_000, 4_000)])
        >>> [(record.timestamp, record.value["n"], record.value["final"]) for record in driver.read("attacks")]
        [(3000, 3, False)]
        >>> driver.end_input()
        >>> [(record.timestamp, record.value["n"], record.value["final"]) for record in driver.read("attacks")]
        [(59999, 4, True)]
    """
    check_function(predicate, "when()")
    return When(predicate)


def windows_of(given: Any) -> Windows:
    """Return the windows that the user asks for.

    Raises:
        TopologyError: they are none.
    """
    if isinstance(given, _BUILT_IN):
        return given
    if isinstance(given, str | timedelta):
        shown = f'"{given}"' if isinstance(given, str) else repr(given)
        raise TopologyError(
            f"window was given {shown}, which does not say what kind of windows ({user_location()})",
            remedy=f"Probably window(tumbling({shown})) is meant",
        )
    kinds = "tumbling(...), hopping(...), sliding(...), session(...), counting(...) or a WindowAssigner"
    if isinstance(given, type) or not (callable(getattr(given, "windows", None)) and hasattr(given, "shape")):
        name = f"the class {given.__name__}" if isinstance(given, type) else type(given).__name__
        hint = f"Write {given.__name__}(), which makes one" if isinstance(given, type) else ""
        raise TopologyError(f"window needs {kinds}, not {name} ({user_location()})", remedy=hint)
    label = getattr(given, "name", None)
    if not isinstance(label, str) or not label:
        raise TopologyError(f"a window assigner needs a name ({user_location()})", remedy='Write name = "my-windows"')
    try:
        msgspec.json.encode(given.shape())
    except (TypeError, ValueError, OverflowError) as error:
        raise TopologyError(
            f"shape() of the window assigner {label!r} returns what JSON cannot hold: {error} ({user_location()})",
            remedy="Return a dict of text and numbers",
        ) from error
    return CustomWindows(given)


def check_joins(windows: Windows, aggregates: Mapping[str, Aggregate]) -> None:
    """Refuse aggregates that cannot make one group of two, for windows that ask that of them.

    Raises:
        TopologyError: names the first that cannot.
    """
    if isinstance(windows, SessionWindows | SlidingWindows | CountingWindows):
        check_mergeable(aggregates, f"{windows.label.split('-')[0]} windows ({user_location()})")


def lateness_of(given: Any, windows: Windows) -> int:
    """Return a lateness in milliseconds.

    Raises:
        TopologyError: it is negative, or the windows have none.
        SettingsError: it is not a duration.
    """
    negative = given < timedelta(0) if isinstance(given, timedelta) else str(given).lstrip().startswith("-")
    if negative:
        raise TopologyError(
            f"the lateness of a window must not be negative: {given!r} ({user_location()})",
            remedy='lateness="0s", the default, closes windows as soon as the watermark has passed their end',
        )
    lateness_ms = duration_ms(given, f"lateness of window ({user_location()})")
    if lateness_ms and isinstance(windows, CountingWindows):
        raise TopologyError(
            f"counting windows have no lateness, as no record is late for them ({user_location()})",
            remedy="Raise out_of_orderness of the stream to let records wait longer for earlier ones",
        )
    return lateness_ms


def emission_of(given: Any, windows: Windows) -> Emission:
    """Return when results leave.

    Raises:
        TopologyError: ``given`` does not say that, or not for these windows.
    """
    if not isinstance(given, Every | When) and given not in ("close", "update"):
        hint = 'Write for example emit=every("10s")'
        if callable(given) and given is not every:
            hint = "Write emit=when(...) around the function"
        raise TopologyError(
            f'emit must be "close", "update", every(...) or when(...), not {_shown(given)} ({user_location()})',
            remedy=hint,
        )
    if given != "close" and isinstance(windows, SlidingWindows | CountingWindows):
        kind = "sliding" if isinstance(windows, SlidingWindows) else "counting"
        other = "hopping" if isinstance(windows, SlidingWindows) else "tumbling"
        raise TopologyError(
            f'{kind} windows emit at their close only, so emit must be "close" ({user_location()})',
            remedy=f"Leave emit= out, or use {other}(...) windows",
        )
    emission: Emission = given
    return emission


def _shown(given: Any) -> str:
    return repr(given) if isinstance(given, str) else type(given).__name__


def _at_least_one(duration: str | timedelta, what: str, example: str) -> int:
    found = duration_ms(duration, f"{what} ({user_location()})")
    if found == 0:
        raise TopologyError(f"{what} must be at least 1ms ({user_location()})", remedy=example)
    return found
