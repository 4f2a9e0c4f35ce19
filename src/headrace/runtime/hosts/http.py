"""The status server of a worker: ``/metrics``, ``/live`` and ``/ready``.

It runs in a thread with an event loop of its own, so that it answers while the worker is busy.
"""

from __future__ import annotations

import asyncio
import errno
import json
import socket
import threading
from collections.abc import Callable

from aiohttp import web

from headrace.errors import SettingsError
from headrace.metrics import CONTENT_TYPE

DEFAULT_PORT = 9464
"""The port that Prometheus exporters of this kind use."""

Check = Callable[[], tuple[bool, dict[str, object]]]
"""Tells whether something is well, and the details that go into the answer."""

_INDEX = """<!doctype html>
<title>headrace</title>
<h1>headrace</h1>
<ul>
<li><a href="/metrics">/metrics</a> for Prometheus
<li><a href="/live">/live</a> 200 while the worker makes progress, 503 when it should be replaced
<li><a href="/ready">/ready</a> 200 when the worker's tasks are restored, run and wait for nothing outside
</ul>
"""


class StatusServer:
    """Serves metrics and health until it is stopped.

    Args:
        host: The address to listen on.
        port: The port; -1 takes 9464 or, if that is taken, any free one.
        metrics: Returns the metrics in Prometheus' text format. Called in a thread of its own, it may wait.
        live: Tells whether the worker makes progress; must not wait.
        ready: Tells whether the worker is at work; must not wait.
    """

    def __init__(self, host: str, port: int, metrics: Callable[[], bytes], live: Check, ready: Check) -> None:
        self.host = host
        self.port = port
        """The port; once started, the one that was taken."""
        self._metrics = metrics
        self._live = live
        self._ready = ready
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """The address of the server, for people to open."""
        host = self.host.strip("[]")
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    def start(self) -> None:
        """Listen, and answer from now on.

        Raises:
            SettingsError: the address cannot be listened on, because the port is in use or for another reason.
        """
        if self._thread is not None:
            return
        listener = self._listen()
        self.port = listener.getsockname()[1]
        started = threading.Event()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve(listener, started)), name="headrace-status", daemon=True
        )
        self._thread.start()
        started.wait()

    def stop(self) -> None:
        """Stop answering and wait until the thread has ended."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        if self._loop is not None and self._stop is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
        thread.join()

    def _listen(self) -> socket.socket:
        if self.port == -1:
            try:
                return _bind(self.host, DEFAULT_PORT)
            except SettingsError as error:
                if not (isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EADDRINUSE):
                    raise
                return _bind(self.host, 0)
        return _bind(self.host, self.port)

    async def _serve(self, listener: socket.socket, started: threading.Event) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        app = web.Application()
        app.router.add_get("/", self._get_index)
        app.router.add_get("/metrics", self._get_metrics)
        app.router.add_get("/live", self._get_live)
        app.router.add_get("/ready", self._get_ready)
        runner = web.AppRunner(app, handle_signals=False, access_log=None, shutdown_timeout=1.0)
        try:
            await runner.setup()
            await web.SockSite(runner, listener).start()
            started.set()
            await self._stop.wait()
        finally:
            started.set()
            await runner.cleanup()
            listener.close()

    async def _get_index(self, _request: web.Request) -> web.Response:
        return web.Response(text=_INDEX, content_type="text/html")

    async def _get_metrics(self, _request: web.Request) -> web.Response:
        body = await asyncio.to_thread(self._metrics)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE})

    async def _get_live(self, _request: web.Request) -> web.Response:
        return _answer(self._live)

    async def _get_ready(self, _request: web.Request) -> web.Response:
        return _answer(self._ready)


def _answer(check: Check) -> web.Response:
    try:
        well, details = check()
    except Exception as error:  # noqa: BLE001  # whatever it is, the worker is not well
        well, details = False, {"error": type(error).__name__}
    body = json.dumps({"ok": well, **details}, default=str)
    return web.Response(text=body, status=200 if well else 503, content_type="application/json")


def _bind(host: str, port: int) -> socket.socket:
    if not 0 <= port <= 65_535:
        raise SettingsError(f"cannot listen on port {port}", remedy="Give a port from 1 to 65535, or -1 for a free one")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host.strip("[]"), port), family=family)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise SettingsError(
                f"port {port} on {host} is in use, so that the metrics cannot be served there",
                remedy="Give another port with --metrics-port or HEADRACE_METRICS_PORT; 0 serves no metrics",
            ) from error
        raise SettingsError(
            f"cannot listen on {host} port {port}: {error.strerror or error}",
            remedy="Set --metrics-port or HEADRACE_METRICS_PORT, or HEADRACE_METRICS_HOST for the address",
        ) from error
