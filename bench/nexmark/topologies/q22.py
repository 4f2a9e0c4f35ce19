"""Get url directories: the first three of every bid's url."""

from bench.nexmark.events import Bid
from bench.nexmark.topologies.sources import bids
from headrace import Topology


def with_directories(bid: Bid) -> dict[str, object]:
    dir1, dir2, dir3 = bid.url.split("/")[3:6]
    return {
        "auction": bid.auction,
        "bidder": bid.bidder,
        "price": bid.price,
        "channel": bid.channel,
        "dir1": dir1,
        "dir2": dir2,
        "dir3": dir3,
    }


topology = Topology("nexmark-q22")
bids(topology).map(with_directories).to("q22")
