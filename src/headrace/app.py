"""The composition root: opens what settings name, wires it up, and runs it."""

from __future__ import annotations

import gc
import importlib
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from typing import Any

from headrace.checkpoint.checkpoints import Checkpoints
from headrace.checkpoint.store import open_objects
from headrace.clock import Clock, SystemClock
from headrace.dsl.builder import Topology
from headrace.errors import FatalError, HeadraceError, InvalidError, NotFoundError, SettingsError, TopologyError
from headrace.log.api import Layout, Log
from headrace.log.opening import open_log
from headrace.metrics import Metrics
from headrace.record import TopicPartition
from headrace.runtime.hosts.host import Host
from headrace.runtime.hosts.serving import serve
from headrace.runtime.hosts.status import RunStatus, WorkerStatus, combined, explain
from headrace.runtime.hosts.supervisor import Report, supervise
from headrace.runtime.hosts.watching import TopicWatch
from headrace.runtime.rescale import Site
from headrace.runtime.workers.bounds import Bounds
from headrace.runtime.workers.calls import AsyncCalls
from headrace.runtime.workers.changing import check_change, find_change, retire
from headrace.runtime.workers.parts import Parts
from headrace.runtime.workers.topics import create_topics, used_topics, warn_of_retention
from headrace.runtime.workers.worker import Worker
from headrace.settings import Settings
from headrace.topology.graph import Graph, Source
from headrace.topology.plan import Plan, plan, source_topics

_log = logging.getLogger("headrace")

_AT_ONCE_S = 2
"""What a run gets to unwind after a second Ctrl-C."""


def open_checkpoints(settings: Settings, topology: str) -> Checkpoints:
    """Open the checkpoints of a topology.

    Raises:
        SettingsError: the place cannot be used.
    """
    return Checkpoints(open_objects(settings.checkpoints, os.environ), settings.group or topology)


def load_topology(spec: str) -> Topology:
    """Import the topology that ``module`` or ``module:name`` means; the current folder can be imported from.

    Raises:
        NotFoundError: there is no such module or name.
        TopologyError: the module has no topology, or several and no name was given.
    """
    module_name, _, name = spec.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name == error.name or module_name.startswith(error.name + ".")):
            raise NotFoundError(
                f"there is no module {module_name!r} here",
                remedy="Give it as Python would import it, such as topologies.card_spend, from the folder it is in",
            ) from error
        raise
    if name:
        found = getattr(module, name, None)
        if not isinstance(found, Topology):
            raise NotFoundError(f"module {module_name!r} has no topology called {name!r}")
        return found
    topologies = {id(value): key for key, value in vars(module).items() if isinstance(value, Topology)}
    if not topologies:
        raise TopologyError(
            f"module {module_name!r} has no topology", remedy='Assign one: topology = Topology("my-topology")'
        )
    if len(topologies) > 1:
        names = sorted(topologies.values())
        raise TopologyError(
            f"module {module_name!r} has several topologies: {', '.join(names)}",
            remedy=f"Say which one: {module_name}:{names[0]}",
        )
    topology: Topology = getattr(module, next(iter(topologies.values())))
    return topology


def prepare(topology: Topology, log: Log, settings: Settings) -> Plan:
    """Check the topology against the log, and create the topics that it writes to; see ``examine``."""
    planned = examine(topology, log, settings)
    _check_widths(planned, log, settings)
    create_topics(planned, log, settings.group)
    return planned


def examine(topology: Topology, log: Log, settings: Settings) -> Plan:
    """Check the topology against the log, and change nothing.

    Raises:
        TopologyError: the topology is at fault.
        NotFoundError: a topic that it reads does not exist.
    """
    graph = topology.graph()
    sources = _source_partitions(graph, log)
    topics = log.topics()
    existing = {name: info.partitions for name, info in topics.items()}
    return plan(graph, sources, settings.repartition_partitions, existing, settings.guarantee, settings.transactions)


def _check_widths(planned: Plan, log: Log, settings: Settings) -> None:
    """Refuse to give internal topics another number of partitions than they have because a setting says so.

    Raises:
        InvalidError: one has another number.
    """
    topics = log.topics()
    for name, count in planned.internal_topics().items():
        if settings.repartition_partitions and name in topics and topics[name].partitions != count:
            raise InvalidError(
                f"internal topic {name!r} has {topics[name].partitions} partitions, but this topology wants {count}: "
                "keys would change their partition and lose their state",
                remedy=f"Run with --repartition-partitions {topics[name].partitions}, or move the state: "
                f"headrace rescale --partitions {count}",
            )


