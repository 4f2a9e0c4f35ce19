"""User sessions: how many bids did a bidder make in each period without a pause of 10 seconds?"""

from bench.nexmark.topologies.sources import bids
from headrace import Topology, agg, session

topology = Topology("nexmark-q11")
bids(topology).key_by("bidder").window(session("10s")).aggregate(bid_count=agg.count()).to("q11")
