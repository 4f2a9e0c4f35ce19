"""The events of an online auction site, made up, in the proportions of the Nexmark generators of Beam and Flink.

Of 50 events (an epoch) the first is a person, the next three are auctions, the other 46 are bids. Half of the bids are
on one hot auction, three in four by one hot bidder, three in four auctions by one hot seller; a hot one stays hot for a
hundred auctions or persons. The others are drawn from the auctions that may still be open and the persons that are
active, and from up to ten of each that do not exist yet: few bids come before their auction, few auctions before their
seller.

The same arguments make the same events on every machine and version of Python. What is drawn comes from ``random()``
and ``getrandbits()`` of ``random.Random`` with a whole number as seed, the plain output of the Mersenne Twister, and
never from methods that Python has changed, such as ``choice`` and ``shuffle``. Prices are products of table entries,
because powers differ between mathematical libraries.

Unlike there, urls come from the seed too, bidders are persons that exist (a version of the generator for Flink adds the
first id twice), and letters are not all equally frequent. Times are whole milliseconds, so at 10,000 events a second
ten events share one; the texts in ``sql/`` say how ties are broken.

=========  ============  ===========  ==================================
topic      value         key          time
=========  ============  ===========  ==================================
persons    ``Person``    ``id``       ``date_time``
auctions   ``Auction``   ``id``       ``date_time``
bids       ``Bid``       ``auction``  ``date_time``
side_input ``SideInput`` ``key``      none: it is there before all else
=========  ============  ===========  ==================================
"""

from __future__ import annotations

import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, repeat
from operator import mul
from random import Random
from typing import Generic, NamedTuple, TypeVar

import msgspec

FIRST_PERSON_ID = 1000
FIRST_AUCTION_ID = 1000
FIRST_CATEGORY_ID = 10
CATEGORIES = 5
SIDE_INPUT_ROWS = 10_000

PERSONS, AUCTIONS, BIDS = 1, 3, 46
EPOCH = PERSONS + AUCTIONS + BIDS
"""Events in an epoch."""

OPEN_AUCTIONS = 100
ACTIVE_PEOPLE = 1000
LEAD = 10
"""How many ids ahead of the last one a reference may point."""

HOT_FOR = 100
"""How many auctions, or persons, come until another one is hot."""

HOT_AUCTION, HOT_BIDDER, HOT_SELLER, HOT_CHANNEL = 1 / 2, 3 / 4, 3 / 4, 1 / 2
"""The share of references that point to the hot one."""

START_MS = 1_436_918_400_000
"""2015-07-15T00:00:00Z, as in Beam."""

PERSON_BYTES, AUCTION_BYTES, BID_BYTES = 200, 500, 100
"""The average size of an event, as its fields are counted: 8 for a number, 1 for a character."""

CHANNELS = 10_000
HOT_CHANNELS = ("Google", "Facebook", "Baidu", "Apple")
STATES = ("AZ", "CA", "ID", "OR", "WA", "WY")
CITIES = (
    "Phoenix", "Los Angeles", "San Francisco", "Boise", "Portland", "Bend", "Redmond", "Seattle", "Kent", "Cheyenne",
)  # fmt: skip
FIRST_NAMES = ("Peter", "Paul", "Luke", "John", "Saul", "Vicky", "Kate", "Julie", "Sarah", "Deiter", "Walter")
LAST_NAMES = ("Shultz", "Abrams", "Spencer", "White", "Bartels", "Walton", "Smith", "Jones", "Noris")

_LETTERS = (string.ascii_lowercase * 10).encode()[:256]
_WORDS = (b" " * 20 + _LETTERS)[:256]
_PATHS = (b"_" * 20 + _LETTERS)[:256]

# Six orders of magnitude in 2^24 steps of one ratio: 4,096 coarse ones, 10 to the power of 6 / 4,096, of 4,096 each.
_COARSE = tuple(100.0 * price for price in accumulate(repeat(1.0033786221027048, 4095), mul, initial=1.0))
_FINE = tuple(accumulate(repeat(1.0000008234689381, 4095), mul, initial=1.0))


class Person(msgspec.Struct, frozen=True, gc=False):
    """Somebody who sells and bids."""

    id: int
    name: str
    email_address: str
    credit_card: str
    city: str
    state: str
    date_time: int
    extra: str


class Auction(msgspec.Struct, frozen=True, gc=False):
    """An item for sale, from ``date_time`` to ``expires``, both included."""

    id: int
    item_name: str
    description: str
    initial_bid: int
    reserve: int
    date_time: int
    expires: int
    seller: int
    category: int
    extra: str


class Bid(msgspec.Struct, frozen=True, gc=False):
    """An offer of ``price`` cents for the item of an auction."""

    auction: int
    bidder: int
    price: int
    channel: str
    url: str
    date_time: int
    extra: str


class SideInput(msgspec.Struct, frozen=True, gc=False):
    """What query 13 looks up."""

    key: int
    value: str


