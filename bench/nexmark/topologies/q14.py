"""Calculation: bids of a middle price in euros, with the time of the day and how often the filling has the letter c."""

from bench.nexmark.events import Bid
from bench.nexmark.topologies.q1 import in_euros
from bench.nexmark.topologies.sources import bids
from headrace import Topology


def calculated(bid: Bid) -> dict[str, object]:
    hour = bid.date_time // 3_600_000 % 24
    time_type = "dayTime" if 8 <= hour <= 18 else "nightTime" if hour <= 6 or hour >= 20 else "otherTime"
    return {**in_euros(bid), "bid_time_type": time_type, "c_counts": bid.extra.count("c")}


topology = Topology("nexmark-q14")
bids(topology).filter(lambda bid: 1_000_000_000 < 908 * bid.price < 50_000_000_000).map(calculated).to("q14")
