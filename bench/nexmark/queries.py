"""Answers to the Nexmark queries over all events at once, by DuckDB: what a run must have given when its input ends.

Every query is a text of its own, ``sql/q<number>.sql``, over the tables ``person``, ``auction``, ``bid`` and
``side_input``, whose columns are the fields of the events; its comment says what a stream does differently on the way
to the same answer. Times are milliseconds since the epoch, as in the events. ``seq`` is an event's place in its topic,
by which ties are broken. The columns are those of the texts for Flink (github.com/nexmark/nexmark), in this spelling,
with more where it takes them to tell rows apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import duckdb
import msgspec

from bench.nexmark.events import Auction, Bid, Events, Person, SideInput, side_input

QUERIES = range(23)
"""The numbers of the queries."""

_FOLDER = Path(__file__).parent / "sql"
_COLUMN_TYPES: dict[Any, str] = {int: "BIGINT", str: "VARCHAR"}


def sql(number: int) -> str:
    """Return the text of a query."""
    return (_FOLDER / f"q{number}.sql").read_text(encoding="utf-8")


def load(connection: duckdb.DuckDBPyConnection, events: Events, side: Sequence[SideInput] | None = None) -> None:
    """Make the four tables, with the events in the order of their lists; without ``side``, all of the side input."""
    rows = side_input() if side is None else side
    _load(connection, "person", Person, events.persons)
    _load(connection, "auction", Auction, events.auctions)
    _load(connection, "bid", Bid, events.bids)
    _load(connection, "side_input", SideInput, rows)


def answer(connection: duckdb.DuckDBPyConnection, number: int) -> list[dict[str, Any]]:
    """Return the rows that answer a query, in no order, by the names of the columns."""
    result = connection.execute(sql(number))
    names = [column[0] for column in result.description or ()]
    return [dict(zip(names, row, strict=True)) for row in result.fetchall()]


def _load(connection: duckdb.DuckDBPyConnection, table: str, kind: type[Any], rows: Sequence[Any]) -> None:
    columns = {field.encode_name: _COLUMN_TYPES[field.type] for field in msgspec.structs.fields(kind)}
    with TemporaryDirectory() as folder:
        path = Path(folder) / "rows.ndjson"
        path.write_bytes(msgspec.json.Encoder().encode_lines(rows))
        connection.execute(
            f"CREATE TABLE {table} AS SELECT *, row_number() OVER () - 1 AS seq "
            "FROM read_json($path, format = 'newline_delimited', columns = $columns)",
            {"path": str(path), "columns": columns},
        )
