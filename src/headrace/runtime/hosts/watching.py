"""Looks while a worker runs whether its topics are still those that it began with."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from headrace.errors import FatalError, HeadraceError
from headrace.log.api import Layout, Log
from headrace.topology.graph import Step
from headrace.topology.plan import Plan

_log = logging.getLogger("headrace")

LOOK_MS = 2_000
"""How often somebody looks."""


class TopicWatch:
    """Compares the topics of a topology with what they were when its worker began.

    Args:
        planned: What runs.
        log: Where.
        layouts: What the topics were at the beginning.
        bounded: Whether the run reads up to an end that is known, to which partitions that come later do not belong.
    """

    def __init__(self, planned: Plan, log: Log, layouts: Mapping[str, Layout], *, bounded: bool) -> None:
        self._log = log
        self._layouts = layouts
        self._bounded = bounded
        self._sources, self._internal = set(planned.source_topics()), set(planned.internal_topics())
        self._keeps_state = any(isinstance(node, Step) and node.spec.stateful for node in planned.graph.nodes)
        self._gone: set[str] = set()
        """Topics that were not there the last time."""
        self._told: set[str] = set()

    def look(self) -> None:
        """Look once; may take as long as the log takes to answer.

        Raises:
            FatalError: the worker cannot go on with a topic as it is now.
        """
        try:
            found = self._log.layout(list(self._layouts))
        except HeadraceError:
            return  # whoever reads and writes says so
        before, self._gone = self._gone, self._layouts.keys() - found.keys()
        for name, began in self._layouts.items():
            now = found.get(name)
            if now is None:
                if name in before:  # of several brokers one may be behind the others
                    raise self._deleted(name, "was deleted")
            elif began.topic_id and now.topic_id not in ("", began.topic_id):
                raise self._deleted(name, "was deleted and made again")
            elif now.partitions > began.partitions and not self._bounded:
                self._grown(name, began.partitions, now.partitions)

    def _deleted(self, name: str, what: str) -> FatalError:
        if name in self._sources or name in self._internal:
            kind = "internal topic" if name in self._internal else "topic"
            return FatalError(
                f"{kind} {name}, which this topology reads, {what} while it ran: what was not read of it is lost",
                remedy="Its checkpoints do not fit to another topic of that name: begin anew with other checkpoints "
                "and another group (--group)",
            )
        return FatalError(
            f"topic {name}, which this topology writes, {what} while it ran: what was written to it is lost",
            remedy="Start again: the topic is made if it is not there, and gets what comes after the last checkpoint",
        )

    def _grown(self, name: str, before: int, now: int) -> None:
        told = f"topic {name} has {now} partitions now, and had {before} when this worker began"
        if name not in self._sources and name not in self._internal:
            if name not in self._told:
                self._told.add(name)
                _log.warning("%s: this topology writes to the first %d until it is started again", told, before)
            return
        if name in self._internal or self._keeps_state:
            raise FatalError(
                f"{told}: keys have other partitions now, and nobody reads the new ones",
                remedy="Nothing is lost. Stop all workers of the topology, move its state with "
                "`headrace rescale MODULE`, and start them again",
            )
        raise FatalError(
            f"{told}: nobody reads the new ones",
            remedy="Nothing is lost. Start the workers of the topology again, and they read all of them",
        )
