"""What a worker works with, and whom it blames."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from enum import Enum

from headrace.checkpoint.checkpoints import Checkpoints
from headrace.clock import Clock
from headrace.log.api import Group, Layout, Log
from headrace.metrics import Metrics
from headrace.runtime.workers.calls import AsyncCalls
from headrace.runtime.workers.locks import TakeLock, take_lock
from headrace.settings import Settings
from headrace.state.api import StoreFactory
from headrace.topology.plan import Plan


class Blame(Enum):
    """Whose fault it was that a turn failed."""

    WORKER = "worker"
    """No task's: the group or the log cannot be used."""
    TASK = "task"
    """A task's, which was dropped."""
    NOBODY = "nobody"
    """A task's that another worker has taken over: it was dropped, and there is nothing to report."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What a worker works with."""

    plan: Plan
    log: Log
    group: Group
    checkpoints: Checkpoints
    stores: StoreFactory
    jobs: Executor
    clock: Clock
    metrics: Metrics
    settings: Settings
    partitions: Mapping[str, int]
    """How many partitions every output topic has."""
    calls: AsyncCalls | None = None
    """Makes the calls of asynchronous steps; None if there are none."""
    restores: Executor | None = None
    """Runs restores, so that they do not hold up the checkpoints in ``jobs``; None runs them there too."""
    copies: Executor | None = None
    """One thread that copies the state of tasks which may come; None if this worker makes no copies."""
    lock: TakeLock = take_lock
    """Takes the locks that show who of the workers on this machine lives."""
    limits: Mapping[str, int] = field(default_factory=dict)
    """The largest record that each output topic takes, in bytes, where there is a limit."""
    layouts: Mapping[str, Layout] = field(default_factory=dict)
    """What the topics were that the topology reads and writes when the worker began."""
