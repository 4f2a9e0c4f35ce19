"""What operators that never wait for time have in common."""

from __future__ import annotations

from headrace.operators.api import Outputs


class UntimedOperator:
    """The part of an operator that time makes do nothing: whatever follows from a record leaves at once."""

    def on_watermark(self, watermark: int) -> Outputs:
        """Return nothing: there is nothing to close."""
        return []

    def output_watermark(self, watermark: int) -> int:
        """Return the watermark: results come at once."""
        return watermark

    def next_close(self) -> int | None:
        """Return None: nothing is ever open."""
        return None

    def close_at_end(self) -> int | None:
        """Return None: nothing is ever open."""
        return None
