"""What a test has planned to happen between two steps of its tasks. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from headrace.errors import SettingsError


class Interruption(NamedTuple):
    """What happens after a step."""

    checkpoint: bool
    lost: list[str]
    """The tasks that are lost, without repetition."""


class Interruptions:
    """Counts steps, and knows after which of them something happens."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        """The task that made each step, in order."""
        self.losses = 0
        """How often tasks were lost."""
        self._crashes: list[tuple[int, list[str]]] = []
        self._every = 0

    def crash_after(self, steps: int, tasks: Sequence[str]) -> None:
        """Plan the loss of ``tasks`` after so many further steps.

        Raises:
            SettingsError: ``steps`` is less than one.
        """
        if steps < 1:
            raise SettingsError(f"a crash comes after at least one step, not after {steps}")
        self._crashes.append((len(self.steps) + steps, list(tasks)))

    def checkpoint_every(self, steps: int) -> None:
        """Plan checkpoints after every so many steps; after none if 0.

        Raises:
            SettingsError: ``steps`` is negative.
        """
        if steps < 0:
            raise SettingsError(f"steps between checkpoints cannot be {steps}")
        self._every = steps

    def stepped(self, task: str) -> Interruption:
        """Count a step of ``task`` and return what happens after it."""
        self.steps.append(task)
        made = len(self.steps)
        lost = [name for place, names in self._crashes if place == made for name in names]
        self._crashes = [(place, names) for place, names in self._crashes if place > made]
        self.losses += bool(lost)
        return Interruption(bool(self._every) and made % self._every == 0, list(dict.fromkeys(lost)))
