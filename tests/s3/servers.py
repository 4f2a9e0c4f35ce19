"""A server that speaks S3, and a proxy before it that fails as it is told; both on loopback."""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import obstore

from headrace.checkpoint.s3 import Patience, open_s3
from tests.ports import free_port

BUCKET = "checkpoints"
QUICK = Patience(
    connect_ms=1_000, silence_ms=400, request_ms=5_000, retries=2, budget_ms=800, first_pause_ms=1, longest_pause_ms=5
)


def environment(url):
    return {
        "AWS_ENDPOINT_URL_S3": url,
        "AWS_REGION": "eu-central-1",
        "AWS_ACCESS_KEY_ID": "id",
        "AWS_SECRET_ACCESS_KEY": "key",
    }


def opened(url, prefix, patience=QUICK):
    return open_s3(f"s3://{BUCKET}/{prefix}", environment(url), patience)


@contextlib.contextmanager
def moto():
    """Run moto's server as a process of its own; yield its URL, with the bucket made."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("atomic.py")), str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while True:
            assert process.poll() is None
            try:
                answer = ask(port, "PUT", f"/{BUCKET}", location())
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        assert answer == 200
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


def location():
    place = b"<LocationConstraint>eu-central-1</LocationConstraint>"
    return b"<CreateBucketConfiguration>%b</CreateBucketConfiguration>" % place


def ask(port, method, path, body=None):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    signed = {"Authorization": "AWS4-HMAC-SHA256 Credential=id/20260101/eu-central-1/s3/aws4_request, Signature=x"}
    try:
        connection.request(method, path, body, signed)
        return connection.getresponse().status
    finally:
        connection.close()


@dataclass
class Fault:
    """What happens to requests that look like this, ``times`` times.

    ``kind`` is a status, or ``cut before``, ``cut after``, ``hang after`` and ``error after``
    (it took effect), ``hang``, ``truncate``, ``flip``, ``ignore condition``.
    """

    method: str
    path: str
    kind: int | str
    times: int = 10**6
    body: bytes = b""


@dataclass
class Script:
    faults: list[Fault] = field(default_factory=list)
    seen: list[tuple[str, str]] = field(default_factory=list)
    signed: list[tuple[str, str]] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def clear(self):
        self.faults.clear()
        self.seen.clear()
        self.signed.clear()

    def fault(self, method, path):
        with self.lock:
            self.seen.append((method, path))
            for fault in self.faults:
                if fault.times > 0 and re.fullmatch(fault.method, method) and re.search(fault.path, path):
                    fault.times -= 1
                    return fault
        return None


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *told):
        pass

    def answer(self):
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        fault = self.server.script.fault(self.command, self.path)
        self.server.script.signed.append((self.headers["Authorization"], self.headers["x-amz-security-token"]))
        kind = fault and fault.kind
        if kind == "cut before":
            self.cut()
        elif kind == "hang":
            self.server.script.ended.wait(30)
            self.cut()
        elif isinstance(kind, int):
            self.give(kind, [("Content-Type", "application/xml")], fault.body)
        else:
            self.forward(kind, body)

    def forward(self, kind, body):
        connection = http.client.HTTPConnection("127.0.0.1", self.server.behind, timeout=30)
        try:
            headers = dict(self.headers)
            if kind == "ignore condition":
                headers = {name: value for name, value in headers.items() if name.lower() != "if-none-match"}
            connection.request(self.command, self.path, body, headers)
            found = connection.getresponse()
            data = found.read()
            headers = [
                (name, value)
                for name, value in found.getheaders()
                if name.lower() not in ("content-length", "transfer-encoding", "connection")
            ]
            if self.command == "HEAD":
                headers.append(("Content-Length", found.getheader("Content-Length") or "0"))
        finally:
            connection.close()
        if kind == "cut after":
            self.cut()
            return
        if kind == "hang after":
            self.server.script.ended.wait(30)
            self.cut()
            return
        if kind == "error after":
            self.give(500, [], b"")
            return
        if kind == "flip" and data:
            data = data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :]
        self.give(found.status, headers, data, cut_at=len(data) // 2 if kind == "truncate" else None)

    def give(self, status, headers, data, cut_at=None):
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[:cut_at])
        if cut_at is not None:
            self.cut()

    def cut(self):
        with contextlib.suppress(OSError):
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = answer


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, behind):
        super().__init__(("127.0.0.1", 0), Handler)
        self.behind, self.script = behind, Script()

    def handle_error(self, request, client_address):
        pass  # a client that went away is what the tests are about


@contextlib.contextmanager
def faulty(port):
    """Run a proxy before the server at ``port``; yield its URL and the script that it follows."""
    server = Server(port)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", server.script
    finally:
        server.script.ended.set()
        server.shutdown()
        server.server_close()
        thread.join(10)


def empty(objects):
    """Delete everything under the prefix."""
    paths = [found["path"] for page in obstore.list(objects._store) for found in page]
    objects.delete(paths)
