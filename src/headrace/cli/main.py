"""The command ``headrace``."""

from __future__ import annotations

import faulthandler
import os
import sys
from contextlib import suppress
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from headrace.cli import checkpoints_group
from headrace.cli.consume import consume
from headrace.cli.dead_letter import commands as dead_letter_commands
from headrace.cli.demo import demo
from headrace.cli.describe import describe
from headrace.cli.failures import INTERRUPTED, close_standard_output, exit_code, show_error
from headrace.cli.plan import plan
from headrace.cli.produce import produce
from headrace.cli.rescale import rescale
from headrace.cli.run import run
from headrace.cli.simulate import simulate
from headrace.cli.topics import groups, topics
from headrace.errors import HeadraceError


class Commands(TyperGroup):
    """The commands, and what becomes of the errors that they raise."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command and turn errors into a paragraph and an exit code."""
        try:
            return super().invoke(ctx)
        except HeadraceError as error:
            show_error(error)
            raise typer.Exit(exit_code(error)) from None
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            # Whoever read this, such as head, has seen enough.
            close_standard_output()
            raise typer.Exit(0) from None


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"headrace {version('headrace')}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Stateful stream processing in plain Python, over a partitioned log.

    \b
    headrace demo                                   see it work, in a minute
    headrace produce payments --key customer_id < payments.ndjson
    headrace run topologies.card_spend --until-end  process what is there
    headrace consume spend-per-minute --limit 5     look at the results

    Every option that is about a worker is an environment variable too, such as HEADRACE_LOG.
    """


def _dead_letter() -> None:
    """List, show and replay the records that failed.

    They are those of steps with on_error="dead-letter", in the topic TOPOLOGY-dead-letter.

    \b
    headrace dead-letter list card-spend
    headrace dead-letter show card-spend
    headrace dead-letter replay card-spend
    """


def _build() -> typer.Typer:
    built = typer.Typer(
        cls=Commands, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )  # fmt: skip
    built.callback()(_root)
    for command in (demo, run, simulate, plan, rescale, describe, produce, consume, topics, groups):
        built.command()(command)
    checkpoints = typer.Typer(
        cls=checkpoints_group.ListsByDefault, rich_markup_mode=None, pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )  # fmt: skip
    checkpoints.callback()(checkpoints_group.about)
    for name, command in checkpoints_group.commands():
        checkpoints.command(name)(command)
    built.add_typer(checkpoints, name="checkpoints")
    letters = typer.Typer(
        no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )  # fmt: skip
    letters.callback()(_dead_letter)
    for name, command in dead_letter_commands():
        letters.command(name)(command)
    built.add_typer(letters, name="dead-letter")
    return built


app = _build()
"""The commands, as a Typer application."""


def main() -> None:
    """Run the command line."""
    # If native code crashes, the stack at least says where; also in workers, which are processes of their own.
    os.environ.setdefault("PYTHONFAULTHANDLER", "1")
    with suppress(OSError, ValueError, AttributeError, RuntimeError):  # there is no such standard error
        faulthandler.enable()
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    finally:
        _flush_standard_output()


def _flush_standard_output() -> None:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        close_standard_output()
