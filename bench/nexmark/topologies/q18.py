"""Find last bid: the last bid of every bidder on every auction."""

from bench.nexmark.events import Bid
from bench.nexmark.topologies.sources import bids
from headrace import Topology


def bidder_and_auction(bid: Bid) -> tuple[int, int]:
    return bid.bidder, bid.auction


def later(last: Bid, bid: Bid) -> Bid:
    return bid if bid.date_time >= last.date_time else last


topology = Topology("nexmark-q18")
bids(topology).key_by(bidder_and_auction).reduce(later).to("q18")
