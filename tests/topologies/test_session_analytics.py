"""Visits, popular pages and a funnel under test: copy this file to test what you make of your own log."""

from datetime import UTC, datetime
from itertools import groupby
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.testing import Event, TopologyTestDriver, assert_records, assert_survives_crashes, strategies
from topologies.session_analytics import FUNNEL, Request, topology

SECOND, MINUTE, HOUR = 1_000, 60_000, 3_600_000
FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"


def request(at: int, uri: str, address: str = "192.0.2.1", **more: Any) -> Request:
    time = datetime.fromtimestamp(at / 1000, UTC)
    given = {"agent": FIREFOX, "method": "GET", "host": "shop.example", "status": 200} | more
    return Request(time=time, address=address, uri=uri, **given)


@pytest.fixture
def driver() -> TopologyTestDriver:
    return TopologyTestDriver(topology, partitions=2)


def brief(driver: TopologyTestDriver) -> list[tuple[Any, ...]]:
    """Return when each visit began, where it began and ended, and how many views it had."""
    visits = [record.value for record in driver.read("visits")]
    return sorted((v["started"], v["entry"], v["exit"], v["views"]) for v in visits)


def test_a_visit_is_what_one_visitor_looks_at_without_a_long_break(driver: TopologyTestDriver) -> None:
    for at, page in [(0, "/"), (5 * MINUTE, "/product/1"), (34 * MINUTE, "/"), (65 * MINUTE, "/cart")]:
        driver.send("access-log", request(at, page))
    driver.end_input()
    first, second = driver.read("visits")
    assert first.key == first.value["visitor"] == second.key
    assert_records(
        [first, second],
        [
            {
                "visitor": first.key, "started": 0, "seconds": 34 * 60.0, "views": 3, "pages": 2,
                "entry": "/", "exit": "/", "bounced": False,
            },
            {
                "visitor": first.key, "started": 65 * MINUTE, "seconds": 0.0, "views": 1, "pages": 1,
                "entry": "/cart", "exit": "/cart", "bounced": True,
            },
        ],
    )  # fmt: skip


def test_two_browsers_behind_one_address_are_two_visitors(driver: TopologyTestDriver) -> None:
    driver.send("access-log", request(0, "/a"))
    driver.send("access-log", request(SECOND, "/b", agent="Mozilla/5.0 (Macintosh) Safari/605.1.15"))
    driver.send("access-log", request(2 * SECOND, "/c", address="192.0.2.2"))
    driver.end_input()
    assert brief(driver) == [(0, "/a", "/a", 1), (SECOND, "/b", "/b", 1), (2 * SECOND, "/c", "/c", 1)]


@pytest.mark.parametrize(
    "other",
    [
        {"agent": "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)"},
        {"agent": "curl/8.5.0"},
        {"agent": ""},
        {"method": "POST"},
        {"status": 302},
        {"status": 404},
        {"uri": "/static/logo.svg?v=3"},
    ],
    ids=str,
)
def test_what_nobody_looks_at_does_not_count(driver: TopologyTestDriver, other: dict[str, Any]) -> None:
    driver.send("access-log", request(0, **({"uri": "/"} | other)))
    driver.send("access-log", request(SECOND, "/real?utm_source=mail"))
    driver.end_input()
    assert brief(driver) == [(SECOND, "/real", "/real", 1)]


def test_the_pages_of_a_site_and_hour_are_ranked_by_views(driver: TopologyTestDriver) -> None:
    looked_at = [("/a", 3, 1), ("/b", 5, 4), ("/c", 1, 1)]
    for page, views, visitors in looked_at:
        for n in range(views):
            driver.send("access-log", request(n * SECOND, page, address=f"192.0.2.{n % visitors}"))
    driver.send("access-log", request(SECOND, "/a", host="blog.example"))
    driver.send("access-log", request(HOUR, "/c"))
    driver.end_input()
    names = ("page", "views", "visitors")
    found = {
        (record.key, record.value["window_start"]): [
            tuple(page[name] for name in names) for page in record.value["top"]
        ]
        for record in driver.read("popular-pages")
    }
    assert found == {
        ("shop.example", 0): [("/b", 5, 4), ("/a", 3, 1), ("/c", 1, 1)],
        ("blog.example", 0): [("/a", 1, 1)],
        ("shop.example", HOUR): [("/c", 1, 1)],
    }


def funnel(driver: TopologyTestDriver) -> dict[str, int]:
    return {record.key: record.value["times"] for record in driver.read("funnel")}


def test_a_step_counts_only_behind_those_before_it(driver: TopologyTestDriver) -> None:
    walks = {
        "192.0.2.1": ["/", "/product/1", "/product/2", "/cart", "/checkout", "/thanks"],
        "192.0.2.2": ["/product/1", "/", "/cart"],
        "192.0.2.3": ["/cart", "/checkout", "/product/7", "/thanks"],
    }
    for address, pages in walks.items():
        for n, page in enumerate(pages):
            driver.send("access-log", request(n * SECOND, page, address=address))
    driver.end_input()
    assert funnel(driver) == {"/product/": 3, "/cart": 2, "/checkout": 1, "/thanks": 1}


def test_a_step_counts_only_within_half_an_hour_of_the_one_before(driver: TopologyTestDriver) -> None:
    for at, page in [(0, "/product/1"), (31 * MINUTE, "/cart"), (32 * MINUTE, "/product/1"), (40 * MINUTE, "/cart")]:
        driver.send("access-log", request(at, page))
    driver.end_input()
    assert funnel(driver) == {"/product/": 2, "/cart": 1}


def test_a_line_that_is_no_request_is_kept_as_it_came(driver: TopologyTestDriver) -> None:
    driver.send("access-log", request(0, "/"))
    driver.send("access-log", {"time": "yesterday"})
    driver.end_input()
    assert brief(driver) == [(0, "/", "/", 1)]
    (letter,) = driver.read("session-analytics-dead-letter")
    assert letter.value == b'{"time":"yesterday"}'


requests = st.builds(
    request,
    st.integers(0, 7_200).map(lambda second: second * SECOND),
    st.sampled_from(["/", "/about", *FUNNEL]),
    st.sampled_from(["192.0.2.1", "192.0.2.2"]),
)
lines = strategies.records(requests, timestamps=lambda line: int(line.time.timestamp()) * SECOND)


@settings(max_examples=50, deadline=None)
@given(strategies.batches(strategies.disordered(lines, by="30s")))
def test_visits_are_what_a_direct_computation_says(batches: list[list[Event]]) -> None:
    driver = TopologyTestDriver(topology)
    for batch in batches:
        strategies.send(driver, "access-log", batch)
    driver.end_input()
    by_address = sorted((event.value.address, event.timestamp) for batch in batches for event in batch)
    expected: list[tuple[int, int]] = []
    for _, views in groupby(by_address, key=lambda view: view[0]):
        last = None
        for _, at in views:
            if last is None or at - last >= 30 * MINUTE:
                expected.append((at, 0))
            expected[-1] = (expected[-1][0], expected[-1][1] + 1)
            last = at
    assert sorted((started, views) for started, _, _, views in brief(driver)) == sorted(expected)


def test_no_crash_loses_or_doubles_anything() -> None:
    walk = ["/", "/product/1", "/cart", "/checkout", "/thanks"]
    lines = [request(n * 7 * MINUTE, walk[n % 5], f"192.0.2.{n % 3}") for n in range(30)]

    def scenario(driver: TopologyTestDriver) -> None:
        driver.send_many("access-log", lines)
        driver.end_input()

    assert_survives_crashes(topology, scenario)
