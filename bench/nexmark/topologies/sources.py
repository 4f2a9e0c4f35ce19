"""The topics that the queries read: see ``bench.nexmark.events``."""

import msgspec

from bench.nexmark.events import Auction, Bid, Person
from headrace import KeyedStream, Topology

DISORDER = "1s"
"""How long after others an event may arrive that happened before them."""


class Offer(msgspec.Struct):
    """A bid, with the auction that it was made in."""

    bid: Bid
    auction: Auction


def persons(topology: Topology) -> KeyedStream[Person]:
    return topology.stream("persons", value=Person, keyed_by="id", time="date_time", out_of_orderness=DISORDER)


def auctions(topology: Topology) -> KeyedStream[Auction]:
    return topology.stream("auctions", value=Auction, keyed_by="id", time="date_time", out_of_orderness=DISORDER)


def bids(topology: Topology) -> KeyedStream[Bid]:
    return topology.stream("bids", value=Bid, keyed_by="auction", time="date_time", out_of_orderness=DISORDER)
