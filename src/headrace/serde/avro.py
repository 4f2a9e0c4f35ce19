"""Avro values, plain or in Confluent's wire format."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

import msgspec

from headrace.errors import HeadraceError, TopologyError
from headrace.record import JoinedBytes
from headrace.serde.confluent import HEADER_BYTES, check_wire, frame, schema_id_of
from headrace.serde.hooks import from_plain, to_plain
from headrace.serde.models import Models, check_aliases, dump, is_model
from headrace.serde.msgpack import kind_name
from headrace.serde.registry import SchemaRegistry
from headrace.serde.schema import schema_of

_BUILTIN = (bytes, datetime, date, time, Decimal, UUID)
"""What fastavro reads and writes as it is."""


class Avro:
    """Avro values: a dict for each record, or an object of ``kind``.

    Values are written without the container that ``.avro`` files have. Logical types are read as ``datetime``,
    ``Decimal`` and ``UUID``.

    Args:
        schema: The schema: plain data, its JSON text, or the path of an ``.avsc`` file, beside which those that it
            refers to are looked for. Only with ``registry`` may it be None: then values are read as they were written,
            and cannot be written.
        kind: What the dicts are made into: a ``msgspec.Struct``, dataclass, ``TypedDict`` or pydantic model.
        wire: ``"plain"`` is the bare value, written by this very schema; ``"confluent"`` has a zero byte and the id of
            the writer's schema before it.
        registry: Where the writers' schemas are: a mapping from id to schema, or a ``SchemaRegistry``. A value is then
            read by its writer's schema and resolved to ``schema``, by Avro's rules.
        schema_id: The id of ``schema``, which is written before each value.

    Raises:
        TopologyError: fastavro is not installed, the schema is none, or the arguments do not fit together.

    Example:
        >>> click = {"type": "record", "name": "Click", "fields": [{"name": "page", "type": "string"}]}
        >>> Avro(click).encode_many([{"page": "/"}])
        [b'\\x02/']
        >>> Avro(click).decode(b"\\x02/")
        {'page': '/'}
    """

    def __init__(
        self,
        schema: Any = None,
        kind: Any = None,
        *,
        wire: Literal["plain", "confluent"] = "plain",
        registry: Mapping[int, Any] | SchemaRegistry | None = None,
        schema_id: int | None = None,
    ) -> None:
        self._avro = _fastavro()
        check_wire("Avro", wire, schema_id)
        _check_arguments(schema, wire, registry, schema_id)
        self.kind = Any if kind is None else kind
        self._confluent = wire == "confluent"
        self._schema = None if schema is None else self._parse(_loaded(schema, self._avro), "schema of Avro")
        self._registry = registry
        self._frame = b"" if schema_id is None else frame(schema_id)
        self._writers: dict[int, Any] = {} if schema_id is None else {schema_id: self._schema}
        self._models: Models | None = None
        if is_model(kind):
            check_aliases(kind)
            self._models = Models(kind)

    @property
    def name(self) -> str:
        """Return ``avro``, the wire format if it is not plain, and what a value is called."""
        schema = self._schema
        title = kind_name(self.kind) if self.kind is not Any else ""
        if not title and isinstance(schema, dict):
            title = str(schema.get("name", ""))
        return f"avro{'-confluent' if self._confluent else ''}" + (f"[{title}]" if title else "")

    @property
    def schema(self) -> Any:
        """Describe what reading depends on: the schema in canonical form, and the type."""
        canonical = None if self._schema is None else self._avro.schema.to_parsing_canonical_form(self._schema)
        return {"avro": canonical, "kind": schema_of(self.kind)}

    @property
    def unwritable(self) -> str:
        """Say why no value can be written; empty if it can."""
        if self._schema is None:
            return "Avro without a schema can only read"
        return 'Avro with wire="confluent" needs schema_id= to write' if self._confluent and not self._frame else ""

    @property
    def internal(self) -> Avro:
        """Return the serde for topics that nobody else reads: plain, by the schema that values were resolved to."""
        return self if not self._confluent or self._schema is None else Avro(self._schema, self.kind)

    def encode_many(self, values: Sequence[Any]) -> list[bytes | None]:
        """Encode each value.

        Raises:
            TopologyError: nothing can be written with these arguments.
            ValueError: a value does not fit the schema; names the field if it can.
        """
        if self.unwritable:
            raise TopologyError(self.unwritable)
        return [None if value is None else self._encode(value) for value in values]

    def decode_many(self, values: JoinedBytes) -> list[Any]:
        """Decode the column; values written by one schema are made into ``kind`` in one call."""
        data = values.split()
        plain = [None if value is None else self._decode(value) for value in data]
        if self._models is not None and None not in data:
            return self._models.validate_many(plain)
        return [None if value is None else self._typed(found) for value, found in zip(data, plain, strict=True)]

    def decode(self, value: bytes | None) -> Any:
        """Decode one value."""
        return None if value is None else self._typed(self._decode(value))

    def _encode(self, value: Any) -> bytes:
        kind = type(value)
        if is_model(kind):
            value = dump(value)
        elif kind is not dict:
            value = msgspec.to_builtins(value, builtin_types=_BUILTIN, enc_hook=to_plain)
        out = io.BytesIO()
        out.write(self._frame)
        try:
            self._avro.schemaless_writer(out, self._schema, value, strict_allow_default=True)
        except Exception as error:  # noqa: BLE001  # fastavro raises what comes, and quotes the value
            field = re.search(r" on field (\w+)$", str(error))
            where = f", field {field[1]!r}" if field else ""
            raise ValueError(f"not a value of the Avro schema {self.name}{where}: {type(error).__name__}") from None
        return out.getvalue()

    def _decode(self, value: bytes) -> Any:
        writer = self._writer(schema_id_of(value)) if self._confluent else self._schema
        data = io.BytesIO(value)
        if self._confluent:
            data.seek(HEADER_BYTES)
        try:
            found = self._avro.schemaless_reader(data, writer, self._schema if writer is not self._schema else None)
        except Exception as error:  # noqa: BLE001  # as above
            raise ValueError(f"not a value of the Avro schema {self.name}: {type(error).__name__}") from None
        if data.tell() != len(value):
            raise ValueError(f"more than a value of the Avro schema {self.name}")
        return found

    def _typed(self, value: Any) -> Any:
        if self.kind is Any:
            return value
        return msgspec.convert(value, self.kind, builtin_types=_BUILTIN, dec_hook=from_plain)

    def _writer(self, schema_id: int) -> Any:
        found = self._writers.get(schema_id)
        if found is not None:
            return found
        if isinstance(self._registry, SchemaRegistry):
            schemas = self._registry.avro(schema_id)
        elif self._registry is not None and schema_id in self._registry:
            schemas = [_loaded(self._registry[schema_id], self._avro)]
        else:
            raise ValueError(f"no schema is known for the schema id {schema_id}")
        named: dict[str, Any] = {}
        parsed = [self._parse(schema, f"schema {schema_id} of the registry", named) for schema in schemas]
        found = self._writers[schema_id] = parsed[-1]
        return found

    def _parse(self, schema: Any, what: str, named: dict[str, Any] | None = None) -> Any:
        try:
            return self._avro.parse_schema(schema, named_schemas={} if named is None else named)
        except Exception as error:
            raise TopologyError(
                f"{what} is no Avro schema: {error}", remedy="Give plain data, JSON text or the path of an .avsc file"
            ) from error


def _check_arguments(
    schema: Any, wire: str, registry: Mapping[int, Any] | SchemaRegistry | None, schema_id: int | None
) -> None:
    if registry is not None and not isinstance(registry, Mapping | SchemaRegistry):
        raise TopologyError(
            f"registry of Avro must be a mapping from id to schema or a SchemaRegistry, not {type(registry).__name__}"
        )
    if wire == "plain":
        if registry is not None:
            raise TopologyError('registry= of Avro needs wire="confluent": plain values do not tell their schema')
        if schema is None:
            raise TopologyError("Avro needs a schema", remedy="Give plain data, JSON text or the path of an .avsc file")
    elif registry is None and schema_id is None:
        raise TopologyError('Avro with wire="confluent" needs registry= to read, or schema_id=')
    if schema is None and schema_id is not None:
        raise TopologyError("Avro has schema_id= but no schema")


def _loaded(schema: Any, fastavro: Any) -> Any:
    """Return a schema as plain data."""
    if isinstance(schema, str) and not schema.lstrip().startswith(("{", "[", '"')) and schema.endswith(".avsc"):
        schema = Path(schema)
    load: Callable[[], Any]
    if isinstance(schema, Path):
        path = schema

        def load() -> Any:
            return fastavro.schema.load_schema(str(path))
    elif isinstance(schema, str) and schema.lstrip().startswith(("{", "[", '"')):
        text = schema

        def load() -> Any:
            return json.loads(text)
    else:
        return schema
    try:
        return load()
    except HeadraceError:
        raise
    except Exception as error:
        raise TopologyError(f"the Avro schema cannot be read: {error}") from error


def _fastavro() -> Any:
    try:
        import fastavro
        import fastavro.schema
    except ImportError as error:
        raise TopologyError("Avro needs fastavro", remedy='Run: pip install "headrace[avro]"') from error
    return fastavro
