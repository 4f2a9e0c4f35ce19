"""The rows and messages of tables as the first version wrote them: they are written so, and can be read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec

from headrace import agg
from headrace.operators.api import Batch, Spec, StepContext
from headrace.operators.foreign_key_join import Answer, Answers, Lookup, Reference, References
from headrace.operators.global_join import GlobalJoin
from headrace.operators.running import RunningAggregate, RunningReduce
from headrace.operators.table_join import TableJoin
from headrace.serde.msgpack import Msgpack
from headrace.serde.primitives import Str
from headrace.state.api import WriteBatch
from headrace.state.cache import Budget
from headrace.state.keys import store_prefix
from headrace.state.memory import MemoryStore

GOLDEN = Path(__file__).parent / "golden" / "tables_v1.txt"

ROW = msgspec.msgpack.encode({"n": 1})
Records = list[tuple[bytes, Any, int]]
"""Key, value, side."""

CASES: dict[str, tuple[Spec, Records]] = {
    "table-join": (
        TableJoin(Msgpack(), Str(), "outer"),
        [(b"both", {"n": 1}, 0), (b"both", "right", 1), (b"left", {"n": 2}, 0), (b"right", "only", 1)],
    ),
    "references": (
        References("c", Msgpack(), Str(), "left"),
        [(b"o1", {"c": "c1"}, 0), (b"o2", {"c": None}, 0), (b"o3", {"c": "c1"}, 0), (b"o3", None, 0)],
    ),
    "lookup": (
        Lookup(Msgpack(), Msgpack()),
        [
            (b"c\0", Reference(b"o1", 1, ROW, True, True), 0),
            (b"c\0", Reference(b"o2", 2, ROW, True, True), 0),
            (b"c\0", {"n": 7}, 1),
        ],
    ),
    "answers": (
        Answers(Msgpack(), Msgpack(), "inner"),
        [(b"o1", Answer(5, ROW, ROW), 0), (b"o2", Answer(6, ROW, None), 0), (b"o3", Answer(7, None, None), 0)],
    ),
    "global-join": (GlobalJoin("p", Str(), Msgpack(), "inner"), [(b"p1", {"n": 1}, 1), (b"p2", "text", 1)]),
    "aggregate": (
        RunningAggregate({"n": agg.count(), "mean": agg.mean("n"), "all": agg.collect("n")}, Str()),
        [(b"a", {"n": 1}, 0), (b"a", {"n": 2}, 0)],
    ),
    "reduce": (RunningReduce(lambda a, b: b, Msgpack()), [(b"a", {"n": 1}, 0), (b"a", {"n": 2}, 0)]),
}


def build(spec: Spec, store: MemoryStore) -> tuple[Any, Budget, dict[bytes, str]]:
    budget, names = Budget(10_000), dict[bytes, str]()

    def prefix(part: str) -> bytes:
        made = store_prefix(len(names) + 1)
        names[made] = part
        return made

    return spec.build(StepContext("step", store, prefix, budget)), budget, names


def process(operator: Any, spec: Spec, records: Records) -> list[tuple[bytes, Any]]:
    """Let an operator take records one at a time and return what it makes."""
    found = []
    for key, value, side in records:
        batch = Batch([0], [1000], [key], [value])
        outputs = operator.process_sides(batch, [side]) if spec.sided else operator.process(batch)
        found += [pair for _, made in outputs for pair in zip(made.keys, made.values, strict=True)]
    return found


def written() -> str:
    """Return every row and message, one a line."""
    lines = []
    for name, (spec, records) in CASES.items():
        store = MemoryStore()
        operator, budget, names = build(spec, store)
        messages = [value for _, value in process(operator, spec, records)]
        batch = WriteBatch()
        budget.flush(batch)
        store.write(batch)
        lines += [f"{name} {names[key[:2]]} {key[2:].hex() or '-'} {row.hex()}" for key, row in store.scan(b"")]
        encoded = [msgspec.msgpack.encode(m).hex() for m in messages if isinstance(m, Reference | Answer)]
        lines += [f"{name} message {message}" for message in encoded]
    return "\n".join(lines) + "\n"


def test_this_version_writes_version_1() -> None:
    found = written()
    if os.environ.get("HEADRACE_GOLDEN") == "write":
        GOLDEN.write_text(found, encoding="utf-8")
    assert found == GOLDEN.read_text(encoding="utf-8")


def stored(name: str) -> tuple[Any, Spec]:
    """Return an operator that goes on with the rows of the fixture."""
    spec = CASES[name][0]
    _, _, names = build(spec, MemoryStore())
    numbers = {part: key for key, part in names.items()}
    rows = {}
    for line in GOLDEN.read_text(encoding="utf-8").splitlines():
        case, part, *rest = line.split()
        if case == name and part != "message":
            rows[numbers[part] + bytes.fromhex(rest[0].replace("-", ""))] = bytes.fromhex(rest[1])
    return build(spec, MemoryStore(rows))[0], spec


def test_version_1_goes_on() -> None:
    def after(name: str, *records: tuple[bytes, Any, int]) -> list[tuple[bytes, Any]]:
        return process(*stored(name), list(records))

    assert after("table-join", (b"both", None, 0), (b"left", "new", 1), (b"right", None, 1)) == [
        (b"both", (None, "right")), (b"left", ({"n": 2}, "new")), (b"right", None),
    ]  # fmt: skip
    assert [message for _, message in after("references", (b"o1", {"c": "c2"}, 0), (b"o2", None, 0))] == [
        Reference(b"o1", 5, None, False, False),
        Reference(b"o1", 5, msgspec.msgpack.encode({"c": "c2"}), True, True),
        Reference(b"o2", 6, None, False, True),
    ]
    assert after("lookup", (b"c\0", None, 1)) == [(b"o1", Answer(1, ROW, None)), (b"o2", Answer(2, ROW, None))]
    assert after("answers", (b"o1", Answer(4, None, None), 0), (b"o1", Answer(8, None, None), 0)) == [(b"o1", None)]
    assert after("answers", (b"o3", Answer(6, ROW, ROW), 0)) == []
    assert after("global-join", (b"k", {"p": "p2"}, 0)) == [(b"k", ({"p": "p2"}, "text"))]
    assert after("aggregate", (b"a", {"n": 6}, 0)) == [(b"a", {"key": "a", "n": 3, "mean": 3.0, "all": [1, 2, 6]})]
    assert after("reduce", (b"a", {"n": 9}, 0)) == [(b"a", {"n": 9})]


def test_messages_of_version_1_can_be_read() -> None:
    kinds = {"references": Reference, "lookup": Answer}
    read = 0
    for line in GOLDEN.read_text(encoding="utf-8").splitlines():
        case, part, data, *_ = line.split()
        if part == "message":
            assert isinstance(Msgpack(kinds[case]).decode(bytes.fromhex(data)), kinds[case])
            read += 1
    assert read == 8
