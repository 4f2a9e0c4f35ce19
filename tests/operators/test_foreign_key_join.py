"""Joins of tables by a reference, against a nested loop over what is left in both tables."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any, Literal
from zlib import crc32

import duckdb
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace import Topology, TopologyError, agg
from headrace.operators.api import Batch, Spec, StepContext
from headrace.operators.foreign_key_join import Answers, Lookup, References
from headrace.serde.msgpack import Msgpack
from headrace.serde.primitives import Str
from headrace.state.cache import Budget
from headrace.state.keys import store_prefix
from headrace.state.memory import MemoryStore
from headrace.testing.driver import TopologyTestDriver
from tests.operators import tables
from tests.operators.tables import Change, Fault, Row

How = Literal["inner", "left"]
few = settings(max_examples=30, deadline=None)
both = pytest.mark.parametrize("how", ["inner", "left"])

referring = st.builds(lambda n, c: {"n": n, "c": c}, st.integers(0, 9), st.sampled_from(["a", "b", "c", None]))
rows = st.integers(0, 9).map(lambda n: {"n": n})
changes = st.lists(tables.changes_of("orders", referring) | tables.changes_of("customers", rows), max_size=25)


def pair(left: Any, right: Any) -> dict[str, Any]:
    return {"left": left, "right": right}


def joined(how: Any) -> Topology:
    topology = Topology("joined")
    topology.table("orders").join(topology.table("customers"), pair, on="c", how=how).to("out")
    return topology


def nested_loop(how: How, orders: dict[str, Any], customers: dict[str, Any], on: str = "c") -> dict[str, Any]:
    found = {}
    for key, order in orders.items():
        matches = [customer for other, customer in customers.items() if other == order[on]]
        if matches or how == "left":
            found[key] = pair(order, matches[0] if matches else None)
    return found


def expected(how: How, made: list[Change]) -> dict[str, Any]:
    left = tables.final(made)
    return nested_loop(how, left.get("orders", {}), left.get("customers", {}))


@both
@few
@given(made=changes)
@pytest.mark.parametrize("partitions", [1, 3])
def test_after_every_change_the_rows_are_those_of_a_nested_loop(how: How, made: list[Change], partitions: int) -> None:
    driver = TopologyTestDriver(joined(how), partitions=partitions)
    known: dict[str, Any] = {}
    for place, (topic, key, row) in enumerate(made):
        driver.send(topic, row, key=key)
        for changed, value in tables.read(driver):
            assert value is not None or changed in known, "only what exists can be deleted"
            known.pop(changed, None)
            if value is not None:
                known[changed] = value
        assert known == expected(how, made[: place + 1])


@both
@few
@given(
    made=changes, together=st.integers(1, 9), faults=tables.faults, cache_bytes=st.sampled_from([0, 10_000]),
    orders=st.integers(1, 3), customers=st.integers(1, 3), batch_records=st.sampled_from([1, 2, 3, 7, 4096]),
)  # fmt: skip
def test_crashes_of_single_tasks_leave_the_same_rows(
    how: How, made: list[Change], together: int, faults: list[Fault], cache_bytes: int, orders: int, customers: int,
    batch_records: int,
) -> None:  # fmt: skip
    partitions = {"orders": orders, "customers": customers}
    driver = TopologyTestDriver(
        joined(how), partitions=partitions, cache_bytes=cache_bytes, batch_records=batch_records
    )
    assert tables.rows_of(tables.run(driver, made, together, faults)) == expected(how, made)


def employees() -> Topology:
    """Join a table with itself: its own changes meet the answers about them in one place."""
    topology = Topology("employees")
    table = topology.table("orders")
    table.join(table, pair, on="c", how="left").to("out")
    return topology


@few
@given(made=st.lists(tables.changes_of("orders", referring), max_size=20), faults=tables.faults)
def test_a_table_can_refer_to_itself(made: list[Change], faults: list[Fault]) -> None:
    driver = TopologyTestDriver(employees(), partitions=2)
    found = tables.rows_of(tables.run(driver, made, 3, faults))
    table = tables.final(made).get("orders", {})
    assert found == nested_loop("left", table, table)


def buyers_and_sellers() -> Topology:
    topology = Topology("both")
    orders, customers = topology.table("orders"), topology.table("customers")
    sold = orders.join(customers, lambda o, c: {**o, "buyer": c["n"]}, on="c", name="buyers")
    sold.join(customers, lambda o, c: {**o, "seller": c["n"]}, on="s", name="sellers").to("out")
    return topology


twice_referring = st.builds(lambda c, s: {"c": c, "s": s}, st.sampled_from("abc"), st.sampled_from("abc"))


@few
@given(
    made=st.lists(tables.changes_of("orders", twice_referring) | tables.changes_of("customers", rows), max_size=20),
    faults=tables.faults,
)
def test_a_joined_table_can_refer_to_the_same_table_again(made: list[Change], faults: list[Fault]) -> None:
    driver = TopologyTestDriver(buyers_and_sellers(), partitions={"orders": 2, "customers": 3})
    found = tables.rows_of(tables.run(driver, made, 3, faults))
    left = tables.final(made)
    customers = left.get("customers", {})
    assert found == {
        key: {**order, "buyer": customers[order["c"]]["n"], "seller": customers[order["s"]]["n"]}
        for key, order in left.get("orders", {}).items()
        if order["c"] in customers and order["s"] in customers
    }


def joined_before() -> Topology:
    """Make the left table of two sources, the order between which a replay may change."""
    topology = Topology("before")
    merged = topology.table("orders").join(topology.table("notes"), lambda o, n: {**o, "note": n}, how="left")
    merged.join(topology.table("customers"), pair, on="c", how="left", name="named").to("out")
    return topology


@few
@given(
    made=st.lists(
        tables.changes_of("orders", referring)
        | tables.changes_of("customers", rows)
        | tables.changes_of("notes", rows),
        max_size=20,
    ),
    faults=tables.faults,
)
def test_the_left_table_may_depend_on_the_order_of_its_inputs(made: list[Change], faults: list[Fault]) -> None:
    driver = TopologyTestDriver(joined_before(), partitions=2, batch_records=2)
    found = tables.rows_of(tables.run(driver, made, 3, faults))
    left = tables.final(made)
    notes = left.get("notes", {})
    orders = {key: {**order, "note": notes.get(key)} for key, order in left.get("orders", {}).items()}
    assert found == nested_loop("left", orders, left.get("customers", {}))


def test_changes_after_a_replay_in_another_order_are_not_taken_for_old_ones() -> None:
    topology = Topology("t")
    notes, orders = topology.table("notes"), topology.table("orders")
    noted = orders.join(notes, lambda order, note: {**order, "note": note}, how="left")
    noted.join(topology.table("customers"), pair, on="c", name="named").to("out")
    driver = TopologyTestDriver(topology)
    driver.send("customers", {"n": 1}, key="a")
    driver.send("orders", {"c": "a", "n": 1}, key="o")
    for n in range(4):
        driver.send("notes", n, key="o")
    driver.crash()  # now the notes are read first, when there is nothing yet that they belong to
    driver.send("orders", {"c": "a", "n": 2}, key="o")
    assert tables.rows_of(tables.read(driver)) == {"o": pair({"c": "a", "n": 2, "note": 3}, {"n": 1})}


# --- the three operators, with messages that overtake each other in every way that topics allow


@dataclass
class Network:
    """The three steps on several partitions, with a queue for every way that keeps its order."""

    how: How
    width: int
    left: deque[tuple[str, Row]] = field(default_factory=deque)
    right: list[deque[tuple[str, Row]]] = field(default_factory=list)
    sent: list[deque[tuple[bytes, Any]]] = field(default_factory=list)
    answers: list[deque[tuple[bytes, Any]]] = field(default_factory=list)
    found: list[tuple[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.right = [deque() for _ in range(self.width)]
        self.sent = [deque() for _ in range(self.width)]
        self.answers = [deque() for _ in range(self.width)]
        self.references = build(References("c", Msgpack(), Str(), self.how))
        self.lookups = [build(Lookup(Msgpack(), Msgpack())) for _ in range(self.width)]
        self.pairs = build(Answers(Msgpack(), Msgpack(), self.how))

    def moves(self) -> list[Callable[[], None]]:
        """Return what could happen next."""
        found: list[Callable[[], None]] = [self.refer] if self.left else []
        for place in range(self.width):
            if self.sent[place]:
                found.append(lambda place=place: self.look_up(place, self.sent[place], 0))  # type: ignore[misc]
            if self.right[place]:
                found.append(lambda place=place: self.look_up(place, self.right[place], 1))  # type: ignore[misc]
            if self.answers[place]:
                found.append(lambda place=place: self.answer(place))  # type: ignore[misc]
        return found

    def refer(self) -> None:
        key, row = self.left.popleft()
        for goal, message in passed(self.references.process(batch(key.encode(), row))):
            self.sent[crc32(goal) % self.width].append((goal, message))

    def look_up(self, place: int, queue: deque[Any], side: int) -> None:
        key, value = queue.popleft()
        key = key.encode() if isinstance(key, str) else key
        self.answers[place].extend(passed(self.lookups[place].process_sides(batch(key, value), [side])))

    def answer(self, place: int) -> None:
        key, value = self.answers[place].popleft()
        self.found += [
            (key.decode(), found and pair(*found)) for key, found in passed(self.pairs.process(batch(key, value)))
        ]


def build(spec: Spec) -> Any:
    numbers: dict[str, int] = {}

    def prefix(part: str) -> bytes:
        return store_prefix(numbers.setdefault(part, len(numbers) + 1))

    return spec.build(StepContext("step", MemoryStore(), prefix, Budget(0)))


def batch(key: bytes, value: Any) -> Batch:
    return Batch([0], [0], [key], [value])


def passed(outputs: Any) -> list[tuple[bytes, Any]]:
    return [pair for _, made in outputs for pair in zip(made.keys, made.values, strict=True)]


@both
@settings(max_examples=200, deadline=None)
@given(made=changes, width=st.integers(1, 3), seed=st.integers(0, 10**6))
def test_messages_may_overtake_each_other_on_different_ways(
    how: How, made: list[Change], width: int, seed: int
) -> None:
    choose = Random(seed).choice
    network = Network(how, width)
    for topic, key, row in made:
        (network.left if topic == "orders" else network.right[crc32(key.encode()) % width]).append((key, row))
    while moves := network.moves():
        choose(moves)()
    assert tables.rows_of(network.found) == expected(how, made)


def test_an_answer_about_an_old_reference_comes_too_late() -> None:
    network = Network("inner", 1)
    old, new = batch(b"o", {"c": "a"}), batch(b"o", {"c": "b"})
    subscribed, forgotten, again = [
        message for made in (old, new) for message in passed(network.references.process(made))
    ]
    look_up = network.lookups[0].process_sides
    look_up(batch(b"a", {"n": 1}), [1])
    look_up(batch(b"b", {"n": 2}), [1])
    (late,), (answer,) = (passed(look_up(batch(*message), [0])) for message in (subscribed, again))
    assert [pair for found in (answer, late) for pair in passed(network.pairs.process(batch(*found)))] == [
        (b"o", ({"c": "b"}, {"n": 2}))
    ]
    assert passed(look_up(batch(*forgotten), [0])) == []
    assert passed(look_up(batch(b"a", {"n": 3}), [1])) == [], "nobody refers to it any more"
    assert len(passed(look_up(batch(b"b", {"n": 3}), [1]))) == 1


# --- the language


class Order(msgspec.Struct):
    customer: int
    total: float


class Customer(msgspec.Struct):
    name: str


def named(order: Order, customer: Customer) -> tuple[str, float]:
    assert isinstance(order, Order)
    assert isinstance(customer, Customer)
    return customer.name, order.total


def test_rows_keep_their_types_on_the_way() -> None:
    topology = Topology("typed")
    customers = topology.table("customers", value=Customer, key=int)
    topology.table("orders", value=Order).join(customers, named, on=lambda order: order.customer).to("out")
    driver = TopologyTestDriver(topology, partitions=2, batch_records=1)
    driver.send("orders", Order(7, 2.5), key="o1")
    driver.send("customers", Customer("Ada"), key=7)
    driver.restart()
    driver.send("orders", Order(7, 3.5), key="o1")
    assert tables.read(driver) == [("o1", ["Ada", 2.5]), ("o1", ["Ada", 3.5])]


def test_a_joined_row_meets_rows_of_its_key_again() -> None:
    topology = Topology("t")
    orders = topology.table("orders")
    named = orders.join(topology.table("customers"), lambda o, c: c["name"], on="c")
    named.join(orders, lambda name, order: [name, order["n"]]).to("out")
    driver = TopologyTestDriver(topology, partitions={"orders": 2, "customers": 3})
    driver.send("customers", {"name": "Ada"}, key="c1")
    driver.send("orders", {"c": "c1", "n": 1}, key="o1")
    driver.send("customers", {"name": "Ida"}, key="c1")
    assert tables.read(driver)[-1] == ("o1", ["Ida", 1])


def test_a_change_whose_reference_cannot_be_had_is_left_out() -> None:
    topology = Topology("t", on_error="skip")
    topology.table("orders").join(topology.table("customers"), pair, on="c").to("out")
    driver = TopologyTestDriver(topology)
    driver.send("customers", {"n": 1}, key="a")
    good, bad, strange = {"c": "a"}, {"n": 1}, {"c": 5}
    driver.send_many("orders", [good, bad, strange, good], keys=["1", "2", "3", "4"])
    assert tables.rows_of(tables.read(driver)) == dict.fromkeys("14", pair(good, {"n": 1}))
    assert driver.skipped == {"orders-join-customers-on-c-references": 2}


def test_what_has_no_meaning_is_refused() -> None:
    topology = Topology("t")
    orders: Any = topology.table("orders")
    with pytest.raises(TopologyError, match=r'"inner" or "left" in a join with on=.*test_foreign_key_join.py'):
        orders.join(topology.table("customers"), pair, on="c", how="outer")
    with pytest.raises(TopologyError, match="on= of join needs a function, not int"):
        orders.join(topology.table("others"), pair, on=5)


@settings(max_examples=15, deadline=None)
@given(made=changes)
def test_totals_by_customer_are_those_of_sql(made: list[Change]) -> None:
    topology = Topology("sql")
    names = topology.table("customers").map_values(lambda customer: f"name-{customer['n']}")
    orders = topology.table("orders").filter(lambda order: order["n"] > 2)
    orders.join(names, lambda order, name: {"n": order["n"], "name": name}, on="c", how="left").to("out")
    driver = TopologyTestDriver(topology, partitions=2)
    found = tables.rows_of(tables.run(driver, made))
    connection = duckdb.connect()
    connection.execute("create table changes (pos int, topic text, key text, n int, c text, gone bool)")
    for pos, (topic, key, row) in enumerate(made):
        fields = (None, None) if row is None else (row["n"], row.get("c"))
        connection.execute("insert into changes values (?, ?, ?, ?, ?, ?)", [pos, topic, key, *fields, row is None])
    answer = connection.execute("""
        with latest as (
            select * from changes qualify row_number() over (partition by topic, key order by pos desc) = 1
        )
        select o.key, o.n, 'name-' || c.n from latest o
        left join latest c on c.topic = 'customers' and not c.gone and c.key = o.c
        where o.topic = 'orders' and not o.gone and o.n > 2
    """).fetchall()
    assert {(key, row["n"], row["name"]) for key, row in found.items()} == set(answer)


def test_a_running_aggregate_can_be_referred_to() -> None:
    topology = Topology("t")
    stock = topology.stream("moves", keyed_by="article").aggregate(left=agg.sum("n"))
    topology.table("orders").join(stock, lambda o, s: s["left"] >= o["n"], on="article").to("out")
    driver = TopologyTestDriver(topology, partitions=2)
    driver.send("orders", {"article": "x", "n": 3}, key="o1")
    driver.send_many("moves", [{"article": "x", "n": 2}, {"article": "x", "n": 2}])
    assert tables.read(driver) == [("o1", False), ("o1", True)]
