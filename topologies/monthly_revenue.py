"""Revenue of each shop by the calendar months of one time zone: windows of your own.

Months differ in length, and daylight saving makes some an hour shorter or longer, so no fixed size will do. A window
assigner says which month holds a time; everything else is as with the windows that come with headrace.
"""

from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any
from zoneinfo import ZoneInfo

import msgspec

from headrace import Topology, agg, every


@cache
def month_start(year: int, month: int, zone: str) -> int:
    """Return when a month begins, in milliseconds since the epoch; month 13 is the next year's first."""
    first = datetime(year + (month - 1) // 12, (month - 1) % 12 + 1, 1, tzinfo=ZoneInfo(zone))
    return int(first.timestamp()) * 1000


@dataclass(frozen=True)
class CalendarMonths:
    """Months from midnight on the first to midnight on the next first, in a time zone such as Europe/Berlin."""

    zone: str

    @property
    def name(self) -> str:
        return f"months-{self.zone.replace('/', '-')}"

    def windows(self, timestamp: int) -> list[tuple[int, int]]:
        day = datetime.fromtimestamp(timestamp // 1000, ZoneInfo(self.zone))
        return [(month_start(day.year, day.month, self.zone), month_start(day.year, day.month + 1, self.zone))]

    def shape(self) -> dict[str, Any]:
        return {"calendar": "months", "zone": self.zone}


class Sale(msgspec.Struct):
    """One thing sold."""

    shop: str
    cents: int
    at: int  # ms since the epoch


topology = Topology("monthly-revenue")

revenue = (
    topology.stream("sales", value=Sale, keyed_by="shop", time="at", out_of_orderness="10m")
    .window(CalendarMonths("Europe/Berlin"), lateness="1d")
    .aggregate(cents=agg.sum("cents"), sales=agg.count(), emit=every("1d"))
)
revenue.filter(lambda month: month["final"]).to("monthly-revenue")
revenue.filter(lambda month: not month["final"]).to("revenue-so-far")
