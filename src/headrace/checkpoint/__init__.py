"""Checkpoints of tasks in a directory, in memory or in S3."""

from headrace.checkpoint.checkpoints import Checkpoints
from headrace.checkpoint.manifest import FileRef, Manifest
from headrace.checkpoint.restore import RestoreStats
from headrace.checkpoint.store import Objects, open_objects

__all__ = ["Checkpoints", "FileRef", "Manifest", "Objects", "RestoreStats", "open_objects"]
