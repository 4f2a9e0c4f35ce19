"""The write-behind cache gives the rows that a plain dict would, whatever the budget."""

import itertools
import shutil
import tempfile
from pathlib import Path

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from headrace.errors import RetriableError
from headrace.state.api import WriteBatch
from headrace.state.cache import Budget, Codec, WriteBehind
from headrace.state.keys import encode_time
from headrace.state.memory import MemoryStore, MemoryStores
from headrace.state.rocksdb import RocksStores

CODEC = Codec(
    encode_many=lambda values: [msgspec.msgpack.encode(value) for value in values],
    decode_many=lambda rows: [msgspec.msgpack.decode(row) for row in rows],
)
PREFIX = b"\0\7"
NEIGHBOURS = [(b"\0\6\xff", b"before"), (b"\0\x08", b"after")]


def make(store=None, limit=10**9, **options):
    store = store or MemoryStore()
    budget = Budget(limit)
    return store, budget, WriteBehind(store, PREFIX, CODEC, budget=budget, **options)


def write_out(store, budget):
    batch = WriteBatch()
    budget.flush(batch)
    store.write(batch)
    return batch


def add(bucket, key, amount):
    """Do what an operator does."""
    try:
        value = bucket.live[key]
    except KeyError:
        value = bucket.get(key)
        if value is None:
            value = bucket.live[key] = [0]
    value[0] += amount


class CacheMachine(RuleBasedStateMachine):
    """Random work on a cache and on a dict of dicts."""

    stores = MemoryStores

    buckets = st.integers(0, 3)
    keys = st.integers(0, 9).map(lambda i: b"k%d" % i)

    @initialize(limit=st.sampled_from([0, 300, 1000, 3000, 10**9]))
    def start(self, limit):
        self.directory = Path(tempfile.mkdtemp())
        self.turn = itertools.count()
        self.factory = self.stores()
        self.store = self.factory.open(self.directory / "first")
        self.store.write(WriteBatch.of(list(NEIGHBOURS)))
        self.limit = limit
        self.model = {}
        self.saved = None
        self.open_cache()

    def open_cache(self):
        self.budget = Budget(self.limit)
        self.cache = WriteBehind(self.store, PREFIX, CODEC, budget=self.budget)

    def bucket(self, number):
        return self.cache.bucket(encode_time(number))

    @rule(number=buckets, batch=st.lists(st.tuples(keys, st.integers(1, 9)), max_size=8))
    def update(self, number, batch):
        bucket = self.bucket(number)
        bucket.load([key for key, _ in batch])
        rows = self.model.setdefault(number, {})
        for key, amount in batch:
            add(bucket, key, amount)
            rows[key] = rows.get(key, 0) + amount

    @rule(number=buckets, key=keys)
    def update_without_loading(self, number, key):
        add(self.bucket(number), key, 1)
        rows = self.model.setdefault(number, {})
        rows[key] = rows.get(key, 0) + 1

    @rule(number=buckets, key=keys)
    def replace(self, number, key):
        self.bucket(number).live[key] = [100]
        self.model.setdefault(number, {})[key] = 100

    @rule(number=buckets, key=keys)
    def discard(self, number, key):
        self.cache.discard(self.bucket(number), key)
        self.model.setdefault(number, {}).pop(key, None)

    @rule(number=buckets, key=keys)
    def peek(self, number, key):
        expected = self.model.get(number, {}).get(key)
        assert self.bucket(number).peek(key) == (None if expected is None else [expected])

    @rule(number=buckets)
    def load_all(self, number):
        bucket = self.bucket(number)
        bucket.load_all()
        assert bucket.complete
        assert {**bucket.clean, **bucket.live} == {k: [v] for k, v in self.model.get(number, {}).items()}

    @rule(number=buckets)
    def drop(self, number):
        self.cache.drop(self.bucket(number))
        self.model.pop(number, None)

    @rule()
    def flush(self):
        batch = write_out(self.store, self.budget)
        assert batch.keys == sorted(batch.keys)

    @rule(count=st.none() | st.integers(0, 2000))
    def evict(self, count):
        write_out(self.store, self.budget)
        self.cache.evict(count)
        if count is None:
            assert self.cache.used_bytes() == 0

    @rule()
    def relieve(self):
        if self.budget.over():
            self.budget.relieve(self.store)
            assert not self.budget.over()

    @rule(limit=st.sampled_from([0, 500, 10**9]))
    def warm(self, limit):
        self.cache.warm(limit)

    @rule()
    def checkpoint(self):
        write_out(self.store, self.budget)
        directory = self.directory / f"snapshot{next(self.turn)}"
        self.store.snapshot(directory)
        self.saved = directory, {number: dict(rows) for number, rows in self.model.items()}

    @rule()
    def crash(self):
        if self.saved is None:
            return
        snapshot, model = self.saved
        self.store.close()
        directory = self.directory / f"store{next(self.turn)}"
        shutil.copytree(snapshot, directory)
        self.store = self.factory.open(directory)
        self.model = {number: dict(rows) for number, rows in model.items()}
        self.open_cache()

    @rule()
    def reopen_on_the_same_store(self):
        write_out(self.store, self.budget)
        self.open_cache()

    @invariant()
    def rows_are_those_of_the_model(self):
        found = {}
        for bucket in self.cache.buckets():
            rows = [(key, value[0]) for key, value in self.cache.rows(bucket)]
            assert rows == sorted(rows)
            if rows:
                found[bucket.prefix] = dict(rows)
        assert list(found) == sorted(found)
        assert found == {encode_time(number): rows for number, rows in self.model.items() if rows}

    @invariant()
    def others_keep_their_rows(self):
        assert list(self.store.scan(b"", PREFIX)) == NEIGHBOURS[:1]
        assert list(self.store.scan(b"\0\x08")) == NEIGHBOURS[1:]

    def teardown(self):
        if hasattr(self, "store"):
            self.store.close()
            shutil.rmtree(self.directory)


