"""Where records leave a task."""

from typing import Any
from zlib import crc32

import msgspec
import pytest

from headrace.errors import TopologyError
from headrace.operators.api import Batch
from headrace.record import Progress
from headrace.runtime.tasks.edges import Append, Edge
from headrace.serde.msgpack import Msgpack
from headrace.serde.primitives import Int, Str

PROGRESS = Progress(100, False, -1)


def sink(partitions: int = 1, inputs: int = 1) -> Edge:
    return Edge(topology="t", step="s", task="in-0", inputs=inputs, topic="out", partitions=partitions, value=Str())


def internal(partitions: int = 1, key: Any = None) -> Edge:
    return Edge(
        topology="t", step="s", task="in-0", inputs=1, topic="t-s-repartition", partitions=partitions, value=Msgpack(),
        key_of="k", key=key or Str(),
    )  # fmt: skip


def batch(values: list[Any], keys: list[bytes | None] | None = None) -> Batch:
    return Batch(range(len(values)), range(len(values)), keys or [None] * len(values), values)


def positions(appends: list[Append]) -> list[int]:
    return [p for _, records in appends if records.origin for p in records.origin.positions]


def test_positions_grow_over_packs() -> None:
    edge = sink()
    found: list[int] = []
    for values in (["a", "b"], ["c"]):
        edge.add(edge.process(batch(values)))
        found += positions(edge.pack("in", PROGRESS))
    assert found == [0, 1, 2]
    assert edge.sequences == {"t/s/in-0": 3}


def test_nothing_waiting_is_nothing_to_append() -> None:
    assert sink().pack("in", PROGRESS) == []


def test_what_waits_leaves_together_with_headers() -> None:
    edge = sink()
    edge.add(edge.process(batch(["a"])))
    with_headers = batch(["b"])
    with_headers.headers = [(("h", b"1"),)]
    edge.add(edge.process(with_headers))
    ((_, records),) = edge.pack("in", PROGRESS)
    assert records.headers == [(), (("h", b"1"),)]
    assert records.values.split() == [b"a", b"b"]
    assert records.progress is None


def test_each_input_has_a_sequence_of_its_own() -> None:
    edge = sink(inputs=2)
    sources = []
    for topic in ("x", "y", "x"):
        edge.add(edge.process(batch(["a"])))
        ((_, records),) = edge.pack(topic, PROGRESS)
        assert records.origin is not None
        sources.append((records.origin.source, list(records.origin.positions)))
    assert sources == [("t/s/in-0/x", [0]), ("t/s/in-0/y", [0]), ("t/s/in-0/x", [1])]


def test_keys_go_to_partitions_by_their_checksum() -> None:
    edge = sink(partitions=3)
    keys: list[bytes | None] = [str(i).encode() for i in range(50)]
    edge.add(edge.process(batch([str(i) for i in range(50)], keys)))
    appends = edge.pack("in", PROGRESS)
    assert sorted(positions(appends)) == list(range(50))
    for (_, partition), records in appends:
        assert [crc32(key) % 3 for key in records.keys if key is not None] == [partition] * len(records)
        assert records.origin is not None
        assert [str(p).encode() for p in records.origin.positions] == records.values.split()


def test_records_without_a_key_go_where_their_position_says() -> None:
    whole, cut = sink(partitions=4), sink(partitions=4)
    whole.add(whole.process(batch(["v"] * 2000)))
    at_once = {p: part.partition for part, records in whole.pack("in", PROGRESS) for p in positions([(part, records)])}
    in_parts = {}
    for size in (1, 255, 300, 1444):
        cut.add(cut.process(batch(["v"] * size)))
        in_parts |= {
            p: part.partition for part, records in cut.pack("in", PROGRESS) for p in positions([(part, records)])
        }
    assert at_once == in_parts
    assert set(at_once.values()) == {0, 1, 2, 3}


def test_the_new_key_is_the_selected_field() -> None:
    edge = internal(key=Int())
    edge.add(edge.process(batch([{"k": 258}])))
    ((partition, records),) = edge.pack("in", PROGRESS)
    assert partition == ("t-s-repartition", 0)
    assert list(records.keys) == [b"\0\0\0\0\0\0\1\2"]
    assert records.progress == PROGRESS


@pytest.mark.parametrize("values", [[{"k": None}], [{"k": "a"}, {"k": None}], [{"x": 1}], [{"k": 5}]])
def test_a_record_without_such_a_key_cannot_leave(values: list[Any]) -> None:
    edge = internal()
    with pytest.raises((TypeError, KeyError)):
        edge.process(batch(values))
    assert edge.pack("in", PROGRESS) == []


class Paid(msgspec.Struct):
    k: str


@pytest.mark.parametrize("values", [[Paid("a")], [{"k": "a"}, Paid("b")]])
def test_objects_that_would_come_back_as_dicts_are_refused(values: list[Any]) -> None:
    with pytest.raises(TopologyError, match="Paid objects through an internal topic"):
        internal().process(batch(values))


def test_every_internal_partition_hears_of_progress_once() -> None:
    edge = internal(partitions=3)
    assert [p.partition for p, _ in edge.report(PROGRESS)] == [0, 1, 2]
    assert edge.report(PROGRESS) == []
    later = Progress(200, False, -1)
    edge.add(edge.process(batch([{"k": "a"}])))
    ((told, _),) = edge.pack("in", later)
    appends = edge.report(later)
    assert sorted([told.partition, *(p.partition for p, _ in appends)]) == [0, 1, 2]
    assert all(records.control and records.progress == later for _, records in appends)


def test_a_sink_reports_no_progress() -> None:
    assert sink().report(PROGRESS) == []
