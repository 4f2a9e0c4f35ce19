"""What stands before the brokers of MSK: ends TLS and SASL, checks who it is by IAM's rules, and hands on the rest."""

from __future__ import annotations

import base64
import hashlib
import hmac
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from urllib.parse import parse_qsl, quote, urlsplit

from tests.kafka.certificates import Pair

HANDSHAKE, VERSIONS, AUTHENTICATE = 17, 18, 36
REFUSED = 58


@dataclass(frozen=True)
class Secret:
    """What belongs to an access key."""

    key: str
    token: str = ""


def fault_of(token: str, secrets: Mapping[str, Secret], region: str) -> str:
    """Return what is wrong with a token, by the rules of signature version 4; nothing if it counts."""
    url = urlsplit(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)).decode())
    given = dict(parse_qsl(url.query))
    access, day, *scope = given["X-Amz-Credential"].split("/")
    begun = datetime.strptime(given["X-Amz-Date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()
    if url.netloc != f"kafka.{region}.amazonaws.com" or scope != [region, "kafka-cluster", "aws4_request"]:
        return "region"
    if given["Action"] != "kafka-cluster:Connect":
        return "action"
    if not begun - 60 <= time.time() < begun + int(given["X-Amz-Expires"]):
        return "time"
    secret = secrets.get(access)
    if secret is None or given.get("X-Amz-Security-Token", "") != secret.token:
        return "key"
    signed = sorted((k, v) for k, v in given.items() if k not in ("X-Amz-Signature", "User-Agent"))
    query = "&".join(f"{quote(k, safe='-_.~')}={quote(v, safe='-_.~')}" for k, v in signed)
    request = f"GET\n/\n{query}\nhost:{url.netloc}\n\nhost\n{hashlib.sha256(b'').hexdigest()}"
    hashed = hashlib.sha256(request.encode()).hexdigest()
    text = f"AWS4-HMAC-SHA256\n{given['X-Amz-Date']}\n{'/'.join([day, *scope])}\n{hashed}"
    key = f"AWS4{secret.key}".encode()
    for part in (day, *scope, text):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    return "" if hmac.compare_digest(key.hex(), given["X-Amz-Signature"]) else "signature"


@dataclass
class Front:
    """What happened at the front."""

    secrets: Mapping[str, Secret]
    region: str
    session_ms: int
    faults: list[str] = field(default_factory=list)
    """Of each token that was shown, the empty text where there was none."""
    tokens: list[str] = field(default_factory=list)
    connections: int = 0


@contextmanager
def front(port: int, broker: str, pair: Pair, opened: Front) -> Iterator[Front]:
    """Listen on a port of the loopback, and hand on to a broker whose clients are told to come here."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    listening = socket.create_server(("127.0.0.1", port))
    threads: list[threading.Thread] = []

    def accept() -> None:
        with suppress(OSError):
            while True:
                plain, _ = listening.accept()
                threads.append(threading.Thread(target=serve, args=(plain,)))
                threads[-1].start()

    def serve(plain: socket.socket) -> None:
        host, _, number = broker.rpartition(":")
        with (
            suppress(OSError, EOFError),
            context.wrap_socket(plain, server_side=True) as client,
            socket.create_connection((host, int(number))) as behind,
        ):
            opened.connections += 1
            _serve(client, behind, opened)

    accepting = threading.Thread(target=accept)
    accepting.start()
    try:
        yield opened
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        for thread in [accepting, *threads]:
            thread.join(30)


def _serve(client: socket.socket, behind: socket.socket, opened: Front) -> None:
    end = 0.0
    while True:
        frame = _read(client)
        key, _, number = struct.unpack_from(">hhi", frame)
        if key == HANDSHAKE:
            name = b"OAUTHBEARER"
            _write(client, struct.pack(">ihih", number, 0, 1, len(name)) + name)
        elif key == AUTHENTICATE:
            token = frame.split(b"auth=Bearer ", 1)[1].split(b"\x01")[0].decode()
            opened.tokens.append(token)
            opened.faults.append(fault_of(token, opened.secrets, opened.region))
            code, lifetime_ms = (REFUSED, 0) if opened.faults[-1] else (0, opened.session_ms)
            _write(client, struct.pack(">ihhiq", number, code, -1, 0, lifetime_ms))
            end = time.monotonic() + lifetime_ms / 1000
        elif key != VERSIONS and time.monotonic() > end:
            return  # it came too late
        else:
            _write(behind, frame)
            _write(client, _read(behind))


def _read(source: socket.socket) -> bytes:
    return _exactly(source, int.from_bytes(_exactly(source, 4), "big"))


def _exactly(source: socket.socket, size: int) -> bytes:
    got = b""
    while len(got) < size:
        more = source.recv(size - len(got))
        if not more:
            raise EOFError
        got += more
    return got


def _write(target: socket.socket, frame: bytes) -> None:
    target.sendall(struct.pack(">i", len(frame)) + frame)
