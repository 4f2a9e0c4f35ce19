"""Windows of one's own under test: copy this file to test some of yours."""

from datetime import datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.testing import TopologyTestDriver
from topologies.monthly_revenue import CalendarMonths, Sale, topology

HOUR = 3_600_000
BERLIN = ZoneInfo("Europe/Berlin")


def at(year: int, month: int, day: int, hour: int = 0, *, zone: ZoneInfo = BERLIN) -> int:
    return int(datetime(year, month, day, hour, tzinfo=zone).timestamp()) * 1000


def sale(cents: int, when: int, shop: str = "a") -> Sale:
    return Sale(shop=shop, cents=cents, at=when)


@pytest.fixture
def driver() -> TopologyTestDriver:
    return TopologyTestDriver(topology)


def months(driver: TopologyTestDriver) -> list[tuple[Any, ...]]:
    """Return shop, month, revenue and number of sales of every month that closed since the last call."""
    found = []
    for record in driver.read("monthly-revenue"):
        start = datetime.fromtimestamp(record.value["window_start"] // 1000, BERLIN)
        found.append((record.key, f"{start:%Y-%m}", record.value["cents"], record.value["sales"]))
    return found


def test_sales_are_added_up_by_shop_and_month(driver: TopologyTestDriver) -> None:
    driver.send("sales", sale(100, at(2025, 1, 1)))
    driver.send("sales", sale(20, at(2025, 1, 31, 23)))
    driver.send("sales", sale(7, at(2025, 1, 15), shop="b"))
    driver.send("sales", sale(5, at(2025, 2, 1)))
    driver.end_input()
    assert months(driver) == [("a", "2025-01", 120, 2), ("b", "2025-01", 7, 1), ("a", "2025-02", 5, 1)]


def test_a_month_begins_at_midnight_of_its_zone(driver: TopologyTestDriver) -> None:
    utc = timezone(timedelta(0))
    before_midnight = int(datetime(2025, 6, 30, 21, 59, tzinfo=utc).timestamp()) * 1000
    driver.send("sales", sale(1, before_midnight))  # 23:59 in Berlin
    driver.send("sales", sale(2, before_midnight + 60_000))
    driver.end_input()
    assert months(driver) == [("a", "2025-06", 1, 1), ("a", "2025-07", 2, 1)]


def test_daylight_saving_makes_months_shorter_and_longer() -> None:
    def hours(*day: int) -> float:
        ((start, end),) = CalendarMonths("Europe/Berlin").windows(at(*day))
        return (end - start) / HOUR

    assert hours(2025, 2, 10) == 28 * 24
    assert hours(2025, 3, 10) == 31 * 24 - 1
    assert hours(2025, 10, 10) == 31 * 24 + 1
    assert hours(2024, 2, 29) == 29 * 24


@given(st.integers(0, 7_258_118_399_999), st.sampled_from(["Europe/Berlin", "America/New_York", "Asia/Kolkata", "UTC"]))
def test_every_time_is_in_one_month_and_the_next_one_follows(when: int, zone: str) -> None:
    windows = CalendarMonths(zone)
    ((start, end),) = windows.windows(when)
    assert start <= when < end
    ((next_start, _),) = windows.windows(end)
    assert next_start == end
    if start >= 0:
        assert windows.windows(start) == [(start, end)]


def test_a_month_stays_open_for_a_day(driver: TopologyTestDriver) -> None:
    driver.send("sales", sale(100, at(2025, 1, 31)))
    driver.send("sales", sale(1, at(2025, 2, 2)))  # the watermark is 10 minutes behind
    driver.send("sales", sale(20, at(2025, 1, 31, 12)))
    assert months(driver) == []
    driver.send("sales", sale(1, at(2025, 2, 2, 1)))
    assert months(driver) == [("a", "2025-01", 120, 2)]
    driver.send("sales", sale(3, at(2025, 1, 31, 12)))
    assert driver.late == {"sales-months-Europe-Berlin": 1}


def test_the_revenue_so_far_is_told_once_a_day(driver: TopologyTestDriver) -> None:
    for day, cents in [(1, 100), (1, 20), (2, 7), (2, 3), (4, 1)]:
        driver.send("sales", sale(cents, at(2025, 1, day, 12)))
    assert [record.value["cents"] for record in driver.read("revenue-so-far")] == [127, 131]
