"""Kafka and MSK as the log."""
