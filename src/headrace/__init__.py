"""headrace: stateful stream processing in plain Python.

A *topology* is a Python module that says what to read, what to do with it and where the results go. *Workers* run it
over a partitioned log, keep its state in RocksDB, and checkpoint that state so that every record counts once.
"""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING, Any

from headrace.dsl.builder import Topology
from headrace.dsl.joins import JoinResults
from headrace.dsl.keyed import KeyedStream, WindowResults
from headrace.dsl.policies import retry
from headrace.dsl.processing import ProcessResults
from headrace.dsl.stream import Stream
from headrace.dsl.table import GlobalTable, Table
from headrace.dsl.windowed import WindowedStream
from headrace.dsl.windows import counting, every, hopping, session, sliding, tumbling, when
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
from headrace.operators.aggregates import Aggregate
from headrace.operators.async_map import Cache
from headrace.operators.custom import WindowAssigner
from headrace.operators.keyed_state import ListState, MapState, ValueState
from headrace.operators.programs import Context, Process
from headrace.record import Record
from headrace.serde.api import Serde
from headrace.serde.json import Json
from headrace.serde.msgpack import Msgpack
from headrace.serde.primitives import Float, Uuid

if TYPE_CHECKING:
    from headrace.app import run
    from headrace.serde.avro import Avro
    from headrace.serde.protobuf import Protobuf
    from headrace.serde.registry import SchemaRegistry

__all__ = [
    "Aggregate",
    "Avro",
    "Cache",
    "Context",
    "CorruptError",
    "FatalError",
    "FencedError",
    "Float",
    "GlobalTable",
    "HeadraceError",
    "InvalidError",
    "JoinResults",
    "Json",
    "KeyedStream",
    "ListState",
    "MapState",
    "Msgpack",
    "NotFoundError",
    "Process",
    "ProcessResults",
    "Protobuf",
    "Record",
    "RecordError",
    "RetriableError",
    "SchemaRegistry",
    "Serde",
    "SettingsError",
    "Stream",
    "Table",
    "Topology",
    "TopologyError",
    "Uuid",
    "ValueState",
    "WindowAssigner",
    "WindowResults",
    "WindowedStream",
    "agg",
    "counting",
    "every",
    "hopping",
    "retry",
    "run",
    "session",
    "sliding",
    "tumbling",
    "when",
]


_LATER = {
    "Avro": "headrace.serde.avro",
    "Protobuf": "headrace.serde.protobuf",
    "SchemaRegistry": "headrace.serde.registry",
    "run": "headrace.app",
}


def __getattr__(name: str) -> Any:
    """Import what only some topologies need, and what runs them, when it is first used."""
    if name in _LATER:
        return getattr(_import_module(_LATER[name]), name)
    raise AttributeError(f"module 'headrace' has no attribute {name!r}")
