"""Joins in the language: what is refused at the user's line, names, and the types of results."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from headrace import SettingsError, Topology, TopologyError
from headrace.topology.graph import Step


class Paid(msgspec.Struct):
    order: str


def paid(left: Any, right: Any) -> Paid:
    return Paid(left["order"])


def both(left: Any, right: Any) -> Any:
    return [left, right]


async def slow(left: Any, right: Any) -> Any:
    return left


class Scene:
    """A topology with everything that one can try to join."""

    def __init__(self) -> None:
        self.topology = Topology("t")
        self.orders: Any = self.topology.stream("orders", keyed_by="order")
        self.payments: Any = self.topology.stream("payments", keyed_by="order")
        self.numbered: Any = self.topology.stream("numbered", keyed_by="number", key=int)
        self.unkeyed: Any = self.topology.stream("unkeyed")
        self.table: Any = self.topology.table("table")
        self.globally: Any = self.topology.global_table("globally")
        self.foreign: Any = Topology("u").stream("foreign", keyed_by="order")


WRONG: list[tuple[Callable[[Scene], Any], str]] = [
    (lambda s: s.orders.join(s.foreign, both, within="1m"), "both sides to be of the same topology"),
    (lambda s: s.orders.as_of(s.foreign, both), "both sides to be of the same topology"),
    (lambda s: s.orders.join(s.unkeyed, both, within="1m"), "the right side of join has no key"),
    (lambda s: s.orders.as_of(s.unkeyed, both), "the right side of as_of has no key"),
    (lambda s: s.orders.join("payments", both, within="1m"), "a keyed stream or a table, not str"),
    (lambda s: s.orders.join(s.numbered, both, within="1m"), "of different types, str and int"),
    (lambda s: s.numbered.as_of(s.orders, both), "of different types, int and str"),
    (lambda s: s.numbered.join(s.table, both), "of different types, int and str"),
    (lambda s: s.orders.join(s.payments, both), "needs within="),
    (lambda s: s.orders.join(s.payments, both, within=("1m", "1m", "1m")), "not 3"),
    (lambda s: s.orders.join(s.payments, both, within="1m", how="full"), "not 'full'"),
    (lambda s: s.orders.join(s.payments, both, within="1m", match="latest"), "match= does not belong"),
    (lambda s: s.orders.join(s.payments, both, within="1m", on="x"), "on= does not belong"),
    (lambda s: s.orders.join(s.payments, "both", within="1m"), "join needs a function, not str"),
    (lambda s: s.orders.join(s.payments, slow, within="1m"), "async function"),
    (lambda s: s.orders.as_of(s.payments, None), "as_of needs a function, not NoneType"),
    (lambda s: s.orders.as_of(s.payments, slow), "async function"),
    (lambda s: s.orders.as_of(s.payments, both, how="outer"), "not 'outer'"),
    (lambda s: s.orders.as_of(s.table, both), "not a table"),
    (lambda s: s.orders.join(s.table, both, within="1m"), "within= does not belong to a join with a table"),
    (lambda s: s.orders.join(s.table, both, lateness="1m"), "lateness= does not belong to a join with a table"),
    (lambda s: s.orders.join(s.table, both, on="x"), "on= does not belong to a join with a table"),
    (lambda s: s.orders.join(s.table, both, how="outer"), "does not fit a stream and a table"),
    (lambda s: s.orders.join(s.table, both, how="all"), "not 'all'"),
    (lambda s: s.orders.join(s.table, both, match="newest"), "not 'newest'"),
    (lambda s: s.orders.join(s.table, slow), "async function"),
    (lambda s: s.orders.join(s.globally, both, within="1m"), "within= does not belong to a join with a global table"),
    (lambda s: s.orders.join(s.globally, both, match="latest"), "match= does not belong to a join with a global table"),
    (lambda s: s.unkeyed.join(s.payments, both, within="1m"), "without a key cannot be joined"),
    (lambda s: s.unkeyed.join(s.globally, both, on="x", within="1m"), "within= does not belong"),
    (lambda s: s.unkeyed.as_of(s.payments, both), "as_of needs a keyed stream"),
    (lambda s: s.unkeyed.window("1m"), "window needs a keyed stream"),
    (lambda s: s.unkeyed.process(both), "process needs a keyed stream"),
    (lambda s: s.unkeyed.aggregate(), "aggregate needs a keyed stream"),
    (lambda s: s.unkeyed.reduce(both), "reduce needs a keyed stream"),
    (lambda s: s.unkeyed.to_table(), "to_table needs a keyed stream"),
]


@pytest.mark.parametrize(("wrong", "message"), WRONG)
def test_what_cannot_be_joined_is_refused_at_the_users_line(wrong: Callable[[Scene], Any], message: str) -> None:
    with pytest.raises(TopologyError) as failed:
        wrong(Scene())
    assert message in str(failed.value)
    assert f"({__file__}:{wrong.__code__.co_firstlineno})" in str(failed.value)


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        (lambda s: s.orders.join(s.payments, both, within="soon"), "within of join"),
        (lambda s: s.orders.join(s.payments, both, within="-1m"), "within of join"),
        (lambda s: s.orders.join(s.payments, both, within=("1m", 5)), "within of join \\(after\\)"),
        (lambda s: s.orders.join(s.payments, both, within="1m", lateness="-1m"), "lateness of join"),
        (lambda s: s.orders.as_of(s.payments, both, within="ever"), "within of as_of"),
    ],
)
def test_what_is_no_duration_is_refused(wrong: Callable[[Scene], Any], what: str) -> None:
    with pytest.raises(SettingsError, match=what):
        wrong(Scene())


def test_what_a_stream_does_not_have_is_still_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'Stream' object has no attribute 'widnow'"):
        _ = Scene().unkeyed.widnow


def test_names_come_from_both_sides() -> None:
    scene = Scene()
    orders, payments = scene.orders, scene.payments
    orders.join(payments, both, within="1m").to("a")
    orders.as_of(payments, both).to("b")
    orders.join(scene.table, both).to("c")
    orders.join(payments, both, within="1h", name="hourly").map(str).to("d")
    names = [node.name for node in scene.topology.graph().nodes if isinstance(node, Step)]
    assert names == [
        "orders-join-payments", "orders-join-payments-combine", "orders-as_of-payments",
        "orders-as_of-payments-combine", "orders-join-table", "orders-join-table-combine", "hourly", "hourly-combine",
        "hourly-map-str",
    ]  # fmt: skip


def test_two_joins_of_the_same_streams_need_names() -> None:
    scene = Scene()
    for within in ("1m", "1h"):
        scene.orders.join(scene.payments, both, within=within).to("out", name=within)
    with pytest.raises(TopologyError, match="two steps are called 'orders-join-payments'"):
        scene.topology.graph()


def test_late_records_are_at_hand_behind_a_filter_too() -> None:
    scene = Scene()
    joined = scene.orders.join(scene.payments, both, within="1m").filter(bool)
    joined.late.to("late")
    joined.late_right.to("late-right")
    inputs = [node.inputs for node in scene.topology.graph().nodes[-2:]]
    assert inputs == [(("orders-join-payments", "late"),), (("orders-join-payments", "late-right"),)]


def test_a_result_has_the_type_that_combine_is_annotated_with() -> None:
    scene = Scene()
    for joined in (
        scene.orders.join(scene.payments, paid, within="1m"),
        scene.orders.as_of(scene.payments, paid),
        scene.orders.join(scene.table, paid),
    ):
        assert joined._value.name == "msgpack[Paid]"
    assert scene.orders.join(scene.payments, both, within="1m", name="x")._value.name == "msgpack"
