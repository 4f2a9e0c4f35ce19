"""The generated events of Nexmark, the batch answers to its queries, and the topologies, which must give the same."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from itertools import chain
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import pytest

from bench.nexmark.__main__ import check, measure, write
from bench.nexmark.comparing import differences, rows_of, topology_of
from bench.nexmark.events import (
    FIRST_AUCTION_ID,
    FIRST_PERSON_ID,
    LEAD,
    OPEN_AUCTIONS,
    START_MS,
    Auction,
    Bid,
    Events,
    Nexmark,
    Person,
    side_input,
)
from bench.nexmark.queries import QUERIES, answer, load, sql
from headrace.testing.driver import TopologyTestDriver

EVENTS = 20_000
EVENING_MS = START_MS + 66_600_000
"""18:30: an event a second passes the end of the day."""


@pytest.fixture(scope="module")
def events() -> Events:
    return Nexmark(count=EVENTS, rate=100).all()


@pytest.fixture(scope="module")
def tables(events: Events) -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as connection:
        load(connection, events)
        yield connection


@pytest.fixture(scope="module")
def evening() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as connection:
        load(connection, Nexmark(count=EVENTS, rate=1, start_ms=EVENING_MS).all())
        yield connection


def test_the_same_seed_makes_the_same_events_however_they_are_cut() -> None:
    for disorder_ms in (0, 500):
        site = Nexmark(count=3_333, rate=1_000, disorder_ms=disorder_ms)
        for epochs in (1, 7):
            cut = zip(*site.batches(epochs), strict=True)
            assert Events(*(list(chain.from_iterable(lists)) for lists in cut)) == site.all()
    assert Nexmark(count=100).all() != Nexmark(count=100, seed=2).all()


def test_the_events_never_change() -> None:
    made = Nexmark(count=5_000).all()
    assert hashlib.sha256(msgspec.json.encode(made)).hexdigest()[:16] == "cca6b01834cbda8e"
    assert (made.persons[0].name, made.auctions[0].expires - START_MS, made.bids[0].price) == (
        "Walter Noris",
        58,
        1974912,
    )


def test_fewer_events_are_the_beginning_of_more() -> None:
    more = Nexmark(count=500).all()
    for count in (0, 1, 2, 3, 4, 5, 49, 50, 51, 123):
        fewer = Nexmark(count=count).all()
        assert sum(map(len, fewer)) == count
        assert all(long[: len(short)] == short for short, long in zip(fewer, more, strict=True))


def test_of_fifty_events_one_is_a_person_and_three_are_auctions(events: Events) -> None:
    assert [len(kind) for kind in events] == [EVENTS * share // 50 for share in (1, 3, 46)]
    assert [person.id for person in events.persons] == list(range(FIRST_PERSON_ID, FIRST_PERSON_ID + EVENTS // 50))
    assert [item.id for item in events.auctions] == list(range(FIRST_AUCTION_ID, FIRST_AUCTION_ID + EVENTS // 50 * 3))


def test_events_come_in_the_order_of_their_times_at_the_given_rate(events: Events) -> None:
    for kind in events:
        times = [event.date_time for event in kind]
        assert times == sorted(times)
    everything = sorted(event.date_time for kind in events for event in kind)
    assert everything == [START_MS + number * 10 for number in range(EVENTS)]


def test_delays_change_the_order_and_nothing_else_and_are_bounded(events: Events) -> None:
    disordered = Nexmark(count=EVENTS, rate=100, disorder_ms=700).all()
    for delayed, kind in zip(disordered, events, strict=True):
        assert delayed != kind
        assert Counter(delayed) == Counter(kind)
        highest, most_behind = 0, 0
        for event in delayed:
            most_behind = max(most_behind, highest - event.date_time)
            highest = max(highest, event.date_time)
        assert 350 < most_behind <= 700


def test_few_are_hot(events: Events) -> None:
    def share(hot: list[bool]) -> float:
        return sum(hot) / len(hot)

    assert 0.48 < share([(bid.auction - FIRST_AUCTION_ID) % 100 == 0 for bid in events.bids]) < 0.54
    assert 0.73 < share([(bid.bidder - FIRST_PERSON_ID) % 100 == 1 for bid in events.bids]) < 0.79
    assert 0.71 < share([(item.seller - FIRST_PERSON_ID) % 100 == 0 for item in events.auctions]) < 0.81
    assert 0.48 < share([not bid.channel.startswith("channel-") for bid in events.bids]) < 0.52
    assert Counter(item.category for item in events.auctions).keys() == set(range(10, 15))


def test_references_point_to_what_is_there_or_comes_soon(events: Events) -> None:
    auctions = {item.id: item for item in events.auctions}
    persons = {person.id for person in events.persons}
    last_auction, last_person = max(auctions), max(persons)
    for bid in events.bids:
        assert bid.auction in auctions or last_auction < bid.auction <= last_auction + LEAD
        assert bid.bidder in persons or last_person < bid.bidder <= last_person + LEAD
    for item in events.auctions:
        assert item.seller in persons or last_person < item.seller <= last_person + LEAD
    early = [bid for bid in events.bids if bid.auction in auctions and bid.date_time < auctions[bid.auction].date_time]
    assert 0 < len(early) < 0.06 * len(events.bids)


def test_auctions_stay_open_for_about_as_long_as_it_takes_to_make_as_many(events: Events) -> None:
    lengths = [item.expires - item.date_time for item in events.auctions]
    average = OPEN_AUCTIONS * 50 / 3 * 10
    assert min(lengths) > 0
    assert max(lengths) <= 2 * average
    assert abs(sum(lengths) / len(lengths) - average) < 0.05 * average


def test_prices_are_of_every_order_of_magnitude(events: Events) -> None:
    prices = [bid.price for bid in events.bids]
    assert 100 <= min(prices) < 110
    assert 90_000_000 < max(prices) <= 100_000_000
    digits = Counter(len(str(price)) for price in prices)
    assert all(abs(digits[many] / len(prices) - 1 / 6) < 0.01 for many in range(3, 9))
    assert all(item.reserve >= item.initial_bid + 100 for item in events.auctions)


def test_events_are_as_large_as_they_should_be(events: Events) -> None:
    def size(event: Person | Auction | Bid) -> int:
        uncounted = {"channel", "url", "date_time"} if isinstance(event, Bid) else {"date_time"}
        fields = msgspec.structs.asdict(event)
        counted = [
            len(value) if isinstance(value, str) else 8 for name, value in fields.items() if name not in uncounted
        ]
        return sum(counted) + 8 * (not isinstance(event, Person))

    for kind, average in zip(events, (200, 500, 100), strict=True):
        assert abs(sum(map(size, kind)) / len(kind) - average) < 0.03 * average


def test_a_channel_always_has_the_same_url(events: Events) -> None:
    urls: dict[str, set[str]] = defaultdict(set)
    for bid in events.bids:
        urls[bid.channel].add(bid.url)
    assert all(len(of_channel) == 1 for of_channel in urls.values())
    with_id = sum("&channel_id=" in url for (url,) in urls.values()) / len(urls)
    assert 0.87 < with_id < 0.93


def test_the_tables_hold_the_events_in_their_order(tables: duckdb.DuckDBPyConnection, events: Events) -> None:
    for table, rows in zip(("person", "auction", "bid", "side_input"), (*events, side_input()), strict=True):
        held = tables.execute(f"SELECT * EXCLUDE (seq) FROM {table} ORDER BY seq").fetchall()
        assert held == [msgspec.structs.astuple(row) for row in rows]


@pytest.mark.parametrize("number", QUERIES)
def test_every_query_has_an_answer(
    tables: duckdb.DuckDBPyConnection, evening: duckdb.DuckDBPyConnection, number: int
) -> None:
    assert sql(number).startswith(f"-- Query {number}, ")
    for connection in (tables, evening):
        rows = answer(connection, number)
        assert rows
        assert all(value is not None for row in rows for value in row.values())


def test_ties_are_broken(tables: duckdb.DuckDBPyConnection) -> None:
    """The same rows come out whichever way DuckDB happens to sort and divide its work."""
    for number in QUERIES:
        before = answer(tables, number)
        tables.execute("SET threads = 1")
        after = answer(tables, number)
        tables.execute("RESET threads")
        assert Counter(map(str, before)) == Counter(map(str, after)), number


def winners(events: Events) -> dict[int, Bid]:
    items = {item.id: item for item in events.auctions}
    best: dict[int, Bid] = {}
    for bid in events.bids:
        item = items.get(bid.auction)
        if item is None or not item.date_time <= bid.date_time <= item.expires:
            continue
        held = best.get(bid.auction)
        if held is None or (-bid.price, bid.date_time) < (-held.price, held.date_time):
            best[bid.auction] = bid
    return best


def test_winning_bids(tables: duckdb.DuckDBPyConnection, events: Events) -> None:
    given = {row["id"]: (row["bidder"], row["price"], row["bid_date_time"]) for row in answer(tables, 9)}
    assert given == {auction: (bid.bidder, bid.price, bid.date_time) for auction, bid in winners(events).items()}


def test_averages_of_the_last_ten_auctions(tables: duckdb.DuckDBPyConnection, events: Events) -> None:
    best = winners(events)
    expected: dict[int, int] = {}
    sold: dict[int, list[int]] = defaultdict(list)
    for item in sorted(events.auctions, key=lambda item: (item.expires, item.id)):
        if item.id in best:
            sold[item.seller] = [*sold[item.seller], best[item.id].price][-10:]
            expected[item.id] = sum(sold[item.seller]) // len(sold[item.seller])
    assert {row["auction"]: row["avg_price"] for row in answer(tables, 6)} == expected
    assert max(map(len, sold.values())) == 10


def test_hot_items(tables: duckdb.DuckDBPyConnection, events: Events) -> None:
    counts: dict[int, Counter[int]] = defaultdict(Counter)
    for bid in events.bids:
        for start in range(bid.date_time // 2000 * 2000, bid.date_time - 10_000, -2000):
            counts[start][bid.auction] += 1
    expected = {
        (start, auction, num)
        for start, of_window in counts.items()
        for auction, num in of_window.items()
        if num == max(of_window.values())
    }
    rows = answer(tables, 5)
    assert {(row["window_start"], row["auction"], row["num"]) for row in rows} == expected
    assert all(row["window_end"] - row["window_start"] == 10_000 for row in rows)


def test_sessions(tables: duckdb.DuckDBPyConnection, events: Events) -> None:
    expected: list[list[int]] = []
    last: dict[int, list[int]] = {}
    for bid in events.bids:
        session = last.get(bid.bidder)
        if session is None or bid.date_time >= session[3]:
            session = last[bid.bidder] = [bid.bidder, 0, bid.date_time, 0]
            expected.append(session)
        session[1] += 1
        session[3] = bid.date_time + 10_000
    assert sorted(list(row.values()) for row in answer(tables, 11)) == sorted(expected)
    assert len(expected) > len(last)


def test_the_day_has_its_times(evening: duckdb.DuckDBPyConnection) -> None:
    rows = answer(evening, 14)
    assert {row["bid_time_type"] for row in rows} == {"dayTime", "nightTime", "otherTime"}
    assert all(isinstance(row["price"], Decimal) and 1_000_000 < row["price"] < 50_000_000 for row in rows)
    assert all(row["c_counts"] == row["extra"].count("c") for row in rows)
    assert {row["day"] for row in answer(evening, 15)} == {"2015-07-15", "2015-07-16"}


def test_ranks_and_last_bids(tables: duckdb.DuckDBPyConnection, events: Events) -> None:
    of_auction: dict[int, list[Bid]] = defaultdict(list)
    last: dict[tuple[int, int], Bid] = {}
    for bid in events.bids:
        of_auction[bid.auction].append(bid)
        last[bid.auction, bid.bidder] = bid
    ranked = {
        (auction, rank, bid.price, bid.extra)
        for auction, bids in of_auction.items()
        for rank, bid in enumerate(sorted(bids, key=lambda bid: -bid.price)[:10], 1)
    }
    rows = answer(tables, 19)
    assert {(row["auction"], row["rank_number"], row["price"], row["extra"]) for row in rows} == ranked
    assert {(row["auction"], row["bidder"], row["extra"]) for row in answer(tables, 18)} == {
        (*pair, bid.extra) for pair, bid in last.items()
    }


def test_files_hold_the_events(tmp_path: Path) -> None:
    site = Nexmark(count=7_777, disorder_ms=50)
    assert write(site, tmp_path) == {"persons": 156, "auctions": 468, "bids": 7153, "side_input": 10_000}
    kinds: dict[str, type[Any]] = {"persons": Person, "auctions": Auction, "bids": Bid}
    written = [
        msgspec.json.Decoder(kind).decode_lines((tmp_path / f"{topic}.ndjson").read_bytes())
        for topic, kind in kinds.items()
    ]
    assert Events(*written) == site.all()


@dataclass(frozen=True)
class Site:
    """Events as they arrive, some at a time, and DuckDB's tables of them."""

    batches: list[Events]
    tables: duckdb.DuckDBPyConnection


