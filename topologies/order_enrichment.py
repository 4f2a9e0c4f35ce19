"""Orders in; out with the customer as the customer was, and priced by what the product cost, when it was ordered.

Customers are a table, as each is described anew when something about it changes. Prices are a stream: only the latest
before an order counts, and only if it is not older than a day. An order for which there is none goes to a topic of its
own, where somebody will see it.

An order waits until both sides are known up to its time, which is as long as the allowed disorder. So the results are
the same whenever, and however often, the topics are read: prices and customers of today do not get into orders of last
week. Where that does not matter, ``orders.join(customers, ..., match="latest")`` waits for nothing.
"""

import msgspec

from headrace import Topology


class Order(msgspec.Struct):
    """What a customer ordered."""

    order_id: str
    customer_id: str
    product_id: str
    quantity: int
    at: int  # ms since the epoch


class Customer(msgspec.Struct):
    """What is known of a customer since a time."""

    name: str
    segment: str
    at: int


class Price(msgspec.Struct):
    """What a product costs from a time on."""

    product_id: str
    cents: int
    at: int


class KnownOrder(msgspec.Struct):
    """An order with its customer; unknown ones are "unknown"."""

    order: Order
    customer: str
    segment: str
    product_id: str


class PricedOrder(msgspec.Struct):
    """An order with everything that belongs to it; None where there was no price."""

    order_id: str
    customer: str
    segment: str
    product_id: str
    quantity: int
    total_cents: int | None
    at: int


def with_customer(order: Order, customer: Customer | None) -> KnownOrder:
    """Add the customer."""
    if customer is None:
        return KnownOrder(order, "unknown", "unknown", order.product_id)
    return KnownOrder(order, customer.name, customer.segment, order.product_id)


def with_price(known: KnownOrder, price: Price | None) -> PricedOrder:
    """Add the price."""
    order = known.order
    total = None if price is None else price.cents * order.quantity
    return PricedOrder(
        order.order_id, known.customer, known.segment, order.product_id, order.quantity, total, order.at
    )  # fmt: skip


topology = Topology("order-enrichment")

orders = topology.stream("orders", value=Order, keyed_by="customer_id", time="at", out_of_orderness="10s")
customers = topology.table("customers", value=Customer, time="at")
prices = topology.stream(
    "prices", value=Price, keyed_by="product_id", time="at", out_of_orderness="10s", idle_after="5s"
)  # fmt: skip

priced = (
    orders.join(customers, with_customer, how="left")
    .key_by("product_id")
    .as_of(prices, with_price, within="1d")
    .branch(priced=lambda order: order.total_cents is not None, unpriced=lambda order: True)
)
priced["priced"].to("orders-priced")
priced["unpriced"].to("orders-without-price")
