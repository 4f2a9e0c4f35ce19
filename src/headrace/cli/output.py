"""Tables, numbers and live lines on the terminal, and their plain forms everywhere else."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from headrace.clock import Clock

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_REFRESH_MS = 100
_AGES = ((86_400, "d"), (3600, "h"), (60, "m"), (1, "s"))


def show_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = ()) -> None:
    """Print a table: with rich on a terminal, as aligned text otherwise.

    Args:
        title: Stands above it.
        columns: Headings.
        rows: As many texts each as there are columns.
        right: Headings of the columns that are aligned to the right.
    """
    if not sys.stdout.isatty():
        print(plain_table(title, columns, rows, right=right))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title or None, title_justify="left", title_style="bold", header_style="bold cyan")
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    Console().print(table)


def plain_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = ()) -> str:
    """Return a table as text, its columns aligned.

    Example:
        >>> print(plain_table("topics", ["name", "records"], [["payments", "1,000"]], right=["records"]))
        topics
        name      records
        payments    1,000
    """
    lines = [list(columns), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    told = [
        "  ".join(
            text.rjust(width) if column in right else text.ljust(width)
            for text, width, column in zip(line, widths, columns, strict=True)
        ).rstrip()
        for line in lines
    ]
    return "\n".join([title, *told] if title else told)


def show_json(value: Any) -> None:
    """Print ``value`` as indented JSON."""
    print(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def note(text: str) -> None:
    """Print a line for people on standard error."""
    print(text, file=sys.stderr, flush=True)


def duration(elapsed_ms: int) -> str:
    """Return an elapsed time for people.

    Example:
        >>> duration(80), duration(3149), duration(83_000)
        ('0.1 s', '3.1 s', '1:23 min')
    """
    if elapsed_ms < 60_000:
        return f"{max(elapsed_ms, 1) / 1000:.1f} s"
    minutes, seconds = divmod(elapsed_ms // 1000, 60)
    return f"{minutes}:{seconds:02d} min"


def rate(records: int, elapsed_ms: int) -> str:
    """Return records per second for people.

    Example:
        >>> rate(1_000_000, 4000)
        '250,000 records/s'
    """
    return f"{records * 1000 // max(1, elapsed_ms):,} records/s"


def age(elapsed_ms: int) -> str:
    """Return how long ago something was, in the largest unit that fits.

    Example:
        >>> age(400), age(90_000), age(200_000_000)
        ('0 s', '1 m', '2 d')
    """
    seconds = max(0, elapsed_ms) // 1000
    for size, unit in _AGES:
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return "0 s"


def size(count: int) -> str:
    """Return a number of bytes for people.

    Example:
        >>> size(512), size(3_500_000)
        ('512 B', '3.3 MB')
    """
    amount = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TB"


def moment(time_ms: int | None) -> str:
    """Return a time in UTC for people.

    Example:
        >>> moment(1_700_000_000_000), moment(None)
        ('2023-11-14 22:13:20Z', '-')
    """
    if time_ms is None:
        return "-"
    try:
        return f"{_EPOCH + timedelta(milliseconds=time_ms):%Y-%m-%d %H:%M:%SZ}"
    except OverflowError:
        return f"{time_ms} ms"


class LiveLine:
    """One line on standard error that is written over again and again; silent where that is no terminal."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._terminal = sys.stderr.isatty()
        self._shown_ms: int | None = None

    def show(self, text: str) -> None:
        """Replace the line, unless it was replaced a moment ago."""
        if not self._terminal:
            return
        now_ms = self._clock.monotonic_ms()
        if self._shown_ms is not None and now_ms - self._shown_ms < _REFRESH_MS:
            return
        self._shown_ms = now_ms
        sys.stderr.write(f"\r\x1b[2K{text[: _columns() - 1]}")
        sys.stderr.flush()

    def clear(self) -> None:
        """Remove the line."""
        if self._shown_ms is not None:
            sys.stderr.write("\r\x1b[2K")
            sys.stderr.flush()
            self._shown_ms = None


def _columns() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except (OSError, ValueError):
        return 80