class RocksCacheMachine(CacheMachine):
    stores = staticmethod(lambda: RocksStores(1 << 20))


TestCache = CacheMachine.TestCase
TestCache.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestCacheOnRocks = RocksCacheMachine.TestCase
TestCacheOnRocks.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)


class CountingStore(MemoryStore):
    def __init__(self):
        super().__init__()
        self.asked = []

    def get_many(self, keys):
        self.asked.append(list(keys))
        return super().get_many(keys)


def test_a_batch_asks_the_store_once_and_only_for_what_is_not_in_memory():
    store, budget, cache = make(CountingStore())
    bucket = cache.bucket(encode_time(1))
    bucket.load([b"a", b"b"])
    add(bucket, b"a", 1)
    add(bucket, b"b", 1)
    write_out(store, budget)
    assert store.asked == []
    cache.evict()
    absent = [b"absent %d" % number for number in range(1000)]
    bucket.load([*absent, b"a", b"b"])
    [asked] = store.asked
    base = PREFIX + encode_time(1)
    assert {base + b"a", base + b"b"} <= set(asked)
    assert len(asked) < 100, "keys that never left memory are mostly known not to be in the store"
    assert (cache.hits, cache.misses) == (1004 - len(asked), len(asked))
    add(bucket, b"a", 1)
    bucket.load([b"a", b"b"])
    assert store.asked == [asked]
    assert bucket.get(b"a") == [2]


def test_a_bucket_that_was_never_written_costs_no_range_delete():
    store, budget, cache = make()
    add(cache.bucket(encode_time(1)), b"a", 1)
    cache.drop(cache.bucket(encode_time(1)))
    cache.discard(cache.bucket(encode_time(2)), b"a")
    assert write_out(store, budget) == WriteBatch()
    add(cache.bucket(encode_time(3)), b"a", 1)
    write_out(store, budget)
    cache.drop(cache.bucket(encode_time(3)))
    assert len(write_out(store, budget).ranges) == 1


def test_a_value_that_is_only_read_is_not_written_again():
    store, budget, cache = make()
    bucket = cache.bucket(encode_time(1))
    add(bucket, b"a", 1)
    write_out(store, budget)
    assert bucket.peek(b"a") == [1]
    assert write_out(store, budget) == WriteBatch()
    assert bucket.get(b"a") == [1]
    assert len(write_out(store, budget).keys) == 1


