"""Nexmark: persons, auctions and bids of an auction site, and queries that stream processors are compared by."""
