"""Monitor new users: who came and offered an auction within the same 10 seconds?"""

from bench.nexmark.events import Auction, Person
from bench.nexmark.topologies.sources import auctions, persons
from headrace import Topology, agg, tumbling

topology = Topology("nexmark-q8")
(
    persons(topology)
    .merge(auctions(topology).key_by("seller"))
    .window(tumbling("10s"))
    .aggregate(
        person=agg.first("name").where(lambda event: isinstance(event, Person)),
        auctions=agg.count().where(lambda event: isinstance(event, Auction)),
    )
    .filter(lambda window: window["person"] is not None and window["auctions"] > 0)
    .to("q8")
)
