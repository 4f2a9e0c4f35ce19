"""Bounded side input: every bid with the value that a table of 10,000 fixed rows has for its auction."""

from bench.nexmark.events import Bid, SideInput
from bench.nexmark.topologies.sources import bids
from headrace import Topology


def with_value(bid: Bid, row: SideInput) -> dict[str, object]:
    return {
        "auction": bid.auction,
        "bidder": bid.bidder,
        "price": bid.price,
        "date_time": bid.date_time,
        "value": row.value,
    }


topology = Topology("nexmark-q13")
side_input = topology.global_table("side_input", value=SideInput, key=int)
bids(topology).join(side_input, with_value, on=lambda bid: bid.auction % 10_000).to("q13")
