"""Log to files: every bid with the day and the minute that name the file it belongs to.

They are written to a topic, in which the bids of an auction are in order.
"""

from bench.nexmark.events import Bid
from bench.nexmark.topologies.sources import bids
from bench.nexmark.topologies.times import day, minute
from headrace import Topology


def with_file(bid: Bid) -> dict[str, object]:
    return {
        "auction": bid.auction,
        "bidder": bid.bidder,
        "price": bid.price,
        "date_time": bid.date_time,
        "extra": bid.extra,
        "dt": day(bid.date_time),
        "hm": minute(bid.date_time),
    }


topology = Topology("nexmark-q10")
bids(topology).map(with_file).to("q10")
