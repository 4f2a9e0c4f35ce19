"""Auction statistics report: bids and prices of each auction and day, at every bid; averages in whole cents."""

from bench.nexmark.topologies.levels import by_level
from bench.nexmark.topologies.sources import bids
from headrace import Topology, agg, tumbling

topology = Topology("nexmark-q17")
days = bids(topology).window(tumbling("1d"))
days.aggregate(
    **by_level("bids", agg.count()),
    min_price=agg.min("price"),
    max_price=agg.max("price"),
    avg_price=agg.combine(lambda total, count: total // count, total=agg.sum("price"), count=agg.count()),
    sum_price=agg.sum("price"),
    emit="update",
).to("q17")
