"""Highest bid: the bids with the highest price of every 10 seconds, all of them if there are several.

The highest of each auction are found first, where its bids are, and then compared in one place.
"""

from typing import Any

from bench.nexmark.events import Bid
from bench.nexmark.topologies.sources import bids
from headrace import Topology, agg, tumbling

highest = agg.top(1, by="price", ties=True, kind=Bid)


def bids_of(window: dict[str, Any]) -> list[Bid]:
    found: list[Bid] = window["highest"]
    return found


topology = Topology("nexmark-q7")
(
    bids(topology)
    .window(tumbling("10s"))
    .aggregate(highest=highest)
    .flat_map(bids_of)
    .key_by(lambda bid: bid.date_time // 10_000, key=int)
    .window(tumbling("10s"))
    .aggregate(highest=highest)
    .flat_map(bids_of)
    .to("q7")
)
