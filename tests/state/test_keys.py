"""Key layouts keep the order and can be read back."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import CorruptError
from headrace.state import keys

GOLDEN = Path(__file__).parent / "golden" / "keys_v1.txt"
NEAR_ZERO = st.binary(max_size=6) | st.lists(st.sampled_from([0, 1, 0xFE, 0xFF]), max_size=6).map(bytes)
TIMES = st.integers(0, 2**64 - 1)


@given(st.tuples(NEAR_ZERO, TIMES, NEAR_ZERO), st.tuples(NEAR_ZERO, TIMES, NEAR_ZERO))
def test_keys_sort_like_their_parts(one, other):
    def encode(parts):
        return keys.encode_bytes(parts[0]) + keys.encode_time(parts[1]) + keys.encode_bytes(parts[2])

    assert (encode(one) < encode(other)) == (one < other)
    assert (encode(one) == encode(other)) == (one == other)


@given(NEAR_ZERO, TIMES, NEAR_ZERO)
def test_parts_are_read_back(key, time, rest):
    row = b"\0\1" + keys.encode_bytes(key) + keys.encode_time(time) + rest
    found, after = keys.decode_bytes(row, 2)
    assert found == key
    assert keys.decode_time(row, after) == time
    assert row[after + keys.TIME_WIDTH :] == rest


@given(st.lists(NEAR_ZERO))
def test_many_are_encoded_like_one(values):
    assert keys.encode_bytes_many(values) == [keys.encode_bytes(value) for value in values]


@given(st.lists(TIMES))
def test_many_times_are_encoded_like_one(times):
    assert keys.encode_times(times) == [keys.encode_time(time) for time in times]
    assert keys.decode_times(keys.encode_times(times)) == times


def test_a_row_that_is_no_time_is_damage():
    with pytest.raises(CorruptError, match="8 bytes"):
        keys.decode_times([b"12345678", b"123456789"])


@given(NEAR_ZERO, NEAR_ZERO)
def test_the_end_of_a_prefix_is_the_smallest_key_behind_it(prefix, other):
    end = keys.prefix_end(prefix)
    if end is None:
        assert other < prefix or other.startswith(prefix)
        return
    assert (prefix <= other < end) == other.startswith(prefix)
    # Nothing smaller would do.
    assert end[:-1] + bytes([end[-1] - 1]) + b"\xff" * 8 < end
    assert (end[:-1] + bytes([end[-1] - 1]) + b"\xff" * 8).startswith(prefix)


@given(NEAR_ZERO)
def test_no_encoded_key_is_the_beginning_of_another(value):
    encoded = keys.encode_bytes(value)
    for cut in range(len(encoded)):
        with pytest.raises(CorruptError):
            keys.decode_bytes(encoded[:cut])


def test_damaged_keys_are_found():
    with pytest.raises(CorruptError, match="byte 1"):
        keys.decode_time(b"1234567", 1)
    with pytest.raises(CorruptError, match="without an end"):
        keys.decode_bytes(b"abc\0\xff")


@pytest.mark.parametrize("store_id", [-1, keys.STORE_ID_LIMIT])
def test_store_ids_have_limits(store_id):
    with pytest.raises(ValueError, match="store id"):
        keys.store_prefix(store_id)


def test_layouts_v1_stay():
    rows = [
        keys.store_prefix(0),
        keys.store_prefix(keys.STORE_ID_LIMIT - 1),
        keys.encode_time(0),
        keys.encode_time(1_700_000_000_000),
        keys.encode_time(2**64 - 1),
        keys.encode_bytes(b""),
        keys.encode_bytes(b"customer-1"),
        keys.encode_bytes(b"\0a\0\0\xff"),
        keys.store_prefix(7) + keys.encode_time(60_000) + keys.encode_bytes(b"k") + keys.encode_time(1),
    ]
    assert [row.hex() for row in rows] == GOLDEN.read_text().split()
