"""Winning bids: the highest bid on every auction, with all there is about the auction."""

from bench.nexmark.topologies.winning import winning_bids
from headrace import Topology

topology = Topology("nexmark-q9")
winning_bids(topology).to("q9")
