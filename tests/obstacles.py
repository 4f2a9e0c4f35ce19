"""What stands in the way of workers, for as long as a test says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def file_in_place_of(directory: Path) -> Iterator[None]:
    """Put a file where a directory is, and bring that back in the end."""
    hidden = directory.with_name("hidden")
    directory.rename(hidden)
    directory.write_text("a file stands here")
    try:
        yield
    finally:
        directory.unlink()
        hidden.rename(directory)
