"""Orders, their payments, and tables of customers, products, suppliers and stock: every join but the global one."""

from typing import Any

from headrace import Topology, agg

Row = dict[str, Any]


def with_customer(order: Row, customer: Row | None) -> Row:
    return {**order, "segment": customer and customer["segment"]}


def with_payment(order: Row, payment: Row | None) -> Row:
    return {"order": order["order"], "cents": order["cents"], "paid": payment and payment["n"]}


topology = Topology("orders")

orders = topology.stream("orders", keyed_by="customer", time="at", out_of_orderness="2s")
customers = topology.table("customers", time="at", out_of_orderness="2s")
payments = topology.stream("payments", keyed_by="order", time="at", out_of_orderness="2s")

known = orders.join(customers, with_customer, how="left")
known.to("known")
known.aggregate(n=agg.count(), cents=agg.sum("cents")).to("per-customer")
orders.key_by("order").join(payments, with_payment, within=("0s", "5s"), how="left").to("paid")

products, suppliers, stock = topology.table("products"), topology.table("suppliers"), topology.table("stock")
supplied = products.join(suppliers, lambda p, s: {**p, "from": s and s["name"]}, on="supplier", how="left")
supplied.to("supplied")
products.join(stock, lambda p, s: {**p, "left": s["left"]}).to("stocked")
