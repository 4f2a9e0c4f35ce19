"""Web access logs in; visits, popular pages and a conversion funnel out.

nginx writes the log as lines of JSON, which anything that ships logs can bring into the topic ``access-log``::

    log_format json escape=json '{"time":"$time_iso8601","address":"$remote_addr","agent":"$http_user_agent",'
                                '"method":"$request_method","host":"$host","uri":"$request_uri","status":$status}';

A line that does not decode is kept in ``session-analytics-dead-letter``. What people look at becomes a page view;
robots, images, redirects and errors do not. Three questions are answered of the views:

* ``visits``: what a visitor looked at until half an hour went by without a view.
* ``popular-pages``: the ``TOP`` pages of each site and hour. Visitors are estimated (``pip install
  'headrace[sketches]'``), as remembering every one of every page would take much memory.
* ``funnel``: how many times an hour each step of ``FUNNEL`` was reached, by visitors who had taken those before it,
  each within half an hour of the one before.
"""

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from typing import Any

import msgspec

from headrace import Context, Json, Topology, ValueState, agg, session, tumbling

BREAK = timedelta(minutes=30)
BREAK_MS = BREAK // timedelta(milliseconds=1)
TOP = 10
FUNNEL = ("/product/", "/cart", "/checkout", "/thanks")
ROBOTS = re.compile("bot|crawl|spider|slurp|preview|monitor|curl|wget|python|^$", re.IGNORECASE)
FILES = re.compile(r"\.(css|gif|ico|jpe?g|js|json|map|png|svg|txt|webp|woff2?|xml)$")


class Request(msgspec.Struct):
    """A line of the log."""

    time: datetime
    address: str
    agent: str
    method: str
    host: str
    uri: str
    status: int


class View(msgspec.Struct):
    """A page that somebody has looked at."""

    visitor: str
    site: str
    page: str


class Visit(msgspec.Struct):
    """What one visitor looked at without a long break."""

    visitor: str
    started: int  # ms since the epoch
    seconds: float  # from the first view to the last one
    views: int
    pages: int  # different ones
    entry: str
    exit: str
    bounced: bool


class Reached(msgspec.Struct):
    """A visitor has come to a step of the funnel."""

    step: str


def views(request: Request) -> Iterator[View]:
    page = request.uri.partition("?")[0]
    shown = request.method == "GET" and request.status == 200 and not FILES.search(page)
    if shown and not ROBOTS.search(request.agent):
        who = blake2b(f"{request.address} {request.agent}".encode(), digest_size=8).hexdigest()  # no address is kept
        yield View(who, request.host, page)


def visit(window: dict[str, Any]) -> Visit:
    return Visit(
        visitor=window["key"],
        started=window["window_start"],
        seconds=(window["window_end"] - BREAK_MS - window["window_start"]) / 1000,
        views=window["views"],
        pages=window["pages"],
        entry=window["entry"],
        exit=window["exit"],
        bounced=window["views"] == 1,
    )


def funnel(view: View, context: Context, taken: ValueState[int]) -> Iterator[Reached]:
    if view.page.startswith(FUNNEL[taken.value]):
        yield Reached(FUNNEL[taken.value])
        taken.value = (taken.value + 1) % len(FUNNEL)


topology = Topology("session-analytics")

seen = topology.stream(
    "access-log", value=Json(Request), time="time", out_of_orderness="30s", on_error="dead-letter"
).flat_map(views)  # fmt: skip
by_visitor = seen.key_by("visitor", name="visitor")

(
    by_visitor.window(session(BREAK))
    .aggregate(
        views=agg.count(),
        pages=agg.count_distinct("page"),
        entry=agg.first("page"),
        exit=agg.last("page"),
    )
    .map(visit)
    .to("visits", value=Json())
)

(
    seen.key_by(lambda view: view.site + view.page, name="page")
    .window(tumbling("1h"))
    .aggregate(
        site=agg.first("site"),
        page=agg.first("page"),
        views=agg.count(),
        visitors=agg.approx_distinct("visitor"),
    )
    .key_by("site", name="site")
    .window(tumbling("1h"))
    .aggregate(top=agg.top(TOP, by="views"))
    .to("popular-pages", value=Json())
)

(
    by_visitor.in_order()
    .process(funnel, taken=ValueState(int, default=0, ttl=BREAK), name="funnel")
    .key_by("step", name="step")
    .window(tumbling("1h"))
    .aggregate(times=agg.count())
    .to("funnel", value=Json())
)


def simulation_input(random: Any) -> dict[str, list[Request]]:
    """Return a log for ``headrace simulate``: a few visitors, a robot among them, come to buy or only to look."""
    start = datetime(2026, 3, 1, tzinfo=UTC)
    places = dict.fromkeys(("Firefox", "Chrome", "Safari", "Googlebot"), 0)
    requests = []
    for minute in range(0, 200, 2):
        agent = random.choice(list(places))
        uri = ("/", "/product/7", "/cart", "/checkout", "/thanks")[places[agent]]
        places[agent] = 0 if random.random() < 0.2 else (places[agent] + 1) % 5
        time = start + timedelta(minutes=minute, seconds=random.randrange(20))
        requests.append(Request(time, "192.0.2.1", agent, "GET", "shop.example", uri, random.choice((200, 200, 404))))
    return {"access-log": requests}
