"""Currency conversion: the price of every bid in euros, exactly."""

from decimal import Decimal

from bench.nexmark.events import Bid
from bench.nexmark.topologies.sources import bids
from headrace import Topology

EUROS = Decimal("0.908")


def in_euros(bid: Bid) -> dict[str, object]:
    return {
        "auction": bid.auction,
        "bidder": bid.bidder,
        "price": EUROS * bid.price,
        "date_time": bid.date_time,
        "extra": bid.extra,
    }


topology = Topology("nexmark-q1")
bids(topology).map(in_euros).to("q1")
