"""What is done with a call that failed: made again a few times, a little later each time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FinalPolicy = Literal["stop", "skip", "dead-letter"]
"""What becomes of a record that cannot be decoded or processed, when nothing is tried any more."""


@dataclass(frozen=True, slots=True)
class Retry:
    """How often and when a call that failed is made again; made by ``headrace.retry``."""

    attempts: int
    """Calls in all, the first among them."""
    backoff_ms: int
    max_backoff_ms: int
    on: tuple[type[Exception], ...]
    """What must have been raised."""
    then: FinalPolicy | None = None
    """What becomes of the record after the last call; None for what counts where no policy is given."""

    def again(self, error: Exception, tries: int) -> int | None:
        """Return how many milliseconds after the failed call number ``tries`` the next one is made; None if none is.

        Example:
            >>> policy = Retry(4, 100, 300, (OSError,))
            >>> [policy.again(OSError(), tries) for tries in (1, 2, 3, 4)], policy.again(KeyError(), 1)
            ([100, 200, 300, None], None)
        """
        if tries >= self.attempts or not isinstance(error, self.on):
            return None
        return min(self.backoff_ms << min(tries - 1, 62), self.max_backoff_ms)


ErrorPolicy = FinalPolicy | Retry
"""What happens with a record that cannot be decoded or processed."""


def final_policy(policy: ErrorPolicy) -> FinalPolicy:
    """Return what becomes of a record once no call is made again.

    Example:
        >>> final_policy("skip"), final_policy(Retry(3, 100, 100, (Exception,), "dead-letter"))
        ('skip', 'dead-letter')
    """
    if isinstance(policy, Retry):
        return policy.then or "stop"
    return policy
