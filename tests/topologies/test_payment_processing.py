"""Payments that are charged once: copy this file to test a topology that calls a service."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from headrace.testing import TopologyTestDriver
from topologies.payment_processing import PaymentRequest, StubGateway, processing, topology

DEAD_LETTERS = "payment-processing-dead-letter"


class Bank:
    """A gateway that knows what it has charged, and fails when it is told to."""

    def __init__(self) -> None:
        self.charged: dict[str, int] = {}
        self.calls: list[str] = []
        self.failures: dict[str, list[Exception]] = {}
        self.busy: set[str] = set()

    async def charge(self, key: str, account: str, cents: int, currency: str) -> tuple[bool, str]:
        assert account not in self.busy, "one payment of an account at a time"
        self.busy.add(account)
        await asyncio.sleep(0)
        self.busy.remove(account)
        self.calls.append(key)
        if cents > 10_000:
            return False, "limit"
        self.charged.setdefault(key, cents)
        if self.failures.get(key):
            raise self.failures[key].pop()
        return True, f"ref-{key}"


def request(number: int, account: str = "ann", cents: int = 500, currency: str = "EUR", at: int = 1_000) -> Any:
    return PaymentRequest(f"p{number}", account, cents, currency, at)


@pytest.fixture
def bank() -> Bank:
    return Bank()


@pytest.fixture
def driver(bank: Bank) -> TopologyTestDriver:
    return TopologyTestDriver(processing(bank))


def receipts(driver: TopologyTestDriver) -> list[tuple[str, str]]:
    return [(record.key, record.value["payment_id"]) for record in driver.read("receipts")]


def dead(driver: TopologyTestDriver) -> list[tuple[str, str, str]]:
    """Return payment, step and error of what was kept since the last call."""
    found = []
    for letter in driver.read(DEAD_LETTERS):
        headers = dict(letter.headers)
        payment = msgspec.msgpack.decode(letter.value)["payment_id"]
        found.append((payment, headers["headrace-step"].decode(), headers["headrace-error"].decode()))
    return found


def test_payments_are_charged_and_give_a_receipt(driver: TopologyTestDriver, bank: Bank) -> None:
    driver.send_many("payment-requests", [request(1), request(2, "bob", 70), request(3)])
    assert receipts(driver) == [("ann", "p1"), ("bob", "p2"), ("ann", "p3")]
    assert bank.charged == {"p1": 500, "p2": 70, "p3": 500}


def test_what_the_gateway_declines_is_told(driver: TopologyTestDriver) -> None:
    driver.send("payment-requests", request(1, cents=10_001))
    assert receipts(driver) == []
    (declined,) = driver.read("declined-payments")
    assert (declined.value["payment_id"], declined.value["reference"]) == ("p1", "limit")


def test_a_request_that_comes_twice_gives_one_receipt(driver: TopologyTestDriver, bank: Bank) -> None:
    for _ in range(3):
        driver.send("payment-requests", request(1))
    assert receipts(driver) == [("ann", "p1")]
    assert bank.calls == ["p1"], "the answer was remembered"


@pytest.mark.parametrize("wrong", [{"cents": 0}, {"currency": "XXX"}])
def test_a_request_that_is_not_valid_is_kept_and_holds_up_no_other(
    driver: TopologyTestDriver, bank: Bank, wrong: dict[str, Any]
) -> None:
    driver.send_many("payment-requests", [request(1), request(2, **wrong), request(3)])
    assert receipts(driver) == [("ann", "p1"), ("ann", "p3")]
    assert dead(driver) == [("p2", "payment-requests-map-valid", "ValueError")]
    assert "p2" not in bank.charged


def test_a_gateway_that_fails_is_asked_again_and_charges_once(driver: TopologyTestDriver, bank: Bank) -> None:
    bank.failures["p1"] = [ConnectionError(), TimeoutError()]
    driver.send("payment-requests", request(1))
    assert receipts(driver) == [("ann", "p1")]
    assert bank.calls == ["p1"] * 3
    assert bank.charged == {"p1": 500}
    assert driver.waited_ms == 200 + 400


def test_what_keeps_failing_is_kept_and_can_be_replayed(driver: TopologyTestDriver, bank: Bank) -> None:
    bank.failures["p1"] = [ConnectionError() for _ in range(5)]
    driver.send("payment-requests", request(1))
    assert receipts(driver) == []
    assert dead(driver) == [("p1", "payment-requests-map_async-charge", "ConnectionError")]
    driver.send("payment-requests", request(1))  # what ``headrace dead-letter replay`` does
    assert receipts(driver) == [("ann", "p1")]
    assert bank.charged == {"p1": 500}


def test_an_error_that_no_retry_can_mend_is_kept_at_once(driver: TopologyTestDriver, bank: Bank) -> None:
    bank.failures["p1"] = [PermissionError()]
    driver.send("payment-requests", request(1))
    assert bank.calls == ["p1"]
    assert dead(driver)[0][2] == "PermissionError"


def test_a_crash_charges_nothing_twice_and_repeats_receipts_with_their_ids(
    driver: TopologyTestDriver, bank: Bank
) -> None:
    driver.send("payment-requests", request(1))
    driver.checkpoint()
    driver.send_many("payment-requests", [request(2), request(3, "bob", cents=-1)])
    driver.crash()
    driver.send("payment-requests", request(4))
    found = [(record.value["payment_id"], dict(record.headers)["headrace-id"]) for record in driver.read("receipts")]
    assert [payment for payment, _ in found] == ["p1", "p2", "p2", "p4"]
    assert len(set(found)) == 3
    letters = [dict(letter.headers)["headrace-id"] for letter in driver.read(DEAD_LETTERS)]
    assert len(letters) == 2
    assert len(set(letters)) == 1
    assert bank.charged == {"p1": 500, "p2": 500, "p4": 500}


def test_the_stub_approves_everything() -> None:
    driver = TopologyTestDriver(topology)
    driver.send("payment-requests", request(1))
    assert receipts(driver) == [("ann", "p1")]
    assert asyncio.run(StubGateway().charge("k", "ann", 1, "EUR")) == (True, "stub-k")
