"""A way to a broker that can be cut, refused or made silent."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from tests.ports import free_port

FETCH = 1
"""The number of Kafka's request for records."""


class Proxy:
    """A port of the loopback that leads to another one.

    What is held is not lost: as with packets that are sent again and again, it arrives when the way is open again.

    Args:
        target: The port that it leads to.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._loop = asyncio.new_event_loop()
        self._lines: set[_Line] = set()
        self._server: asyncio.Server | None = None
        self._open = asyncio.Event()
        self._open.set()
        self._condemned: int | None = None
        self.port = free_port()
        self.received = 0
        """Bytes that came from the broker."""
        self.silenced = 0
        """How many connections ``silence`` has hit."""
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._do(self._listen)

    def cut(self) -> None:
        """Reset every connection, and refuse new ones."""
        self._do(self._shut)

    def hold(self) -> None:
        """Let nothing pass, in neither direction; connections stay open, and new ones are taken but not answered."""
        self._do(self._close_gate)

    def heal(self) -> None:
        """Let everything pass again."""
        self._do(self._listen)

    def lead_to(self, target: int) -> None:
        """Lead new connections elsewhere."""
        self._target = target

    def silence(self, api: int = FETCH) -> None:
        """Let nothing pass any more on the connection that carries the next request of a kind, and on no other."""
        self._condemned = api

    def close(self) -> None:
        """End it."""
        self._do(self._shut)
        self._do(self._end)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _do(self, work: Callable[[], Any]) -> None:
        done: Future[Any] = asyncio.run_coroutine_threadsafe(work(), self._loop)
        done.result(10)

    async def _listen(self) -> None:
        self._open.set()
        if self._server is None:
            self._server = await asyncio.start_server(self._take, "127.0.0.1", self.port)

    async def _close_gate(self) -> None:
        self._open.clear()

    async def _shut(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for line in list(self._lines):
            line.abort()

    async def _end(self) -> None:
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = _Line(writer)
        self._lines.add(line)
        try:
            await self._open.wait()
            there, back = await asyncio.open_connection("127.0.0.1", self._target)
            line.writers.append(back)
            await asyncio.gather(self._pump(line, reader, back, sends=True), self._pump(line, there, writer))
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            line.abort()
            self._lines.discard(line)

    async def _pump(
        self, line: _Line, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, sends: bool = False
    ) -> None:
        try:
            while data := await reader.read(64 * 1024):
                if sends and self._condemned is not None and self._condemned in line.kinds(data):
                    self._condemned, line.silent = None, True
                    self.silenced += 1
                await self._open.wait()
                if line.silent:
                    await asyncio.Event().wait()
                self.received += 0 if sends else len(data)
                writer.write(data)
                await writer.drain()
        finally:
            line.abort()


class _Line:
    """One connection through it."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self.writers = [writer]
        self.silent = False

    @staticmethod
    def kinds(data: bytes) -> set[int]:
        """Return the kinds of the requests that begin in what was read; a client sends each with one call."""
        found, at = set(), 0
        while at + 6 <= len(data):
            found.add(int.from_bytes(data[at + 4 : at + 6], "big"))
            at += 4 + int.from_bytes(data[at : at + 4], "big")
        return found

    def abort(self) -> None:
        for writer in self.writers:
            writer.transport.abort()
