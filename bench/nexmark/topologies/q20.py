"""Expand bid with auction: bids with all there is about their auction, where that is of category 10.

A bid may come before its auction, and after it expired: for how long either waits for the other is a choice.
"""

from bench.nexmark.topologies.sources import Offer, auctions, bids
from headrace import Topology

topology = Topology("nexmark-q20")
of_category_10 = auctions(topology).filter(lambda auction: auction.category == 10)
bids(topology).join(of_category_10, Offer, within=("7d", "1h")).to("q20")
