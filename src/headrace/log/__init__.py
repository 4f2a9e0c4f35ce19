"""Partitioned logs behind one contract."""
