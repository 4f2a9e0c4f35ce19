"""``card_spend`` against DuckDB, which knows nothing of headrace: payments with disorder, repeats and late ones."""

from random import Random
from zlib import crc32

import duckdb
import pytest

from headrace.testing import TopologyTestDriver
from topologies.card_spend import Payment, topology

MINUTE, HOUR = 60_000, 3_600_000
DISORDER, LATENESS = 5_000, 10_000


def payments(seed: int, count: int) -> list[Payment]:
    """Return payments in the order in which they are written, over somewhat more than two hours."""
    random = Random(seed)
    made: list[Payment] = []
    moved: set[str] = set()
    at = 0
    for number in range(count):
        at += random.randint(0, 2 * 2 * HOUR // count)
        behind = random.choice([0, 0, 0, 1_000, 5_000, 12_000, 20_000, 90_000, 200_000])
        made.append(
            Payment(f"t{number}", f"c{random.randint(0, 6)}", random.randint(1, 4_000) / 4, max(0, at - behind))
        )
        if random.random() < 0.15:
            made.append(random.choice(made[-40:]))
        again = random.choice(made)
        if random.random() < 0.01 and again.transaction_id not in moved:
            moved.add(again.transaction_id)
            made.append(Payment(again.transaction_id, again.customer_id, again.total, at))
    return made


QUERY = """
WITH ordered AS (
    SELECT *, greatest(-1, coalesce(max(stamp) OVER (
        PARTITION BY part ORDER BY pos ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
    ), -1) - {disorder}) AS watermark
    FROM payments
),
-- Enough because no id has more than two times: a third could be near the second, which was dropped, and not the first.
once AS (
    SELECT * FROM ordered AS o WHERE NOT EXISTS (
        SELECT 1 FROM ordered AS before
        WHERE before.part = o.part AND before.pos < o.pos AND before.id = o.id AND before.customer = o.customer
        AND abs(before.stamp - o.stamp) < {hour} AND before.stamp + {hour} > o.watermark
    )
),
placed AS (SELECT *, (stamp // {minute} + 1) * {minute} AS window_end FROM once)
SELECT customer, window_end, sum(total), count(*) FROM placed
WHERE window_end + {lateness} > watermark GROUP BY ALL ORDER BY ALL
"""


@pytest.mark.parametrize("partitions", [1, 3])
@pytest.mark.parametrize("seed", range(4))
def test_spend_is_what_sql_says(seed: int, partitions: int) -> None:
    made = payments(seed, 1500)
    by_id: dict[str, list[Payment]] = {}
    for item in made:
        by_id.setdefault(item.transaction_id, []).append(item)
    driver = TopologyTestDriver(topology, partitions=partitions, cache_bytes=20_000, batch_records=97)
    random = Random(seed)
    rest = made
    while rest:
        size = random.randint(1, 200)
        driver.send_many("payments", rest[:size])
        rest = rest[size:]
        getattr(driver, random.choice(["checkpoint", "restart", "checkpoint"]))()
    driver.end_input()
    found = sorted(
        (r.key, r.value["window_end"], r.value["total"], r.value["payments"]) for r in driver.read("spend-per-minute")
    )
    rows = [
        (crc32(p.customer_id.encode()) % partitions, position, p.transaction_id, p.customer_id, p.total, p.at)
        for position, p in enumerate(made)
    ]
    with duckdb.connect() as database:
        database.execute(
            "CREATE TABLE payments (part INT, pos INT, id TEXT, customer TEXT, total DOUBLE, stamp BIGINT)"
        )
        database.executemany("INSERT INTO payments VALUES (?, ?, ?, ?, ?, ?)", rows)
        query = QUERY.format(disorder=DISORDER, lateness=LATENESS, minute=MINUTE, hour=HOUR)
        expected = database.execute(query).fetchall()
    assert found == expected
    assert driver.late["payments-tumbling-60000ms"] > 20
    assert sum(row[3] for row in expected) < len(by_id)
    alerts = [(r.key, r.value["window_end"]) for r in driver.read("alerts")]
    assert sorted(alerts) == [row[:2] for row in expected if row[2] > 5_000]
