"""What the tests of tables share: changes of rows, their final state, and runs with crashes between them."""

from collections.abc import Iterable
from typing import Any

from hypothesis import strategies as st

from headrace.testing.driver import TopologyTestDriver

Row = dict[str, Any] | None
Change = tuple[str, str, Row]
"""Topic, key, row; None deletes."""

keys = st.sampled_from("abcd")


def changes_of(topic: str, rows: st.SearchStrategy[Any]) -> st.SearchStrategy[Change]:
    return st.tuples(st.just(topic), keys, rows | st.none())


def final(changes: Iterable[Change]) -> dict[str, dict[str, Any]]:
    """Return the tables that are left by topic: key -> row."""
    tables: dict[str, dict[str, Any]] = {}
    for topic, key, row in changes:
        table = tables.setdefault(topic, {})
        table.pop(key, None)
        if row is not None:
            table[key] = row
    return tables


def rows_of(changes: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Return what is left of changes of one table."""
    table: dict[str, Any] = {}
    for key, row in changes:
        table.pop(key, None)
        if row is not None:
            table[key] = row
    return table


def read(driver: TopologyTestDriver, topic: str = "out") -> list[tuple[str, Any]]:
    return [(record.key, record.value) for record in driver.read(topic)]


Fault = tuple[int, str, int]
"""After which change, what happens, and to which task; number 0 stands for all of them."""

faults = st.lists(
    st.tuples(
        st.integers(0, 20), st.sampled_from(["checkpoint", "crash", "crash_after", "restart"]), st.integers(0, 9)
    ),
    max_size=6,
)  # fmt: skip


def run(
    driver: TopologyTestDriver, changes: list[Change], together: int = 1, faults: Iterable[Fault] = ()
) -> list[tuple[str, Any]]:
    """Send changes, so many of one topic at a time, with faults between them; return what was written to ``out``."""
    planned = list(faults)
    place = 0
    while place < len(changes):
        topic = changes[place][0]
        end = place + 1
        while end < min(len(changes), place + together) and changes[end][0] == topic:
            end += 1
        part = changes[place:end]
        driver.send_many(topic, [row for _, _, row in part], keys=[key for _, key, _ in part])
        _apply(driver, [fault for fault in planned if place <= fault[0] < end])
        place = end
    driver.end_input()
    _apply(driver, [fault for fault in planned if fault[0] >= len(changes)])
    return read(driver)


def _apply(driver: TopologyTestDriver, faults: Iterable[Fault]) -> None:
    for place, fault, number in faults:
        chosen = [] if number == 0 else [driver.tasks[number % len(driver.tasks)]]
        if fault == "crash_after":
            driver.crash_after(*chosen, steps=1 + place % 3)
        else:
            getattr(driver, fault)(*chosen)
