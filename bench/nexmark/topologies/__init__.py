"""The queries of Nexmark as topologies: one module each, ``q<number>``, which writes to the topic of that name."""
