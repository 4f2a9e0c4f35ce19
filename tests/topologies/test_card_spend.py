"""The example topology under test: copy this file to test one of your own."""

from typing import Any

import pytest

from headrace import RecordError
from headrace.testing import TopologyTestDriver
from topologies.card_spend import Payment, topology

MINUTE = 60_000


def payment(number: int, customer: str, total: float, at: int) -> Payment:
    return Payment(transaction_id=f"t{number}", customer_id=customer, total=total, at=at)


@pytest.fixture
def driver() -> TopologyTestDriver:
    return TopologyTestDriver(topology)


def spend(driver: TopologyTestDriver) -> list[tuple[Any, ...]]:
    """Return customer, minute, total and number of payments of every result since the last call."""
    return [
        (record.key, record.value["window_start"] // MINUTE, record.value["total"], record.value["payments"])
        for record in driver.read("spend-per-minute")
    ]


def test_payments_are_added_up_by_customer_and_minute(driver: TopologyTestDriver) -> None:
    driver.send("payments", payment(1, "ann", 10.0, 5_000))
    driver.send("payments", payment(2, "ann", 2.5, 59_999))
    driver.send("payments", payment(3, "bob", 7.0, 30_000))
    driver.send("payments", payment(4, "ann", 1.0, 60_000))
    driver.end_input()
    assert spend(driver) == [("ann", 0, 12.5, 2), ("bob", 0, 7.0, 1), ("ann", 1, 1.0, 1)]


def test_a_minute_is_complete_after_disorder_and_lateness(driver: TopologyTestDriver) -> None:
    driver.send("payments", payment(1, "ann", 10.0, 5_000))
    driver.send("payments", payment(2, "ann", 1.0, MINUTE + 14_999))  # 5 s of disorder and 10 s of lateness less 1 ms
    assert spend(driver) == []
    driver.send("payments", payment(3, "ann", 1.0, MINUTE + 15_000))
    assert spend(driver) == [("ann", 0, 10.0, 1)]


def test_a_late_payment_still_counts_until_then(driver: TopologyTestDriver) -> None:
    driver.send("payments", payment(1, "ann", 10.0, MINUTE + 14_999))
    driver.send("payments", payment(2, "ann", 1.0, 59_000))
    driver.send("payments", payment(3, "ann", 10.0, MINUTE + 15_000))
    driver.send("payments", payment(4, "ann", 1.0, 59_000))
    assert spend(driver) == [("ann", 0, 1.0, 1)]
    assert driver.late == {"payments-tumbling-60000ms": 1}


def test_a_transaction_counts_once(driver: TopologyTestDriver) -> None:
    for at in (1_000, 1_000, 2_000):
        driver.send("payments", payment(1, "ann", 10.0, at))
    driver.end_input()
    assert spend(driver) == [("ann", 0, 10.0, 1)]


def test_a_lot_in_a_minute_is_an_alert(driver: TopologyTestDriver) -> None:
    driver.send("payments", payment(1, "ann", 5_000.0, 1_000))
    driver.send("payments", payment(2, "bob", 5_000.01, 1_000))
    driver.end_input()
    assert [record.key for record in driver.read("alerts")] == ["bob"]


def test_the_last_minute_closes_by_itself_when_no_more_payments_come(driver: TopologyTestDriver) -> None:
    driver.send("payments", payment(1, "ann", 10.0, 50_000))
    driver.advance_time("30s")  # nothing for this long: the partition is idle
    driver.advance_time("24s")
    assert spend(driver) == []
    driver.advance_time("1s")  # 50 s less 5 s of disorder, and 25 s more, make a minute and 10 s of lateness
    assert spend(driver) == [("ann", 0, 10.0, 1)]


def test_a_crash_changes_nothing(driver: TopologyTestDriver) -> None:
    driver.send("payments", payment(1, "ann", 10.0, 1_000))
    driver.checkpoint()
    driver.send("payments", payment(2, "ann", 5.0, 2_000))
    driver.crash()
    driver.send("payments", payment(2, "ann", 5.0, 2_000))
    driver.end_input()
    assert spend(driver) == [("ann", 0, 15.0, 2)]


def test_a_payment_under_the_wrong_key_is_refused(driver: TopologyTestDriver) -> None:
    with pytest.raises(RecordError, match="key is not its 'customer_id'"):
        driver.send("payments", payment(1, "ann", 10.0, 1_000), key="bob")
