"""Average selling price by seller: of the seller's last ten auctions, whenever one expires, in whole cents.

Auctions of a seller that expire in the same millisecond count in the order of their ids, so they are gathered first.
"""

from typing import Any

import msgspec

from bench.nexmark.topologies.sources import Offer
from bench.nexmark.topologies.winning import winning_bids
from headrace import Topology, agg, tumbling


class Sale(msgspec.Struct):
    """An auction that has expired, and for how much."""

    seller: int
    auction: int
    expires: int
    price: int


def sale(won: Offer) -> Sale:
    return Sale(won.auction.seller, won.auction.id, won.auction.expires, won.bid.price)


def by_id(millisecond: dict[str, Any]) -> list[Sale]:
    return sorted(millisecond["sales"], key=lambda sale: sale.auction)


last_ten = agg.fold(list, lambda prices, price: [*prices, price][-10:], selector="price")

topology = Topology("nexmark-q6")
(
    winning_bids(topology)
    .map(sale)
    .key_by("seller")
    .window(tumbling("1ms"))
    .aggregate(sales=agg.collect(kind=Sale))
    .flat_map(by_id)
    .aggregate(
        avg_price=last_ten.then(lambda prices: sum(prices) // len(prices)),
        auction=agg.last("auction"),
        expires=agg.last("expires"),
    )
    .to("q6")
)
