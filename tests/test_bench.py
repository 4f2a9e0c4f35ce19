"""The generated payments, and the straight-line program that is the benchmark's yardstick."""

import hashlib
from collections import Counter, defaultdict
from itertools import chain

import msgspec
import pytest

from bench import ceiling
from headrace.demo.payments import DUPLICATE_AFTER_MS, LATE_MS, Payment, Payments


def every(payments: Payments, size: int = 4096) -> list[Payment]:
    return list(chain.from_iterable(payments.batches(size)))


def test_the_same_seed_makes_the_same_payments_however_they_are_cut() -> None:
    spoilt = Payments(count=5000, duplicate_share=0.05, late_share=0.05)
    assert every(spoilt, 4096) == every(spoilt, 7)
    assert every(Payments(count=100)) != every(Payments(count=100, seed=2))


def test_the_payments_never_change() -> None:
    digest = hashlib.sha256(msgspec.json.encode(every(Payments(count=1000, duplicate_share=0.05)))).hexdigest()
    assert digest[:16] == "d069af2d2a200fa3"


def test_the_count_is_exact() -> None:
    assert [len(batch) for batch in Payments(count=10).batches(4)] == [4, 4, 2]
    assert every(Payments(count=0)) == []


def test_payments_are_at_most_five_seconds_out_of_order() -> None:
    highest = 0
    for payment in every(Payments(count=20_000)):
        assert payment["at"] > highest - 5_000
        highest = max(highest, payment["at"])
    assert 590_000 < highest - Payments(count=0).start_ms < 600_000


def test_few_customers_pay_often_and_all_can_pay() -> None:
    seen = Counter(payment["customer_id"] for payment in every(Payments(count=50_000)))
    often = sum(count for _, count in seen.most_common(100))
    assert 0.15 < often / 50_000 < 0.4
    assert len(seen) > 20_000


def test_amounts_are_whole_cents() -> None:
    totals = [payment["total"] for payment in every(Payments(count=5000))]
    assert all(0 < total < 500 and round(total * 100) / 100 == total for total in totals)


def test_duplicates_repeat_a_recent_payment() -> None:
    stream = every(Payments(count=20_000, duplicate_share=0.1))
    first: dict[str, tuple[int, Payment]] = {}
    repeated = 0
    for i, payment in enumerate(stream):
        before = first.setdefault(payment["transaction_id"], (i, payment))
        if before[0] != i:
            repeated += 1
            assert payment == before[1]
            # Duplicates of duplicates do not enter the memory, so it spans a little more than half a minute.
            assert (i - before[0]) * 600_000 / len(stream) < DUPLICATE_AFTER_MS * 1.2
    assert 0.08 < repeated / len(stream) < 0.12


def test_late_payments_are_minutes_late() -> None:
    highest = late = 0
    for payment in every(Payments(count=20_000, late_share=0.02)):
        if payment["at"] < highest - 5_000:
            late += 1
            assert LATE_MS[0] - 5_000 < highest - payment["at"] < LATE_MS[1] + 5_000
        highest = max(highest, payment["at"])
    assert 0.01 < late / 20_000 < 0.03


@pytest.mark.parametrize("records", [30_000])
def test_the_ceiling_adds_up_every_payment(tmp_path, records) -> None:
    result = ceiling.run(tmp_path, records, checkpoint_interval_s=0.02)
    expected: dict[tuple[str, int], list[float]] = defaultdict(lambda: [0, 0])
    for payment in every(Payments(count=records)):
        row = expected[payment["customer_id"], payment["at"] // 60_000 * 60_000]
        row[0] += payment["total"]
        row[1] += 1
    found = {}
    for _, _, values in ceiling.read_frames(tmp_path / "results.log"):
        for value in values:
            row = msgspec.msgpack.decode(value)
            found[row["key"], row["window_start"]] = [row["total"], row["payments"]]
    assert found == {key: [pytest.approx(total), count] for key, (total, count) in expected.items()}
    assert result.rows == len(expected)
    assert result.checkpoints >= ceiling.PARTITIONS
    assert result.events_per_s > 0
