"""What an aggregate is: four functions of an accumulator, and what can be made of one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from headrace.errors import TopologyError
from headrace.operators.selectors import Selector, getter

COUNT_INLINE = ("1", "{a} + 1")
"""Counting needs no value and cannot fail, which the generated loop makes use of."""


@dataclass(frozen=True, slots=True)
class Aggregate:
    """One aggregate over the values of a group.

    Those in ``agg`` are such objects, and one of your own is as good as they are. The functions are pure: what they
    return depends on nothing but their arguments, and they leave those as they are, unless ``in_place`` says that
    ``step`` does not.

    Args:
        name: What it is called in ``describe``. State is kept under it: another name is another aggregate.
        selector: The field or function whose value is aggregated; the whole value if None.
        first: (selected value, timestamp) -> accumulator of a group of one.
        step: (accumulator, selected value, timestamp) -> accumulator with one more.
        merge: (accumulator, accumulator) -> accumulator of both groups, the earlier one first. None if that cannot be
            done; then the aggregate serves in windows whose groups never join, and not in sessions, say.
        result: accumulator -> what stands in the result; the accumulator itself if None.
        kind: The accumulator's type if it is not made of dict, list, str, int, float, bool, bytes and None;
            needed to read it back from the store.
        inline: ``first`` and ``step`` as expressions of ``{a}``, ``{x}`` and ``{t}``, for the generated loop.
        in_place: True if ``step`` changes the accumulator in place; it must not fail once it has begun to. Such steps
            run after all others, so that a record on which one fails leaves nothing behind.
        empty: The result of ``where`` if there was no value for which the predicate is true.
        reads: The fields that are selected, if ``selector`` is a function made of their names.
        parts: What a combined one consists of.

    Example:
        >>> from headrace import Aggregate, Topology, agg, tumbling
        >>> def product(selector):
        ...     return Aggregate(
        ...         "product", selector, first=lambda x, t: x, step=lambda a, x, t: a * x, merge=lambda a, b: a * b
        ...     )
        >>> rates = Topology("t").stream("rates", keyed_by="currency")
        >>> rates.window(tumbling("1d")).aggregate(change=product("change")).to("daily")
    """

    name: str
    selector: Selector | None
    first: Callable[[Any, int], Any]
    step: Callable[[Any, Any, int], Any]
    merge: Callable[[Any, Any], Any] | None
    result: Callable[[Any], Any] | None = None
    kind: Any = None
    inline: tuple[str, str] | None = None
    in_place: bool = False
    empty: Any = None
    reads: tuple[str, ...] = ()
    parts: tuple[Aggregate, ...] = ()

    @property
    def fields(self) -> tuple[str, ...]:
        """List the fields that it reads, as far as they are known by name."""
        return (self.selector,) if isinstance(self.selector, str) else self.reads

    def where(self, predicate: Callable[[Any], Any]) -> Aggregate:
        """Aggregate only the records for whose value ``predicate`` is true.

        The result of a group without any is 0 for counts and None for all else.

        Args:
            predicate: A function of the whole value, whatever is selected of it.

        Raises:
            TopologyError: ``predicate`` cannot be called.

        Example:
            >>> from headrace import agg
            >>> in_euros = agg.sum("total").where(lambda order: order["currency"] == "EUR")
        """
        if not callable(predicate):
            raise TopologyError(f"where needs a function of the value, not {type(predicate).__name__}")
        get, first, step, merge = getter(self.selector), self.first, self.step, self.merge
        result, empty = self.result, self.empty
        start, more = self.inline or ("", "")
        return replace(
            self,
            name=f"{self.name} where",
            selector=lambda value: get(value) if predicate(value) else ...,
            reads=self.fields,
            first=lambda x, t: None if x is ... else first(x, t),
            step=lambda a, x, t: a if x is ... else first(x, t) if a is None else step(a, x, t),
            merge=None if merge is None else lambda a, b: b if a is None else a if b is None else merge(a, b),
            result=lambda a: empty if a is None else a if result is None else result(a),
            kind=None if self.kind is None else self.kind | None,
            inline=self.inline and (
                f"(None if {{x}} is ... else ({start}))",
                f"({{a}} if {{x}} is ... else ({start}) if {{a}} is None else ({more}))",
            ),
        )  # fmt: skip

    def then(self, function: Callable[[Any], Any]) -> Aggregate:
        """Put what ``function`` makes of the result in its place.

        Args:
            function: A function of the result; behind ``where`` that may be None.

        Raises:
            TopologyError: ``function`` cannot be called.

        Example:
            >>> from headrace import agg
            >>> rounded = agg.mean("total").then(lambda mean: round(mean, 2))
        """
        if not callable(function):
            raise TopologyError(f"then needs a function of the result, not {type(function).__name__}")
        result = self.result
        whole = function if result is None else lambda a: function(result(a))
        return replace(self, result=whole, empty=None)