class Events(NamedTuple):
    """Events of the three topics, each in the order in which they arrive."""

    persons: list[Person]
    auctions: list[Auction]
    bids: list[Bid]


E = TypeVar("E", Person, Auction, Bid)


@dataclass(frozen=True, slots=True, kw_only=True)
class Nexmark:
    """The events of the site.

    Args:
        count: How many events there are, of all three kinds. Fewer are the beginning of more.
        seed: The same seed makes the same events, however they are cut into batches.
        rate: Events per second of event time.
        start_ms: When the first event happens.
        disorder_ms: How long after it happened an event may arrive. It changes the order within a topic and nothing
            else: an ``out_of_orderness`` of as much has nothing late.

    Example:
        >>> [len(events) for events in Nexmark(count=150).all()]
        [3, 9, 138]
    """

    count: int
    seed: int = 1
    rate: int = 10_000
    start_ms: int = START_MS
    disorder_ms: int = 0

    def all(self) -> Events:
        """Make all events at once."""
        made = Events([], [], [])
        for batch in self.batches():
            made.persons.extend(batch.persons)
            made.auctions.extend(batch.auctions)
            made.bids.extend(batch.bids)
        return made

    def batches(self, epochs: int = 100) -> Iterator[Events]:
        """Yield the events of so many epochs at a time; the last batch holds what is left."""
        if not self.disorder_ms:
            yield from self._in_order(epochs)
            return
        persons: Delays[Person] = Delays(self.disorder_ms, 3 * self.seed)
        auctions: Delays[Auction] = Delays(self.disorder_ms, 3 * self.seed + 1)
        bids: Delays[Bid] = Delays(self.disorder_ms, 3 * self.seed + 2)
        for batch in self._in_order(epochs):
            yield Events(persons.arrived(batch.persons), auctions.arrived(batch.auctions), bids.arrived(batch.bids))
        yield Events(persons.rest(), auctions.rest(), bids.rest())

    def _in_order(self, epochs: int) -> Iterator[Events]:
        random = Random(2 * self.seed)
        hot_channels, channels = channels_of(self.seed)
        last = -(-self.count // EPOCH)
        for first in range(0, last, epochs):
            batch = Events([], [], [])
            for epoch in range(first, min(first + epochs, last)):
                self._person(epoch, random, batch.persons)
                self._auctions(epoch, random, batch.auctions)
                self._bids(epoch, random, batch.bids, hot_channels, channels)
            yield batch

    def _time(self, number: int) -> int:
        return self.start_ms + number * 1000 // self.rate

    def _person(self, epoch: int, random: Random, into: list[Person]) -> None:
        name = f"{_one_of(FIRST_NAMES, random)} {_one_of(LAST_NAMES, random)}"
        email = f"{_text(random, 7)}@{_text(random, 5)}.com"
        card = " ".join([f"{int(random.random() * 10_000):04d}" for _ in range(4)])
        city, state = _one_of(CITIES, random), _one_of(STATES, random)
        extra = _filling(random, PERSON_BYTES - 8 - len(name) - len(email) - len(card) - len(city) - len(state))
        date_time = self._time(epoch * EPOCH)
        into.append(Person(FIRST_PERSON_ID + epoch, name, email, card, city, state, date_time, extra))

    def _auctions(self, epoch: int, random: Random, into: list[Auction]) -> None:
        draw = random.random
        number = epoch * EPOCH + PERSONS
        horizon = OPEN_AUCTIONS * EPOCH // AUCTIONS
        hot_seller = FIRST_PERSON_ID + epoch // HOT_FOR * HOT_FOR
        active = min(epoch + 1, ACTIVE_PEOPLE)
        first_seller = FIRST_PERSON_ID + epoch + 1 - active
        for place in range(min(AUCTIONS, self.count - number)):
            date_time = self._time(number + place)
            longest = 2 * (self._time(number + place + horizon) - date_time)
            seller = hot_seller if draw() < HOT_SELLER else first_seller + int(draw() * (active + LEAD))
            category = FIRST_CATEGORY_ID + int(draw() * CATEGORIES)
            initial_bid = _price(random)
            reserve = initial_bid + _price(random)
            expires = date_time + 1 + int(draw() * longest)
            name, description = _text(random, 20, _WORDS), _text(random, 100, _WORDS)
            extra = _filling(random, AUCTION_BYTES - 48 - len(name) - len(description))
            identity = FIRST_AUCTION_ID + epoch * AUCTIONS + place
            item = (identity, name, description, initial_bid, reserve, date_time, expires, seller, category, extra)
            into.append(Auction(*item))

    def _bids(
        self,
        epoch: int,
        random: Random,
        into: list[Bid],
        hot_channels: Sequence[tuple[str, str]],
        channels: Sequence[tuple[str, str]],
    ) -> None:
        draw, bits = random.random, random.getrandbits
        start_ms, rate = self.start_ms, self.rate
        number = epoch * EPOCH + PERSONS + AUCTIONS
        last = (epoch + 1) * AUCTIONS - 1
        hot_auction = FIRST_AUCTION_ID + last // HOT_FOR * HOT_FOR
        first_auction = FIRST_AUCTION_ID + max(last - OPEN_AUCTIONS, 0)
        auctions = FIRST_AUCTION_ID + last - first_auction + 1 + LEAD
        hot_bidder = FIRST_PERSON_ID + epoch // HOT_FOR * HOT_FOR + 1
        active = min(epoch + 1, ACTIVE_PEOPLE)
        first_bidder = FIRST_PERSON_ID + epoch + 1 - active
        bidders = active + LEAD
        for place in range(number, min(number + BIDS, self.count)):
            auction = hot_auction if draw() < HOT_AUCTION else first_auction + int(draw() * auctions)
            bidder = hot_bidder if draw() < HOT_BIDDER else first_bidder + int(draw() * bidders)
            # _price and _filling written out: they are half of the time
            level = bits(24)
            price = int(_COARSE[level >> 12] * _FINE[level & 4095] + 0.5)
            if draw() < HOT_CHANNEL:
                channel, url = hot_channels[int(draw() * 4)]
            else:
                channel, url = channels[int(draw() * CHANNELS)]
            length = 54 + int(draw() * 28)
            extra = bits(8 * length).to_bytes(length, "little").translate(_LETTERS).decode("ascii")
            into.append(Bid(auction, bidder, price, channel, url, start_ms + place * 1000 // rate, extra))


class Delays(Generic[E]):
    """Lets the events of one topic arrive late, by up to ``most_ms``, so that they overtake each other."""

    def __init__(self, most_ms: int, seed: int) -> None:
        self._most_ms = most_ms
        self._draw = Random(seed).random
        self._seen = 0
        self._on_the_way: list[tuple[int, int, E]] = []

    def arrived(self, events: Sequence[E]) -> list[E]:
        """Take the next events, in the order of their times, and return what has arrived when the last one happens."""
        draw, delays = self._draw, self._most_ms + 1
        on_the_way = self._on_the_way
        on_the_way += [
            (event.date_time + int(draw() * delays), number, event) for number, event in enumerate(events, self._seen)
        ]
        self._seen += len(events)
        on_the_way.sort()
        now = events[-1].date_time if events else 0
        here = [event for arrival, _, event in on_the_way if arrival <= now]
        self._on_the_way = on_the_way[len(here) :]
        return here

    def rest(self) -> list[E]:
        """Return what has not arrived yet."""
        return [event for _, _, event in self._on_the_way]


@cache
def channels_of(seed: int) -> tuple[tuple[tuple[str, str], ...], tuple[tuple[str, str], ...]]:
    """Make the hot channels and the others, each with its url; nine in ten of the others name their id in it."""
    random = Random(2 * seed + 1)
    hot = tuple((name, _url(random)) for name in HOT_CHANNELS)
    others = []
    for number in range(CHANNELS):
        url = _url(random)
        if random.random() < 0.9:
            url += f"&channel_id={_reversed(number)}"
        others.append((f"channel-{number}", url))
    return hot, tuple(others)


def side_input(rows: int = SIDE_INPUT_ROWS) -> list[SideInput]:
    """Make what query 13 looks up: every number below ``rows``, as text."""
    return [SideInput(number, str(number)) for number in range(rows)]


def _reversed(number: int) -> int:
    """Read the 32 bits of a number backwards, as a signed one, without its sign."""
    backwards = int(f"{number:032b}"[::-1], 2)
    return 2**32 - backwards if backwards >= 2**31 else backwards


def _one_of(choices: Sequence[str], random: Random) -> str:
    return choices[int(random.random() * len(choices))]


def _url(random: Random) -> str:
    path = "/".join([_text(random, 5, _PATHS) for _ in range(3)])
    return f"https://www.nexmark.com/{path}/item.htm?query=1"


def _price(random: Random) -> int:
    """Draw a price in cents: from 1 to 1,000,000 times 100, as many of every order of magnitude."""
    level = random.getrandbits(24)
    return int(_COARSE[level >> 12] * _FINE[level & 4095] + 0.5)


def _text(random: Random, longest: int, characters: bytes = _LETTERS) -> str:
    """Draw a text of three to ``longest - 1`` characters, fewer where blanks at its ends are cut off."""
    length = 3 + int(random.random() * (longest - 3))
    return random.getrandbits(8 * length).to_bytes(length, "little").translate(characters).decode("ascii").strip()


def _filling(random: Random, average: int) -> str:
    """Draw letters: ``average``, give or take a fifth."""
    spread = int(average * 0.2 + 0.5)
    length = average - spread + int(random.random() * 2 * spread)
    return random.getrandbits(8 * length).to_bytes(length, "little").translate(_LETTERS).decode("ascii")
