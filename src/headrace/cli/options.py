"""The options that commands share, and the settings that they make."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headrace.cli.output import note
from headrace.clock import Clock
from headrace.errors import NotFoundError, SettingsError
from headrace.settings import Settings, duration_ms, size_bytes, variable_of

if TYPE_CHECKING:
    from headrace.log.api import Log

_DEFAULTS = {field.name: field.default for field in dataclasses.fields(Settings)}


class ValueSerde(StrEnum):
    """How values are written in the log."""

    MSGPACK = "msgpack"
    JSON = "json"
    STR = "str"
    BYTES = "bytes"


class KeySerde(StrEnum):
    """How keys are written in the log."""

    STR = "str"
    INT = "int"
    BYTES = "bytes"


class Fsync(StrEnum):
    """When the embedded log forces bytes to the disk."""

    CHECKPOINT = "checkpoint"
    ALWAYS = "always"
    NEVER = "never"


class Guarantee(StrEnum):
    """What holds of outputs that a replay after a crash may not repeat."""

    AT_LEAST_ONCE = "at-least-once"
    EXACTLY_ONCE = "exactly-once"


class LostRecords(StrEnum):
    """What a task does whose next records are gone."""

    STOP = "stop"
    SKIP = "skip"


def option_of(field_name: str) -> str:
    """Return the option of a setting.

    Example:
        >>> option_of("checkpoint_interval_ms")
        '--checkpoint-interval'
    """
    return "--" + field_name.removesuffix("_ms").removesuffix("_bytes").replace("_", "-")


def _setting(field_name: str, text: str, metavar: str | None = None) -> Any:
    option = option_of(field_name)
    flag = isinstance(_DEFAULTS[field_name], bool)
    told = f"{text}. [{variable_of(field_name)}{_told_default(field_name)}]"
    return typer.Option(
        f"{option}/--no-{option[2:]}" if flag else option, help=told, metavar=metavar, show_default=False
    )


def _told_default(field_name: str) -> str:
    default: Any = _DEFAULTS[field_name]
    if isinstance(default, bool) or default == "" or (field_name == "metrics_port" and default < 0):
        return ""
    if field_name.endswith("_ms"):
        return f"; default {default // 1000}s"
    if field_name.endswith("_bytes"):
        return f"; default {default // 1024**2}MB"
    return f"; default {default}"


LogOption = Annotated[str | None, _setting("log", "The log: a directory", "URL")]
CheckpointsOption = Annotated[
    str | None, _setting("checkpoints", "Where checkpoints are: a directory or s3://bucket/prefix", "URL")
]
StateDirOption = Annotated[
    str | None, _setting("state_dir", "Where running tasks keep their state; it may be lost at any time", "DIR")
]
GroupOption = Annotated[str | None, _setting("group", "The consumer group; else the topology's name", "NAME")]
WorkersOption = Annotated[int | None, _setting("workers", "Processes that share the work on this machine", "N")]
MetricsHostOption = Annotated[str | None, _setting("metrics_host", "Address of /metrics, /live and /ready", "ADDRESS")]
MetricsPortOption = Annotated[
    int | None,
    _setting("metrics_port", "Their port: 0 for none, -1 for 9464 or, if that is taken, any free one", "PORT"),
]
UntilEndOption = Annotated[
    bool | None, _setting("until_end", "Stop at the end that the sources have now, after closing every window")
]
CheckpointIntervalOption = Annotated[
    str | None, _setting("checkpoint_interval_ms", "Time between two checkpoints of a task", "DURATION")
]
SessionTimeoutOption = Annotated[
    str | None, _setting("session_timeout_ms", "A worker silent for this long loses its tasks", "DURATION")
]
HeartbeatIntervalOption = Annotated[
    str | None, _setting("heartbeat_interval_ms", "How often a worker says that it lives", "DURATION")
]
DrainTimeoutOption = Annotated[
    str | None, _setting("drain_timeout_ms", "Time for the last checkpoints when told to stop", "DURATION")
]
HandoffTimeoutOption = Annotated[
    str | None,
    _setting(
        "handoff_timeout_ms",
        "How long a task that is to move runs on where it is, until its next worker has a copy of its state; 0s moves "
        "it at once",
        "DURATION",
    ),
]
StandbyCopiesOption = Annotated[
    int | None,
    _setting(
        "standby_copies",
        "How many other workers keep a copy of each task's last checkpoint on their own disk, so that they take over "
        "quickly when its worker dies",
        "N",
    ),
]
CacheOption = Annotated[str | None, _setting("cache_bytes", "Memory for the write-behind caches of a worker", "SIZE")]
BlockCacheOption = Annotated[
    str | None, _setting("block_cache_bytes", "Memory for RocksDB's blocks and buffers of a worker", "SIZE")
]
BatchRecordsOption = Annotated[int | None, _setting("batch_records", "The most records in one step of a task", "N")]
SlowStepOption = Annotated[
    str | None,
    _setting(
        "slow_step_ms",
        "A step that takes longer for a batch is reported, with the place in the code; 0s for never",
        "DURATION",
    ),
]
StepTimeoutOption = Annotated[
    str | None,
    _setting(
        "step_timeout_ms",
        "A worker with a step that takes longer for a batch ends with an error, and its tasks go to others; 0s for "
        "never",
        "DURATION",
    ),
]
RepartitionPartitionsOption = Annotated[
    int | None,
    _setting("repartition_partitions", "Partitions of new internal topics; 0 for as many as the widest source", "N"),
]
FsyncOption = Annotated[
    Fsync | None, _setting("fsync", "When the embedded log forces bytes to the disk", "checkpoint|always|never")
]
LostRecordsOption = Annotated[
    LostRecords | None,
    _setting(
        "lost_records",
        "What to do if retention deleted records before a task has read them: stop with an error, or skip them, count "
        "them in headrace_records_lost_total and go on",
        "stop|skip",
    ),
]
UnsavedLimitOption = Annotated[
    str | None,
    _setting(
        "unsaved_limit_ms",
        "A task takes no more records while no checkpoint has held what it did for this long, so that a crash has no "
        "more than that to do again; 0s for no limit",
        "DURATION",
    ),
]
AllowResetOption = Annotated[
    list[str] | None,
    _setting(
        "allow_reset",
        "Steps whose state may be lost, because they were removed, renamed or changed in a way that it cannot follow: "
        "they begin empty. `headrace plan` names them",
        "STEP,...",
    ),
]
GuaranteeOption = Annotated[
    Guarantee | None,
    _setting(
        "guarantee",
        "What holds of outputs that a replay after a crash may not repeat, such as those of map_async: at-least-once "
        "lets them leave at once; exactly-once with the checkpoint that contains them, up to --checkpoint-interval "
        "later. `headrace describe` names them",
        "at-least-once|exactly-once",
    ),
]
TransactionsOption = Annotated[
    bool | None,
    _setting(
        "transactions",
        "Outputs leave in transactions, on Kafka and with --guarantee exactly-once: who reads only what is committed "
        "(isolation.level=read_committed) sees each once, up to --checkpoint-interval later",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]


def load_settings(**given: Any) -> Settings:
    """Make settings from options, the environment and defaults.

    Args:
        given: What was given on the command line by the name of the setting; None where it was not. Durations and
            sizes are still text.

    Raises:
        SettingsError: a value cannot be used; the message names the option or the variable.
    """
    values = {name: value for name, value in given.items() if value is not None and value != []}
    for name, value in values.items():
        if name.endswith("_ms"):
            values[name] = duration_ms(value, option_of(name))
        elif name.endswith("_bytes"):
            values[name] = size_bytes(value, option_of(name))
        elif isinstance(value, list):
            values[name] = ",".join(value)
        elif isinstance(value, StrEnum):
            values[name] = str(value)
    return Settings.load(os.environ, **values)


def note_unknown_variables() -> None:
    """Say which ``HEADRACE_*`` variables of the environment are no settings: their names may be misspelt."""
    from headrace.log.kafka.options import KafkaOptions

    known = [*(variable_of(name) for name in _DEFAULTS), *KafkaOptions.variables()]
    for name in sorted(name for name in os.environ if name.startswith("HEADRACE_") and name not in known):
        meant = "".join(f"; is {other} meant?" for other in get_close_matches(name, known, n=1))
        note(f"note: the variable {name} is no setting and was passed over{meant}")


@contextmanager
def opened_log(settings: Settings, clock: Clock, *, existing: bool = True) -> Iterator[Log]:
    """Open the log that the settings name, and close it.

    Args:
        settings: Say where it is.
        clock: For the log.
        existing: Refuse a directory that holds no log instead of making one there.

    Raises:
        NotFoundError: there is no log.
        SettingsError: the log would live in this process alone.
    """
    if settings.log == "memory://":
        raise SettingsError(
            "memory:// is a log that lives and dies with one process, so this command would find it empty",
            remedy="Give a directory with --log or HEADRACE_LOG",
        )
    if existing and not log_exists(settings):
        raise NotFoundError(
            f"there is no log in {settings.log}",
            remedy="Fill one with `headrace produce` or `headrace demo --dir DIR`, or give another with --log or "
            "HEADRACE_LOG",
        )
    from headrace.log.opening import open_log

    # A command is no worker: under the instance id of one it would drive that one out of its group.
    environment = {name: value for name, value in os.environ.items() if name != "HEADRACE_KAFKA_INSTANCE_ID"}
    log = open_log(settings, clock, environment=environment)
    try:
        yield log
    finally:
        log.close()


def log_exists(settings: Settings) -> bool:
    """Tell whether a log can be opened without making one."""
    return "://" in settings.log or Path(settings.log).is_dir()
