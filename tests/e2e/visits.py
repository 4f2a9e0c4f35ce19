"""Clicks on articles: every step that keeps state over one stream, a global table, calls, and dead letters."""

from collections.abc import Iterator
from typing import Any

from headrace import Context, Process, Topology, ValueState, agg, every, hopping, retry, session, tumbling, when

Click = dict[str, Any]


def checked(click: Click) -> Click:
    """Fail on a few clicks for good."""
    if click["n"] % 97 == 0:
        raise ValueError("a click that nobody wants")
    return click


class Visits(Process[Click, Click]):
    """Counts the clicks of a visit, which ends 10 s after its last one; and what was spent of late."""

    clicks = ValueState(int, default=0)
    spent = ValueState(int, default=0, ttl="6s")

    def on_record(self, record: Click, context: Context) -> Iterator[Click]:
        self.clicks.value += 1
        self.spent.value += record["cents"]
        context.set_timer("end", after="10s")
        if record["n"] % 5 == 0:
            yield {"user": context.key, "at": context.timestamp, "n": record["n"], "spent": self.spent.value}

    def on_timer(self, name: str, context: Context) -> Iterator[Click]:
        yield {"user": context.key, "at": context.timestamp, "clicks": self.clicks.value}
        self.clicks.clear()


failed: set[int] = set()


async def ask(click: Click) -> Click:
    """Answer; of some only the second time."""
    n = click["n"]
    if n % 501 == 0 and n not in failed:
        failed.add(n)
        raise ConnectionError
    return {"n": n, "double": 2 * click["cents"]}


topology = Topology("visits", on_error="dead-letter")

articles = topology.global_table("articles")
clicks = topology.stream("clicks", keyed_by="user", time="at", out_of_orderness="2s").map(checked, name="checked")

clicks.in_order().process(Visits).to("visits")
clicks.window(session("8s")).aggregate(n=agg.count(), cents=agg.sum("cents")).to("sessions")
clicks.window(tumbling("1m")).aggregate(n=agg.count(), emit=every("10s")).to("so-far")
rich = clicks.window(hopping("1m", "20s")).aggregate(cents=agg.sum("cents"), emit=when(lambda w: w["cents"] > 700))
rich.to("rich")
clicks.aggregate(n=agg.count(), cents=agg.sum("cents")).to("totals")
clicks.key_by("article").window(tumbling("30s")).aggregate(n=agg.count(), cents=agg.sum("cents")).to("popular")
clicks.join(articles, lambda click, row: {"n": click["n"], "title": row and row["title"]}, on="article", how="left").to(
    "named"
)
clicks.map_async(ask, retry=retry(3, backoff="10ms"), name="ask").to("asked")
