"""Hot items: which auctions had the most bids in the last 10 seconds, every 2 seconds?

Bids are counted by auction, and the counts of a window are then compared in one place: they leave the first window with
one timestamp, just before its end.
"""

from bench.nexmark.topologies.sources import bids
from headrace import Topology, agg, hopping, tumbling

topology = Topology("nexmark-q5")
(
    bids(topology)
    .window(hopping("10s", "2s"))
    .aggregate(num=agg.count())
    .key_by("window_start", key=int)
    .window(tumbling("2s"))
    .aggregate(hottest=agg.top(1, by="num", ties=True))
    .flat_map(lambda window: window["hottest"])
    .to("q5")
)
