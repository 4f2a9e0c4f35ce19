"""Event time at every step of a chain."""

from hypothesis import given
from hypothesis import strategies as st

from headrace.operators.api import Outputs
from headrace.operators.stateless import StatelessOperator
from headrace.record import MIN_WATERMARK
from headrace.runtime.tasks.times import ChainTime, Mark, Seen, meet
from headrace.runtime.tasks.watermarks import Running, SourceTime


class Holding(StatelessOperator):
    """Holds the watermark back, and has something that closes at a time."""

    def __init__(self, hold_ms: int = 0, closes: int | None = None) -> None:
        super().__init__(self.nothing)
        self.hold_ms = hold_ms
        self.closes = closes

    @staticmethod
    def nothing(batch: object) -> Outputs:
        return []

    def output_watermark(self, watermark: int) -> int:
        return max(MIN_WATERMARK, watermark - self.hold_ms)

    def next_close(self) -> int | None:
        return self.closes


def chain() -> ChainTime:
    """Return a chain in which "late" reads a, "plain" b, and "both" what leaves these."""
    time = ChainTime(["a", "b"])
    time.add("late", ["a"], Holding(10))
    time.add("plain", ["b"], Holding())
    time.add("both", ["late", "plain"], Holding(5, closes=60))
    return time


def reach(time: ChainTime, a: Mark, b: Mark) -> dict[str, int | None]:
    time.take({"a": a, "b": b})
    return {name: time.reach(name) for name in ("late", "plain", "both")}


def test_a_step_knows_only_the_time_of_what_is_above_it() -> None:
    time = chain()
    assert reach(time, Mark(100, False), Mark(20, False)) == {"late": 100, "plain": 20, "both": 20}
    assert reach(time, Mark(100, False), Mark(95, False)) == {"late": None, "plain": 95, "both": 90}
    assert time.at(["both"]) == Mark(85, False)


def test_what_is_idle_is_not_waited_for_where_it_meets_others() -> None:
    time = chain()
    assert reach(time, Mark(100, False), Mark(20, True)) == {"late": 100, "plain": 20, "both": 90}
    assert time.at(["plain"]) == Mark(20, True)
    assert not time.at(["both"]).idle
    assert reach(time, Mark(100, True), Mark(200, True))["both"] == 200
    assert time.at(["both"]).idle


def test_every_step_is_told_once_even_if_nothing_is_known_yet() -> None:
    time = chain()
    nothing = Mark(MIN_WATERMARK, False)
    assert reach(time, nothing, nothing) == dict.fromkeys(("late", "plain", "both"), MIN_WATERMARK)
    assert reach(time, nothing, nothing) == dict.fromkeys(("late", "plain", "both"))


def test_a_restored_step_stays_where_it_was() -> None:
    time, again = chain(), chain()
    reach(time, Mark(100, False), Mark(20, True))
    again.restore({**time.state(), "gone": 7})
    assert reach(again, Mark(100, False), Mark(20, False)) == {"late": 100, "plain": 20, "both": 90}


def test_something_is_due_only_where_time_would_move() -> None:
    time = chain()
    reach(time, Mark(50, True), Mark(50, True))
    assert not time.is_due({"a": Mark(59, True), "b": Mark(59, True)})
    assert time.is_due({"a": Mark(60, True), "b": Mark(60, True)})
    assert not time.is_due({"a": Mark(60, False), "b": Mark(50, False)})
    assert time.ahead({"a": Mark(70, False), "b": Mark(80, False)})["both"] == Mark(55, False)
    assert time.at(["both"]) == Mark(45, True)  # nothing has moved


def test_time_never_goes_back() -> None:
    time = chain()
    reach(time, Mark(100, False), Mark(20, True))
    assert reach(time, Mark(100, False), Mark(30, False)) == {"late": None, "plain": 30, "both": None}


@given(
    st.lists(st.integers(0, 60), min_size=1, max_size=8),
    st.integers(0, 10),
    st.integers(-1, 30),
    st.tuples(st.integers(-1, 80), st.booleans()),
    st.sampled_from(["late", "plain", "both"]),
)
def test_within_a_batch_a_step_sees_what_it_would_be_told_between_single_records(
    times: list[int], disorder: int, before: int, other: tuple[int, bool], step: str
) -> None:
    def source() -> SourceTime:
        made = SourceTime(disorder, 30)
        made.watermark = before
        return made

    entered, beside = ("b", "a") if step == "plain" else ("a", "b")
    time, single, whole = chain(), chain(), source()
    running = Running(times, range(len(times)), source())
    for each in (time, single):
        each.take({entered: whole.mark, beside: Mark(*other)})
        for name in ("late", "plain", "both"):
            each.reach(name)
    seen = time.seen_by(step, running, entered)
    assert time.seen_by(step, seen, entered).last == seen.last
    for offset, at in enumerate(times):
        assert max(seen.before(offset), time.state()[step]) == single.state()[step]
        whole.observe(at)
        single.take({entered: whole.mark, beside: Mark(*other)})
        for name in ("late", "plain", "both"):
            single.reach(name)
    assert max(seen.last, time.state()[step]) == single.state()[step]


def test_streams_meet_at_the_least_that_is_waited_for() -> None:
    assert meet([Mark(5, False), Mark(3, True), Mark(9, False)]) == Mark(5, False)
    assert meet([Mark(5, True), Mark(9, True)]) == Mark(9, True)
    assert isinstance(chain().seen_by("both", Running([1], [0], SourceTime(0, 0)), "a"), Seen)
