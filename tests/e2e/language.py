"""Records for ``visits`` and ``orders``, and what must come of them, by plain Python and by SQL."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

import duckdb

from headrace.record import Record
from tests.e2e.harness import Site
from tests.e2e.small import Row, put_rows

Value = dict[str, Any]
Topics = dict[str, list[Row]]

DISORDER_MS = 2_000


def spread(rng: random.Random, count: int, span_ms: int) -> Iterator[int]:
    """Yield times that grow on the whole, each at most ``DISORDER_MS`` behind the latest before it."""
    for i in range(count):
        yield 10_000 + i * span_ms // count - rng.randrange(DISORDER_MS + 1)


# --- visits


def clicks_and_articles(seed: int, count: int) -> Topics:
    rng = random.Random(seed)
    users, articles = 200, 40
    clicks: list[Row] = []
    for n, at in enumerate(spread(rng, count, count * 100)):
        user, article = f"u{int(rng.triangular(0, users, 0))}", f"a{rng.randrange(articles)}"
        clicks.append((user, at, {"n": n, "user": user, "article": article, "cents": rng.randrange(200), "at": at}))
    titles: list[Row] = [(f"a{n}", 1, {"title": f"draft {n}"}) for n in range(articles)]
    titles += [(f"a{n}", 2, {"title": f"title {n}"}) for n in range(articles - 5)]
    titles += [(f"a{n}", 3, None) for n in range(0, articles, 9)]
    return {"clicks": clicks, "articles": titles}


def good_clicks(topics: Topics) -> list[Value]:
    return [value for _, _, value in topics["clicks"] if value["n"] % 97]


def expected_visits(topics: Topics) -> set[tuple[Any, ...]]:
    """Return what ``Visits`` yields: user, time, and clicks of a visit, or number of a click and what was spent."""
    by_user: dict[str, list[Value]] = defaultdict(list)
    for click in good_clicks(topics):
        by_user[click["user"]].append(click)
    rows: set[tuple[Any, ...]] = set()
    for user, clicks in by_user.items():
        count, spent, last = 0, 0, -1
        for click in sorted(clicks, key=lambda click: click["at"]):
            at = click["at"]
            if count and at > last + 10_000:
                rows.add((user, last + 10_000, count))
                count = 0
            spent = click["cents"] + (spent if at < last + 6_000 else 0)
            count, last = count + 1, at
            if click["n"] % 5 == 0:
                rows.add((user, at, click["n"], spent))
        rows.add((user, last + 10_000, count))
    return rows


def expected_windows(topics: Topics) -> dict[str, set[tuple[Any, ...]]]:
    """Return what windows give by SQL: key, start, and what was aggregated at the end of each."""
    connection = duckdb.connect()
    connection.execute("create table c (u text, a text, cents bigint, made bigint)")
    rows = [(click["user"], click["article"], click["cents"], click["at"]) for click in good_clicks(topics)]
    connection.executemany(
        "insert into c select unnest(?), unnest(?), unnest(?), unnest(?)", [list(zip(*rows, strict=True))]
    )
    queries = {
        "sessions": """
            with cut as (select *, made - lag(made) over (partition by u order by made) >= 8000 as new from c),
                 told as (select *, sum(coalesce(new, false)::int) over (partition by u order by made) as s from cut)
            select u, min(made), count(*), sum(cents)::bigint from told group by u, s""",
        "so-far": "select u, made - made % 60000 as w, count(*) from c group by all",
        "rich": """
            select u, made - made % 20000 - 20000 * hop as w, sum(cents)::bigint from c, (select unnest([0, 1, 2]) hop)
            group by all having sum(cents) > 700""",
        "popular": "select a, made - made % 30000 as w, count(*), sum(cents)::bigint from c group by all",
    }
    return {topic: set(connection.execute(query).fetchall()) for topic, query in queries.items()}


def check_visits(site: Site, topics: Topics) -> None:
    """Compare everything that the topology ``visits`` wrote with what it must have written."""
    visits = [r.value for r in once(site.read("visits"))]
    ends = [(v["user"], v["at"], v["clicks"]) for v in visits if "clicks" in v]
    spent = [(v["user"], v["at"], v["n"], v["spent"]) for v in visits if "spent" in v]
    same([*ends, *spent], expected_visits(topics), "visits")
    windows = expected_windows(topics)
    fields = {"sessions": ("n", "cents"), "so-far": ("n",), "rich": ("cents",), "popular": ("n", "cents")}
    for topic, names in fields.items():
        last = [r.value for r in once(site.read(topic)) if r.value.get("final", True)]
        rows = [(v["key"], v["window_start"], *(v[name] for name in names)) for v in last]
        same(rows, windows[topic], topic)
    good = good_clicks(topics)
    numbers: Counter[str] = Counter()
    totals = []
    cents: Counter[str] = Counter()
    for click in good:
        numbers[click["user"]] += 1
        cents[click["user"]] += click["cents"]
        totals.append((click["user"], numbers[click["user"]], cents[click["user"]]))
    same([(r.value["key"], r.value["n"], r.value["cents"]) for r in once(site.read("totals"))], set(totals), "totals")
    titles = {key: value and value["title"] for key, _, value in topics["articles"]}
    same(
        {(r.value["n"], r.value["title"]) for r in site.read("named")},
        {(c["n"], titles[c["article"]]) for c in good},
        "named",
    )
    same(
        {(r.value["n"], r.value["double"]) for r in site.read("asked")},
        {(c["n"], 2 * c["cents"]) for c in good},
        "asked",
    )
    bad = {value["n"] for _, _, value in topics["clicks"]} - {c["n"] for c in good}
    letters = once(site.read("visits-dead-letter"))
    same([r.value["n"] for r in letters], bad, "dead letters")
    assert {dict(r.headers)["headrace-step"] for r in letters} == {b"checked"}


# --- orders


def orders_and_tables(seed: int, count: int) -> Topics:
    rng = random.Random(seed)
    customers, products, suppliers = 300, 400, 30
    span_ms = count * 40
    topics: Topics = {}
    orders: list[Row] = []
    payments: list[tuple[int, Row]] = []
    for n, at in enumerate(spread(rng, count, span_ms)):
        customer, order = f"c{rng.randrange(customers + 20)}", f"o{n}"
        orders.append((customer, at, {"order": order, "customer": customer, "cents": rng.randrange(5000), "at": at}))
        for _ in range(rng.choice((0, 1, 1, 2))):
            paid = at + rng.randrange(-1_000, 7_000)
            payments.append((paid + rng.randrange(1_000), (order, paid, {"order": order, "at": paid})))
    topics["orders"] = orders
    payments.sort()
    topics["payments"] = [(key, at, {**value, "n": n}) for n, (_, (key, at, value)) in enumerate(payments)]
    changes: list[Row] = [(f"c{n}", at, {"segment": f"s{n}"}) for n, at in enumerate(spread(rng, customers, 0))]
    for n, at in enumerate(spread(rng, count // 4, span_ms)):
        changes.append((f"c{rng.randrange(customers)}", at, {"segment": f"t{n}"} if n % 7 else None))
    topics["customers"] = in_order_of_each_key(changes)
    topics["products"] = [
        (f"p{p}", n, {"n": n, "supplier": f"s{rng.randrange(suppliers + 3)}"} if rng.random() < 0.9 else None)
        for n in range(count // 4)
        for p in [rng.randrange(products)]
    ]
    topics["suppliers"] = [
        (f"s{rng.randrange(suppliers)}", n, {"name": f"name {n}"} if rng.random() < 0.9 else None)
        for n in range(count // 40)
    ]
    topics["stock"] = [
        (f"p{rng.randrange(products)}", n, {"left": n} if rng.random() < 0.8 else None) for n in range(count // 4)
    ]
    return topics


def in_order_of_each_key(changes: list[Row]) -> list[Row]:
    """Let the changes of one key be in the order of time; between keys they are not."""
    times: dict[str, list[int]] = defaultdict(list)
    for key, at, _ in changes:
        times[key].append(at)
    for stamps in times.values():
        stamps.sort(reverse=True)
    return [(key, at, value and {**value, "at": at}) for key, _, value in changes for at in [times[key].pop()]]


def latest(rows: Iterable[Row]) -> dict[str, Any]:
    """Return the rows of a table as they are at last, deleted ones too."""
    return {key: value for key, _, value in rows}


def expected_known(topics: Topics) -> set[tuple[str, str | None]]:
    """Return each order with the segment that its customer had at its time."""
    changes: dict[str, list[tuple[int, str | None]]] = defaultdict(list)
    for key, at, value in topics["customers"]:
        changes[key].append((at, value and value["segment"]))
    found = set()
    for key, at, order in topics["orders"]:
        there = bisect_right(changes[key], at, key=lambda change: change[0])
        found.add((order["order"], changes[key][there - 1][1] if there else None))
    return found


def expected_paid(topics: Topics) -> set[tuple[str, int | None]]:
    """Return each order with the payments that came at most 5 s behind it, or with None."""
    connection = duckdb.connect()
    connection.execute("create table o (id text, made bigint)")
    connection.execute("create table p (id text, made bigint, n bigint)")
    orders = [(value["order"], at) for _, at, value in topics["orders"]]
    payments = [(key, at, value["n"]) for key, at, value in topics["payments"]]
    connection.executemany("insert into o select unnest(?), unnest(?)", [list(zip(*orders, strict=True))])
    connection.executemany("insert into p select unnest(?), unnest(?), unnest(?)", [list(zip(*payments, strict=True))])
    join = "select o.id, n from o left join p on o.id = p.id and p.made between o.made and o.made + 5000"
    return set(connection.execute(join).fetchall())


def check_orders(site: Site, topics: Topics) -> None:
    """Compare everything that the topology ``orders`` wrote with what it must have written."""
    same({(r.value["order"], r.value["segment"]) for r in site.read("known")}, expected_known(topics), "known")
    same({(r.value["order"], r.value["paid"]) for r in site.read("paid")}, expected_paid(topics), "paid")
    totals: dict[str, tuple[int, int]] = {}
    for customer, _, order in topics["orders"]:
        n, cents = totals.get(customer, (0, 0))
        totals[customer] = n + 1, cents + order["cents"]
    found = {key: (row["n"], row["cents"]) for key, row in at_last(site, "per-customer").items()}
    same(found.items(), totals.items(), "per-customer")
    names, stock = latest(topics["suppliers"]), latest(topics["stock"])
    products = {key: row for key, row in latest(topics["products"]).items() if row is not None}
    supplied = {key: {**row, "from": (names.get(row["supplier"]) or {}).get("name")} for key, row in products.items()}
    same(flat(at_last(site, "supplied")), flat(supplied), "supplied")
    stocked = {key: {**row, "left": stock[key]["left"]} for key, row in products.items() if stock.get(key) is not None}
    same(flat(at_last(site, "stocked")), flat(stocked), "stocked")


# --- both


def fill(site: Site, topics: Topics, partitions: dict[str, int]) -> None:
    for topic, rows in topics.items():
        put_rows(site, topic, rows, partitions.get(topic, 4))


def at_last(site: Site, topic: str) -> dict[str, Any]:
    """Return the rows that a topic of changes leaves."""
    rows = {record.key: record.value for record in site.read(topic)}
    return {key: row for key, row in rows.items() if row is not None}


def flat(rows: dict[str, Value]) -> set[tuple[Any, ...]]:
    return {(key, *sorted(row.items())) for key, row in rows.items()}


def once(records: list[Record]) -> list[Record]:
    """Drop repeats, which must be alike."""
    by_id: dict[bytes, Record] = {}
    for record in records:
        first = by_id.setdefault(dict(record.headers)["headrace-id"], record)
        same_record = (first.key, first.value, first.timestamp) == (record.key, record.value, record.timestamp)
        assert same_record, f"one id, two outputs: {first} and {record}"
    return list(by_id.values())


def same(found: Iterable[Any], wanted: Iterable[Any], what: str) -> None:
    """Fail if two bags of rows differ, and show a few that do."""
    has, wants = Counter(found), Counter(wanted)
    assert has == wants, (
        f"{what}: {(has - wants).total()} too many of {has.total()}, such as {list(has - wants)[:5]}; "
        f"{(wants - has).total()} missing of {wants.total()}, such as {list(wants - has)[:5]}"
    )
