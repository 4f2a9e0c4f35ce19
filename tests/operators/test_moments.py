"""A pair that a window's result completes can lie ahead of time; what follows must not take it for the time itself."""

from collections.abc import Iterator
from typing import Any

import pytest

from headrace import Context, Topology, ValueState, agg, tumbling
from headrace.operators.api import Batch, watermarks_before
from headrace.testing.driver import TopologyTestDriver


def test_the_moments_of_records_stay_with_them() -> None:
    batch = Batch([-1, -1, -1], [9, 50, 60], [b"a"] * 3, list("abc"), moments=[9, 10, 11])
    whole = Batch.concatenate([batch, Batch([-1], [12], [b"a"], ["d"])])
    for part in (whole, whole.with_values(list("efgh")), whole.where([1, 1, 1, 1]), whole.pick([0, 1, 2, 3])):
        assert [watermarks_before(part, 10)(place) for place in range(4)] == [10, 10, 11, 12]
    assert watermarks_before(whole.part(2), 0)(0) == 11


def waits(record: dict[str, Any], context: Context, seen: ValueState[int]) -> Iterator[dict[str, Any]]:
    seen.value = (seen.value or 0) + 1
    context.set_timer("later", at=40)
    yield {"k": context.key, "pair": seen.value}


def later(name: str, context: Context, seen: ValueState[int]) -> Iterator[dict[str, Any]]:
    yield {"k": context.key, "timer": seen.value}


@pytest.mark.parametrize("cut", [1, 2, 4096])
def test_a_timer_behind_a_join_waits_for_its_time(cut: int) -> None:
    topology = Topology("ahead")
    stream = topology.stream("in", keyed_by="k", time="at", out_of_orderness="30ms")
    counts = stream.window(tumbling("10ms")).aggregate(n=agg.count())
    pairs = stream.join(counts, lambda record, count: {"k": record["k"], "at": record["at"]}, within="1h")
    pairs.process(waits, on_timer=later, seen=ValueState(int)).to("out")
    driver = TopologyTestDriver(topology, batch_records=cut)
    # At 60 the watermark is 30: the first window closes, and its result makes a pair with the record at 60, which is
    # ahead of the timer. But the timer is due only when the watermark has passed 40, behind the record at 80.
    driver.send_many("in", [{"k": "a", "at": at} for at in (5, 60, 70, 39, 80)])
    assert [record.value for record in driver.read("out")] == [
        *({"k": "a", "pair": n} for n in range(1, 6)),
        {"k": "a", "timer": 5},
    ]
