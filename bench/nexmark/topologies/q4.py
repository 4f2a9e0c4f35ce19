"""Average price for a category: the average of the auctions' winning bids, in whole cents.

A new average is written whenever an auction expires.
"""

from bench.nexmark.topologies.winning import winning_bids
from headrace import Topology, agg

topology = Topology("nexmark-q4")
prices = winning_bids(topology).map(lambda won: {"category": won.auction.category, "price": won.bid.price})
floor = agg.combine(lambda total, count: total // count, total=agg.sum("price"), count=agg.count())
prices.key_by("category", key=int).aggregate(final=floor).to("q4")
