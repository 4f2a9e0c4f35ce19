"""Channel statistics report: as query 15, for each channel and day, with the last minute that had a bid."""

from bench.nexmark.topologies.levels import STATISTICS
from bench.nexmark.topologies.sources import bids
from bench.nexmark.topologies.times import minute
from headrace import Topology, agg, tumbling

latest = agg.max("date_time").then(minute)

topology = Topology("nexmark-q16")
days = bids(topology).key_by("channel").window(tumbling("1d"))
days.aggregate(minute=latest, **STATISTICS, emit="update").to("q16")
