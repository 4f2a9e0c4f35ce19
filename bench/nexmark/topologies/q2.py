"""Selection: auction and price of the bids on every 123rd auction."""

from bench.nexmark.topologies.sources import bids
from headrace import Topology

topology = Topology("nexmark-q2")
every_123rd = bids(topology).filter(lambda bid: bid.auction % 123 == 0)
every_123rd.map(lambda bid: {"auction": bid.auction, "price": bid.price}).to("q2")
