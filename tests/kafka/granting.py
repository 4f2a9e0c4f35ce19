"""Servers on loopback that hand out tokens and credentials, and tokens that Kafka takes without a signature."""

from __future__ import annotations

import base64
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl

from tests.kafka.certificates import Pair

Answer = tuple[int, bytes]


@dataclass
class Server:
    """What a server was asked."""

    url: str
    asked: list[tuple[str, dict[str, str], dict[str, str]]] = field(default_factory=list)
    """Path, headers and form of each request."""


@contextmanager
def serving(answer: Callable[[int], Answer], pair: Pair | None = None) -> Iterator[Server]:
    """Serve over HTTP, or HTTPS if there is a certificate.

    Args:
        answer: Returns status and body for the n-th request, counted from 0.
        pair: The certificate.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
            server.asked.append((self.path, dict(self.headers), dict(parse_qsl(body))))
            status, told = answer(len(server.asked) - 1)
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(told)))
            self.end_headers()
            self.wfile.write(told)

        do_GET = do_POST

        def log_message(self, *_: object) -> None:
            pass

    serves = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if pair is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pair.certificate, pair.key)
        serves.socket = context.wrap_socket(serves.socket, server_side=True)
    server = Server(f"http{'s' if pair else ''}://127.0.0.1:{serves.server_port}")
    thread = threading.Thread(target=serves.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        serves.shutdown()
        thread.join()
        serves.server_close()


def token(user: str, life_s: float) -> str:
    """Return a token that nobody has signed, which is enough for Kafka's own way to check them."""
    now = time.time()
    parts: tuple[dict[str, object], ...] = {"alg": "none"}, {"sub": user, "iat": now, "exp": now + life_s}
    return ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts) + "."


def granting(user: str, life_s: float) -> Callable[[int], Answer]:
    """Return what grants tokens to everybody."""

    def answer(_: int) -> Answer:
        granted = {"access_token": token(user, life_s), "expires_in": life_s, "token_type": "Bearer"}
        return 200, json.dumps(granted).encode()

    return answer
