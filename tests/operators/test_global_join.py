"""Looking rows up in a table that every task has."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace import KeyedStream, Topology, TopologyError, agg, tumbling
from headrace.testing.driver import TopologyTestDriver
from tests.operators import tables
from tests.operators.tables import Change

few = settings(max_examples=60, deadline=None)

sales = st.tuples(st.just("sales"), st.none(), st.builds(lambda p: {"p": p}, st.sampled_from(["a", "b", "z", None])))
changes = st.lists(tables.changes_of("products", st.integers(0, 9)) | sales, max_size=25)


def pair(left: Any, right: Any) -> dict[str, Any]:
    return {"left": left, "right": right}


def joined(how: Any = "left") -> Topology:
    topology = Topology("joined")
    topology.stream("sales").join(topology.global_table("products"), pair, on="p", how=how).to("out")
    return topology


def expected(how: str, made: list[Any]) -> list[Any]:
    found, rows = [], {}
    for topic, key, value in made:
        if topic == "products":
            rows[key] = value
        elif how == "left" or rows.get(value["p"]) is not None:
            found.append(pair(value, rows.get(value["p"])))
    return found


@pytest.mark.parametrize("how", ["inner", "left"])
@few
@given(
    made=changes, partitions=st.integers(1, 3), cache_bytes=st.sampled_from([0, 10_000]),
    restarts=st.lists(st.integers(0, 20), max_size=3),
)  # fmt: skip
def test_each_record_finds_the_row_of_its_moment(
    how: str, made: list[Change], partitions: int, cache_bytes: int, restarts: list[int]
) -> None:
    counts = {"sales": partitions, "products": 2}
    driver = TopologyTestDriver(joined(how), partitions=counts, cache_bytes=cache_bytes)
    for place, (topic, key, value) in enumerate(made):
        driver.send(topic, value, key=key)
        if place in restarts:
            driver.restart()
    assert [value for _, value in tables.read(driver)] == expected(how, made)


def test_after_a_crash_the_table_is_read_to_its_end_first() -> None:
    driver = TopologyTestDriver(joined(), partitions=2, batch_records=1)
    driver.send("products", 1, key="a")
    driver.checkpoint()
    driver.send("sales", {"p": "a"})
    driver.send_many("products", [2, 3], keys=["a", "a"])
    driver.crash()
    assert [value["right"] for _, value in tables.read(driver)] == [1, 3]


def test_a_keyed_stream_stays_keyed() -> None:
    topology = Topology("t")
    products = topology.global_table("products", key=int)
    stream = topology.stream("sales", keyed_by="shop", time="at")
    priced = stream.join(products, lambda sale, price: {"shop": sale["shop"], "sum": price}, on="product")
    assert isinstance(priced, KeyedStream)
    priced.window(tumbling("1m")).aggregate(turnover=agg.sum("sum")).to("out")
    driver = TopologyTestDriver(topology, partitions={"sales": 2, "products": 3})
    driver.send_many("products", [5, 7], keys=[1, 2])
    driver.send_many("sales", [{"shop": "s", "product": product, "at": 0} for product in (1, 2, 2, 3)])
    driver.end_input()
    assert [value["turnover"] for _, value in tables.read(driver)] == [19]


def test_a_keyed_stream_is_looked_up_by_its_key_if_nothing_else_is_said() -> None:
    topology = Topology("t")
    stream: Any = topology.stream("sales", keyed_by="shop")
    stream.join(topology.global_table("shops"), pair).to("out")
    driver = TopologyTestDriver(topology, partitions=2)
    driver.send("shops", "Ulm", key="s")
    driver.send("sales", {"shop": "s"})
    assert [value["right"] for _, value in tables.read(driver)] == ["Ulm"]


def test_two_sub_topologies_can_look_up_in_one_table() -> None:
    topology = Topology("t")
    rates = topology.global_table("rates")
    stream = topology.stream("sales").join(rates, pair, on="c", name="first").map(lambda found: found["left"])
    stream.key_by("shop").join(rates, pair, on="c", name="second").to("out")
    driver = TopologyTestDriver(topology, partitions=2)
    assert driver.tasks == ["sales-0", "sales-1", "first-by-shop-0", "first-by-shop-1"]
    driver.send("rates", 3, key="eur")
    driver.send_many("sales", [{"c": "eur", "shop": shop} for shop in "abc"])
    driver.restart()
    driver.send("rates", 4, key="eur")
    driver.send_many("sales", [{"c": "eur", "shop": shop} for shop in "abc"])
    assert sorted(value["right"] for _, value in tables.read(driver)) == [3] * 3 + [4] * 3


def test_streams_of_any_width_meet_the_table() -> None:
    topology = Topology("t")
    both = topology.stream("a").merge(topology.stream("b"))
    both.join(topology.global_table("products"), pair, on="p").to("out")
    driver = TopologyTestDriver(topology, partitions={"a": 2, "b": 3, "products": 1})
    driver.send("products", 1, key="x")
    for topic in "ab":
        driver.send_many(topic, [{"p": "x"}] * 3)
    assert len(tables.read(driver)) == 6


def test_a_record_whose_key_cannot_be_had_is_left_out() -> None:
    topology = Topology("t", on_error="skip")
    topology.stream("sales").join(topology.global_table("products"), pair, on="p", how="left").to("out")
    driver = TopologyTestDriver(topology)
    driver.send_many("sales", [{"p": "a"}, {}, {"p": 5}, {"p": None}])
    assert [value["left"] for _, value in tables.read(driver)] == [{"p": "a"}, {"p": None}]
    assert driver.skipped == {"sales-join-products": 2}


def test_rows_without_a_key_are_an_error() -> None:
    topology = Topology("t", on_error="skip")
    topology.stream("sales").join(topology.global_table("products"), pair, on="p").to("out")
    driver = TopologyTestDriver(topology, partitions=2)
    driver.send("products", 1)
    assert driver.skipped == {"products": 2}, "every task reads it"


def test_what_has_no_meaning_is_refused() -> None:
    topology = Topology("t")
    stream: Any = topology.stream("sales")
    products = topology.global_table("products", key=int)
    here = r"\(.*test_global_join.py:\d+\)"
    with pytest.raises(TopologyError, match=f"needs on=: the stream has no key to look up {here}"):
        stream.join(products, pair)
    with pytest.raises(TopologyError, match=f'"inner" or "left".*not \'outer\' {here}'):
        stream.join(products, pair, on="p", how="outer")
    with pytest.raises(TopologyError, match=f"cannot be joined with a Table {here}.*key_by"):
        stream.join(topology.table("others"), pair, on="p")
    with pytest.raises(TopologyError, match=f"keys that are str in a global table whose keys are int {here}"):
        stream.key_by("k").join(products, pair)
    with pytest.raises(TopologyError, match=f"same topology {here}"):
        Topology("u").stream("sales").join(products, pair, on="p")
