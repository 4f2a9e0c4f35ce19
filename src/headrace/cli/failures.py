"""What a person sees when something goes wrong, and the exit code that goes with it."""

from __future__ import annotations

import importlib
import os
import sys
import textwrap
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from headrace.errors import HeadraceError, InvalidError, RecordError

if TYPE_CHECKING:
    from headrace.dsl.builder import Topology

FAILED = 1
"""Exit code: it failed while it ran."""
WRONG_USE = 2
"""Exit code: a person must change the command, the settings or the topology."""
INTERRUPTED = 130
"""Exit code: Ctrl-C, as shells count it."""

_PACKAGE = Path(__file__).parents[1]
_DEMO = _PACKAGE / "demo"
_WIDTH = 100


def exit_code(error: HeadraceError, *, running: bool = False) -> int:
    """Return the exit code of an error.

    Args:
        error: What was raised.
        running: True if the work had begun, so that the command itself was not wrong.

    Example:
        >>> exit_code(InvalidError("no")), exit_code(RecordError("no")), exit_code(HeadraceError("no"))
        (2, 1, 1)
    """
    wrong_use = isinstance(error, InvalidError) and not isinstance(error, RecordError) and not running
    return WRONG_USE if wrong_use else FAILED


def show_error(error: HeadraceError) -> None:
    """Print one paragraph on standard error, below the user's own part of the traceback if there is one."""
    notes = getattr(error, "__notes__", [])
    if not notes and isinstance(error, RecordError) and error.__cause__ is not None:
        notes = user_frames(error.__cause__)
    width = _WIDTH if sys.stderr.isatty() else None
    sys.stderr.write("".join(f"{note}\n" for note in notes) + paragraph(error, width))
    sys.stderr.flush()


def paragraph(error: HeadraceError, width: int | None = None) -> str:
    """Return the message and the remedy as a paragraph.

    Args:
        error: What was raised.
        width: Wraps what is longer; None keeps one line, which is what logs want.

    Example:
        >>> print(paragraph(InvalidError("there is no topic payments", remedy="Create it")), end="")
        error: there is no topic payments. Create it.
    """
    text = f"error: {error}"
    if not text.endswith((".", "!", "?")):
        text += "."
    if width is not None:
        # A message may list faults line by line.
        text = "\n".join(
            textwrap.fill(line, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
            for line in text.splitlines()
        )
    return f"{text}\n"


def user_frames(error: BaseException) -> list[str]:
    """Return the traceback of ``error`` without the frames of headrace, as one text; none if no frame is left.

    What the exception itself says is left out: it may hold data.
    """
    kept = [frame for frame in traceback.extract_tb(error.__traceback__) if not _is_own(frame.filename)]
    if not kept:
        return []
    frames = "".join(traceback.format_list(kept))
    return [f"Traceback (most recent call last):\n{frames}{type(error).__name__}"]


def load(spec: str) -> Topology:
    """Return the topology that ``module[:name]`` means; what the module itself raises is shown as the user's own.

    Raises:
        HeadraceError: there is none.
        Exit: the module cannot be imported.
    """
    from headrace.app import load_topology

    try:
        return load_topology(spec)
    except HeadraceError as error:
        _name_line(error)
        raise
    except Exception as error:  # noqa: BLE001  # a module may raise anything
        told = traceback.TracebackException.from_exception(error)
        told.stack = traceback.StackSummary.from_list(
            [frame for frame in told.stack if not _is_own(frame.filename) and not _is_import(frame.filename)]
        )
        sys.stderr.write("".join(told.format()))
        sys.stderr.write(f"error: the module {spec.partition(':')[0]!r} cannot be imported, see above.\n")
        raise typer.Exit(FAILED) from None


def _name_line(error: HeadraceError) -> None:
    """Show above the message the user's line that it is about, unless the message names one."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not _is_own(f.filename)]
    users = [frame for frame in frames if not _is_import(frame.filename) and frame.line]
    if users and f"{users[-1].filename}:{users[-1].lineno}" not in str(error):
        error.add_note("".join(traceback.format_list(users[-1:])).rstrip("\n"))


def close_standard_output() -> None:
    """Point standard output at nothing, so that the interpreter does not complain about a closed pipe when it exits."""
    try:
        descriptor = sys.stdout.fileno()
    except (AttributeError, OSError, ValueError):
        return
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, descriptor)
    os.close(nothing)


def _is_import(filename: str) -> bool:
    return filename.startswith("<frozen importlib") or filename == importlib.__file__


def _is_own(filename: str) -> bool:
    """Return whether code is headrace's own: in its folder, or generated by it."""
    path = Path(filename)
    return filename.startswith("<headrace") or (path.is_relative_to(_PACKAGE) and not path.is_relative_to(_DEMO))
