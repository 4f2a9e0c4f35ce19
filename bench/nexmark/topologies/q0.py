"""Pass through: every bid as it is."""

from bench.nexmark.topologies.sources import bids
from headrace import Topology

topology = Topology("nexmark-q0")
bids(topology).to("q0")
