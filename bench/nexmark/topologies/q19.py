"""Auction top 10 price: the ten highest bids on every auction, the highest first, at every bid."""

from bench.nexmark.events import Bid
from bench.nexmark.topologies.sources import bids
from headrace import Topology, agg

topology = Topology("nexmark-q19")
bids(topology).aggregate(highest=agg.top(10, by="price", kind=Bid)).to("q19")
