"""What times and counts in stored rows may be, so that a row that makes no sense is found when it is read."""

from __future__ import annotations

from typing import Annotated

import msgspec

from headrace.errors import CorruptError

Time = Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]
"""An event time in a row; none comes before 1970."""

Count = Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]
"""A number of records or windows in a row."""


def check_order(times: list[int]) -> None:
    """Refuse times of a row that do not stand in order, or are none.

    Raises:
        CorruptError: they do not.

    Example:
        >>> check_order([1, 2, 2])
    """
    if not times:
        raise CorruptError("a row holds nothing")
    if sorted(times) != times:
        raise CorruptError("the times of a row are out of order")
