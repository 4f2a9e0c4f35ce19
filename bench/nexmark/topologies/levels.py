"""Levels of price, by which queries 15 to 17 tell bids apart."""

from bench.nexmark.events import Bid
from headrace import Aggregate, agg


def low(bid: Bid) -> bool:
    return bid.price < 10_000


def middle(bid: Bid) -> bool:
    return 10_000 <= bid.price < 1_000_000


def high(bid: Bid) -> bool:
    return bid.price >= 1_000_000


def by_level(name: str, aggregate: Aggregate) -> dict[str, Aggregate]:
    """Return the aggregate in all and by level: ``total_<name>`` and ``rank1_<name>`` to ``rank3_<name>``."""
    return {
        f"total_{name}": aggregate,
        f"rank1_{name}": aggregate.where(low),
        f"rank2_{name}": aggregate.where(middle),
        f"rank3_{name}": aggregate.where(high),
    }


STATISTICS = {
    **by_level("bids", agg.count()),
    **by_level("bidders", agg.count_distinct("bidder")),
    **by_level("auctions", agg.count_distinct("auction")),
}
