"""What ``assert_records`` accepts, and what it says about the rest."""

from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace import Record
from headrace.testing import assert_records
from headrace.testing.events import Event


class Window(msgspec.Struct):
    key: str
    total: int


@dataclass
class Plain:
    key: str
    total: int


def record(value: Any, key: Any = None, timestamp: int = 0) -> Record:
    return Record("out", 0, 0, timestamp, key, value)


def told(actual: list[Record], expected: list[Any], **options: Any) -> str:
    with pytest.raises(AssertionError) as caught:
        assert_records(actual, expected, **options)
    return str(caught.value)


A, B, C = (record({"key": name, "total": 1}, name, 59_999) for name in "abc")


@pytest.mark.parametrize(
    "expected",
    [
        {"key": "a", "total": 1},
        {"key": "a", "total": pytest.approx(1.0000001)},
        Window("a", 1),
        Plain("a", 1),
        ("a", {"key": "a", "total": 1}),
        ("a", Window("a", 1), 59_999),
        Event(Window("a", 1), "a", 59_999),
        Event(Window("a", 1), timestamp=59_999),
        A,
    ],
)
def test_what_a_record_can_be_expected_as(expected: Any) -> None:
    assert_records([A], [expected])
    told([B], [expected])


def test_keys_and_timestamps_count_if_they_are_given() -> None:
    told([A], [("b", A.value)])
    told([A], [("a", A.value, 1)])
    told([A], [Event(A.value, "a", 1)])


def test_order_counts_unless_it_does_not() -> None:
    assert_records([B, A], [A.value, B.value], ordered=False)
    assert told([B, A], [A.value, B.value]).splitlines()[0] == (
        "the records are not as expected: 1 out of place; 1 are right"
    )


def test_an_expectation_that_says_less_takes_nothing_from_one_that_says_more() -> None:
    first, second = record(1, "a"), record(1, "b")
    assert_records([first, second], [1, ("a", 1)], ordered=False)


def test_missing_unexpected_and_changed_stand_in_a_table() -> None:
    actual = [A, record({"key": "b", "total": 7}, "b", 59_999), record({"key": "x", "n": 3}, "x", 5)]
    assert told(actual, [A.value, B.value, C.value]) == (
        "the records are not as expected: 1 missing, 1 unexpected, 1 changed; 1 are right\n"
        "\n"
        "            place  key  timestamp  key  total      n\n"
        "changed     1      'b'  59999      'b'  7 (not 1)\n"
        "missing     2                      'c'  1\n"
        "unexpected  2      'x'  5          'x'             3"
    )


def test_a_changed_key_or_timestamp_and_a_field_too_many_or_too_few_are_marked() -> None:
    actual = [record({"a": 1, "b": 2, "c": 3, "x": 6, "y": 7, "d": 4}, "k", 5)]
    rows = told(actual, [("j", {"a": 1, "b": 2, "c": 3, "x": 6, "y": 7, "e": 5}, 6)]).splitlines()[2:]
    assert rows[0].split() == ["place", "key", "timestamp", "a", "b", "c", "x", "y", "e", "d"]
    for cell in ("'k' (not 'j')", "5 (not 6)", "none (not 5)", "4 (not there)"):
        assert cell in rows[1]


def test_by_says_which_record_is_which() -> None:
    actual = [record({"id": 1, "x": "p", "y": "q"}), record({"id": 2, "x": "r", "y": "s"})]
    expected = [{"id": 2, "x": "t", "y": "u"}, {"id": 1, "x": "p", "y": "q"}]
    text = told(actual, expected, by="id", ordered=False)
    assert "1 changed; 1 are right" in text
    assert "'r' (not 't')" in text
    assert "1 missing, 1 unexpected; 1 are right" in told(actual, expected, ordered=False)
    assert "2 missing" in told([], expected, by=lambda value: value["id"])


def test_values_without_fields_are_never_alike() -> None:
    assert "1 missing, 1 unexpected; 1 are right" in told([record(1), record(2)], [1, 3])


def test_one_record_too_few_in_the_middle_does_not_make_the_rest_wrong() -> None:
    values = list(range(100))
    assert "1 missing; 99 are right" in told([record(n) for n in values if n != 40], values)
    assert "1 unexpected; 100 are right" in told([record(n) for n in [*values[:9], 500, *values[9:]]], values)


def test_long_lists_are_cut_and_compared_place_by_place() -> None:
    rows = told([record(n) for n in range(2000)], list(range(1, 2001))).splitlines()
    assert rows[-1] == "... and 1,981 more"
    assert len(rows) == 2 + 1 + 20 + 1


def test_wide_values_show_the_fields_that_changed() -> None:
    wide = {f"f{n}": n for n in range(20)}
    text = told([record(wide)], [{**wide, "f19": 0}])
    assert "19 (not 0)" in text
    assert text.splitlines()[-1].startswith("fields left out: f7, f8")
    assert "..." in told([record("x" * 100)], [1])


def test_the_assertion_is_hidden_from_pytests_traceback() -> None:
    with pytest.raises(AssertionError) as caught:
        assert_records([A], [])
    assert [entry.name for entry in caught.traceback if not entry.ishidden(caught)] == [
        "test_the_assertion_is_hidden_from_pytests_traceback"
    ]


numbers = st.lists(st.integers(0, 3), max_size=6)


@given(numbers, numbers)
def test_it_fails_just_when_lists_differ_and_names_every_difference(actual: list[int], expected: list[int]) -> None:
    made = [record(n) for n in actual]
    if actual == expected:
        assert_records(made, expected)
    else:
        assert " are right" in told(made, expected)
    if sorted(actual) == sorted(expected):
        assert_records(made, expected, ordered=False)
    else:
        rows = told(made, expected, ordered=False).splitlines()[3:]
        missing = sum(max(0, expected.count(n) - actual.count(n)) for n in range(4))
        extra = sum(max(0, actual.count(n) - expected.count(n)) for n in range(4))
        assert len(rows) == missing + extra
