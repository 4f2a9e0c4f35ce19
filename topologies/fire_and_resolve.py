"""Requests in, alerts out that fire once and resolve: too many errors of a service, and an end of them.

A minute of a service is bad if more than ``LIMIT`` of at least ``LEAST`` requests failed. The first bad minute fires an
alert; while it is firing, further bad minutes only put its end off. It resolves when no minute has been bad for
``QUIET``, be it that the service has recovered or that nothing is heard of it any more. What happens in between is kept
in the state of one step, and the end is one timer per service, which every bad minute moves.
"""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any, Literal

import msgspec

from headrace import Context, Process, Topology, ValueState, agg, tumbling

LIMIT = 0.05
LEAST = 20
QUIET = timedelta(minutes=5)


class Request(msgspec.Struct):
    """One request that a service has answered."""

    service: str
    status: int
    at: int  # ms since the epoch


class Incident(msgspec.Struct):
    """What is remembered of a service while its alert is firing."""

    since: int
    bad_minutes: int = 0
    worst: float = 0.0


class Alert(msgspec.Struct):
    """An alert that begins or ends."""

    service: str
    state: Literal["firing", "resolved"]
    at: int  # ms since the epoch
    since: int  # ms since the epoch
    bad_minutes: int
    worst: float


class Alerts(Process[dict[str, Any], Alert]):
    """Turns minutes of a service into alerts."""

    incident = ValueState(Incident)

    def on_record(self, record: dict[str, Any], context: Context) -> Iterator[Alert]:
        rate = record["errors"] / record["requests"]
        if record["requests"] < LEAST or rate <= LIMIT:
            return
        context.set_timer("resolve", after=QUIET)
        before = self.incident.value
        incident = before or Incident(record["window_start"])
        incident = Incident(incident.since, incident.bad_minutes + 1, max(incident.worst, rate))
        self.incident.value = incident
        if before is None:
            yield alert(context, "firing", incident)

    def on_timer(self, name: str, context: Context) -> Iterator[Alert]:
        incident = self.incident.value
        if incident is not None:
            self.incident.clear()
            yield alert(context, "resolved", incident)


def alert(context: Context, state: Literal["firing", "resolved"], incident: Incident) -> Alert:
    return Alert(context.key, state, context.timestamp, incident.since, incident.bad_minutes, round(incident.worst, 3))


def failed(request: Request) -> bool:
    return request.status >= 500


topology = Topology("fire-and-resolve")

(
    topology.stream("requests", value=Request, keyed_by="service", time="at", out_of_orderness="10s")
    .window(tumbling("1m"))
    .aggregate(requests=agg.count(), errors=agg.count().where(failed))
    .process(Alerts)
    .to("alerts")
)


def simulation_input(random: Any) -> dict[str, list[Request]]:
    """Return requests for ``headrace simulate``: of two services, the second one fails every now and then."""
    requests = []
    for second in range(100):
        service = random.choice(("shop", "search"))
        bad = service == "search" and random.random() < 0.2
        requests.append(Request(service, 503 if bad else 200, second * 1000 + random.randrange(5000)))
    return {"requests": requests}
