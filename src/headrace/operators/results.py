"""Making window results of accumulators, when user code may fail on any of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from headrace.operators.api import EMIT_RECORDS, MAIN, Batch, Outputs, RecordsFailedError
from headrace.operators.compiled import Accumulators, Compiled
from headrace.operators.windows import Window

DecodeKeys = Callable[[Sequence[bytes]], list[Any]]

Failures = list[tuple[int, Exception]]
"""Place in the batch, -1 for what time made, and what was raised."""

Row = tuple[Window, bytes, Accumulators]
"""One window of one key."""


class Results:
    """Makes the results that leave when a window closes, or in between.

    Args:
        compiled: The aggregates that stand in the results.
        decode_keys: Gives the keys that stand in them.
    """

    def __init__(self, compiled: Compiled, decode_keys: DecodeKeys) -> None:
        self._compiled = compiled
        self._decode_keys = decode_keys

    def of_window(
        self, window: Window, keys: Sequence[bytes], rows: Sequence[Accumulators], timestamp: int, failures: Failures
    ) -> Batch:
        """Return the results of one window; those on which user code fails are left out and listed in ``failures``."""
        end, start = window
        try:
            values = self._compiled.results(self._decode_keys(keys), rows, start, end)
        except Exception:  # noqa: BLE001  # a user's aggregate may raise anything
            parts = [self._one((window, key, row), failures) for key, row in zip(keys, rows, strict=True)]
            keys = [key for key, part in zip(keys, parts, strict=True) if part is not None]
            values = [part for part in parts if part is not None]
        return Batch([-1] * len(keys), [timestamp] * len(keys), keys, values)

    def of_rows(self, rows: Sequence[Row], timestamp: int | None, failures: Failures) -> Batch:
        """Return the results of several windows, as ``of_window`` does; each at its window's last time if not told."""
        keys = [key for _, key, _ in rows]
        values: list[Any]
        try:
            decoded, of = self._decode_keys(keys), self._compiled.results
            values = [of([key], [row], w[1], w[0])[0] for key, (w, _, row) in zip(decoded, rows, strict=True)]
        except Exception:  # noqa: BLE001  # a user's aggregate may raise anything
            parts = [self._one(row, failures) for row in rows]
            rows = [row for row, part in zip(rows, parts, strict=True) if part is not None]
            keys = [key for _, key, _ in rows]
            values = [part for part in parts if part is not None]
        stamps = [window[0] - 1 for window, _, _ in rows] if timestamp is None else [timestamp] * len(rows)
        return Batch([-1] * len(rows), stamps, keys, values)

    def in_batches(self, rows: Sequence[Row], failures: Failures) -> list[Batch]:
        """Return the results of windows that closed, in batches of a size that is good to go on with."""
        parts = (rows[start : start + EMIT_RECORDS] for start in range(0, len(rows), EMIT_RECORDS))
        return [self.of_rows(part, None, failures) for part in parts]

    def of_record(self, window: Window, key: bytes, row: Accumulators) -> dict[str, Any]:
        """Return one result.

        Raises:
            Exception: user code failed.
        """
        return self._compiled.results(self._decode_keys([key]), [row], window[1], window[0])[0]

    def _one(self, row: Row, failures: Failures) -> dict[str, Any] | None:
        try:
            return self.of_record(*row)
        except Exception as error:  # noqa: BLE001  # a user's aggregate may raise anything
            failures.append((-1, error))
            return None


def leave(batches: Sequence[Batch], failures: Failures) -> Outputs:
    """Return the results as outputs.

    Raises:
        RecordsFailedError: user code failed on some.
    """
    outputs: Outputs = [(MAIN, batch) for batch in batches if len(batch)]
    if failures:
        raise RecordsFailedError(failures, outputs)
    return outputs
