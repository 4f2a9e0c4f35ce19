"""What every log must do, sentence by sentence of ``headrace.log.api``.

Subclass ``LogContract`` in a test module, and give it ``open_log``::

    class TestMyLog(LogContract):
        def open_log(self, directory, clock):
            return MyLog(directory, clock=clock)

``another_log`` must return a second log object on the same records, as another process would have it.
"""

from __future__ import annotations

import threading

import pytest

from headrace.errors import InvalidError, NotFoundError
from headrace.log.api import Log, TopicConfig
from headrace.record import (
    Headers,
    JoinedBytes,
    Origin,
    Progress,
    RecordBatch,
    TopicPartition,
    control_batch,
)
from headrace.testing.conformance.log_groups import GroupContract
from headrace.testing.conformance.log_support import (
    PART,
    LogFixtures,
    make_batch,
    read_all,
    read_next,
    read_until,
    until,
    values_of,
)


class TopicContract(LogFixtures):
    """Topics: creating, listing and deleting them."""

    def test_a_topic_is_what_was_created(self, log: Log) -> None:
        """A topic keeps its name, partitions and configuration."""
        segment_bytes = max(10_000, self.least_segment_bytes)
        config = TopicConfig(retention_ms=5000, retention_bytes=1000, segment_bytes=segment_bytes)
        created = log.create_topic("Orders.v1_x-y", 3, config)
        assert (created.name, created.partitions, created.config) == ("Orders.v1_x-y", 3, config)
        assert log.topics()["Orders.v1_x-y"] == created

    def test_topics_are_sorted_by_name(self, log: Log) -> None:
        """The listing is sorted."""
        log.create_topic("zebra", 1)
        log.create_topic("ant", 1)
        assert list(log.topics()) == sorted(log.topics())
        assert set(log.topics()) >= {"ant", "payments", "zebra"}

    def test_a_topic_that_exists_is_returned(self, log: Log, other: Log) -> None:
        """Creating a topic twice changes nothing."""
        log.append(PART, make_batch([b"x"]))
        assert other.create_topic("payments", 2).partitions == 2
        assert log.end_offset(PART) == 1

    def test_another_number_of_partitions_is_refused(self, log: Log) -> None:
        """The message names the number that exists."""
        with pytest.raises(InvalidError, match="2"):
            log.create_topic("payments", 3)

    @pytest.mark.parametrize("name", ["", "a b", "a/b", "ä", "a\n", ".", "..", "x" * 250])
    def test_a_bad_name_is_refused(self, log: Log, name: str) -> None:
        """Names are ``[A-Za-z0-9._-]``, at most 249, and no directory."""
        with pytest.raises(InvalidError):
            log.create_topic(name, 1)

    def test_the_longest_name_works(self, log: Log) -> None:
        """A name may have 249 characters."""
        log.create_topic("x" * 249, 1)
        log.append(TopicPartition("x" * 249, 0), make_batch([b"x"]))

    @pytest.mark.parametrize("partitions", [0, -1])
    def test_a_topic_has_partitions(self, log: Log, partitions: int) -> None:
        """The number of partitions is positive."""
        with pytest.raises(InvalidError):
            log.create_topic("none", partitions)

    def test_a_topic_grows(self, log: Log, other: Log) -> None:
        """It keeps its records and its configuration, and everybody sees the new partitions, which are empty."""
        log.create_topic("growing", 2, TopicConfig(retention_ms=5000))
        first, third = TopicPartition("growing", 0), TopicPartition("growing", 2)
        log.append(first, make_batch([b"x"]))
        reader = log.reader(first, 0)
        grown = other.grow_topic("growing", 4)
        assert (grown.partitions, grown.config.retention_ms) == (4, 5000)
        assert log.topics()["growing"] == grown
        assert (log.start_offset(third), log.end_offset(third)) == (0, 0)
        assert log.append(third, make_batch([b"z"])) == 0
        log.append(first, make_batch([b"y"]))
        assert values_of(read_all(other.reader(third, 0))) == [b"z"]
        assert values_of(read_all(reader)) == [b"x", b"y"]
        reader.close()

    def test_a_topic_does_not_shrink(self, log: Log) -> None:
        """Fewer partitions are refused, as many are nothing new, and there must be a topic."""
        with pytest.raises(InvalidError, match="cannot shrink to 1"):
            log.grow_topic("payments", 1)
        assert log.grow_topic("payments", 2) == log.topics()["payments"]
        with pytest.raises(NotFoundError):
            log.grow_topic("nothing", 2)

    def test_a_deleted_topic_is_gone(self, log: Log, other: Log) -> None:
        """Deleting removes the topic for everybody."""
        log.append(PART, make_batch([b"x"]))
        reader = log.reader(PART, 0)
        other.append(PART, make_batch([b"y"]))
        other.delete_topic("payments")
        assert "payments" not in log.topics()
        with pytest.raises(NotFoundError):
            log.append(PART, make_batch([b"x"]))
        with pytest.raises(NotFoundError):
            log.end_offset(PART)
        with pytest.raises(NotFoundError):
            read_until(reader, 10)  # it may have fetched some of it before
        reader.close()

    def test_a_topic_can_be_created_again(self, log: Log, other: Log) -> None:
        """A topic of the name of a deleted one starts empty."""
        log.append(PART, make_batch([b"x", b"y"]))
        other.delete_topic("payments")
        other.create_topic("payments", 1)
        assert log.end_offset(PART) == 0
        assert log.append(PART, make_batch([b"z"])) == 0
        reader = other.reader(PART, 0)
        assert values_of(read_all(reader)) == [b"z"]
        reader.close()

    def test_a_topic_is_known_by_its_id(self, log: Log, other: Log) -> None:
        """It stays while a topic grows, and is another one for a topic of the same name that is made later."""
        before = log.layout(["payments", "nothing"])
        assert list(before) == ["payments"]
        assert before["payments"].partitions == 2
        assert before["payments"].topic_id
        other.grow_topic("payments", 3)
        assert log.layout(["payments"]) == {"payments": before["payments"]._replace(partitions=3)}
        other.delete_topic("payments")
        until(lambda: not log.layout(["payments"]))
        other.create_topic("payments", 2)
        after = log.layout(["payments"])["payments"]
        assert after.partitions == 2
        assert after.topic_id not in ("", before["payments"].topic_id)
        assert other.layout(["payments"]) == {"payments": after}

    def test_what_does_not_exist_is_not_found(self, log: Log) -> None:
        """Every call on a topic or partition that does not exist says so."""
        for partition in (TopicPartition("nothing", 0), TopicPartition("payments", 2), TopicPartition("payments", -1)):
            for call in (
                lambda p=partition: log.append(p, make_batch([b"x"])),
                lambda p=partition: log.reader(p, 0),
                lambda p=partition: log.start_offset(p),
                lambda p=partition: log.end_offset(p),
                lambda p=partition: log.offset_at(p, 0),
                lambda p=partition: log.trim(p, 0),
            ):
                with pytest.raises(NotFoundError):
                    call()
        with pytest.raises(NotFoundError):
            log.delete_topic("nothing")


