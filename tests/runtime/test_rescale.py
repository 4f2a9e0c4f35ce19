"""State that is moved to other partitions: the results are those of a run that nobody disturbed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from zlib import crc32

import msgspec
import pytest

from headrace import Topology, agg, run, tumbling
from headrace.app import prepare, rescale_site
from headrace.checkpoint.checkpoints import Checkpoints
from headrace.checkpoint.store import open_objects
from headrace.clock import SystemClock
from headrace.errors import InvalidError, RetriableError, TopologyError
from headrace.log.memory import MemoryLog
from headrace.record import JoinedBytes, RecordBatch, TopicPartition
from headrace.runtime.rescale import Site, carry_out, find_moves, read_up_to
from headrace.runtime.workers.bounds import Bounds
from headrace.settings import Settings
from headrace.topology.plan import plan, source_topics

Rows = Sequence[Mapping[str, Any]]
Build = Callable[[Topology], Any]


class Place:
    """A log in memory and a folder for checkpoints."""

    def __init__(self, folder: Path, build: Build, partitions: int) -> None:
        self.log = MemoryLog(SystemClock())
        self.log.create_topic("in", partitions)
        self.topology = Topology("t")
        build(self.topology)
        self.given = {
            "checkpoints": str(folder / "checkpoints"), "state_dir": str(folder / "state"), "fsync": "never",
            "metrics_port": 0, "checkpoint_interval_ms": 50,
        }  # fmt: skip

    def put(self, rows: Rows, topic: str = "in") -> None:
        count = self.log.topics()[topic].partitions
        for row in rows:
            key = row["k"].encode()
            batch = RecordBatch([row["at"]], [key], JoinedBytes.of([msgspec.msgpack.encode(row)]))
            self.log.append(TopicPartition(topic, crc32(key) % count), batch)

    def site(self, **more: Any) -> Site:
        return rescale_site(self.topology, self.log, Settings(**self.given, **more), SystemClock(), lambda text: None)

    def read(self) -> None:
        """Read what there is, and close nothing."""
        site = self.site()
        topics = {name: info.partitions for name, info in self.log.topics().items()}
        graph = self.topology.graph()
        counts = {name: topics[name] for name in source_topics(graph)}
        planned = plan(graph, counts, 0, topics, site.settings.guarantee)
        ends = {
            p: self.log.end_offset(p)
            for name in source_topics(graph)
            for p in (TopicPartition(name, n) for n in range(topics[name]))
        }
        prepare(self.topology, self.log, site.settings)
        read_up_to(site, planned, Bounds(ends, closes=False))

    def finish(self) -> None:
        run(self.topology, log=self.log, until_end=True, **self.given)

    def results(self) -> Counter[tuple[str, Any, str]]:
        """Return topic, key and value of everything that came out."""
        found: Counter[tuple[str, Any, str]] = Counter()
        for name, info in self.log.topics().items():
            if name.startswith("out-"):
                for number in range(info.partitions):
                    reader = self.log.reader(TopicPartition(name, number), 0)
                    while (batch := reader.read(1000)) is not None:
                        values = map(msgspec.msgpack.decode, batch.values.split())
                        found.update((name, key, repr(value)) for key, value in zip(batch.keys, values, strict=True))
        return found


def keyed(topology: Topology) -> None:
    stream = topology.stream("in", keyed_by="k", time="at", out_of_orderness="2s")
    once = stream.deduplicate(by="id", within="30s", name="once")
    once.to("out-once")
    once.window(tumbling("1s"), lateness="100ms").aggregate(n=agg.count(), ids=agg.sum("id"), name="windows").to(
        "out-w"
    )
    once.aggregate(n=agg.count(), name="totals").to("out-totals")


def rows(count: int, keys: int = 9, start: int = 0) -> list[dict[str, Any]]:
    """Return records of which every third comes twice, in about the order of their times."""
    made = []
    for i in range(start, start + count):
        row = {"k": f"key-{i % keys}", "id": i, "at": 100 * i + (i * 37) % 500}
        made += [row, row] if i % 3 == 0 else [row]
        if i % 5 == 0 and i > 3:
            made.append({"k": f"key-{(i - 3) % keys}", "id": i - 3, "at": row["at"]})
    return made


def undisturbed(folder: Path, build: Build, given: Rows, partitions: int) -> Counter[tuple[str, Any, str]]:
    place = Place(folder, build, partitions)
    place.put(given)
    place.finish()
    return place.results()


def test_a_source_that_grew(tmp_path: Path) -> None:
    place = Place(tmp_path / "a", keyed, 3)
    place.put(rows(60))
    place.read()
    place.put(rows(10, start=60))  # nobody has read these when the topic grows
    place.log.grow_topic("in", 5)
    place.put(rows(60, start=70))
    with pytest.raises(TopologyError, match="headrace rescale"):
        place.finish()
    moves = find_moves(place.site())
    assert {step: tuple(width) for step, width in moves.steps["in"].items()} == {
        "once": (3, 5), "windows": (3, 5), "totals": (3, 5)
    }  # fmt: skip
    assert carry_out(place.site(), moves) == 5
    assert find_moves(place.site()).none
    place.finish()
    assert place.results() == undisturbed(tmp_path / "b", keyed, rows(130), 3)


def totals(topology: Topology) -> None:
    topology.stream("in", keyed_by="k").aggregate(n=agg.count(), name="totals").to("out-totals")


def repartitioned(topology: Topology) -> None:
    stream = topology.stream("in", time="at", out_of_orderness="2s").map(lambda row: {**row, "by": row["id"] % 7})
    by = stream.key_by("by", key=int, name="by")
    by.window(tumbling("1s"), lateness="100ms").aggregate(n=agg.count(), ids=agg.sum("id"), name="windows").to("out-w")
    by.aggregate(n=agg.count(), name="totals").to("out-totals")


def test_an_internal_topic_gets_more_partitions(tmp_path: Path) -> None:
    place = Place(tmp_path / "a", repartitioned, 2)
    place.put(rows(40))
    place.read()
    place.put(rows(10, start=40))
    moves = find_moves(place.site(repartition_partitions=4))
    assert {name: tuple(width) for name, width in moves.internal.items()} == {"t-by-repartition": (2, 4)}
    assert carry_out(place.site(repartition_partitions=4), moves) == 4
    assert place.log.topics()["t-by-repartition"].partitions == 4
    place.put(rows(40, start=50))
    place.finish()
    assert place.results() == undisturbed(tmp_path / "b", repartitioned, rows(90), 2)
    with pytest.raises(InvalidError, match="it can only grow"):
        find_moves(place.site(repartition_partitions=3))


def test_a_source_that_grew_before_a_repartition_needs_nothing(tmp_path: Path) -> None:
    place = Place(tmp_path / "a", repartitioned, 2)
    place.put(rows(40))
    place.read()
    place.log.grow_topic("in", 3)
    assert find_moves(place.site()).none
    place.put(rows(40, start=40))
    place.finish()
    assert place.log.topics()["t-by-repartition"].partitions == 2
    assert place.results() == undisturbed(tmp_path / "b", repartitioned, rows(80), 2)


def meeting(topology: Topology) -> None:
    first = topology.stream("in", keyed_by="k", time="at", out_of_orderness="2s")
    second = topology.stream("more").key_by("k", name="by")
    first.merge(second).aggregate(n=agg.count(), name="totals").to("out-totals")


def test_an_internal_topic_that_meets_a_source_grows_with_it(tmp_path: Path) -> None:
    found = []
    for folder, grown in (("a", 4), ("b", 2)):
        place = Place(tmp_path / folder, meeting, 2)
        place.log.create_topic("more", 1)
        for part in (rows(20), rows(20, start=20)):
            place.put(part)
            for row in part:
                values = JoinedBytes.of([msgspec.msgpack.encode(row)])
                place.log.append(TopicPartition("more", 0), RecordBatch([row["at"]], [b""], values))
            if part[0]["id"] == 0:
                place.read()
                place.log.grow_topic("in", grown)
                moves = find_moves(place.site())
                assert moves.none == (grown == 2)
                assert moves.none or carry_out(place.site(), moves) == 4
        place.finish()
        assert place.log.topics()["t-by-repartition"].partitions == grown
        found.append(place.results())
    assert found[0] == found[1]


def by_outbox(topology: Topology) -> None:
    first, second = topology.stream("in", keyed_by="k"), topology.stream("more", keyed_by="k")
    once = first.merge(second).deduplicate(by="id", within="1h", name="once")
    by = once.map(lambda row: {"by": row["id"] % 7}).key_by("by", key=int, name="by")
    by.aggregate(n=agg.count(), name="totals").to("out-totals")


def test_what_leaves_through_an_outbox_is_counted_once(tmp_path: Path) -> None:
    place = Place(tmp_path, by_outbox, 2)
    place.log.create_topic("more", 2)
    place.given["guarantee"] = "exactly-once"
    assert plan(place.topology.graph(), {"in": 2, "more": 2}, guarantee="exactly-once").outbox == {"by"}
    for start in (0, 30, 60):
        place.put(rows(30, start=start))
        place.put(rows(30, start=start), "more")
        if start == 0:
            place.read()
        if start == 30:
            place.log.grow_topic("in", 3)
            place.log.grow_topic("more", 3)
            site = place.site(repartition_partitions=4)
            assert carry_out(site, find_moves(site)) == 3 + 4
    place.finish()
    # A running count says every number up to the last one once.
    assert place.results().total() == len(place.results()) == 90
    values = {value for _, _, value in place.results()}
    assert {f"'n': {n}" in " ".join(values) for n in range(1, 13)} == {True}


def test_a_step_that_is_new_gets_its_state_where_its_keys_are(tmp_path: Path) -> None:
    def more(topology: Topology) -> None:
        stream = topology.stream("in", keyed_by="k")
        stream.aggregate(n=agg.count(), name="totals").to("out-totals")
        stream.aggregate(most=agg.max("id"), name="most").to("out-most")

    place = Place(tmp_path, totals, 2)
    place.put(rows(9))
    place.read()
    place.topology = Topology("t")
    more(place.topology)
    place.put(rows(9, start=9))
    place.log.grow_topic("in", 4)
    carry_out(place.site(), find_moves(place.site()))
    place.put(rows(9, start=18))
    place.finish()
    last = {key: value for topic, key, value in place.results() if topic == "out-most"}
    assert len(last) == 9
    assert {int(value) for value in re.findall(r"'most': (\d+)", " ".join(last.values()))} == set(range(18, 27))


class Breaking(Checkpoints):
    """Stops in the middle."""

    left = 0

    def save(self, *arguments: Any) -> Any:
        """Save so many, and fail."""
        if self.left == 0:
            raise RetriableError("the store is gone")
        self.left -= 1
        return super().save(*arguments)


@pytest.mark.parametrize("saves", [0, 1, 2, 3])
def test_what_a_crash_leaves_is_done_again(tmp_path: Path, saves: int) -> None:
    place = Place(tmp_path / "a", totals, 2)
    place.put(rows(30))
    place.read()
    place.log.grow_topic("in", 4)
    breaking = Breaking(open_objects(place.given["checkpoints"], {}), "t")
    breaking.left = saves
    site = replace(place.site(), checkpoints=breaking)
    with pytest.raises(RetriableError):
        carry_out(site, find_moves(site))
    with pytest.raises(TopologyError, match="rescale"):
        place.finish()
    assert carry_out(place.site(), find_moves(place.site())) == 4
    place.put(rows(30, start=30))
    place.finish()
    assert place.results() == undisturbed(tmp_path / "b", totals, rows(60), 2)


def test_nothing_is_moved_under_members_that_live(tmp_path: Path) -> None:
    place = Place(tmp_path, totals, 2)
    place.put(rows(5))
    place.read()
    place.log.grow_topic("in", 4)
    site = place.site(session_timeout_ms=300, heartbeat_interval_ms=50)
    moves = find_moves(site)
    membership = site.group.join("a-worker", {}, lambda *_: {}, session_timeout_ms=60_000)
    with pytest.raises(InvalidError, match="has members, which run the topology: a-worker"):
        carry_out(site, moves)
    membership.leave()
    assert carry_out(site, moves) == 4


def test_records_that_were_put_elsewhere_are_refused_and_counted(tmp_path: Path) -> None:
    place = Place(tmp_path, totals, 2)
    place.put(rows(10))
    place.read()
    place.log.grow_topic("in", 4)
    place.put(rows(20, start=10))
    stray = next(key for key in map(str, range(99)) if crc32(key.encode()) % 4 == 3)
    values = JoinedBytes.of([msgspec.msgpack.encode({"k": stray, "id": 1, "at": 5})] * 2)
    place.log.append(TopicPartition("in", 0), RecordBatch([5, 5], [stray.encode()] * 2, values))
    with pytest.raises(InvalidError, match=r"partition in/0 has 2 records from offset \d+ on that belong to other"):
        carry_out(place.site(), find_moves(place.site()))
