"""Notes come in the order of time and key, once each, whatever happens to the cache; few slots hold all of them."""

from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.operators.notes import NOTES, Note, Notes
from headrace.state.api import WriteBatch
from headrace.state.cache import Budget, WriteBehind
from headrace.state.memory import MemoryStore

distances = st.one_of(st.integers(0, 3_000), st.integers(0, 200_000), st.integers(0, 10**9), st.integers(0, 10**12))
keys = st.binary(max_size=3)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), distances, keys),
        st.tuples(st.just("take"), st.one_of(st.integers(0, 5_000), distances), st.integers(1, 4)),
        st.tuples(st.just("relieve")),
        st.tuples(st.just("restore")),
    ),
    max_size=40,
)


class Run:
    def __init__(self) -> None:
        self.store = MemoryStore()
        self.restore()

    def restore(self) -> None:
        self.budget = Budget(0)
        self.cache = WriteBehind(self.store, b"n", NOTES, budget=self.budget)
        self.notes = Notes(self.cache)

    def take_all(self, limit: int, count: int) -> list[Note]:
        found = []
        while self.notes.next < limit:
            found += self.notes.take(limit, count)
        return found


@settings(max_examples=300, deadline=None)
@given(steps=steps)
def test_notes_come_in_order_and_none_is_lost(steps: list[tuple[str, int, bytes]]) -> None:
    run = Run()
    time = 0
    waiting: set[Note] = set()
    done: set[Note] = set()
    for step, *arguments in steps:
        if step == "add":
            distance, key = arguments
            run.notes.add(time + distance, key)  # type: ignore[operator, arg-type]
            waiting.add((time + distance, key))  # type: ignore[operator, arg-type]
        elif step == "take":
            distance, count = arguments
            time += distance  # type: ignore[assignment]
            found = run.take_all(time, count)  # type: ignore[arg-type]
            due = {note for note in waiting if note[0] < time}
            assert found == sorted(found)
            assert due <= set(found) <= due | done, "only after a restart some come again"
            waiting -= due
            done |= due
        elif step == "relieve":
            run.budget.relieve(run.store)
        else:
            run.budget.relieve(run.store)
            run.restore()
        assert run.notes.next <= min((at for at, _ in waiting), default=run.notes.next)
    limit = max((at for at, _ in waiting), default=0) + 1
    assert waiting <= set(run.take_all(limit, 100))


def test_notes_that_are_made_while_others_are_taken_come_in_their_places() -> None:
    run = Run()
    for at in (10, 30):
        run.notes.add(at, b"a")
    first, second = run.notes.take(100, 10)
    run.notes.add(20, b"b")
    assert first == (10, b"a")
    assert run.notes.take_before(second) == (20, b"b")
    assert run.notes.take_before(second) is None
    assert run.notes.take(100, 10) == []


def test_few_slots_hold_notes_however_far_ahead_they_reach() -> None:
    run = Run()
    for at in range(0, 400 * 86_400_000, 600_000):
        run.notes.add(at, b"k")
    assert len(run.cache.buckets()) < 5 * 64
    assert len(run.take_all(400 * 86_400_000, 512)) == 400 * 144
    assert len(run.cache.buckets()) <= 1


def test_the_rows_of_notes() -> None:
    run = Run()
    run.notes.add(5_000, b"near")
    run.notes.add(10_000_000, b"far")
    batch = WriteBatch()
    run.cache.flush(batch)
    assert [
        (key[1:9].hex(), key[9:17].hex(), key[17:], value) for key, value in zip(batch.keys, batch.values, strict=True)
    ] == [
        ("0000000000001000", "0000000000001388", b"near", b""),
        ("0000000000800000", "0000000000989680", b"far", b""),
    ]
