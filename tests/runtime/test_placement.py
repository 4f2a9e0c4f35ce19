"""Topics whose keys should meet and were placed by different hashes are noticed; nothing else is."""

from __future__ import annotations

from zlib import adler32, crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace import Topology, agg, tumbling
from headrace.errors import FatalError
from headrace.record import JoinedBytes, RecordBatch, TopicPartition
from headrace.runtime.workers.placement import Placement, placement_of
from headrace.topology.plan import TaskId, plan

KEYS = [f"key-{n}".encode() for n in range(2000)]


def batch(keys, first=0):
    return RecordBatch(
        [0] * len(keys), list(keys), JoinedBytes.of([b""] * len(keys)), offsets=range(first, first + len(keys))
    )


def keys_of(place, width, partition):
    return [key for key in KEYS if place(key) % width == partition]


def look(placement, topic, keys, size=50):
    for first in range(0, len(keys), size):
        placement.look(TopicPartition(topic, 1), batch(keys[first : first + size], first))


@given(st.integers(2, 12), st.sampled_from([crc32, adler32]), st.integers(1, 60), st.booleans())
def test_what_two_hashes_placed_is_noticed_whatever_comes_first(width, other, size, hashed_first):
    placement = Placement("t-1", [{"a": width, "b": width}], frozenset(), crc32)
    topics = [("a", crc32), ("b", other)]
    with_errors = other is not crc32
    order = topics if hashed_first else topics[::-1]
    noticed = None
    try:
        for topic, place in order:
            look(placement, topic, keys_of(place, width, 1), size)
    except FatalError as error:
        noticed = str(error)
    assert (noticed is not None) == with_errors
    assert not with_errors or "keys of topic b lie in other partitions than the same keys of topic a" in str(noticed)


def test_an_internal_topic_is_placed_by_the_hash_before_anything_is_read():
    placement = Placement("t-1", [{"a": 4, "inner": 4}], frozenset({"inner"}), crc32)
    assert not placement.watches("inner")
    with pytest.raises(FatalError, match="keys of topic a lie in other partitions than the same keys of topic inner"):
        look(placement, "a", keys_of(adler32, 4, 1))


def test_a_few_keys_with_a_partition_of_their_own_are_no_reason_to_stop():
    placement = Placement("t-1", [{"a": 4, "b": 4}], frozenset(), crc32)
    large = keys_of(crc32, 4, 0)[:5]
    look(placement, "b", keys_of(crc32, 4, 1))
    look(placement, "a", [*large, *keys_of(crc32, 4, 1), *large])


@pytest.mark.parametrize(
    "groups", [[], [{"a": 4}, {"b": 4}], [{"a": 1, "b": 1}]], ids=["alone", "apart", "one partition"]
)
def test_where_nothing_has_to_meet_keys_may_lie_anywhere(groups):
    placement = Placement("t-1", groups, frozenset(), crc32)
    look(placement, "a", keys_of(adler32, 4, 1))
    look(placement, "b", keys_of(crc32, 4, 1))


def test_topics_that_were_placed_in_another_way_together_are_right():
    placement = Placement("t-1", [{"a": 4, "b": 4}], frozenset(), crc32)
    for topic in ("a", "b"):
        look(placement, topic, keys_of(adler32, 4, 1))


def test_the_topics_of_a_join_are_watched_and_those_that_do_not_meet_are_not():
    topology = Topology("meeting")
    names = topology.table("names", value=str)
    orders = topology.stream("orders", keyed_by="k", time="at")
    orders.join(names, combine=lambda order, name: order).to("named")
    topology.stream("alone", keyed_by="k", time="at").window(tumbling("1m")).aggregate(n=agg.count()).to("counted")
    planned = plan(topology.graph(), {"names": 4, "orders": 4, "alone": 4})
    found = {}
    for sub in planned.subtopologies:
        placement = placement_of(planned, sub, TaskId(sub.name, 0), crc32)
        found |= {item.topic: placement.watches(item.topic) for item in sub.inputs}
    assert found == {"names": True, "orders": True, "alone": False}
