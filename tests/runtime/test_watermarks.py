"""How event time moves."""

from hypothesis import given
from hypothesis import strategies as st

from headrace.record import MIN_WATERMARK, Progress
from headrace.runtime.tasks.watermarks import InternalTime, Running, SourceTime


def source(watermark: int = MIN_WATERMARK, disorder: int = 0, idle_after: int = 30) -> SourceTime:
    time = SourceTime(disorder, idle_after)
    time.watermark = watermark
    return time


def test_a_source_is_as_far_as_its_highest_less_the_disorder() -> None:
    time = source(disorder=10)
    assert time.watermark == MIN_WATERMARK
    time.observe(5)
    assert time.watermark == MIN_WATERMARK
    time.observe(50)
    time.observe(20)
    assert time.watermark == 40


def test_a_source_is_idle_once_it_had_nothing_to_read_for_long_enough() -> None:
    time = source()
    seen = []
    for now, at_end in [(0, True), (29, True), (30, True), (31, False), (60, True), (61, True), (90, True)]:
        time.tick(now, at_end)
        seen.append(time.idle)
    assert seen == [False, False, True, False, False, True, True]
    time.observe(1)
    assert not time.idle


def ahead(time: SourceTime, *nows: int) -> list[int]:
    marks = []
    for now in nows:
        time.tick(now, True)
        marks.append(time.ahead.watermark)
    return marks


def test_an_idle_source_moves_on_by_what_passes_and_never_by_a_jump() -> None:
    time = source(1000)
    assert ahead(time, 10_000_000, 10_000_020, 10_000_030, 10_000_035, 10_000_135) == [1000, 1000, 1000, 1005, 1105]
    assert time.watermark == 1000  # until somebody moves it


def test_moving_a_source_does_not_count_what_has_passed_twice() -> None:
    time = source(1000)
    marks = []
    for now in (0, 29, 40, 45, 46):
        time.tick(now, True)
        time.move(time.ahead.watermark)
        marks.append(time.watermark)
    assert marks == [1000, 1000, 1000, 1005, 1006]
    time.observe(1007)
    assert ahead(time, 50, 80, 90) == [1007, 1007, 1017]


def test_time_stands_still_before_the_first_record() -> None:
    assert ahead(source(), 0, 100, 200) == [MIN_WATERMARK] * 3


def test_an_internal_partition_waits_for_all_its_writers() -> None:
    time = InternalTime(["u-0", "u-1"])
    time.observe("u-0", Progress(100, False, -1))
    assert time.watermark == MIN_WATERMARK
    assert time.slowest() == "u-1"
    time.observe("u-1", Progress(70, False, -1))
    assert time.watermark == 70
    time.observe("u-1", Progress(60, False, -1))
    assert time.watermark == 70
    time.observe("u-1", Progress(60, True, -1))
    assert time.watermark == 100
    assert not time.idle
    time.observe("u-0", Progress(100, True, -1))
    assert time.idle
    time.observe("stranger", Progress(999, False, -1))
    assert time.watermark == 100


def test_an_internal_partition_ends_with_its_last_writer() -> None:
    time = InternalTime(["u-0", "u-1"])
    time.observe("u-0", Progress(1, False, 7))
    assert not time.ended(7)
    time.observe("u-1", Progress(1, False, 9))
    assert time.ended(7)
    assert not time.ended(8)


def test_what_a_checkpoint_keeps_is_enough_to_go_on() -> None:
    time = InternalTime(["u-0", "u-1"])
    time.observe("u-0", Progress(100, True, 3))
    time.observe("u-1", Progress(70, True, 4))
    again = InternalTime(["u-0", "u-1"])
    again.restore(time.state())
    assert (again.watermark, again.idle, again.ended(3)) == (100, True, True)
    other = source(30)
    again_source = source()
    again_source.restore(other.state())
    assert again_source.watermark == 30


def test_a_writer_that_joined_since_the_checkpoint_is_waited_for() -> None:
    time = InternalTime(["u-0"])
    time.observe("u-0", Progress(100, True, 3))
    again = InternalTime(["u-0", "u-1"])
    again.restore(time.state())
    assert not again.idle
    assert not again.ended(3)


@given(st.lists(st.integers(0, 50), min_size=1), st.integers(0, 10), st.integers(-1, 30))
def test_within_a_batch_it_is_what_it_would_be_between_single_records(
    times: list[int], disorder: int, before: int
) -> None:
    offsets = range(100, 100 + 2 * len(times), 2)
    running = Running(times, offsets, source(before, disorder))
    single = source(before, disorder)
    for offset, at in zip(offsets, times, strict=True):
        assert running.before(offset) == single.watermark
        single.observe(at)
    assert running.last == single.watermark