def _source_partitions(graph: Graph, log: Log) -> dict[str, int]:
    """Return how many partitions each source topic has, if all of them are there."""
    topics = log.topics()
    for source in graph.nodes:
        if isinstance(source, Source) and source.topic not in topics:
            name = source.topic
            log.layout([name])  # says more, if it is only hidden from this user
            raise NotFoundError(
                f"topology {graph.name!r} reads topic {name!r}, which does not exist in the log {log.url} "
                f"({source.location})",
                remedy=f"Create it by writing to it (headrace produce {name} --partitions 4), or name another log",
            )
    return {name: topics[name].partitions for name in source_topics(graph)}


def start(topology: Topology, log: Log, settings: Settings, clock: Clock, module: str = "MODULE") -> Plan:
    """Do what comes before the first worker: examine the topology, refuse to lose state, and create topics.

    Args:
        topology: What will run.
        log: What it reads and writes.
        settings: How it will run.
        clock: Dates what is written.
        module: Where the topology is, for the commands in messages.

    Raises:
        TopologyError: it would lose what its checkpoints keep; nothing was changed.
        NotFoundError: a topic that it reads does not exist.
        InvalidError: an internal topic has another number of partitions than the settings want.
    """
    planned = examine(topology, log, settings)
    _check_widths(planned, log, settings)
    checkpoints = open_checkpoints(settings, planned.graph.name)
    change = find_change(planned, checkpoints, log)
    check_change(change, settings.resets, module)
    create_topics(planned, log, settings.group)
    warn_of_retention(planned, log, anew=change.first)
    group = log.group(settings.group or planned.graph.name)
    retire(change, settings.resets, checkpoints, log, group, clock.now_ms())
    return planned


def run(topology: Topology, *, log: Log | str | None = None, **settings: Any) -> RunStatus:
    """Run a topology in this process until it is stopped, or until the end of its input.

    Args:
        topology: What to run.
        log: A log object, or what ``Settings.log`` takes.
        **settings: Fields of ``Settings``; ``HEADRACE_*`` variables count for those not given.

    Raises:
        HeadraceError: why it could not run, or could not go on.

    Example:
        >>> from headrace import Topology, run
        >>> from headrace.clock import SystemClock
        >>> from headrace.log.memory import MemoryLog
        >>> log = MemoryLog(SystemClock())
        >>> info = log.create_topic("words", 1)
        >>> topology = Topology("shouting")
        >>> topology.stream("words", value=str).map(str.upper).to("loud-words")
        >>> run(topology, log=log, checkpoints="memory://", until_end=True, metrics_port=0).state
        'finished'
    """
    url = log if isinstance(log, str) or log is None else None
    loaded = Settings.load(os.environ, log=url, **settings)
    if loaded.workers != 1:
        raise SettingsError("run() uses one worker", remedy="Use the command for more: headrace run MODULE --workers N")
    clock = SystemClock()
    opened = log if log is not None and not isinstance(log, str) else open_log(loaded, clock)
    try:
        return _run_one(topology, opened, loaded, clock, None)
    finally:
        if opened is not log:
            opened.close()


def run_spec(spec: str, settings: Settings, on_status: Callable[[RunStatus], None] | None = None) -> RunStatus:
    """Run the topology that ``spec`` names, with as many workers as the settings say.

    It blocks; SIGTERM and SIGINT drain.

    Raises:
        HeadraceError: why it could not run, or could not go on.
    """
    clock = SystemClock()
    topology = load_topology(spec)
    log = open_log(settings, clock)
    try:
        if settings.workers == 1:
            return _run_one(topology, log, settings, clock, on_status, spec)
        return _run_many(spec, topology, log, settings, on_status)
    finally:
        log.close()


def _bounds(planned: Plan, log: Log) -> Bounds:
    topics = log.topics()
    return Bounds(
        {
            partition: log.end_offset(partition)
            for topic in dict.fromkeys(planned.source_topics())
            for partition in (TopicPartition(topic, number) for number in range(topics[topic].partitions))
        }
    )