def around_midnight() -> list[Events]:
    site = Nexmark(count=4_000, rate=100, start_ms=START_MS + 86_400_000 - 17_000, disorder_ms=900)
    return list(site.batches(7))


def much_the_same() -> list[Events]:
    """Few different times and prices, so that many events are equal in them."""

    def rounded(event: Any) -> Any:
        times = {"date_time": event.date_time // 200 * 200}
        if isinstance(event, Auction):
            times["expires"] = max(times["date_time"], event.expires // 200 * 200)
        if isinstance(event, Bid):
            times["price"] = min(int(str(event.price)[0]) * 10 ** (len(str(event.price)) - 1), 50_000_000)
        return msgspec.structs.replace(event, **times)

    site = Nexmark(count=4_000, rate=500, disorder_ms=300)
    return [Events(*(list(map(rounded, events)) for events in batch)) for batch in site.batches(11)]


def few_at_a_time() -> list[Events]:
    return list(Nexmark(count=600, rate=1, disorder_ms=900).batches(1))


@pytest.fixture(scope="module", params=[around_midnight, much_the_same, few_at_a_time])
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    batches = request.param()
    with duckdb.connect() as connection:
        load(connection, Events(*(list(chain.from_iterable(kinds)) for kinds in zip(*batches, strict=True))))
        yield Site(batches, connection)


def driver_of(number: int, **options: int) -> TopologyTestDriver:
    driver = TopologyTestDriver(topology_of(number), partitions=3, **options)
    if number == 13:
        driver.send_many("side_input", side_input(), keys=range(10_000))
    return driver


def send(driver: TopologyTestDriver, batch: Events) -> None:
    for topic, events in batch._asdict().items():
        if events and topic in driver.plan.source_topics():
            keys = [event.auction if isinstance(event, Bid) else event.id for event in events]
            driver.send_many(topic, events, keys=keys, timestamps=[event.date_time for event in events])


def found_by(number: int, driver: TopologyTestDriver) -> list[dict[str, Any]]:
    driver.end_input()
    assert driver.late.total() == 0
    return rows_of(number, ((record.key, record.value) for record in driver.read(f"q{number}")))


@pytest.mark.parametrize("number", QUERIES)
def test_a_topology_gives_the_answer(site: Site, number: int) -> None:
    driver = driver_of(number, batch_records=37)
    for batch in site.batches:
        send(driver, batch)
    assert not differences(answer(site.tables, number), found_by(number, driver))


def test_the_time_of_the_day_is_told(evening: duckdb.DuckDBPyConnection) -> None:
    driver = driver_of(14)
    send(driver, Nexmark(count=EVENTS, rate=1, start_ms=EVENING_MS).all())
    assert not differences(answer(evening, 14), found_by(14, driver))


def test_rows_that_differ_are_shown() -> None:
    row = {"a": 1, "b": "x"}
    assert not differences([row, row], [{**row, "c": 5}, row])
    assert differences([row, row], [row]) == ["1 missing", "  {'a': 1, 'b': 'x'}"]
    assert differences([row], [{"a": 1}]) == [
        "1 missing", "  {'a': 1, 'b': 'x'}", "1 unexpected", "  {'a': 1, 'b': None}"
    ]  # fmt: skip
    assert differences([row], []) == ["1 rows expected, 0 found"]
    assert not differences([], [])


def test_queries_are_checked_over_a_log_on_disk(capsys: pytest.CaptureFixture[str]) -> None:
    assert check(Nexmark(count=2_000, rate=100, disorder_ms=400), [5, 9])
    assert [line.split()[::3] for line in capsys.readouterr().out.splitlines()[1:]] == [["q5", "yes"], ["q9", "yes"]]


def test_queries_are_measured_in_processes_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    measure(Nexmark(count=1_000), [13], repeats=1)
    assert capsys.readouterr().out.splitlines()[-1].startswith("| 13 | 920 | 920 | ")
