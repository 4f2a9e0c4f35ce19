"""Bidding statistics report: bids, bidders and auctions of each day, in all and by level of price, at every bid."""

from bench.nexmark.events import Bid
from bench.nexmark.topologies.levels import STATISTICS
from bench.nexmark.topologies.sources import bids
from bench.nexmark.topologies.times import day
from headrace import Topology


def day_of(bid: Bid) -> str:
    return day(bid.date_time)


topology = Topology("nexmark-q15")
bids(topology).key_by(day_of).aggregate(**STATISTICS).to("q15")
