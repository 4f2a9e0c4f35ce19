"""What decoding of stored rows raises is damage, whoever asked for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from headrace.errors import CorruptError, FatalError, TopologyError
from headrace.state.api import WriteBatch
from headrace.state.cache import Budget, Codec, WriteBehind
from headrace.state.decoding import checked, reading_keys
from headrace.state.keys import decode_time
from headrace.state.memory import MemoryStore


def raising(error: Exception) -> Callable[[list[bytes]], list[Any]]:
    def decode_many(rows: list[bytes]) -> list[Any]:
        raise error

    return decode_many


@pytest.mark.parametrize(
    "error", [KeyError("secret"), IndexError(), RecursionError(), ValueError("secret"), msgspec.DecodeError("cut")]
)
def test_any_error_is_damage_and_says_nothing_of_the_row(error: Exception) -> None:
    with pytest.raises(CorruptError, match=r"step-1/windows.*" + type(error).__name__) as caught:
        checked(raising(error), lambda: "task in-0, step-1/windows")([b"row"])
    assert "secret" not in str(caught.value)
    assert ("cut" in str(caught.value)) == isinstance(error, msgspec.DecodeError)


def test_what_is_no_damage_stays_what_it_is() -> None:
    with pytest.raises(TopologyError, match="migration"):
        checked(raising(TopologyError("the migration failed")), lambda: "here")([b""])
    with pytest.raises(FatalError, match="no memory"):
        checked(raising(MemoryError()), lambda: "here")([b""])


def test_more_or_fewer_values_than_rows_are_damage() -> None:
    assert checked(lambda rows: rows, lambda: "here")([b"a"]) == [b"a"]
    with pytest.raises(CorruptError, match="2 rows hold 3 values"):
        checked(lambda rows: [*rows, b"x"], lambda: "here")([b"a", b"b"])


def test_a_key_without_its_time_is_named() -> None:
    with (
        pytest.raises(CorruptError, match=r"task in-0, notes cannot be read: a key of 2 bytes"),
        reading_keys(lambda: "task in-0, notes"),
    ):
        decode_time(b"ab")


def test_a_cache_names_its_part_however_rows_are_read() -> None:
    store = MemoryStore()
    store.write(WriteBatch.of([(b"\0\7k", b"bad"), (b"\0\7l", b"bad")]))
    codec: Codec[int] = Codec(lambda values: [b"%d" % value for value in values], lambda rows: list(map(int, rows)))

    def cache() -> WriteBehind[int]:
        return WriteBehind(store, b"\0\7", codec, budget=Budget(100, lambda prefix: f"part {prefix.hex()}"), width=0)

    readings: list[Callable[[WriteBehind[int]], Any]] = [
        lambda c: c.bucket(b"").get(b"k"), lambda c: c.bucket(b"").load([b"k", b"l"]), lambda c: c.warm(1000),
        lambda c: list(c.rows(c.bucket(b""))), lambda c: list(c.columns(c.bucket(b""), 5)),
    ]  # fmt: skip
    for read in readings:
        with pytest.raises(CorruptError, match="part 0007"):
            read(cache())
    with pytest.raises(CorruptError, match="part 0007 cannot be read: a key is cut short"):
        WriteBehind(store, b"\0\7", codec, budget=Budget(100, lambda prefix: f"part {prefix.hex()}"), width=8)
