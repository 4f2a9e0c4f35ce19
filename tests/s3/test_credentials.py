"""Where the credentials come from, and what is said when a part of them is missing."""

import json
import threading
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from headrace.checkpoint.s3 import open_s3
from headrace.errors import RetriableError, SettingsError
from tests.s3 import servers


class Platform:
    """Serves credentials, as a container platform does."""

    def __init__(self):
        self.asked, self.status, self.seconds = [], 200, 3600
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                outer.asked.append((self.path, self.headers.get("Authorization")))
                expires = datetime.now(UTC) + timedelta(seconds=outer.seconds)
                body = json.dumps({
                    "AccessKeyId": f"served{len(outer.asked)}", "SecretAccessKey": "key", "Token": "session",
                    "Expiration": expires.strftime("%Y-%m-%dT%H:%M:%SZ"), "RoleArn": "ignored",
                }).encode()  # fmt: skip
                self.send_response(outer.status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *told):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/credentials?task=1"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05})
        self.thread.start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(10)


@pytest.fixture
def platform():
    opened = Platform()
    yield opened
    opened.close()


def opened(proxy, prefix, **variables):
    environment = {"AWS_ENDPOINT_URL": proxy[0], "AWS_REGION": "eu-central-1", **variables}
    return open_s3(f"s3://{servers.BUCKET}/{prefix}", environment, servers.QUICK)


@pytest.mark.parametrize("in_a_file", [False, True])
def test_a_container_role_is_asked_once_while_its_keys_are_good(proxy, prefix, platform, tmp_path, in_a_file):
    (tmp_path / "token").write_text("secret\n")
    token = (
        {"AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": str(tmp_path / "token")}
        if in_a_file
        else {"AWS_CONTAINER_AUTHORIZATION_TOKEN": "secret"}
    )
    objects = opened(proxy, prefix, AWS_CONTAINER_CREDENTIALS_FULL_URI=platform.url, **token)
    assert objects.create("a/b", b"1")
    assert objects.read("a/b") == b"1"
    assert platform.asked == [("/credentials?task=1", "secret")]
    # What came is what requests are signed with.
    assert all("Credential=served1/" in signed and token == "session" for signed, token in proxy[1].signed)


def test_keys_that_expire_are_fetched_anew(proxy, prefix, platform):
    platform.seconds = 200
    objects = opened(proxy, prefix, AWS_CONTAINER_CREDENTIALS_FULL_URI=platform.url)
    objects.create("a/b", b"1")
    objects.read("a/b")
    assert len(platform.asked) > 1
    assert "Credential=served1/" not in proxy[1].signed[-1][0]


def test_a_platform_that_fails_is_a_passing_fault_and_one_that_refuses_is_not(proxy, prefix, platform):
    objects = opened(proxy, prefix, AWS_CONTAINER_CREDENTIALS_FULL_URI=platform.url)
    platform.status = 503
    with pytest.raises(RetriableError, match="credentials cannot be fetched"):
        objects.read("a/b")
    platform.status = 403
    with pytest.raises(SettingsError, match="credentials are refused"):
        objects.read("a/b")
    platform.status = 200
    assert objects.read("a/b") is None


def test_keys_in_the_environment_come_first(proxy, prefix, platform):
    objects = opened(
        proxy, prefix, AWS_CONTAINER_CREDENTIALS_FULL_URI=platform.url, AWS_ACCESS_KEY_ID="mine",
        AWS_SECRET_ACCESS_KEY="key", AWS_SESSION_TOKEN="session",
    )  # fmt: skip
    assert objects.read("a/b") is None
    assert platform.asked == []
    assert "Credential=mine/" in proxy[1].signed[-1][0]


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"AWS_REGION": ""}, "AWS_REGION"),
        ({"AWS_ACCESS_KEY_ID": "id"}, "AWS_SECRET_ACCESS_KEY is not"),
        ({"AWS_SECRET_ACCESS_KEY": "key"}, "AWS_ACCESS_KEY_ID is not"),
        ({"AWS_WEB_IDENTITY_TOKEN_FILE": "f"}, "AWS_ROLE_ARN is not"),
        ({"AWS_PROFILE": "mine"}, "export-credentials"),
        ({"AWS_EC2_METADATA_DISABLED": "true"}, "no credentials"),
        ({"AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://example.com/role"}, "https, or http on this machine"),
    ],
)
def test_what_is_missing_is_said_at_once(variables, told):
    with pytest.raises(SettingsError, match=told):
        open_s3("s3://bucket", {"AWS_REGION": "eu-central-1", **variables})
