"""Processing time windows: how many bids did a bidder make in each 10 seconds?

Without ``time=`` it is the log's time that counts, when a bid was written, so that a replay has the same windows.
"""

from bench.nexmark.events import Bid
from bench.nexmark.topologies.sources import DISORDER
from headrace import Topology, agg, tumbling

topology = Topology("nexmark-q12")
bids = topology.stream("bids", value=Bid, key=int, out_of_orderness=DISORDER)
bids.key_by("bidder").window(tumbling("10s")).aggregate(bid_count=agg.count()).to("q12")
