"""The bids that win: what queries 4, 6 and 9 have in common."""

from collections.abc import Iterator

from bench.nexmark.topologies.sources import Offer, auctions, bids
from headrace import Context, KeyedStream, Topology, ValueState


def keep_highest(offer: Offer, context: Context, highest: ValueState[Offer | None]) -> None:
    if highest.value is None or offer.bid.price > highest.value.bid.price:
        highest.value = offer
        context.set_timer("expired", at=offer.auction.expires)


def close(timer: str, context: Context, highest: ValueState[Offer | None]) -> Iterator[Offer]:
    if highest.value is not None:
        yield highest.value
    highest.clear()


def winning_bids(topology: Topology) -> KeyedStream[Offer]:
    """Return the highest bid on every auction, of equal ones the earliest, when the auction expires.

    A bid is joined with its auction as it was at the time of the bid, so not with one that began later. That happens in
    the order of time.
    """
    return (
        bids(topology)
        .join(auctions(topology).to_table(), Offer)
        .filter(lambda offer: offer.bid.date_time <= offer.auction.expires)
        .process(keep_highest, on_timer=close, highest=ValueState(Offer))
    )
