"""headrace: stateful stream processing in plain Python.

A *topology* is a Python module that says what to read, what to do with it and where the results go. *Workers* run it
over a partitioned log, keep its state in RocksDB, and checkpoint that state so that every record counts once.
"""

from typing import TYPE_CHECKING, Any

from headrace.dsl.builder import Topology
from headrace.dsl.keyed import KeyedStream
from headrace.dsl.stream import Stream
from headrace.dsl.windowed import WindowedStream
from headrace.errors import (
    CorruptError,
    FatalError,
    FencedError,
    HeadraceError,
    InvalidError,
    NotFoundError,
    RecordError,
    RetriableError,
    SettingsError,
    TopologyError,
)
from headrace.operators import aggregates as agg
from headrace.operators.windows import hopping, session, tumbling
from headrace.record import Record
from headrace.serde.json import Json
from headrace.serde.msgpack import Msgpack

if TYPE_CHECKING:
    from headrace.app import run

__all__ = [
    "CorruptError",
    "FatalError",
    "FencedError",
    "HeadraceError",
    "InvalidError",
    "Json",
    "KeyedStream",
    "Msgpack",
    "NotFoundError",
    "Record",
    "RecordError",
    "RetriableError",
    "SettingsError",
    "Stream",
    "Topology",
    "TopologyError",
    "WindowedStream",
    "agg",
    "hopping",
    "run",
    "session",
    "tumbling",
]


def __getattr__(name: str) -> Any:
    """Import what runs topologies when it is first used: writing one needs none of it."""
    if name == "run":
        from headrace.app import run

        return run
    raise AttributeError(f"module 'headrace' has no attribute {name!r}")
