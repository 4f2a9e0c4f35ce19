"""Settings: scalars that a person tunes, each with an option, an environment variable and a default.

Objects that do work (clock, log, stores) are not settings; they are passed to constructors.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from headrace.errors import SettingsError

_UNITS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_SIZES = {"": 1, "kb": 1024, "mb": 1024**2, "gb": 1024**3}


def duration_ms(value: str | int | timedelta, what: str = "duration") -> int:
    """Turn a duration into whole milliseconds.

    Args:
        value: A ``timedelta``, or text: a number and one of ``ms``, ``s``, ``m``, ``h``, ``d``.
        what: What the duration is for, named in the error.

    Raises:
        SettingsError: it is neither, is negative, or is not a whole number of milliseconds.

    Example:
        >>> duration_ms("1.5s"), duration_ms(timedelta(minutes=1))
        (1500, 60000)
    """
    if isinstance(value, timedelta):
        amount = value / timedelta(milliseconds=1)
    else:
        match = re.fullmatch(r"\s*(-?\d+(?:\.\d+)?)\s*(ms|s|m|h|d)\s*", value) if isinstance(value, str) else None
        if match is None:
            raise SettingsError(
                f"{what} is not a duration: {value!r}",
                remedy='Give a timedelta or text such as "500ms", "30s", "1m", "2h" or "1d"',
            )
        amount = float(match[1]) * _UNITS[match[2]]
    if amount < 0 or amount != int(amount):
        raise SettingsError(f"{what} must be a whole number of milliseconds and not negative: {value!r}")
    return int(amount)


def size_bytes(value: str | int, what: str = "size") -> int:
    """Turn a size into bytes.

    Example:
        >>> size_bytes("64MB"), size_bytes(512)
        (67108864, 512)
    """
    match = re.fullmatch(r"\s*(\d+)\s*(|kb|mb|gb)\s*", str(value).lower())
    if match is None:
        raise SettingsError(f"{what} is not a size: {value!r}", remedy='Give bytes, or text such as "64MB" or "2GB"')
    return int(match[1]) * _SIZES[match[2]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a topology is run. Times are milliseconds, sizes are bytes."""

    log: str = "./.headrace/log"
    """The log: a directory, ``memory://`` or ``kafka://host:port,...``."""
    checkpoints: str = "./.headrace/checkpoints"
    """Where checkpoints go: a directory, ``memory://`` or ``s3://bucket/prefix``."""
    state_dir: str = "./.headrace/state"
    """Where the stores of running tasks live; it may be lost at any time."""
    group: str = ""
    """The consumer group; the topology's name if empty. Two groups that run at once on one log need topologies of two
    names where these repartition: what lies in between is the topology's, and its group deletes what it has read."""
    workers: int = 1
    """Processes that share the work on this machine."""
    metrics_host: str = "127.0.0.1"
    """Address that ``/metrics``, ``/live`` and ``/ready`` listen on."""
    metrics_port: int = -1
    """Port of the same; 0 switches them off, -1 takes 9464 or, if that is taken, any free port."""
    until_end: bool = False
    """Stop at the end that the sources had at start, after closing every window."""
    checkpoint_interval_ms: int = 10_000
    """A task with changes is checkpointed this long after its last checkpoint began."""
    session_timeout_ms: int = 10_000
    """A worker whose heartbeat stands still this long loses its tasks."""
    heartbeat_interval_ms: int = 1_000
    """How often a worker says that it lives."""
    drain_timeout_ms: int = 25_000
    """How long a worker that was told to stop may take for its last checkpoints."""
    handoff_timeout_ms: int = 60_000
    """How long a task that is to move goes on where it is, while its next worker copies its state, before it moves
    without; a worker that was told to stop waits for a third of ``drain_timeout_ms`` at most. 0 moves it at once."""
    standby_copies: int = 0
    """How many workers keep a copy of a task's last checkpoint on their disk, in case its worker dies."""
    cache_bytes: int = 64 * 1024**2
    """Memory that the write-behind caches of one worker may take, all its tasks together."""
    block_cache_bytes: int = 32 * 1024**2
    """Memory for RocksDB's blocks and write buffers of one worker, all its stores together."""
    batch_records: int = 4096
    """The most records that a task takes in one step."""
    slow_step_ms: int = 60_000
    """A step that takes longer for a batch is reported, with the place in the code, and the worker is not ready; 0 for
    never."""
    step_timeout_ms: int = 600_000
    """A worker with a step that takes longer for a batch gives itself up, and its tasks go to others; 0 for never."""
    repartition_partitions: int = 0
    """Partitions of internal topics; 0 takes what they have, and for new ones the number of the widest source."""
    fsync: str = "checkpoint"
    """When the embedded log forces bytes to the disk: before a reader sees them and with every checkpoint
    (``checkpoint``), in every append (``always``) or when the operating system likes (``never``)."""
    guarantee: str = "at-least-once"
    """What holds of outputs that a replay after a crash may not repeat: ``at-least-once``, or ``exactly-once`` by
    way of an outbox, from which they leave with the checkpoint that contains them."""
    transactions: bool = False
    """Whether outputs leave in transactions of Kafka, so that who reads only what is committed sees no repeats; with
    ``exactly-once`` only."""
    lost_records: str = "stop"
    """What a task does whose next records are gone by retention: ``stop``, or ``skip`` them, count them and go on."""
    unsaved_limit_ms: int = 0
    """A task takes no more records while it has done something that no checkpoint has held for this long; 0 for no
    limit."""
    allow_reset: str = ""
    """The names of steps, between commas, whose state may be lost because the topology was changed."""

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            if getattr(self, name) < least:
                raise SettingsError(f"{name} must be at least {least}: {getattr(self, name)}")
        if self.fsync not in ("checkpoint", "always", "never"):
            raise SettingsError(f"fsync must be checkpoint, always or never: {self.fsync!r}")
        if self.guarantee not in ("at-least-once", "exactly-once"):
            raise SettingsError(f"guarantee must be at-least-once or exactly-once: {self.guarantee!r}")
        if self.transactions and self.guarantee != "exactly-once":
            raise SettingsError(
                f"there are no transactions with {self.guarantee}",
                remedy="Give --guarantee exactly-once (HEADRACE_GUARANTEE) as well",
            )
        if self.lost_records not in ("stop", "skip"):
            raise SettingsError(f"lost_records must be stop or skip: {self.lost_records!r}")
        if 0 < self.unsaved_limit_ms < 2 * self.checkpoint_interval_ms:
            raise SettingsError(
                "unsaved_limit must be at least two times checkpoint_interval, or 0 for no limit",
                remedy="Raise HEADRACE_UNSAVED_LIMIT or lower HEADRACE_CHECKPOINT_INTERVAL",
            )
        if self.session_timeout_ms < 3 * self.heartbeat_interval_ms:
            raise SettingsError(
                "session_timeout must be at least three times heartbeat_interval",
                remedy="Raise HEADRACE_SESSION_TIMEOUT or lower HEADRACE_HEARTBEAT_INTERVAL",
            )

    @property
    def resets(self) -> frozenset[str]:
        """Return the names in ``allow_reset``.

        Example:
            >>> sorted(Settings(allow_reset="spend, totals,").resets)
            ['spend', 'totals']
        """
        return frozenset(name for part in self.allow_reset.split(",") if (name := part.strip()))

    @classmethod
    def load(cls, environment: Mapping[str, str], **given: Any) -> Settings:
        """Make settings from options that were given and, where they were not (None), from ``HEADRACE_*`` variables.

        Raises:
            SettingsError: a value cannot be used; the message names the variable.

        Example:
            >>> Settings.load({"HEADRACE_CHECKPOINT_INTERVAL": "30s"}, workers=2).checkpoint_interval_ms
            30000
        """
        values: dict[str, Any] = {}
        for field in dataclasses.fields(cls):
            option = given.get(field.name)
            if option is not None:
                values[field.name] = option
            elif text := environment.get(variable_of(field.name), ""):
                values[field.name] = _parse(field.name, str(field.type), text)
        return cls(**values)


