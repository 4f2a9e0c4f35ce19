"""Turning stored rows into values: whatever goes wrong there is damage, and never the fault of a record."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from headrace.errors import CorruptError, FatalError, HeadraceError

V = TypeVar("V")

REMEDY = (
    "Take back what was changed in how these values are read, if anything was; otherwise restore the checkpoints from "
    "a backup, or begin anew with others (--checkpoints)"
)


def checked(decode_many: Callable[[list[bytes]], list[V]], part: Callable[[], str]) -> Callable[[list[bytes]], list[V]]:
    """Return ``decode_many`` so that it raises nothing that could be taken for an error of user code.

    Args:
        decode_many: Decodes rows.
        part: Names the part of the state that they are of, once that is needed.

    Raises:
        CorruptError: by what is returned: a row makes no sense. The message holds nothing of it.
        FatalError: by what is returned: there is no memory left.
    """

    def decode(rows: list[bytes]) -> list[V]:
        try:
            values = decode_many(rows)
        except CorruptError as error:
            raise unreadable(part(), error.message) from error
        except HeadraceError:
            raise  # a migration of the user's, say
        except MemoryError as error:
            raise FatalError(
                f"no memory is left for rows of {part()}", remedy="Give the worker more memory, or fewer tasks"
            ) from error
        except Exception as error:  # a decoder may raise anything, and a class of the user's say anything
            told = f": {error}" if type(error).__module__ == "msgspec" else ""
            raise unreadable(part(), f"{type(error).__name__}{told}") from error
        if len(values) != len(rows):
            raise unreadable(part(), f"{len(rows)} rows hold {len(values)} values")
        return values

    return decode


@contextmanager
def reading_keys(part: Callable[[], str]) -> Iterator[None]:
    """Name the part of the state in what ``state.keys`` finds wrong with the keys of its rows.

    Raises:
        CorruptError: a key makes no sense.
    """
    try:
        yield
    except CorruptError as error:
        raise unreadable(part(), error.message) from error


def unreadable(part: str, why: str) -> CorruptError:
    """Say that rows of a part of the state make no sense."""
    return CorruptError(f"the stored state of {part} cannot be read: {why}", remedy=REMEDY)
