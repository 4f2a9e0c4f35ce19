"""Checkpoints of tasks in a directory, in memory or in S3."""
