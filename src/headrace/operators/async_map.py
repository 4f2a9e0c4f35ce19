"""Calls of ``async def`` functions: what is to be called, in which order, and results that are remembered.

The calls themselves are made elsewhere, beside the task (``Caller``); nothing here waits.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import msgspec

from headrace.errors import TopologyError
from headrace.operators.api import MAIN, Batch, Outputs, StepContext
from headrace.operators.retrying import Retry
from headrace.operators.selectors import Selector, select
from headrace.operators.stateless import StatelessOperator
from headrace.settings import duration_ms

Order = Literal["key", "input", "none"]
"""What is kept of the order of the records: see ``Stream.map_async``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cache:
    """How a ``map_async`` step remembers results, so that it need not ask again.

    Results are kept in memory by each task and are gone after a restart or a crash; failed calls are not remembered.
    A result is the same object for all records that get it, so nothing behind the step may change it.

    Args:
        size: The most results that a task keeps; those used least recently go first.
        ttl: For how long a result counts, in processing time.
        by: What a result belongs to: a field or a function of the value; the whole value if None.

    Raises:
        TopologyError: ``size`` is less than one.
        SettingsError: ``ttl`` is no duration.

    Example:
        >>> Cache(size=1000, ttl="1m", by="customer_id").ttl_ms
        60000
    """

    size: int = 10_000
    ttl: str | timedelta = "5m"
    by: Selector | None = None

    def __post_init__(self) -> None:
        if self.size < 1:
            raise TopologyError(f"size of Cache must be at least 1, not {self.size}")
        duration_ms(self.ttl, "ttl of Cache")

    @property
    def ttl_ms(self) -> int:
        """Return ``ttl`` in milliseconds."""
        return duration_ms(self.ttl, "ttl of Cache")


class ResultCache:
    """Results of calls, the most recently used ones, each for a limited time.

    Example:
        >>> cache = ResultCache(Cache(size=2, ttl="100ms"))
        >>> cache.put(b"a", 1, now_ms=0)
        >>> cache.get(b"a", now_ms=99), cache.get(b"a", now_ms=100), cache.get(b"b", now_ms=100)
        ((True, 1), (False, None), (False, None))
    """

    def __init__(self, spec: Cache) -> None:
        self._by = spec.by
        self._size = spec.size
        self._ttl_ms = spec.ttl_ms
        self._rows: OrderedDict[bytes, tuple[int, Any]] = OrderedDict()
        """By what the call was for: when it is forgotten, and the result; the least recently used first."""

    def key(self, value: Any) -> bytes:
        """Return what a call with ``value`` is remembered by.

        Raises:
            TypeError: it cannot be encoded.
            Exception: the user's selector failed.
        """
        wanted = value if self._by is None else select(self._by, [value])[0]
        return msgspec.msgpack.encode(wanted)

    def get(self, key: bytes, now_ms: int) -> tuple[bool, Any]:
        """Return whether there is a result, and the result."""
        row = self._rows.get(key)
        if row is None:
            return False, None
        if now_ms >= row[0]:
            del self._rows[key]
            return False, None
        self._rows.move_to_end(key)
        return True, row[1]

    def put(self, key: bytes, result: Any, now_ms: int) -> None:
        """Remember a result, and forget the least recently used one if there are too many."""
        self._rows[key] = (now_ms + self._ttl_ms, result)
        self._rows.move_to_end(key)
        if len(self._rows) > self._size:
            self._rows.popitem(last=False)


@dataclass(frozen=True, slots=True)
class Calls:
    """The calls that one batch needs."""

    function: Callable[[Any], Awaitable[Any]]
    values: Sequence[Any]
    """What each call gets."""
    lanes: Sequence[Sequence[int]]
    """Places of values; the calls of one lane are made one after the other, lanes beside each other."""
    concurrency: int
    """The most calls at a time."""
    timeout_ms: int
    retry: Retry | None
    cache: ResultCache | None


class Answers(NamedTuple):
    """What came of the calls of a batch."""

    results: Sequence[Any]
    """By place; meaningless for those that failed."""
    failures: dict[int, Exception]
    """By place."""
    tries: dict[int, int]
    """By place, how many calls were made where it was not one."""
    finished: Sequence[int]
    """The places of those that did not fail, in the order in which they finished."""


class Flight(Protocol):
    """Calls that are being made."""

    def over(self, now_ms: int) -> bool:
        """Return whether every one of them has ended."""
        ...

    def cancel(self) -> None:
        """Give them up."""
        ...

    def answers(self) -> Answers:
        """Return what came of them, once they are over.

        Raises:
            BaseException: the calls could not be made at all.
        """
        ...


class Caller(Protocol):
    """Makes calls beside the task."""

    def begin(self, calls: Calls) -> Flight:
        """Begin to make calls; returns at once."""
        ...


@dataclass(frozen=True, slots=True)
class AsyncMap:
    """Describes a step that replaces each value by what an ``async def`` function returns for it."""

    function: Callable[[Any], Awaitable[Any]]
    concurrency: int
    order: Order
    timeout_ms: int
    retry: Retry | None = None
    cache: Cache | None = None
    kind: ClassVar[str] = "map_async"
    ports: ClassVar[tuple[str, ...]] = (MAIN,)
    stateful: ClassVar[bool] = False
    sided: ClassVar[bool] = False
    uses_clock: ClassVar[bool] = False
    timed_ports: ClassVar[tuple[str, ...]] = ()

    def shape(self) -> dict[str, Any]:
        """Describe nothing: no stored byte depends on this step."""
        return {}

    def build(self, context: StepContext) -> AsyncMapOperator:
        """Make the operator of one task."""
        return AsyncMapOperator(self)


class AsyncMapOperator(StatelessOperator):
    """Says which calls a batch needs, and makes a batch of what came of them."""

    def __init__(self, spec: AsyncMap) -> None:
        super().__init__(_refuse)
        self._spec = spec
        self._cache = None if spec.cache is None else ResultCache(spec.cache)

    def calls(self, batch: Batch) -> Calls:
        """Return the calls that a batch needs."""
        spec = self._spec
        lanes: list[list[int]]
        if spec.order == "key":
            by_key: dict[bytes | None, list[int]] = {}
            for place, key in enumerate(batch.keys):
                by_key.setdefault(key, []).append(place)
            lanes = list(by_key.values())
        else:
            lanes = [[place] for place in range(len(batch))]
        return Calls(
            spec.function, batch.values, lanes, spec.concurrency, spec.timeout_ms, spec.retry, self._cache
        )  # fmt: skip

    def results(self, batch: Batch, answers: Answers) -> Outputs:
        """Return what goes on: the records whose calls did not fail, with the results as their values."""
        if not answers.finished:
            return []
        if self._spec.order == "none":
            made = batch.with_values(list(answers.results)).pick(answers.finished)
            # Out of their order, records have no watermark between them any more.
            made.running = None
            return [(MAIN, made)]
        if not answers.failures:
            return [(MAIN, batch.with_values(list(answers.results)))]
        return [(MAIN, batch.with_values(list(answers.results)).pick(sorted(answers.finished)))]


def _refuse(batch: Batch) -> Outputs:
    raise AssertionError("the calls of an asynchronous step are made beside the task")
