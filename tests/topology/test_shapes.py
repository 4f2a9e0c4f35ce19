"""Which stored shapes steps can follow, and what is said of those that they cannot."""

from typing import Any

import msgspec
import pytest

from headrace import TopologyError
from headrace.serde.schema import schema_of
from headrace.topology.shapes import carry_over


class Order(msgspec.Struct):
    number: int
    total: int


class OrderWithNote(Order):
    note: str = ""


class OrderWithNoteRequired(msgspec.Struct):
    number: int
    total: int
    note: str


class OrderInCents(msgspec.Struct):
    number: int
    cents: int


def value(kind: Any, version: int = 1, oldest: int | None = None) -> dict[str, Any]:
    return {"version": version, "oldest": version if oldest is None else oldest, "type": schema_of(kind)}


def carried(*shapes: Any) -> Any:
    """Return the shape that is kept after a step had one shape after the other."""
    kept: dict[str, Any] = {}
    for shape in shapes:
        kept = carry_over("in-0", kept, {"step": shape})
    return kept["step"]


def refusal(*shapes: Any) -> str:
    before = carried(*shapes[:-1])
    with pytest.raises(TopologyError) as caught:
        carry_over("in-0", {"step": before}, {"step": shapes[-1]})
    return str(caught.value)


def test_a_shape_that_is_the_same_is_kept_as_it_is() -> None:
    shape = {"size_ms": 5, "value": value(Order)}
    assert carried(shape, shape) == shape
    assert carry_over("in-0", {"gone": shape}, {"new": shape}) == {"new": shape}


def test_other_differences_are_refused_and_fields_named() -> None:
    assert "size_ms is different" in refusal({"size_ms": 5, "every": 1}, {"size_ms": 6, "every": 1})
    assert "every, size_ms are different" in refusal({"size_ms": 5}, {"every": 5})
    message = refusal({"left": {"type": schema_of(Order)}}, {"left": {"type": schema_of(OrderInCents)}})
    assert "step 'step' of task in-0" in message
    assert "left is different (field 'cents' is new and has no default; field 'total' is gone)" in message


@pytest.mark.parametrize("wrap", [lambda shape: shape, lambda shape: {"value": shape, "n": 1}], ids=["step", "part"])
def test_versions_anywhere(wrap: Any) -> None:
    one, two, three = value(Order), value(OrderInCents, 2, 1), value(Order, 3, 1)
    assert carried(wrap(one), wrap(two), wrap(three)) == wrap({**three, "since": 1})
    assert "version=2 and migrations={1: function}" in refusal(wrap(one), wrap(value(OrderInCents)))
    assert "stored as version 2 and is declared with version 1" in refusal(wrap(two), wrap(one))
    assert "migrations begin with version 2" in refusal(wrap(one), wrap(two), wrap(value(Order, 3, 2)))


def test_all_types_that_one_version_was_written_with_count() -> None:
    first, second, third = value(Order), value(OrderWithNote), value(OrderWithNoteRequired)
    # What was written with the second type has the field that the third one wants, what was written before has not.
    assert carried(second, third)["type"] == schema_of(OrderWithNoteRequired)
    assert "field 'note' is new and has no default" in refusal(first, second, third)
    assert "field 'note' is gone" in refusal(first, second, first)
