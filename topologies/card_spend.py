"""Card payments in, spend per customer and minute out, and an alert where somebody spends a lot."""

import msgspec

from headrace import Topology, agg, tumbling


class Payment(msgspec.Struct):
    """One card payment."""

    transaction_id: str
    customer_id: str
    total: float
    at: int  # ms since the epoch


topology = Topology("card-spend")

spend = (
    topology.stream("payments", value=Payment, keyed_by="customer_id", time="at", out_of_orderness="5s")
    .deduplicate(by="transaction_id", within="1h")
    .window(tumbling("1m"), lateness="10s")
    .aggregate(total=agg.sum("total"), payments=agg.count())
)
spend.to("spend-per-minute")
spend.filter(lambda w: w["total"] > 5_000).to("alerts")
