"""Processes: what drives workers, watches them and tells of them."""
