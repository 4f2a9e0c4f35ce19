"""Local item suggestion: who sells in Oregon, Idaho or California in category 10, and which auctions?

Either side waits for the other without a limit in time.
"""

from bench.nexmark.events import Auction, Person
from bench.nexmark.topologies.sources import auctions, persons
from headrace import Topology


def suggestion(auction: Auction, seller: Person) -> dict[str, object]:
    return {"name": seller.name, "city": seller.city, "state": seller.state, "id": auction.id}


topology = Topology("nexmark-q3")
items = auctions(topology).filter(lambda auction: auction.category == 10).to_table()
local = persons(topology).filter(lambda person: person.state in ("OR", "ID", "CA")).to_table()
items.join(local, suggestion, on="seller").to("q3")
