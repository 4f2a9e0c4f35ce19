"""The status server of a worker."""

import http.client
import json
import socket
import threading
from collections.abc import Iterator

import pytest

from headrace.errors import SettingsError
from headrace.runtime.hosts.http import DEFAULT_PORT, StatusServer

WELL = (True, {"tasks": 3})


def get(server: StatusServer, path: str) -> tuple[int, str, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.headers["Content-Type"], response.read()
    finally:
        connection.close()


def server_of(port: int = 0, *, metrics=lambda: b"x 1\n", live=lambda: WELL, ready=lambda: WELL) -> StatusServer:
    return StatusServer("127.0.0.1", port, metrics, live, ready)


@pytest.fixture
def server() -> Iterator[StatusServer]:
    server = server_of(ready=lambda: (False, {"restoring": ["0_1"]}))
    server.start()
    yield server
    server.stop()


def test_metrics_have_the_content_type_of_prometheus(server) -> None:
    assert get(server, "/metrics") == (200, "text/plain; version=0.0.4; charset=utf-8", b"x 1\n")


def test_what_is_well_answers_200(server) -> None:
    status, kind, body = get(server, "/live")
    assert (status, kind.split(";")[0], json.loads(body)) == (200, "application/json", {"ok": True, "tasks": 3})


def test_what_is_not_well_answers_503_with_the_details(server) -> None:
    status, _, body = get(server, "/ready")
    assert (status, json.loads(body)) == (503, {"ok": False, "restoring": ["0_1"]})


def test_the_index_names_the_pages(server) -> None:
    status, kind, body = get(server, "/")
    assert status == 200
    assert kind.startswith("text/html")
    assert all(page in body for page in (b"/metrics", b"/live", b"/ready"))


def test_an_unknown_page_is_not_found(server) -> None:
    assert get(server, "/nothing")[0] == 404


def test_a_check_that_fails_is_not_well() -> None:
    def broken() -> tuple[bool, dict[str, object]]:
        raise RuntimeError("secret")

    server = server_of(live=broken)
    server.start()
    status, _, body = get(server, "/live")
    server.stop()
    assert (status, json.loads(body)) == (503, {"ok": False, "error": "RuntimeError"})


def test_it_answers_health_while_metrics_wait() -> None:
    gate, asked = threading.Event(), threading.Event()

    def slow() -> bytes:
        asked.set()
        gate.wait(10)
        return b"x 1\n"

    server = server_of(metrics=slow)
    server.start()
    scrape = threading.Thread(target=get, args=(server, "/metrics"))
    scrape.start()
    assert asked.wait(5)
    assert get(server, "/live")[0] == 200
    gate.set()
    scrape.join()
    server.stop()


def test_it_answers_while_the_main_thread_computes(server) -> None:
    answered: list[int] = []
    client = threading.Thread(target=lambda: answered.append(get(server, "/live")[0]))
    client.start()
    while client.is_alive():
        sum(range(1000))
    assert answered == [200]


def test_a_port_in_use_is_named_with_the_remedy() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SettingsError, match=rf"port {port} .*in use.*--metrics-port or HEADRACE_METRICS_PORT"):
            server_of(port).start()


def test_minus_one_takes_another_port_when_the_usual_one_is_in_use() -> None:
    first, second = server_of(-1), server_of(-1)
    first.start()
    second.start()
    ports = {first.port, second.port}
    assert len(ports) == 2
    assert second.port != DEFAULT_PORT
    assert get(second, "/live")[0] == 200
    first.stop()
    second.stop()


@pytest.mark.parametrize(("host", "port"), [("host.invalid", 0), ("127.0.0.1", 70_000), ("192.0.2.1", 0)])
def test_an_address_that_cannot_be_used_is_a_settings_error(host, port) -> None:
    with pytest.raises(SettingsError, match="cannot listen"):
        StatusServer(host, port, lambda: b"", lambda: WELL, lambda: WELL).start()


def test_stopping_frees_the_port_and_may_be_repeated() -> None:
    server = server_of()
    server.start()
    port = server.port
    get(server, "/live")
    server.stop()
    server.stop()
    again = server_of(port)
    again.start()
    assert get(again, "/live")[0] == 200
    again.stop()


def test_stopping_before_starting_does_nothing() -> None:
    server_of().stop()


@pytest.mark.parametrize(
    ("host", "url"),
    [("0.0.0.0", "http://127.0.0.1:80"), ("::", "http://[::1]:80"), ("[::1]", "http://[::1]:80"), ("a", "http://a:80")],
)
def test_the_url_can_be_opened(host, url) -> None:
    assert StatusServer(host, 80, lambda: b"", lambda: WELL, lambda: WELL).url == url
