"""State of ``process`` between versions of a topology: migrations, what is refused, and the bytes of rows."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from headrace import ListState, MapState, Topology, TopologyError, ValueState
from headrace.operators.keyed_rows import ABSENT, Row, RowCodec, Turn
from headrace.record import JoinedBytes, RecordBatch, TopicPartition
from headrace.runtime.tasks.task import Task
from headrace.serde.msgpack import Msgpack
from headrace.state.memory import MemoryStore
from headrace.topology.plan import TaskId, plan

GOLDEN = Path(__file__).parent / "golden" / "process_rows_v1.txt"


class CartV1(msgspec.Struct):
    items: list[str]
    total: int


class CartV1WithNote(msgspec.Struct):
    items: list[str]
    total: int
    note: str = ""


class CartV2(msgspec.Struct):
    items: dict[str, int]
    total: int


class CartV3(msgspec.Struct):
    items: dict[str, int]
    cents: int


class RenamedWithDefault(msgspec.Struct):
    items: list[str]
    amount: int = 0


def to_v2(cart: dict[str, Any]) -> dict[str, Any]:
    return {"items": {item: cart["items"].count(item) for item in cart["items"]}, "total": cart["total"]}


def to_v3(cart: dict[str, Any]) -> dict[str, Any]:
    return {"items": cart["items"], "cents": cart["total"] * 100}


MIGRATIONS: dict[int, Callable[[Any], Any]] = {1: to_v2, 2: to_v3}


class Shop:
    """A task whose store outlives it, so that it can go on with another topology."""

    def __init__(self) -> None:
        self.store = MemoryStore()

    def run(self, keys: str, act: Callable[..., Any], **arguments: Any) -> list[Any]:
        """Let a new task take one record for each key, and return what it made."""
        topology = Topology("t")
        topology.stream("in", keyed_by="k").process(act, name="shop", **arguments).to("out")
        made = plan(topology.graph(), {"in": 1})
        task = Task(
            made,
            made.subtopologies[0],
            TaskId("in", 0),
            self.store,
            partitions={"in": 1, "out": 1},
            cache_bytes=1 << 20,
            starts={},
        )
        start = task.positions[TopicPartition("in", 0)]
        rows = Msgpack().encode_many([{"k": key} for key in keys])
        records = RecordBatch(
            [start + i for i in range(len(keys))],
            [key.encode() for key in keys],
            JoinedBytes.of(rows),
            offsets=range(start, start + len(keys)),
        )
        appends = task.step(TopicPartition("in", 0), records) if keys else []
        task.flush()
        return [msgspec.msgpack.decode(row or b"") for _, batch in appends for row in batch.values.split()]


def fill(record: Any, context: Any, cart: Any) -> None:
    made = CartV1(["a", "b", "a"], 3)
    if isinstance(cart, ValueState):
        cart.value = made
    elif isinstance(cart, ListState):
        cart.append(made)
    else:
        cart["x"] = made


def show(record: Any, context: Any, cart: Any) -> list[Any]:
    if isinstance(cart, ValueState):
        return [repr(cart.value)]
    return [repr(list(cart))] if isinstance(cart, ListState) else [repr(cart.get("x"))]


def declared(form: str, kind: Any, **options: Any) -> Any:
    return (
        {"value": ValueState, "list": ListState}[form](kind, **options)
        if form != "map"
        else MapState(str, kind, **options)
    )


@pytest.mark.parametrize("form", ["value", "list", "map"])
@pytest.mark.parametrize("ttl", [None, "1d"])
def test_old_rows_go_through_all_migrations(form: str, ttl: str | None) -> None:
    shop = Shop()
    shop.run("ab", fill, cart=declared(form, CartV1, ttl=ttl))
    shown = shop.run("a", show, cart=declared(form, CartV3, ttl=ttl, version=3, migrations=MIGRATIONS))
    wanted = repr(CartV3({"a": 2, "b": 1}, 300))
    assert shown == [f"[{wanted}]" if form == "list" else wanted]
    # What was written meanwhile is of version 3, and what was not is still of version 1.
    again = shop.run("ab", show, cart=declared(form, CartV3, ttl=ttl, version=3, migrations=MIGRATIONS))
    assert again == shown * 2


def test_one_version_after_the_other() -> None:
    shop = Shop()
    shop.run("ab", fill, cart=ValueState(CartV1))
    shop.run("a", show, cart=ValueState(CartV2, version=2, migrations={1: to_v2}))
    shown = shop.run("ab", show, cart=ValueState(CartV3, version=3, migrations=MIGRATIONS))
    assert shown == [repr(CartV3({"a": 2, "b": 1}, 300))] * 2


def refused(shop: Shop, message: str, **arguments: Any) -> None:
    with pytest.raises(TopologyError, match=message):
        shop.run("", show, **arguments)


def test_a_type_that_changed_without_a_version_is_refused_before_anything_starts() -> None:
    shop = Shop()
    shop.run("a", fill, cart=ValueState(CartV1))
    refused(
        shop,
        r"state 'cart' of step 'shop' of task in-0 was stored with another type: field 'items' was an array and is a "
        r"dict.*version=2 and migrations=\{1: function\}",
        cart=ValueState(CartV2),
    )
    refused(shop, "field 'total' is gone", cart=ValueState(RenamedWithDefault))
    refused(shop, r"it was an object and is int", cart=ValueState(int))
    assert shop.run("a", show, cart=ValueState(CartV1)) == [repr(CartV1(["a", "b", "a"], 3))]


def test_a_new_field_with_a_default_needs_no_version() -> None:
    shop = Shop()
    shop.run("ab", fill, cart=ValueState(CartV1))
    assert shop.run("a", show, cart=ValueState(CartV1WithNote)) == [repr(CartV1WithNote(["a", "b", "a"], 3, ""))]

    class NoteRequired(msgspec.Struct):
        items: list[str]
        total: int
        note: str

    refused(shop, "field 'note' is new and has no default", cart=ValueState(NoteRequired))


def test_migrations_are_kept_as_long_as_old_rows_may_be_there() -> None:
    shop = Shop()
    shop.run("ab", fill, cart=ValueState(CartV1))
    shop.run("a", show, cart=ValueState(CartV2, version=2, migrations={1: to_v2}))
    refused(shop, "version 1, and migrations begin with version 2", cart=ValueState(CartV2, version=2))
    refused(
        shop,
        "version 1, and migrations begin with version 2.*Give migrations= one from version 1",
        cart=ValueState(CartV3, version=3, migrations={2: to_v3}),
    )
    refused(shop, "stored as version 2 and is declared with version 1", cart=ValueState(CartV1))


def test_a_migration_that_fails_says_which() -> None:
    shop = Shop()
    shop.run("a", fill, cart=ValueState(CartV1))
    broken = ValueState(CartV2, version=2, migrations={1: lambda cart: cart["none"]})
    wrong = ValueState(CartV2, version=2, migrations={1: lambda cart: {"items": 3}})
    with pytest.raises(
        TopologyError, match=r"migration of state 'cart' of step 'shop' from version 1 failed .*KeyError"
    ):
        shop.run("a", show, cart=broken)
    with pytest.raises(TopologyError, match="make of version 1 is no CartV2"):
        shop.run("a", show, cart=wrong)
    assert shop.run("a", show, cart=ValueState(CartV1)) == [repr(CartV1(["a", "b", "a"], 3))]


def test_states_come_and_go() -> None:
    def both(record: Any, context: Any, cart: Any, seen: Any) -> list[Any]:
        seen.value += 1
        return [seen.value, repr(cart.value)]

    def seen_only(record: Any, context: Any, seen: Any) -> list[Any]:
        seen.value += 1
        return [seen.value]

    shop = Shop()
    shop.run("a", fill, cart=ValueState(CartV1))
    shown = repr(CartV1(["a", "b", "a"], 3))
    assert shop.run("a", both, cart=ValueState(CartV1), seen=ValueState(int, default=0)) == [1, shown]
    with pytest.raises(TopologyError, match=r"has no state 'cart' any more.*drop=\(\"cart\",\)"):
        shop.run("a", seen_only, seen=ValueState(int, default=0))
    assert shop.run("a", seen_only, seen=ValueState(int, default=0), drop=("cart",)) == [2]
    assert shop.run("a", seen_only, seen=ValueState(int, default=0)) == [3]
    with pytest.raises(TopologyError, match="new state 'cart', under which rows may still hold"):
        shop.run("a", both, cart=ValueState(CartV1), seen=ValueState(int, default=0))


def test_a_state_keeps_its_kind_its_keys_and_whether_it_has_a_ttl() -> None:
    shop = Shop()
    shop.run("a", fill, cart=ValueState(CartV1))
    refused(shop, "of another kind", cart=ListState(CartV1))
    refused(shop, "ttl", cart=ValueState(CartV1, ttl="1h"))
    shop = Shop()
    shop.run("a", fill, cart=MapState(str, CartV1, ttl="1h"))
    refused(shop, "other keys", cart=MapState(int, CartV1, ttl="1h"))
    assert shop.run("a", show, cart=MapState(str, CartV1, ttl="2h")) == [repr(CartV1(["a", "b", "a"], 3))]


STATES: dict[str, Any] = {
    "value": ValueState(CartV1),
    "mortal": ValueState(float, ttl="1h"),
    "list": ListState(int, version=2, migrations={1: int}),
    "mortal_list": ListState(str, ttl="1h"),
    "map": MapState(int, str),
    "mortal_map": MapState(str, int, ttl="1h"),
}


def rows() -> list[Row]:
    full = Row([CartV1(["a"], 1), (2.5, 7), [1, 2], (["x", "y"], [3, 4]), {5: "five"}, {"k": (6, 9)}])
    full.wake, full.timers = 1_000, {"quiet": 1_000, "late": 2_000}
    clocked = Row([ABSENT] * len(STATES))
    clocked.clock_wake, clocked.clock_timers = 0, {"flush": -500}
    partly = Row([ABSENT, ABSENT, [3], ABSENT, ABSENT, ABSENT])
    both = Row([ABSENT] * len(STATES))
    both.wake, both.timers, both.clock_wake, both.clock_timers = 5, {"t": 5}, 8, {"c": 8}
    return [full, clocked, partly, both]


def codec() -> RowCodec:
    turn = Turn()
    return RowCodec("step", {n: s.bound(turn, i, n) for i, (n, s) in enumerate(STATES.items())})


def parts(row: Row) -> list[Any]:
    return [row.cells, row.wake, row.timers, row.clock_wake, row.clock_timers]


def test_rows_are_written_as_the_first_version_wrote_them() -> None:
    written = "".join(f"{row.hex()}\n" for row in codec().encode_many(rows()))
    if os.environ.get("HEADRACE_GOLDEN") == "write":
        GOLDEN.write_text(written, encoding="utf-8")
    assert written == GOLDEN.read_text(encoding="utf-8")


def test_rows_of_the_first_version_can_be_read() -> None:
    stored = [bytes.fromhex(line) for line in GOLDEN.read_text(encoding="utf-8").splitlines()]
    assert list(map(parts, codec().decode_many(stored))) == list(map(parts, rows()))


def test_what_cannot_be_stored_is_named() -> None:
    row = Row([complex(1)])
    with pytest.raises(TopologyError, match=r"state 'any' of step 'step' holds what cannot be stored: .*complex"):
        RowCodec("step", {"any": ValueState(Any)}).encode_many([row])
