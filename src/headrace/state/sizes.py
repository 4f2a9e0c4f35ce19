"""How much memory Python objects take, about."""

from __future__ import annotations

import sys
from typing import Any


def deep_size(value: Any, sample: int, depth: int = 3) -> int:
    """Return about how many bytes a value takes with its parts.

    Args:
        value: Any object.
        sample: How many parts of a long collection are measured.
        depth: How far down parts are looked at.
    """
    size = sys.getsizeof(value)
    if depth == 0 or isinstance(value, (bytes, str, int, float)):
        return size
    if isinstance(value, dict):
        parts: list[Any] = [*value.keys(), *value.values()]
    elif isinstance(value, (list, tuple, set, frozenset)):
        parts = list(value)
    else:
        names = getattr(value, "__slots__", None) or getattr(value, "__dict__", {})
        parts = [getattr(value, name, None) for name in ([names] if isinstance(names, str) else names)]
    if len(parts) > 4 * sample:
        # Long collections are measured by their first parts.
        return size + len(parts) * sum(deep_size(part, sample, depth - 1) for part in parts[:sample]) // sample
    return size + sum(deep_size(part, sample, depth - 1) for part in parts)
