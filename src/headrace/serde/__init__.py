"""Serdes: values to bytes and back, a whole column at a time."""
