"""The event loop that makes the calls of asynchronous steps, without a topology around it."""

from __future__ import annotations

import asyncio
import socketserver
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from headrace.clock import SystemClock
from headrace.operators.async_map import Answers, Cache, Calls, ResultCache
from headrace.operators.retrying import Retry
from headrace.runtime.workers.calls import AsyncCalls, wait_ms


@pytest.fixture
def caller() -> Iterator[AsyncCalls]:
    made = AsyncCalls(SystemClock())
    yield made
    made.close()


def answers(
    caller: AsyncCalls,
    function: Callable[[Any], Any],
    values: Sequence[Any],
    *,
    lanes: Sequence[Sequence[int]] | None = None,
    concurrency: int = 100,
    timeout_ms: int = 10_000,
    retry: Retry | None = None,
    cache: Cache | None = None,
) -> Answers:
    each = [[place] for place in range(len(values))]
    remembered = None if cache is None else ResultCache(cache)
    calls = Calls(function, values, lanes or each, concurrency, timeout_ms, retry, remembered)
    flight = caller.begin(calls)
    flight.wait()
    assert flight.over(0)
    return flight.answers()


def meeting(parties: int) -> Callable[[Any], Any]:
    """Return a function whose calls end only when so many are under way at once."""
    barrier: list[asyncio.Barrier] = []

    async def meet(value: Any) -> Any:
        if not barrier:
            barrier.append(asyncio.Barrier(parties))
        await barrier[0].wait()
        return value

    return meet


def test_as_many_calls_as_told_are_under_way_at_once(caller: AsyncCalls) -> None:
    found = answers(caller, meeting(5), range(10), concurrency=5)
    assert (list(found.results), found.failures) == (list(range(10)), {})
    too_many = answers(caller, meeting(5), range(10), concurrency=4, timeout_ms=20)
    assert sorted(too_many.failures) == list(range(10))
    assert {str(error) for error in too_many.failures.values()} == {"the call took longer than 20 ms"}


def test_lanes_overlap_but_the_calls_of_one_do_not(caller: AsyncCalls) -> None:
    assert answers(caller, meeting(2), range(6), lanes=[[0, 2, 4], [1, 3, 5]]).failures == {}
    assert sorted(answers(caller, meeting(2), range(2), lanes=[[0, 1]], timeout_ms=20).failures) == [0, 1]


def test_all_batches_share_one_loop_so_that_clients_may_be_kept_open(caller: AsyncCalls) -> None:
    async def loop_of(value: Any) -> Any:
        return asyncio.get_running_loop(), threading.current_thread().name

    (first,), (second,) = (answers(caller, loop_of, [None]).results for _ in range(2))
    assert first == second
    assert first[1] == "headrace-calls"


def test_waits_between_calls_pass_on_the_loop(caller: AsyncCalls) -> None:
    begun: list[int] = []

    async def fails_twice(value: Any) -> Any:
        begun.append(SystemClock().monotonic_ms())
        if len(begun) < 3:
            raise OSError
        return value

    found = answers(caller, fails_twice, ["x"], retry=Retry(3, 10, 1000, (OSError,)))
    assert (list(found.results), found.tries) == (["x"], {0: 3})
    assert begun[1] - begun[0] >= 9
    assert begun[2] - begun[1] >= 19


def test_a_wait_that_is_given_up_leaves_nothing_behind() -> None:
    async def give_up() -> None:
        waiting = asyncio.ensure_future(wait_ms(60_000))
        started = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(started.set_result, None)
        await started
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(give_up())


def test_only_one_call_is_made_for_what_will_be_remembered(caller: AsyncCalls) -> None:
    made: list[Any] = []

    async def ask(value: Any) -> Any:
        made.append(value)
        for _ in range(5):
            await asyncio.sleep(0)
        return [value]

    found = answers(caller, ask, ["a", "a", "b", "a", 1, True, 1.0], cache=Cache())
    assert list(found.results) == [["a"], ["a"], ["b"], ["a"], [1], [True], [1.0]]
    assert made == ["a", "b", 1, True, 1.0], "equal is not the same"


def test_what_was_given_up_is_cancelled_and_ends(caller: AsyncCalls) -> None:
    begun, cancelled = threading.Event(), threading.Event()

    async def hangs(value: Any) -> Any:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    flight = caller.begin(Calls(hangs, [1, 2], [[0], [1]], 2, 60_000, None, None))
    assert begun.wait(10)
    assert not flight.over(0)
    flight.cancel()
    assert cancelled.wait(10)
    flight.wait()
    caller.close()
    flight.cancel()


def test_a_closed_caller_begins_anew(caller: AsyncCalls) -> None:
    caller.close()
    caller.close()
    assert answers(caller, meeting(1), ["x"]).results == ["x"]


class Doubler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        for line in self.rfile:
            self.wfile.write(b"%d\n" % (2 * int(line)))


class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True


def test_a_real_client_over_a_real_connection_that_stays_open(caller: AsyncCalls) -> None:
    with Server(("127.0.0.1", 0), Doubler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        opened: list[Any] = []

        async def double(value: int) -> int:
            if not opened:
                opened.append(await asyncio.open_connection(*server.server_address))
            reader, writer = opened[0]
            writer.write(b"%d\n" % value)
            return int(await reader.readline())

        async def hang_up(value: Any) -> None:
            opened[0][1].close()
            await opened[0][1].wait_closed()

        for start in (0, 20):
            values = range(start, start + 20)
            assert answers(caller, double, values, lanes=[range(20)]).results == [2 * value for value in values]
        assert len(opened) == 1
        assert answers(caller, hang_up, [None]).failures == {}
        server.shutdown()
        thread.join()
