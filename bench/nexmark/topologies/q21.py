"""Add channel id: a number for the four big channels, for the others what the url says, if it says something."""

import re
from collections.abc import Iterator

from bench.nexmark.events import Bid
from bench.nexmark.topologies.sources import bids
from headrace import Topology

BIG = {"apple": "0", "google": "1", "facebook": "2", "baidu": "3"}
IN_URL = re.compile("(?:&|^)channel_id=([^&]*)")


def with_channel_id(bid: Bid) -> Iterator[dict[str, object]]:
    channel_id = BIG.get(bid.channel.lower())
    if channel_id is None and (found := IN_URL.search(bid.url)):
        channel_id = found[1]
    if channel_id is not None:
        yield {
            "auction": bid.auction,
            "bidder": bid.bidder,
            "price": bid.price,
            "channel": bid.channel,
            "channel_id": channel_id,
        }


topology = Topology("nexmark-q21")
bids(topology).flat_map(with_channel_id).to("q21")