class RecordContract(LogFixtures):
    """Records: appending, reading and finding them."""

    def test_offsets_are_dense(self, log: Log, other: Log) -> None:
        """Append returns the offset of the first record, whoever appends."""
        assert log.append(PART, make_batch([b"a", b"b"])) == 0
        assert other.append(PART, make_batch([b"c"])) == 2
        assert log.append(PART, make_batch([b"d"])) == 3
        assert [log.start_offset(PART), log.end_offset(PART), other.end_offset(PART)] == [0, 4, 4]
        assert log.end_offset(TopicPartition("payments", 1)) == 0

    def test_every_column_comes_back(self, log: Log, other: Log) -> None:
        """What is read is what was appended, missing keys and values included."""
        headers: list[Headers] = [(), (("h", b"1"), ("h", b"2")), (("ü", b""),)]
        batch = make_batch(
            [b"x", None, b""], keys=[None, b"", b"\xff"], headers=headers, origin=Origin("t/s/0", range(7, 10)),
            progress=Progress(5, True, -1),
        )  # fmt: skip
        log.append(PART, batch)
        reader = other.reader(PART, 0)
        got = read_next(reader)
        assert got is not None
        assert list(got.offsets) == [0, 1, 2]
        assert list(got.timestamps) == [1000, 1001, 1002]
        assert list(got.keys) == [None, b"", b"\xff"]
        assert got.values.split() == [b"x", None, b""]
        assert got.headers is not None
        assert [tuple(map(tuple, row)) for row in got.headers] == headers
        assert got.origin is not None
        assert (got.origin.source, list(got.origin.positions)) == ("t/s/0", [7, 8, 9])
        assert got.progress == Progress(5, True, -1)
        assert not got.control
        reader.close()

    def test_what_was_not_appended_is_absent(self, log: Log) -> None:
        """A batch without headers, origin and progress is read without them."""
        log.append(PART, make_batch([b"x"]))
        reader = log.reader(PART, 0)
        got = read_next(reader)
        assert got is not None
        assert (got.headers, got.origin, got.progress) == (None, None, None)
        reader.close()

    def test_control_batches_come_back(self, log: Log) -> None:
        """A control batch takes an offset and is returned with its progress."""
        log.append(PART, make_batch([b"x"]))
        assert log.append(PART, control_batch(Progress(77, False, 5))) == 1
        reader = log.reader(PART, 1)
        got = read_next(reader)
        assert got is not None
        assert (got.control, got.progress, list(got.offsets)) == (True, Progress(77, False, 5), [1])
        assert reader.position == 2
        reader.close()

    def test_batches_end_where_they_were_appended(self, log: Log) -> None:
        """A read returns one appended batch at most, if its producer says how far it has got."""
        log.append(PART, make_batch([b"a", b"b"], progress=Progress(1, False, -1)))
        log.append(PART, make_batch([b"c"], progress=Progress(2, False, -1)))
        reader = log.reader(PART, 0)
        assert [batch.values.split() for batch in read_all(reader)] == [[b"a", b"b"], [b"c"]]
        reader.close()

    @pytest.mark.parametrize("pieces", [1, 2, 3, 7])
    def test_a_long_batch_comes_in_pieces(self, log: Log, pieces: int) -> None:
        """No more than ``max_records`` are returned; progress, which speaks of the whole batch, comes last."""
        values = [None if i % 5 == 2 else b"v%d" % i for i in range(7)]
        origin = Origin("s", range(10, 17))
        log.append(PART, make_batch(values, origin=origin, progress=Progress(9, False, -1)))
        reader = log.reader(PART, 0)
        got = read_all(reader, pieces)
        assert values_of(got) == values
        assert max(map(len, got)) == pieces
        assert [offset for batch in got for offset in batch.offsets] == list(range(7))
        assert [at for batch in got for at in (batch.origin.positions if batch.origin else ())] == list(range(10, 17))
        assert [batch.progress for batch in got] == [None] * (len(got) - 1) + [Progress(9, False, -1)]
        reader.close()

    def test_reading_starts_inside_a_batch(self, log: Log) -> None:
        """The first record read is the one at the position."""
        log.append(PART, make_batch([b"a", b"b", b"c"]))
        reader = log.reader(PART, 2)
        got = read_next(reader)
        assert got is not None
        assert (got.values.split(), list(got.offsets), list(got.timestamps)) == ([b"c"], [2], [1002])
        assert reader.position == 3
        reader.close()

    def test_the_end_is_none_until_more_comes(self, log: Log, other: Log) -> None:
        """Reading at the end returns None, and sees what is appended later."""
        reader = log.reader(PART, 0)
        assert read_next(reader) is None
        assert (reader.position, reader.end_offset()) == (0, 0)
        other.append(PART, make_batch([b"a"]))
        until(lambda: reader.end_offset() == 1)
        assert values_of(read_all(reader)) == [b"a"]
        other.append(PART, make_batch([b"b"]))
        until(lambda: reader.end_offset() == 2)
        assert values_of(read_all(reader)) == [b"b"]
        assert reader.position == reader.end_offset() == 2
        reader.close()
        reader.close()

    def test_the_position_can_be_set(self, log: Log) -> None:
        """A reader goes where its position is set to."""
        log.append(PART, make_batch([b"a", b"b", b"c"]))
        log.append(PART, make_batch([b"d"]))
        reader = log.reader(PART, 0)
        assert read_next(reader, 1) is not None
        reader.position = 2
        assert values_of(read_all(reader)) == [b"c", b"d"]
        reader.position = 0
        assert values_of(read_all(reader)) == [b"a", b"b", b"c", b"d"]
        reader.close()

    def test_the_appended_batch_may_change_later(self, log: Log) -> None:
        """The log keeps what the batch was when it was appended."""
        batch = make_batch([b"a"])
        log.append(PART, batch)
        assert isinstance(batch.timestamps, list)
        assert isinstance(batch.keys, list)
        batch.timestamps.append(5)
        batch.keys[0] = b"other"
        reader = log.reader(PART, 0)
        got = read_next(reader)
        assert got is not None
        assert (list(got.timestamps), list(got.keys)) == ([1000], [b"k0"])
        reader.close()

    def test_uneven_columns_are_refused(self, log: Log) -> None:
        """A batch that makes no sense is not stored."""
        for bad in (
            RecordBatch([1, 2], [b"k"], JoinedBytes.of([b"v", b"v"])),
            RecordBatch([1], [b"k"], JoinedBytes.of([b"v", b"v"])),
            make_batch([b"v"], headers=[(), ()]),
            make_batch([b"v"], origin=Origin("s", [1, 2])),
        ):
            with pytest.raises(InvalidError):
                log.append(PART, bad)
        assert log.end_offset(PART) == 0

    def test_flush_returns(self, log: Log) -> None:
        """Flush returns once everything is acknowledged."""
        log.flush()
        log.append(PART, make_batch([b"a"]))
        log.flush()
        log.flush()
        assert log.end_offset(PART) == 1

    def test_what_is_sent_keeps_its_place(self, log: Log, other: Log) -> None:
        """Without waiting, batches stand behind what was sent or appended to their partition before."""
        second = TopicPartition("payments", 1)
        pairs = [[b"%d-%s" % (i, name) * 10_000 for name in (b"a", b"b")] for i in range(50)]
        for i, pair in enumerate(pairs):
            log.send(PART, make_batch(pair, progress=Progress(i, False, -1)))
            log.send(second, make_batch([b"%d" % i]))
        assert log.append(PART, make_batch([b"appended"])) == 100
        changing = make_batch([b"last"])
        log.send(PART, changing)
        assert isinstance(changing.keys, list)
        changing.keys[0] = b"other"
        log.flush()
        assert [other.end_offset(PART), other.end_offset(second)] == [102, 50]
        reader = other.reader(PART, 0)
        batches = read_all(reader)
        reader.close()
        assert values_of(batches) == [*(value for pair in pairs for value in pair), b"appended", b"last"]
        assert [batch.progress for batch in batches if batch.progress] == [Progress(i, False, -1) for i in range(50)]
        assert list(batches[-1].keys)[-1] == b"k0"

    def test_what_makes_no_sense_is_not_sent(self, log: Log) -> None:
        """There must be a partition, and columns of one length."""
        for partition in (TopicPartition("nothing", 0), TopicPartition("payments", 2)):
            with pytest.raises(NotFoundError):
                log.send(partition, make_batch([b"x"]))
        with pytest.raises(InvalidError):
            log.send(PART, RecordBatch([1, 2], [b"k"], JoinedBytes.of([b"v", b"v"])))
        log.flush()
        assert log.end_offset(PART) == 0

    def test_everybody_puts_a_key_into_the_same_partition(self, log: Log, other: Log) -> None:
        """The hash is the log's, not the object's; it is not negative, and it tells keys apart."""
        keys = [b"", b"\xff" * 64, *(b"customer-%d" % i for i in range(500))]
        hashed = [log.hash_key(key) for key in keys]
        assert hashed == [other.hash_key(key) for key in keys]
        assert min(hashed) >= 0
        assert len(set(hashed)) > 450
        assert {code % 4 for code in hashed} == {0, 1, 2, 3}

    def test_a_log_is_known_by_its_identity(self, log: Log, other: Log) -> None:
        """Whoever opens it finds the same."""
        assert log.identity
        assert log.identity == other.identity

    def test_a_log_may_be_closed_twice(self, log: Log) -> None:
        """Closing is idempotent."""
        log.append(PART, make_batch([b"x"]))
        log.close()
        log.close()

    def test_offsets_are_found_by_time(self, log: Log) -> None:
        """The first record that is not older, or the end; control batches have no time."""
        log.append(PART, control_batch(Progress(1, False, -1), 10**12))
        log.append(PART, make_batch([b"a", b"b"], start_ms=100))
        log.append(PART, make_batch([b"c", b"d"], start_ms=50))
        log.append(PART, make_batch([b"e"], start_ms=200))
        found = [log.offset_at(PART, at) for at in (0, 100, 101, 102, 200, 201)]
        assert found == [1, 1, 2, 5, 5, 6]

    def test_trimming_never_takes_what_is_needed(self, log: Log) -> None:
        """Trim deletes only what lies before the offset, and reading before what is kept says what is kept."""
        log.create_topic("internal", 1, TopicConfig(segment_bytes=200))
        partition = TopicPartition("internal", 0)
        for _ in range(10):
            log.append(partition, make_batch([b"x" * 50, b"y" * 50]))
        log.trim(partition, 11)
        start = log.start_offset(partition)
        assert 0 <= start <= 11
        reader = log.reader(partition, start)
        assert sum(map(len, read_all(reader))) == 20 - start
        reader.close()
        log.trim(partition, 1000)
        assert log.end_offset(partition) == 20
        if log.start_offset(partition) > 0:
            early = log.reader(partition, 0)
            with pytest.raises(NotFoundError, match=str(log.start_offset(partition))):
                read_next(early)
            early.close()

    def test_threads_share_a_log(self, log: Log) -> None:
        """Batches that several threads append stay whole, and their offsets are dense."""

        def append(name: bytes) -> None:
            for i in range(20):
                log.append(PART, make_batch([b"%s-%d-%d" % (name, i, j) for j in range(3)]))

        threads = [threading.Thread(target=append, args=(b"t%d" % i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        reader = log.reader(PART, 0)
        batches = read_all(reader)
        reader.close()
        assert [offset for batch in batches for offset in batch.offsets] == list(range(240))
        assert all(len(batch) % 3 == 0 for batch in batches)  # appended at the same time, they may come as one
        names = [str(value).rpartition("-")[0] for value in values_of(batches)]
        assert all(len(set(names[i : i + 3])) == 1 for i in range(0, 240, 3))
        assert len(set(values_of(batches))) == 240


class LogContract(TopicContract, RecordContract, GroupContract):
    """Everything that a log must do."""
