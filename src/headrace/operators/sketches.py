"""Aggregates that estimate, by sketches of the library ``datasketches``.

What is stored of a group is bytes: the version ``2``, the CRC-32C of what follows it (four bytes, big-endian), and

- HyperLogLog: the sketch in the library's compact form.
- t-digest: the number of waiting values (two bytes, big-endian), those as eight bytes each (IEEE 754, big-endian),
  and the digest in the library's form, if it holds anything.

Version ``1`` had no checksum. The library trusts what it is given to read: damaged bytes would end the process.

The library's digest may be compressed at any time, by being written or asked, and what it says later depends on when
that was. So values wait outside and enter it by a fixed number at a time, after which it is compressed; then it is
the same however often it was stored in between.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import google_crc32c
import msgspec

from headrace.errors import TopologyError
from headrace.operators.accumulating import distinct_key
from headrace.operators.aggregate import Aggregate
from headrace.operators.selectors import Selector, getter

_VERSION = 2
_HEADER = struct.Struct(">BI")
_WAITING = 256
_LIMIT = 2**63


class Distinct:
    """A HyperLogLog sketch of distinct values."""

    __slots__ = ("sketch",)
    stored_as: ClassVar[str] = "hyperloglog"

    def __init__(self, sketch: Any) -> None:
        self.sketch = sketch

    def to_bytes(self) -> bytes:
        """Return what is stored."""
        return _sealed(self.sketch.serialize_compact())

    @classmethod
    def from_bytes(cls, data: bytes) -> Distinct:
        """Read what was stored.

        Raises:
            ValueError: it is damaged, or of another version.
        """
        return cls(_library().hll_sketch.deserialize(_opened(data)))

    def add(self, hashable: Any) -> Distinct:
        """Add what ``sketch_key`` made of a value, in place."""
        self.sketch.update(hashable)
        return self

    def merged(self, other: Distinct) -> Distinct:
        """Return the sketch of the values of both."""
        return Distinct(_union(self.sketch, other.sketch))

    def estimate(self) -> int:
        """Return how many distinct values there were, about.

        A sketch that was never merged would know more from the order of its values; this asks a merged one, so that
        the order says nothing.
        """
        sketch = self.sketch
        found: float = _union(sketch, sketch).get_estimate()
        return round(found)


class Digest:
    """A t-digest, and the values that wait to enter it."""

    __slots__ = ("digest", "waiting")
    stored_as: ClassVar[str] = "t-digest"

    def __init__(self, digest: Any, waiting: list[float]) -> None:
        self.digest = digest
        self.waiting = waiting

    def to_bytes(self) -> bytes:
        """Return what is stored."""
        waiting = struct.pack(f">H{len(self.waiting)}d", len(self.waiting), *self.waiting)
        return _sealed(waiting + self.digest.serialize())

    @classmethod
    def from_bytes(cls, data: bytes) -> Digest:
        """Read what was stored.

        Raises:
            ValueError: it is damaged, or of another version.
        """
        data = _opened(data)
        (count,) = struct.unpack_from(">H", data)
        waiting = list(struct.unpack_from(f">{count}d", data, 2))
        return cls(_library().tdigest_double.deserialize(data[2 + 8 * count :]), waiting)

    def add(self, number: float) -> Digest:
        """Add a value, in place."""
        self.waiting.append(number)
        if len(self.waiting) >= _WAITING:
            self._enter()
        return self

    def merged(self, other: Digest) -> Digest:
        """Return the digest of the values of both."""
        both = self._copy()
        both.digest.merge(other.digest)
        both.digest.compress()
        for number in other.waiting:
            both.add(number)
        return both

    def quantiles(self, ranks: Sequence[float]) -> list[float]:
        """Estimate the values at ``ranks``, from 0 to 1."""
        whole = self._copy()
        whole._enter()
        return [whole.digest.get_quantile(rank) for rank in ranks]

    def _enter(self) -> None:
        for number in self.waiting:
            self.digest.update(number)
        self.digest.compress()
        self.waiting.clear()

    def _copy(self) -> Digest:
        digest = _library().tdigest_double.deserialize(self.digest.serialize())
        return Digest(digest, list(self.waiting))


def approx_distinct(selector: Selector | None, precision: int, reads: tuple[str, ...]) -> Aggregate:
    """Make what ``agg.approx_distinct`` returns."""
    library = _library()
    if type(precision) is not int or not 7 <= precision <= 21:
        raise TopologyError(f"precision of agg.approx_distinct must be a whole number from 7 to 21, not {precision!r}")
    get = getter(selector)
    empty: Callable[[], Any] = lambda: library.hll_sketch(precision, library.tgt_hll_type.HLL_4)  # noqa: E731
    return Aggregate(
        f"approx_distinct {precision}",
        lambda value: sketch_key(get(value)),
        lambda x, t: Distinct(empty()).add(x),
        lambda a, x, t: a.add(x),
        lambda a, b: a.merged(b),
        lambda a: a.estimate(),
        kind=Distinct,
        in_place=True,
        empty=0,
        reads=reads,
    )


def quantile(selector: Selector, q: float | Sequence[float], compression: int, reads: tuple[str, ...]) -> Aggregate:
    """Make what ``agg.quantile`` returns."""
    library = _library()
    one = isinstance(q, int | float)
    ranks = [q] if isinstance(q, int | float) else list(q)
    if not ranks or not all(type(rank) in (int, float) and 0 <= rank <= 1 for rank in ranks):
        raise TopologyError(f"q of agg.quantile must be a number from 0 to 1, or several, not {q!r}")
    if type(compression) is not int or not 10 <= compression <= 10_000:
        raise TopologyError(f"compression of agg.quantile must be a whole number from 10 to 10000, not {compression!r}")
    get = getter(selector)
    return Aggregate(
        f"quantile {compression}",
        lambda value: _number(get(value)),
        lambda x, t: Digest(library.tdigest_double(compression), [x]),
        lambda a, x, t: a.add(x),
        lambda a, b: a.merged(b),
        (lambda a: a.quantiles(ranks)[0]) if one else lambda a: a.quantiles(ranks),
        kind=Digest,
        in_place=True,
        reads=reads,
    )


def sketch_key(value: Any) -> Any:
    """Return a number or text that stands for ``value``, the same in every process; equal for equal values.

    Example:
        >>> sketch_key("a"), sketch_key(2.0), sketch_key(b"a")
        ('a', 2, '\\x00ba')
    """
    key = distinct_key(value)
    kind = type(key)
    if kind is str:
        return key or "\0"  # the library takes no notice of empty text
    if kind is bytes:
        return "\0" + key.decode("latin-1")
    if kind is float or (kind is int and -_LIMIT <= key < _LIMIT):
        return key
    return f"\0{kind.__name__}{key}" if kind is int or key is None else int(key)


def _number(value: Any) -> float:
    number = float(value) if type(value) in (float, int, bool) else msgspec.convert(value, float)
    if number != number:  # noqa: PLR0124  # NaN
        raise ValueError("agg.quantile takes numbers, and NaN has no rank among them")
    return number


def _union(one: Any, other: Any) -> Any:
    library = _library()
    union = library.hll_union(max(one.lg_config_k, other.lg_config_k))
    union.update(one)
    union.update(other)
    return union.get_result(library.tgt_hll_type.HLL_4)


def _sealed(data: bytes) -> bytes:
    return _HEADER.pack(_VERSION, google_crc32c.value(data)) + data


def _opened(data: bytes) -> bytes:
    version = data[0] if data else "none"
    if version == 1:
        return data[1:]
    if version != _VERSION:
        raise ValueError(f"a sketch of version {version}, of which this version knows nothing")
    if len(data) < _HEADER.size or _HEADER.unpack_from(data)[1] != google_crc32c.value(data[_HEADER.size :]):
        raise ValueError("a sketch fails its checksum")
    return data[_HEADER.size :]


def _library() -> Any:
    try:
        import datasketches
    except ImportError as error:
        raise TopologyError("sketches need datasketches", remedy='Run: pip install "headrace[sketches]"') from error
    return datasketches
