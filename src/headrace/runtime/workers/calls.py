"""Makes the calls of asynchronous steps: one event loop in a thread of its own, for all tasks of a worker.

A task hands over the calls of a whole batch and looks now and then whether they have ended; nothing goes back and forth
for a single call. What user code does to the loop, all calls feel: a function that blocks holds up all of them.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

from headrace.clock import Clock
from headrace.operators.async_map import Answers, Calls

_log = logging.getLogger("headrace")

_GRACE_S = 1.0
"""How long a call that was cancelled may take to end; after that, nobody waits for it."""
_CLOSE_S = 5.0
"""How long ``close`` waits for the loop, which user code may block."""

Sleep = Callable[[int], Awaitable[None]]


async def wait_ms(duration_ms: int) -> None:
    """Let ``duration_ms`` pass on the event loop."""
    loop = asyncio.get_running_loop()
    passed = loop.create_future()
    timer = loop.call_later(duration_ms / 1000, _resolve, passed)
    try:
        await passed
    finally:
        timer.cancel()


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class AsyncCalls:
    """Makes calls on an event loop, which begins with the first of them.

    Args:
        clock: Tells how old remembered results are.
        sleep: Lets the time between two calls for one record pass, in milliseconds.
    """

    def __init__(self, clock: Clock, sleep: Sleep = wait_ms) -> None:
        self._clock = clock
        self._sleep = sleep
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def begin(self, calls: Calls) -> BatchFlight:
        """Begin to make calls; returns at once."""
        loop = self._running()
        flight = BatchFlight(calls, loop, self._clock, self._sleep)
        loop.call_soon_threadsafe(flight.start)
        return flight

    def close(self) -> None:
        """Cancel all calls and end the thread; idempotent."""
        loop, thread = self._loop, self._thread
        self._loop = self._thread = None
        if loop is None or thread is None:
            return
        loop.call_soon_threadsafe(loop.stop)
        thread.join(_CLOSE_S)
        if thread.is_alive():
            _log.warning("an asynchronous call blocks its event loop and is left behind")

    def _running(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=_serve, args=(self._loop,), name="headrace-calls", daemon=True)
            self._thread.start()
        return self._loop


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        if left:
            loop.run_until_complete(asyncio.wait(left, timeout=_GRACE_S))
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        asyncio.set_event_loop(None)
        loop.close()


class BatchFlight:
    """The calls of one batch. Its task reads it when it is over; everything else happens on the loop."""

    def __init__(self, calls: Calls, loop: asyncio.AbstractEventLoop, clock: Clock, sleep: Sleep) -> None:
        self._calls = calls
        self._loop = loop
        self._clock = clock
        self._sleep = sleep
        self._answers = Answers([None] * len(calls.values), {}, {}, [])
        self._finished: list[int] = []
        self._shared: dict[bytes, asyncio.Future[None]] = {}
        """Calls that are under way and whose results will be remembered, so that others wait for them."""
        self._whole: asyncio.Task[None] | None = None
        self._ended = threading.Event()
        self._broken: BaseException | None = None

    def over(self, now_ms: int) -> bool:
        """Return whether every call has ended."""
        return self._ended.is_set()

    def wait(self) -> None:
        """Block until every call has ended."""
        self._ended.wait()

    def cancel(self) -> None:
        """Give the calls up; returns at once."""
        try:
            self._loop.call_soon_threadsafe(self._cancel)
        except RuntimeError:
            return  # the loop is closed, and all its calls with it

    def answers(self) -> Answers:
        """Return what came of the calls, once they are over.

        Raises:
            BaseException: the calls could not be made at all.
        """
        if self._broken is not None:
            raise self._broken
        return self._answers._replace(finished=self._finished)

    def start(self) -> None:
        """Begin; on the loop."""
        self._whole = self._loop.create_task(self._all())
        self._whole.add_done_callback(self._end)

    def _cancel(self) -> None:
        if self._whole is not None:
            self._whole.cancel()

    def _end(self, whole: asyncio.Task[None]) -> None:
        if not whole.cancelled():
            self._broken = whole.exception()
        self._ended.set()

    async def _all(self) -> None:
        lanes = iter(self._calls.lanes)
        width = min(self._calls.concurrency, len(self._calls.lanes))
        workers = [self._loop.create_task(self._work(lanes)) for _ in range(width)]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()

    async def _work(self, lanes: Iterator[Sequence[int]]) -> None:
        """Take one lane after the other and make its calls."""
        for lane in lanes:
            for place in lane:
                try:
                    self._answers.results[place] = await self._remembered(place)  # type: ignore[index]
                except Exception as error:  # noqa: BLE001  # user code may raise anything
                    self._answers.failures[place] = error
                else:
                    self._finished.append(place)

    async def _remembered(self, place: int) -> Any:
        """Return the result that is remembered for a value, or else call."""
        cache = self._calls.cache
        if cache is None:
            return await self._call(place)
        key = cache.key(self._calls.values[place])
        while True:
            found, result = cache.get(key, self._clock.monotonic_ms())
            if found:
                return result
            if key not in self._shared:
                break
            await asyncio.wait([self._shared[key]])
        ended = self._shared[key] = self._loop.create_future()
        try:
            result = await self._call(place)
            cache.put(key, result, self._clock.monotonic_ms())
            return result
        finally:
            del self._shared[key]
            ended.set_result(None)

    async def _call(self, place: int) -> Any:
        """Call, again and again if the step's policy says so."""
        retry = self._calls.retry
        tries = 1
        while True:
            try:
                return await self._once(self._calls.values[place])
            except Exception as error:
                delay_ms = None if retry is None else retry.again(error, tries)
                if delay_ms is None:
                    raise
            await self._sleep(delay_ms)
            tries += 1
            self._answers.tries[place] = tries

    async def _once(self, value: Any) -> Any:
        call = self._loop.create_task(_answer(self._calls.function, value))
        call.add_done_callback(_look_at)
        try:
            done, _ = await asyncio.wait([call], timeout=self._calls.timeout_ms / 1000)
            if done:
                if call.cancelled():
                    raise RuntimeError("the call cancelled itself")
                return call.result()
            call.cancel()
            await asyncio.wait([call], timeout=_GRACE_S)
        finally:
            call.cancel()
        raise TimeoutError(f"the call took longer than {self._calls.timeout_ms} ms")


async def _answer(function: Callable[[Any], Awaitable[Any]], value: Any) -> Any:
    try:
        return await function(value)
    except (KeyboardInterrupt, SystemExit) as error:
        # It would end the loop's thread, and with it all calls of all tasks.
        raise RuntimeError("the call wanted to end the process") from error


def _look_at(call: asyncio.Task[Any]) -> None:
    """Look at what a call raised: of one that was given up, nobody else does, which asyncio would complain of."""
    if not call.cancelled():
        call.exception()
