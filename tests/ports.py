"""Ports of the loopback for servers that tests start."""

from __future__ import annotations

import random
import socket

_FIRST, _LAST = 12_000, 32_000
"""Below what systems give to connections by themselves: one could get the port before the server has started."""
_given: set[int] = set()


def free_port() -> int:
    """Return a port that nobody listens on, another one each time."""
    draw = random.SystemRandom()
    while True:
        port = draw.randrange(_FIRST, _LAST)
        if port in _given:
            continue
        with socket.socket() as probe:
            # As servers do: what is left of a connection that has ended is no reason against it.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        _given.add(port)
        return port
