"""Which brokers do not answer, and since when; each change is said once."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable

_log = logging.getLogger("headrace")


class Silence:
    """What is known of brokers that are asked all the time; belongs to the client's thread. Times in seconds."""

    def __init__(self) -> None:
        self._heard: dict[int, float] = {}
        """When each broker answered last, or was asked first."""
        self._silent: dict[int, float] = {}
        """Since when those do not answer that do not."""

    def heard(self, node: int, now: float) -> None:
        """Take note of an answer."""
        self._heard[node] = now
        since = self._silent.pop(node, None)
        if since is not None:
            _log.warning("Kafka's broker %d answers again, after %.0f s", node, now - since)

    def missed(self, node: int, place: str, why: str, now: float) -> None:
        """Take note of an answer that did not come.

        Args:
            node: The broker.
            place: Where it should be.
            why: What happened instead.
            now: The time.
        """
        if node in self._silent:
            return
        since = self._silent[node] = self._heard.setdefault(node, now)
        _log.warning(
            "Kafka's broker %d at %s has not answered for %.1f s and is asked again and again: %s",
            node, place, now - since, why,
        )  # fmt: skip

    def was_heard(self, node: int, since: float) -> bool:
        """Return whether a broker has answered anything since then."""
        return self._heard.get(node, since) > since

    def there(self, nodes: Collection[int]) -> None:
        """Take note of which brokers the cluster has."""
        for node in [node for node in self._silent if node not in nodes]:
            del self._silent[node]
            _log.warning("the cluster goes on without Kafka's broker %d: others lead what it led", node)

    def order(self, nodes: Iterable[int]) -> list[int]:
        """Return brokers, those that do not answer last."""
        return sorted(nodes, key=lambda node: node in self._silent)
