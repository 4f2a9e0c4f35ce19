"""Strategies for Hypothesis: streams as they come in practice, out of order, repeated, late, in portions of any size.

Every strategy takes a list of events or a strategy of such lists, so they go into one another; and what a failing test
shrinks to is in order, without repeats, on time and in one piece, as far as the fault allows::

    payments = st.builds(Payment, ...)
    streams = strategies.disordered(strategies.duplicated(strategies.records(payments, timestamps="at")), by="5s")

    @given(strategies.batches(streams))
    def test_every_payment_counts_once(batches):
        driver = TopologyTestDriver(topology)
        for batch in batches:
            strategies.send(driver, "payments", batch)
        driver.end_input()
        ...

It needs Hypothesis: the extra ``testing``.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from headrace.operators.selectors import Selector, select
from headrace.settings import duration_ms
from headrace.testing.events import Event

try:
    from hypothesis import strategies as st
    from hypothesis.strategies import DrawFn, SearchStrategy
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "headrace.testing.strategies needs Hypothesis; install it with: pip install 'headrace[testing]'",
        name=error.name,
    ) from error

if TYPE_CHECKING:
    from headrace.testing.driver import TopologyTestDriver


Events = Sequence[Event] | SearchStrategy[list[Event]]
"""Events, or a strategy that makes them."""

_HOUR_MS = 3_600_000


def records(
    values: SearchStrategy[Any],
    *,
    keys: SearchStrategy[Any] | Selector | None = None,
    timestamps: SearchStrategy[int] | Selector | None = None,
    min_size: int = 0,
    max_size: int = 30,
) -> SearchStrategy[list[Event]]:
    """Make lists of events in the order of their timestamps.

    Args:
        values: Makes the values, as the topology sees them.
        keys: Makes the keys; or the field or function of the value that gives them. Events without keys if None, to
            which the driver gives those that ``keyed_by`` of the source means.
        timestamps: Makes the event times, in ms; or the field or function of the value that gives them, which is what
            a source with ``time=`` needs. Any within one hour if None.
        min_size: The least number of events.
        max_size: The most.

    Example:
        >>> from hypothesis import find
        >>> clicks = st.fixed_dictionaries({"page": st.sampled_from(["/", "/a"]), "at": st.integers(0, 60_000)})
        >>> find(records(clicks, keys="page", timestamps="at"), lambda events: len(events) == 1)
        [Event(value={'page': '/', 'at': 0}, key='/', timestamp=0)]
    """
    times = st.integers(0, _HOUR_MS) if timestamps is None else timestamps
    lists = st.lists(
        st.tuples(
            values,
            keys if isinstance(keys, SearchStrategy) else st.none(),
            times if isinstance(times, SearchStrategy) else st.none(),
        ),
        min_size=min_size,
        max_size=max_size,
    )

    def build(rows: list[tuple[Any, Any, Any]]) -> list[Event]:
        made = [value for value, _, _ in rows]
        chosen_keys = [key for _, key, _ in rows]
        if keys is not None and not isinstance(keys, SearchStrategy):
            chosen_keys = select(keys, made)
        chosen_times = [time for _, _, time in rows]
        if not isinstance(times, SearchStrategy):
            chosen_times = select(times, made)
        return _sorted(list(map(Event, made, chosen_keys, chosen_times)))

    return lists.map(build)


def disordered(events: Events, by: str | timedelta = "5s") -> SearchStrategy[list[Event]]:
    """Put events into any order in which none comes more than ``by`` behind the highest timestamp before it.

    With a source whose ``out_of_orderness`` is ``by``, none of them is late. The order that is given does not matter.

    Example:
        >>> from hypothesis import find
        >>> two = [Event("a", timestamp=0), Event("b", timestamp=4_000)]
        >>> [event.value for event in find(disordered(two, by="5s"), lambda made: made != two)]
        ['b', 'a']
    """
    return _disordered(events, duration_ms(by, "by of disordered"))


def duplicated(events: Events, most: int = 3) -> SearchStrategy[list[Event]]:
    """Let any of the events come again, up to ``most`` times in all, somewhere behind its first time.

    The first times keep their order. Give the result to ``disordered`` where repeats shall not come late.

    Example:
        >>> from hypothesis import find
        >>> [event.value for event in find(duplicated([Event("a"), Event("b")]), lambda made: len(made) > 2)]
        ['a', 'a', 'b']
    """
    if most < 1:
        raise ValueError(f"every event comes at least once, so most cannot be {most}")
    return _duplicated(events, most)


def late(events: Events, *, beyond: str | timedelta, most: int = 3) -> SearchStrategy[list[Event]]:
    """Let up to ``most`` of the events, possibly none, come more than ``beyond`` behind a timestamp before them.

    The others keep their order. Only an event that is more than ``beyond`` older than another can come late. A window
    surely leaves it out if ``beyond`` is at least the source's ``out_of_orderness``, the window's size and its
    ``lateness`` together.

    Example:
        >>> from hypothesis import find
        >>> two = [Event("a", timestamp=0), Event("b", timestamp=10_000)]
        >>> [event.value for event in find(late(two, beyond="5s"), lambda made: made != two)]
        ['b', 'a']
    """
    return _late(events, duration_ms(beyond, "beyond of late"), most)


def cuts(count: int) -> SearchStrategy[list[int]]:
    """Make the ways of cutting ``count`` records into batches: the sizes of the batches, none of them 0.

    Example:
        >>> from hypothesis import find
        >>> find(cuts(5), lambda sizes: len(sizes) == 3)
        [3, 1, 1]
    """
    return _cuts(count)


def batches(events: Events) -> SearchStrategy[list[list[Event]]]:
    """Cut events into batches in any way; there are none without events.

    Example:
        >>> from hypothesis import find
        >>> made = find(batches([Event("a"), Event("b")]), lambda batches: len(batches) == 2)
        >>> [[event.value for event in batch] for batch in made]
        [['a'], ['b']]
    """
    return _batches(events)


def send(driver: TopologyTestDriver, topic: str, events: Sequence[Event], *, partition: int | None = None) -> None:
    """Send events as one call of ``send_many``; those without keys get what ``keyed_by`` of the source means.

    Args:
        driver: Of the topology that is tested.
        topic: A topic that it reads.
        events: All with keys, or all without.
        partition: Where all of them go; by their keys if None.

    Example:
        >>> from headrace import Topology
        >>> from headrace.testing import TopologyTestDriver
        >>> topology = Topology("copy")
        >>> topology.stream("in", value=str).to("out")
        >>> driver = TopologyTestDriver(topology)
        >>> send(driver, "in", [Event("a", timestamp=1), Event("b", timestamp=2)])
        >>> [(record.value, record.timestamp) for record in driver.read("out")]
        [('a', 1), ('b', 2)]
    """
    if not events:
        return
    keys = [event.key for event in events]
    driver.send_many(
        topic,
        [event.value for event in events],
        keys=None if keys.count(None) == len(keys) else keys,
        timestamps=[event.timestamp for event in events],
        partition=partition,
    )


@st.composite
def _disordered(draw: DrawFn, events: Events, by_ms: int) -> list[Event]:
    # Each event arrives up to "by" after its time. Of those that arrive at one moment the youngest comes first unless
    # the turns say otherwise; with them there is no order within the bound that is not made.
    ordered = _sorted(_drawn(draw, events))
    size = len(ordered)
    delays = draw(st.lists(st.integers(0, by_ms), min_size=size, max_size=size))
    turns = draw(st.lists(st.integers(0, max(0, size - 1)), min_size=size, max_size=size))
    arrivals = [
        (event.timestamp + delay, turn, -event.timestamp, place)
        for place, (event, delay, turn) in enumerate(zip(ordered, delays, turns, strict=True))
    ]
    return [ordered[place] for *_, place in sorted(arrivals)]


@st.composite
def _duplicated(draw: DrawFn, events: Events, most: int) -> list[Event]:
    firsts = _drawn(draw, events)
    made: list[Event] = []
    for event in reversed(firsts):
        made.insert(0, event)
        for _ in range(draw(st.integers(0, most - 1))):
            made.insert(draw(st.integers(1, len(made))), event)
    return made


@st.composite
def _late(draw: DrawFn, events: Events, beyond_ms: int, most: int) -> list[Event]:
    on_time = _drawn(draw, events)
    latest = max((event.timestamp for event in on_time), default=0)
    able = [place for place, event in enumerate(on_time) if event.timestamp + beyond_ms < latest]
    if not able or most < 1:
        return on_time
    chosen = draw(st.lists(st.sampled_from(able), unique=True, max_size=most))
    moved = [on_time[place] for place in sorted(chosen)]
    made = [event for place, event in enumerate(on_time) if place not in chosen]
    for event in moved:
        first = next(place for place, other in enumerate(made) if other.timestamp > event.timestamp + beyond_ms)
        made.insert(draw(st.integers(first + 1, len(made))), event)
    return made


@st.composite
def _cuts(draw: DrawFn, count: int) -> list[int]:
    if not count:
        return []
    longest = count - draw(st.integers(0, count - 1))
    sizes: list[int] = []
    rest = count
    while rest:
        most = min(rest, longest)
        sizes.append(most - draw(st.integers(0, most - 1)))
        rest -= sizes[-1]
    return sizes


@st.composite
def _batches(draw: DrawFn, events: Events) -> list[list[Event]]:
    rest = _drawn(draw, events)
    made = []
    for size in draw(cuts(len(rest))):
        made.append(rest[:size])
        rest = rest[size:]
    return made


def _drawn(draw: DrawFn, events: Events) -> list[Event]:
    return draw(events) if isinstance(events, SearchStrategy) else list(events)


def _sorted(events: list[Event]) -> list[Event]:
    return sorted(events, key=lambda event: event.timestamp)
