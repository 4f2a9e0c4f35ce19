"""``order_enrichment`` under test: a table, an as-of join, and records that come in any order."""

import random
from typing import Any

import pytest

from headrace.testing import TopologyTestDriver
from topologies.order_enrichment import Customer, Order, Price, topology

SECOND, MINUTE, DAY = 1_000, 60_000, 86_400_000


def order(number: int, customer: str, product: str, at: int, quantity: int = 1) -> Order:
    return Order(f"o{number}", customer, product, quantity, at)


@pytest.fixture
def driver() -> TopologyTestDriver:
    return TopologyTestDriver(topology, partitions=2)


def customer(driver: TopologyTestDriver, key: str, name: str, segment: str, at: int) -> None:
    driver.send("customers", Customer(name, segment, at), key=key)


def found(driver: TopologyTestDriver, topic: str = "orders-priced") -> dict[str, tuple[Any, ...]]:
    """Return customer, segment and total by order."""
    return {
        record.value["order_id"]: (record.value["customer"], record.value["segment"], record.value["total_cents"])
        for record in driver.read(topic)
    }


def test_an_order_meets_its_customer_and_the_price_of_its_time(driver: TopologyTestDriver) -> None:
    customer(driver, "c1", "Ann", "new", SECOND)
    driver.send("prices", Price("p1", 100, SECOND))
    driver.send("prices", Price("p1", 120, 2 * MINUTE))
    driver.send("orders", order(1, "c1", "p1", MINUTE, quantity=3))
    driver.send("orders", order(2, "c1", "p1", 2 * MINUTE))
    driver.end_input()
    assert found(driver) == {"o1": ("Ann", "new", 300), "o2": ("Ann", "new", 120)}


def test_it_does_not_matter_which_topic_is_read_first(driver: TopologyTestDriver) -> None:
    driver.send("orders", order(1, "c1", "p1", MINUTE))
    driver.send("orders", order(2, "c1", "p1", 3 * MINUTE))
    customer(driver, "c1", "Ann", "regular", 2 * MINUTE + 55 * SECOND)
    driver.send("prices", Price("p1", 100, SECOND))
    driver.send("prices", Price("p1", 120, 2 * MINUTE))
    driver.end_input()
    assert found(driver) == {"o1": ("unknown", "unknown", 100), "o2": ("Ann", "regular", 120)}


def test_a_customer_that_was_deleted_is_unknown_from_then_on(driver: TopologyTestDriver) -> None:
    customer(driver, "c1", "Ann", "new", SECOND)
    driver.send("prices", Price("p1", 100, SECOND))
    driver.send("customers", None, key="c1", timestamp=2 * MINUTE)
    driver.send("orders", order(1, "c1", "p1", MINUTE))
    driver.send("orders", order(2, "c1", "p1", 3 * MINUTE))
    driver.end_input()
    assert found(driver) == {"o1": ("Ann", "new", 100), "o2": ("unknown", "unknown", 100)}


def test_an_order_without_a_price_of_that_day_goes_elsewhere(driver: TopologyTestDriver) -> None:
    driver.send("prices", Price("p1", 100, SECOND))
    driver.send("orders", order(1, "c1", "p1", SECOND + DAY))
    driver.send("orders", order(2, "c1", "p1", SECOND + DAY + 1))
    driver.send("orders", order(3, "c1", "p2", 2 * SECOND + DAY))
    driver.end_input()
    assert found(driver).keys() == {"o1"}
    assert found(driver, "orders-without-price").keys() == {"o2", "o3"}


def test_a_result_keeps_the_time_of_its_order(driver: TopologyTestDriver) -> None:
    driver.send("prices", Price("p1", 100, SECOND))
    driver.send("orders", order(1, "c1", "p1", MINUTE))
    driver.end_input()
    (result,) = driver.read("orders-priced")
    assert (result.key, result.timestamp) == ("p1", MINUTE)


def test_orders_leave_by_themselves_when_nothing_more_comes(driver: TopologyTestDriver) -> None:
    driver.send("prices", Price("p1", 100, SECOND))
    driver.send("orders", order(1, "c1", "p1", MINUTE))
    for _ in range(60):
        driver.advance_time("1s")
    assert found(driver) == {"o1": ("unknown", "unknown", 100)}


@pytest.mark.parametrize("seed", range(3))
def test_every_order_is_what_looking_back_from_its_time_says(seed: int) -> None:
    chance = random.Random(seed)
    driver = TopologyTestDriver(topology, partitions=2, cache_bytes=2_000, batch_records=17)
    changes = [(f"c{chance.randint(0, 3)}", Customer(f"name{n}", "any", n * 7_001)) for n in range(43)]
    offers = [Price(f"p{chance.randint(0, 3)}", n, n * 5_003) for n in range(60)]
    orders = [order(n, f"c{chance.randint(0, 3)}", f"p{chance.randint(0, 3)}", n * 1_009) for n in range(290)]
    for start in range(0, 300 * SECOND, 20 * SECOND):
        part = range(start, start + 20 * SECOND)
        for key, row in [change for change in changes if change[1].at in part]:
            driver.send("customers", row, key=key)
        driver.send_many("prices", [offer for offer in offers if offer.at in part])
        sent = [item for item in orders if item.at in part]
        driver.send_many("orders", sorted(sent, key=lambda o: o.at + chance.randint(0, 9 * SECOND)))
        getattr(driver, chance.choice(["checkpoint", "restart"]))()
    driver.end_input()
    expected: dict[str, tuple[Any, ...]] = {}
    for item in orders:
        names = [row.name for key, row in changes if key == item.customer_id and row.at <= item.at]
        cents = [offer.cents for offer in offers if offer.product_id == item.product_id and offer.at <= item.at]
        known = (names[-1], "any") if names else ("unknown", "unknown")
        expected[item.order_id] = (*known, cents[-1] if cents else None)
    assert found(driver) | found(driver, "orders-without-price") == expected
    assert sum(total is None for _, _, total in expected.values()) < 60
