"""The hash by which keys go to partitions."""

from __future__ import annotations

from aiokafka.partitioner import murmur2
from hypothesis import example, given
from hypothesis import strategies as st

from headrace.log.kafka.keys import java_hash


@example(b"\xff" * 252)
@example(b"\xfe" * 255)
@example(bytes(range(256)))
@given(st.binary(max_size=600))
def test_the_hash_is_that_of_other_clients(key: bytes) -> None:
    assert java_hash(key) == murmur2(key) & 0x7FFFFFFF