def test_rows_are_those_of_the_time_of_the_call():
    store, budget, cache = make()
    bucket = cache.bucket(encode_time(1))
    for i in range(3000):
        add(bucket, b"%05d" % i, i)
    write_out(store, budget)
    cache.evict(cache.used_bytes() // 2)
    assert not bucket.complete
    rows = cache.rows(bucket)
    cache.drop(bucket)
    write_out(store, budget)
    assert list(rows) == [(b"%05d" % i, [i]) for i in range(3000)]
    assert list(store.scan(b"")) == []


def test_relief_evicts_the_first_buckets_first():
    store, budget, cache = make(limit=40_000)
    for number in range(4):
        for i in range(100):
            add(cache.bucket(encode_time(number)), b"%d" % i, 1)
    assert budget.over()
    budget.relieve(store)
    assert 0 < budget.used_bytes() <= 20_000
    assert [len(bucket) > 0 for bucket in cache.buckets()] == [False, False, False, True]
    assert cache.buckets()[3].complete or len(cache.buckets()[3]) < 100


def test_the_longest_unchanged_values_of_a_bucket_leave_first():
    store, budget, cache = make(width=0)
    bucket = cache.bucket(b"")
    for i in range(100):
        add(bucket, b"%d" % i, 1)
    write_out(store, budget)
    for i in range(50):
        add(bucket, b"%d" % i, 1)
    write_out(store, budget)
    cache.evict(cache.used_bytes() // 2)
    assert set(bucket.clean) == {b"%d" % i for i in range(50)}


def test_caches_share_a_budget():
    store = MemoryStore()
    budget = Budget(50_000)
    caches = [WriteBehind(store, prefix, CODEC, budget=budget) for prefix in (b"\0\2", b"\0\1")]
    for cache in caches:
        for i in range(200):
            add(cache.bucket(encode_time(1)), b"%d" % i, 1)
    assert budget.used_bytes() == sum(cache.used_bytes() for cache in caches) > 50_000
    budget.relieve(store)
    assert budget.used_bytes() <= 25_000
    assert [key[:2] for key, _ in store.scan(b"")] == [b"\0\1"] * 200 + [b"\0\2"] * 200


def test_a_batch_that_failed_can_be_written_again():
    class FullDisk(MemoryStore):
        full = True

        def write(self, batch):
            if self.full:
                raise RetriableError("the disk is full")
            super().write(batch)

    store, budget, cache = make(FullDisk())
    add(cache.bucket(encode_time(1)), b"a", 1)
    batch = WriteBatch()
    budget.flush(batch)
    with pytest.raises(RetriableError):
        store.write(batch)
    store.full = False
    store.write(batch)
    assert len(list(store.scan(b""))) == 1


def test_one_bucket_without_a_prefix_of_its_own():
    store, budget, cache = make(width=0)
    add(cache.bucket(b""), b"a", 1)
    add(cache.bucket(b""), b"", 2)
    write_out(store, budget)
    again = WriteBehind(store, PREFIX, CODEC, budget=Budget(0), width=0)
    assert [dict(again.rows(bucket)) for bucket in again.buckets()] == [{b"": [2], b"a": [1]}]
    again.drop(again.bucket(b""))


def test_prefixes_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="8 bytes"):
        make()[2].bucket(b"short")
    for prefix in (b"", b"\xff\xff"):
        with pytest.raises(ValueError, match="key behind it"):
            WriteBehind(MemoryStore(), prefix, CODEC, budget=Budget(0))


@pytest.mark.parametrize(
    ("value", "least", "most"),
    [
        ([1.0, 2], 100, 400),
        ({"a": "x" * 1000}, 1200, 1800),
        ([0.5] * 10_000, 240_000, 400_000),
        ((1, (2, (3, ()))), 100, 600),
    ],
)
def test_the_size_of_values_is_about_right(value, least, most):
    _, _, cache = make()
    cache.bucket(encode_time(1)).live[b"key"] = value
    assert least < cache.used_bytes() < most


def test_the_size_of_structs_counts_their_fields():
    class Row(msgspec.Struct):
        text: str

    _, _, cache = make()
    cache.bucket(encode_time(1)).live[b"key"] = Row("x" * 5000)
    assert 5000 < cache.used_bytes() < 5600


def test_a_few_large_values_that_came_first_do_not_count_for_all():
    _, _, cache = make()
    live = cache.bucket(encode_time(1)).live
    live.update((b"large-%d" % i, [0.5] * 10_000) for i in range(16))
    live.update((b"small-%d" % i, [0.5]) for i in range(2000))
    assert cache.used_bytes() < 16 * 400_000 + 2000 * 400
