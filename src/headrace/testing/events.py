"""``Event``: a record that a test sends or expects."""

from __future__ import annotations

from typing import Any, NamedTuple


class Event(NamedTuple):
    """A record to send, as ``TopologyTestDriver.send`` takes it after the topic.

    Example:
        >>> Event({"page": "/"}, "/", 1_000).timestamp
        1000
    """

    value: Any
    key: Any = None
    timestamp: int = 0
