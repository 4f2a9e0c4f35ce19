"""How event time moves."""

from hypothesis import given
from hypothesis import strategies as st

from headrace.record import MIN_WATERMARK, Progress
from headrace.runtime.watermarks import InternalTime, Running, SourceTime, TaskTime, held_back


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


@given(st.lists(st.integers(0, 100)))
def test_a_watermark_never_goes_back(highest: list[int]) -> None:
    time, task_time = source(disorder=5), source()
    task = TaskTime({"a": time, "b": task_time})
    marks = []
    for i, at in enumerate(highest):
        (time if i % 2 else task_time).observe(at)
        task.tick(i * 20, {"a": at % 2 == 0, "b": at % 3 == 0})
        marks.append(task.update())
    assert marks == sorted(marks)


def test_a_source_is_idle_once_it_had_nothing_to_read_for_long_enough() -> None:
    time = source()
    seen = []
    for now, at_end in [(0, True), (29, True), (30, True), (31, False), (60, True), (61, True), (90, True)]:
        time.tick(now, at_end)
        seen.append(time.idle)
    assert seen == [False, False, True, False, False, True, True]
    time.observe(1)
    assert not time.idle


def test_the_slowest_input_holds_the_task_back_unless_it_is_idle() -> None:
    slow, fast = source(10), source(100)
    task = TaskTime({"slow": slow, "fast": fast})
    assert task.update() == 10
    assert task.held_back_by() == "slow"
    assert task.others("fast") == 10
    slow.idle = True
    assert task.update() == 100
    assert task.others("fast") is None
    slow.idle = False
    assert task.update() == 100


def test_when_all_are_idle_time_moves_by_what_passes_and_never_by_a_jump() -> None:
    task = TaskTime({"a": source(1000), "b": source(500)})
    at_end = {"a": True, "b": True}
    marks = [task.tick(now, at_end) for now in (10_000_000, 10_000_020, 10_000_030, 10_000_035, 10_000_135)]
    assert marks == [500, 500, 1000, 1005, 1105]


def test_moving_on_while_an_input_is_busy_starts_no_clock() -> None:
    task = TaskTime({"a": source(1000)})
    marks = []
    for now in (0, 29, 40, 45):
        task.move(task.tick(now, {"a": True}))
        marks.append(task.watermark)
    assert marks == [1000, 1000, 1000, 1005]


def test_time_stands_still_before_the_first_record() -> None:
    task = TaskTime({"a": source()})
    assert [task.tick(now, {"a": True}) for now in (0, 100, 200)] == [MIN_WATERMARK] * 3


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


@given(
    st.lists(st.integers(0, 50), min_size=1),
    st.integers(0, 10),
    st.integers(-1, 30),
    st.one_of(st.none(), st.integers(-1, 60)),
)
def test_within_a_batch_it_is_what_it_would_be_between_single_records(
    times: list[int], disorder: int, before: int, others: int | None
) -> None:
    floor = before if others is None else min(before, others)
    offsets = range(100, 100 + 2 * len(times), 2)
    running = Running(times, offsets, source(before, disorder), others, floor)
    single, task = source(before, disorder), floor
    for offset, at in zip(offsets, times, strict=True):
        assert running.before(offset) == task
        assert held_back(running, 7).before(offset) == max(MIN_WATERMARK, task - 7)
        single.observe(at)
        task = max(task, single.watermark if others is None else min(single.watermark, others))
    assert running.last == task
    assert held_back(held_back(running, 3), 7).last == max(MIN_WATERMARK, task - 7)