def _run_one(
    topology: Topology,
    log: Log,
    settings: Settings,
    clock: Clock,
    on_status: Callable[[RunStatus], None] | None,
    module: str = "MODULE",
) -> RunStatus:
    planned = start(topology, log, settings, clock, module)
    bounds = _bounds(planned, log) if settings.until_end else None
    metrics = Metrics(version("headrace"))
    total = _left(planned, log, settings, bounds)
    hosted: list[Host] = []
    server = serve(
        settings,
        metrics.exposition,
        lambda: all(h.live() for h in hosted),
        lambda: (any(h.ready() for h in hosted), explain([h.observed() for h in hosted])),
    )
    last = RunStatus("starting", 1, 0, 0, 0, total, 0, 0, 0, 0, None, server.url if server else None)

    def tell(status: WorkerStatus) -> None:
        nonlocal last
        last = combined([status], total, planned.topics_read_once(), server.url if server else None)
        if on_status is not None:
            on_status(last)

    try:
        member_id = f"{socket.gethostname()}-{os.getpid()}"
        layouts = log.layout(used_topics(planned))
        watch = TopicWatch(planned, log, layouts, bounded=bounds is not None)
        with _worker(planned, log, settings, clock, metrics, member_id, bounds, layouts) as worker:
            host = Host(worker, clock, settings, tell, lambda failure: _overdue(failure, settings), watch, _stuck)
            hosted.append(host)
            with _stopped_by_signals(host.stop) as signals:
                host.run()
    finally:
        if server is not None:
            server.stop()
    return replace(last, state="stopped") if signals else last


def _run_many(
    spec: str, topology: Topology, log: Log, settings: Settings, on_status: Callable[[RunStatus], None] | None
) -> RunStatus:
    planned = start(topology, log, settings, SystemClock(), spec)
    bounds = _bounds(planned, log) if settings.until_end else None
    total = _left(planned, log, settings, bounds)
    sources = planned.topics_read_once()
    ends = None if bounds is None else dict(bounds.ends)
    with supervise(run_worker, (spec, settings, ends), settings) as group:
        latest: list[WorkerStatus] = []
        server = serve(settings, group.exposition, group.live, lambda: (group.ready(), explain(latest)))
        url = server.url if server else None
        last = RunStatus("starting", settings.workers, 0, 0, 0, total, 0, 0, 0, 0, None, url)
        try:
            with _stopped_by_signals(group.stop) as signals:
                group.start()
                for statuses in group.run():
                    latest[:] = statuses
                    last = combined(statuses, total, sources, url)
                    if on_status is not None:
                        on_status(last)
        finally:
            if server is not None:
                server.stop()
    return replace(last, state="stopped") if signals else last


def run_worker(
    index: int, report: Report, spec: str, settings: Settings, ends: Mapping[TopicPartition, int] | None
) -> None:
    """Run one of several workers, in a process of its own; the supervisor calls this there."""
    clock = SystemClock()
    topology = load_topology(spec)
    log = open_log(settings, clock, index)
    try:
        planned = prepare(topology, log, settings)
        metrics = Metrics(version("headrace"))
        bounds = None if ends is None else Bounds(ends)
        member_id = f"{socket.gethostname()}-{os.getpid()}-{index}"
        layouts = log.layout(used_topics(planned))
        watch = TopicWatch(planned, log, layouts, bounded=bounds is not None)
        with _worker(planned, log, settings, clock, metrics, member_id, bounds, layouts) as worker:
            overdue = partial(_overdue, settings=settings, report=report)
            host = Host(worker, clock, settings, report.take, overdue, watch, _stuck)
            report.start(metrics.exposition, host)
            with _stopped_by_signals(host.stop, interrupt=False):
                host.run()
    finally:
        log.close()


def rescale_site(topology: Topology, log: Log, settings: Settings, clock: Clock, say: Callable[[str], None]) -> Site:
    """Return what is needed to move the state of a topology to the partitions that its keys have now.

    Raises:
        NotFoundError: a topic that it reads does not exist.
    """
    from headrace.state.rocksdb import RocksStores

    graph = topology.graph()
    _source_partitions(graph, log)
    name = settings.group or topology.name

    def open_worker(planned: Plan, bounds: Bounds) -> AbstractContextManager[Worker]:
        member_id = f"{socket.gethostname()}-{os.getpid()}"
        layouts = log.layout(used_topics(planned))
        return _worker(planned, log, settings, clock, Metrics(version("headrace")), member_id, bounds, layouts)

    return Site(
        graph, log, open_checkpoints(settings, topology.name), log.group(name),
        RocksStores(settings.block_cache_bytes), clock, settings, open_worker, say,
    )  # fmt: skip


