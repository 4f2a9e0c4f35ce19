"""What a task counts, until somebody takes the counts."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from headrace.record import TopicPartition


@dataclass(slots=True)
class Tally:
    """What happened since somebody last took the tally."""

    records_in: Counter[TopicPartition] = field(default_factory=Counter)
    """By input."""
    records_out: Counter[str] = field(default_factory=Counter)
    """By topic."""
    sent: Counter[str] = field(default_factory=Counter)
    """By the step that wrote them."""
    late: Counter[str] = field(default_factory=Counter)
    """By step."""
    errors: Counter[str] = field(default_factory=Counter)
    """By step; only those that were skipped."""
    dead_letters: Counter[str] = field(default_factory=Counter)
    """By the step that failed on them."""
    retries: Counter[str] = field(default_factory=Counter)
    """Calls that were made again, by step."""
    repeats: int = 0
    """Records of internal topics that were there before."""

    def left(self, topic: str, step: str, count: int) -> None:
        """Count records that a step sends to a topic."""
        self.records_out[topic] += count
        self.sent[step] += count
