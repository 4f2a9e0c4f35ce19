"""Alerts that fire once and resolve: by example, against a direct computation, and through crashes."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.testing import TopologyTestDriver
from topologies.fire_and_resolve import LEAST, LIMIT, Request, topology

MINUTE = 60_000
QUIET_MINUTES = 5

Minutes = dict[int, tuple[int, int]]
"""Requests and errors, by minute."""


def requests_of(service: str, minutes: Minutes) -> list[Request]:
    return [
        Request(service, 503 if i < errors else 200, minute * MINUTE + i * 100)
        for minute, (requests, errors) in sorted(minutes.items())
        for i in range(requests)
    ]


def run(requests: list[Request], **options: Any) -> list[dict[str, Any]]:
    driver = TopologyTestDriver(topology, **options)
    driver.send_many("requests", sorted(requests, key=lambda request: request.at))
    driver.end_input()
    return [record.value for record in driver.read("alerts")]


def brief(alerts: list[dict[str, Any]]) -> list[tuple[str, str, int, int]]:
    """Return service, state, and the minutes in which the alert was raised or ended, and began."""
    return [(a["service"], a["state"], a["at"] // MINUTE, a["since"] // MINUTE) for a in alerts]


def computed(service: str, minutes: Minutes) -> list[tuple[str, str, int, int]]:
    """Work out the alerts of one service from the list of its bad minutes alone."""
    bad = [m for m, (requests, errors) in sorted(minutes.items()) if requests >= LEAST and errors / requests > LIMIT]
    alerts = []
    while bad:
        together = bad[:1]
        while len(together) < len(bad) and bad[len(together)] <= together[-1] + QUIET_MINUTES:
            together.append(bad[len(together)])
        alerts += [
            (service, "firing", together[0], together[0]),
            (service, "resolved", together[-1] + QUIET_MINUTES, together[0]),
        ]
        bad = bad[len(together) :]
    return alerts


def test_it_fires_once_and_resolves_when_the_service_has_recovered() -> None:
    good, bad = (100, 1), (100, 30)
    minutes = {0: good, 1: bad, 2: good, 3: bad, 4: (100, 50), **dict.fromkeys(range(5, 15), good)}
    firing, resolved = run(requests_of("web", minutes))
    assert firing == {
        "service": "web", "state": "firing", "at": 2 * MINUTE - 1, "since": MINUTE, "bad_minutes": 1, "worst": 0.3,
    }  # fmt: skip
    assert resolved == {
        "service": "web", "state": "resolved", "at": 10 * MINUTE - 1, "since": MINUTE, "bad_minutes": 3, "worst": 0.5,
    }  # fmt: skip


def test_it_resolves_when_nothing_is_heard_any_more() -> None:
    requests = requests_of("web", {1: (50, 50)}) + requests_of("db", dict.fromkeys(range(20), (30, 0)))
    driver = TopologyTestDriver(topology)
    driver.send_many("requests", sorted(requests, key=lambda request: request.at))
    assert brief([record.value for record in driver.read("alerts")]) == [
        ("web", "firing", 1, 1),
        ("web", "resolved", 6, 1),
    ]


def test_it_resolves_when_nothing_is_heard_of_anything() -> None:
    driver = TopologyTestDriver(topology)
    driver.send_many("requests", requests_of("web", {1: (50, 50)}))
    driver.advance_time("10m")
    assert brief([record.value for record in driver.read("alerts")]) == [
        ("web", "firing", 1, 1),
        ("web", "resolved", 6, 1),
    ]


def test_few_requests_prove_nothing() -> None:
    assert run(requests_of("web", {0: (LEAST - 1, LEAST - 1), 3: (100, 5)})) == []


minutes = st.dictionaries(
    st.integers(0, 40), st.tuples(st.sampled_from([1, LEAST, 40]), st.integers(0, 3)).filter(lambda m: m[1] <= m[0])
)


@settings(max_examples=50, deadline=None)
@given(web=minutes, db=minutes, batch_records=st.sampled_from([1, 7, 4096]))
def test_alerts_are_what_a_direct_computation_says(web: Minutes, db: Minutes, batch_records: int) -> None:
    found = brief(run(requests_of("web", web) + requests_of("db", db), batch_records=batch_records))
    for service, series in (("web", web), ("db", db)):
        assert [a for a in found if a[0] == service] == computed(service, series)


@pytest.mark.parametrize("fault", ["crash", "restart"])
def test_an_alert_outlives_the_worker(fault: str) -> None:
    made = requests_of("web", {1: (30, 30), 4: (30, 30), 20: (30, 0), 21: (30, 0)})
    driver = TopologyTestDriver(topology, cache_bytes=0)
    for place, request in enumerate(made):
        driver.send("requests", request)
        if place % 25 == 0:
            driver.checkpoint()
        elif place % 10 == 0:
            getattr(driver, fault)()
    driver.end_input()
    ids = {dict(record.headers)["headrace-id"]: record.value for record in driver.read("alerts")}
    assert brief(list(ids.values())) == [("web", "firing", 1, 1), ("web", "resolved", 9, 1)]