@contextmanager
def _worker(
    planned: Plan,
    log: Log,
    settings: Settings,
    clock: Clock,
    metrics: Metrics,
    member_id: str,
    bounds: Bounds | None,
    layouts: Mapping[str, Layout],
) -> Iterator[Worker]:
    from headrace.state.rocksdb import RocksStores

    topics = log.topics()
    jobs = ThreadPoolExecutor(2, thread_name_prefix="headrace-job")
    restores = ThreadPoolExecutor(2, thread_name_prefix="headrace-restore")
    copies = ThreadPoolExecutor(1, thread_name_prefix="headrace-copy")
    calls = AsyncCalls(clock)
    parts = Parts(
        planned,
        log,
        log.group(settings.group or planned.graph.name),
        open_checkpoints(settings, planned.graph.name),
        RocksStores(settings.block_cache_bytes),
        jobs,
        clock,
        metrics,
        settings,
        {name: info.partitions for name, info in topics.items()},
        calls,
        restores,
        copies,
        limits={name: info.max_record_bytes for name, info in topics.items() if info.max_record_bytes is not None},
        layouts=layouts,
    )
    worker = Worker(parts, member_id, bounds)
    try:
        with _calm_collector():
            yield worker
    finally:
        if not worker.done:
            worker.close()
        calls.close()
        for pool in (jobs, restores, copies):
            pool.shutdown(cancel_futures=True)


@contextmanager
def _calm_collector() -> Iterator[None]:
    """Let the garbage collector look less often: state is millions of small objects and none of them is a cycle."""
    thresholds = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()


@contextmanager
def _stopped_by_signals(stop: Callable[[], None], *, interrupt: bool = True) -> Iterator[list[int]]:
    """Let SIGTERM and SIGINT call ``stop``, and a second SIGINT end it all at once; yield the signals that came."""
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield came
        return

    interrupted = False

    def on_signal(number: int, frame: Any) -> None:
        came.append(number)
        stop()
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, at_once)

    def at_once(number: int, frame: Any) -> None:
        nonlocal interrupted
        interrupted = True
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        # What unwinds may wait for a thread, such as one that uploads.
        end = threading.Timer(_AT_ONCE_S, os._exit, [128 + number])
        end.daemon = True
        end.start()
        raise KeyboardInterrupt

    before = {
        signal.SIGTERM: signal.signal(signal.SIGTERM, on_signal),
        signal.SIGINT: signal.signal(signal.SIGINT, on_signal if interrupt else signal.SIG_IGN),
    }
    try:
        yield came
    finally:
        for number, handler in before.items():
            if not interrupted:
                signal.signal(number, handler)


def _overdue(failure: HeadraceError | None, settings: Settings, report: Report | None = None) -> None:
    """End the process: user code holds the only thread that could end it in order."""
    error = failure or FatalError(
        f"draining took longer than {settings.drain_timeout_ms} ms: the worker ended without a last checkpoint, and "
        "the records since the one before will be processed again",
        remedy="Nothing is lost. Unless it says above that checkpoints failed, raise HEADRACE_DRAIN_TIMEOUT",
    )
    if report is None:
        _stuck(error)
    else:
        report.end(error)
        logging.shutdown()
        os._exit(1)


def _stuck(error: HeadraceError) -> None:
    """End the process without a word to its supervisor, which starts another one: user code holds this one."""
    _log.error("%s", "\n".join([*getattr(error, "__notes__", []), f"error: {error}"]))
    logging.shutdown()
    os._exit(1)


def _left(planned: Plan, log: Log, settings: Settings, bounds: Bounds | None) -> int | None:
    """Return how many records of a bounded input are yet to be read, by what the group has committed."""
    if bounds is None:
        return None
    committed = log.group(settings.group or planned.graph.name).committed()
    owned = {p for task, sub in planned.tasks().items() for p in sub.owns(task.partition)}
    ends = {p: end for p, end in bounds.ends.items() if p in owned}
    return sum(end - (committed[p].offset if p in committed else log.start_offset(p)) for p, end in ends.items())