_LEAST = {
    "workers": 1, "checkpoint_interval_ms": 1, "heartbeat_interval_ms": 1, "drain_timeout_ms": 0,
    "handoff_timeout_ms": 0, "standby_copies": 0, "cache_bytes": 0,
    "block_cache_bytes": 1024**2, "batch_records": 1, "slow_step_ms": 0, "step_timeout_ms": 0,
    "repartition_partitions": 0, "metrics_port": -1,
}  # fmt: skip


def variable_of(field_name: str) -> str:
    """Return the environment variable of a setting.

    Example:
        >>> variable_of("checkpoint_interval_ms")
        'HEADRACE_CHECKPOINT_INTERVAL'
    """
    return "HEADRACE_" + field_name.removesuffix("_ms").removesuffix("_bytes").upper()


def _parse(name: str, kind: str, text: str) -> Any:
    variable = variable_of(name)
    if name.endswith("_ms"):
        return duration_ms(text, variable)
    if name.endswith("_bytes"):
        return size_bytes(text, variable)
    if kind == "int":
        if not re.fullmatch(r"-?\d+", text):
            raise SettingsError(f"{variable} is not a whole number: {text!r}")
        return int(text)
    if kind == "bool":
        if text.lower() not in ("1", "true", "yes", "0", "false", "no"):
            raise SettingsError(f"{variable} is neither true nor false: {text!r}")
        return text.lower() in ("1", "true", "yes")
    return text
