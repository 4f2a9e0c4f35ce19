"""A real Kafka broker for the tests: one that is named, one in Docker, or Apache Kafka on the machine's own Java."""

from __future__ import annotations

import base64
import fcntl
import hashlib
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.ports import free_port

POM = Path(__file__).with_name("pom.xml")
IMAGE = "apache/kafka:4.1.1"
REMEDY = (
    "Name a broker with HEADRACE_TEST_KAFKA=host:port, start Docker, or install Java 17 and Maven "
    "(apt-get install --no-install-recommends openjdk-17-jre-headless maven)"
)
_START_S = 60
FAST_START = ("java", "-Xmx384m", "-Xss512k", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
"""Java for brokers of tests."""
LONG_LIFE = ("java", "-Xmx1g", "-Xss512k", "-XX:+UseSerialGC")
"""Java for brokers whose speed counts."""


class NoBroker(Exception):
    """There is no way to a broker on this machine."""


@contextmanager
def broker(directory: Path, java: Sequence[str] = FAST_START) -> Iterator[str]:
    """Yield ``host:port`` of a broker, which is stopped in the end if it was started here.

    Tests delete every topic and group that they find on it, so ``HEADRACE_TEST_KAFKA`` must name one that is for tests.

    Args:
        directory: Empty; for what the broker writes.
        java: How Java is called, if that starts it.

    Raises:
        NoBroker: there is none, and none can be started.
    """
    named = os.environ.get("HEADRACE_TEST_KAFKA")
    if named:
        yield named
    elif _docker_runs():
        with _in_docker() as address:
            yield address
    elif has_java():
        started = JavaBroker(directory, java=java)
        try:
            started.start()
            yield started.address
        finally:
            started.kill()
    else:
        raise NoBroker(f"there is no Kafka broker to test with. {REMEDY}")


def has_java() -> bool:
    """Return whether this machine can run a broker without Docker."""
    return shutil.which("java") is not None and shutil.which("mvn") is not None


def properties(port: int, controller_port: int, directory: Path) -> dict[str, str]:
    """Return the settings of a broker that starts fast and forgets nothing that a test needs."""
    return {
        "process.roles": "broker,controller",
        "node.id": "1",
        "controller.quorum.voters": f"1@127.0.0.1:{controller_port}",
        "listeners": f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{port}",
        "controller.listener.names": "CONTROLLER",
        "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
        "log.dirs": str(directory),
        "num.network.threads": "2",
        "num.io.threads": "2",
        "background.threads": "2",
        "log.cleaner.threads": "1",
        "log.retention.ms": "-1",  # it goes by the records' own time, and those of tests are old
        "log.cleaner.dedupe.buffer.size": str(4 * 1024**2),
        "auto.create.topics.enable": "true",  # a client that makes topics by mentioning them must be found out
        "offsets.topic.replication.factor": "1",
        "offsets.topic.num.partitions": "1",
        "transaction.state.log.replication.factor": "1",
        "transaction.state.log.min.isr": "1",
        "transaction.state.log.num.partitions": "1",
        "share.coordinator.state.topic.replication.factor": "1",
        "share.coordinator.state.topic.min.isr": "1",
        "group.initial.rebalance.delay.ms": "0",
        "group.min.session.timeout.ms": "100",
        "broker.session.timeout.ms": "2000",  # how long one that was killed is waited for
        "broker.heartbeat.interval.ms": "500",
    }


def _docker_runs() -> bool:
    if shutil.which("docker") is None:
        return False
    return subprocess.run(["docker", "info"], capture_output=True, check=False).returncode == 0


@contextmanager
def _in_docker() -> Iterator[str]:
    port = free_port()
    settings = properties(port, 9093, Path("/tmp/data"))
    settings["listeners"] = f"PLAINTEXT://0.0.0.0:{port},CONTROLLER://0.0.0.0:9093"
    variables = [f"--env=KAFKA_{name.upper().replace('.', '_')}={value}" for name, value in settings.items()]
    command = ["docker", "run", "--rm", "--detach", f"--publish=127.0.0.1:{port}:{port}", *variables]
    command += ["--env=KAFKA_HEAP_OPTS=-Xmx384m", IMAGE]
    name = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    try:
        _wait_for(port, lambda: None)
        yield f"127.0.0.1:{port}"
    finally:
        subprocess.run(["docker", "stop", "--time=5", name], capture_output=True, check=False)


class JavaBroker:
    """A broker in a process of its own; it keeps its address and its records when it is started again.

    Args:
        directory: For what it writes; empty.
        more: Makes other settings of what would be its own.
        users: Names and passwords for SCRAM.
        port: Where it listens; 0 for any.
        cluster: The id of the cluster that it is a part of; one of its own if empty.
        archive: What Java is told of class archives, if it is not to take ``archived()``.
        java: How it is called.
    """

    def __init__(
        self,
        directory: Path,
        more: Callable[[dict[str, str]], dict[str, str]] | None = None,
        users: Mapping[str, str] | None = None,
        *,
        port: int = 0,
        cluster: str = "",
        archive: str = "",
        java: Sequence[str] = FAST_START,
    ) -> None:
        own_port, controller_port = port or free_port(), free_port()
        self.address = f"127.0.0.1:{own_port}"
        self._told = directory / "broker.log"
        self._file = directory / "server.properties"
        settings = properties(own_port, controller_port, directory / "data")
        if more is not None:
            settings = more(settings)
        self._listens = [int(listener.rpartition(":")[2]) for listener in settings["listeners"].split(",")]
        options = []
        for name, password in (users or {}).items():
            options += ["--add-scram", f"SCRAM-SHA-512=[name={name},iterations=4096,password={password}]"]
        self._file.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
        self._java = [*java, archive or f"-XX:SharedArchiveFile={archived()}", "-cp", f"{fetched()}/*"]
        self._process: subprocess.Popen[bytes] | None = None
        form = [*java, *self._java[-2:], "kafka.tools.StorageTool", "format"]
        command = [*form, "-t", cluster or cluster_id(), "-c", str(self._file), *options]
        subprocess.run(command, capture_output=True, check=True)

    @property
    def port(self) -> int:
        """Where clients find it."""
        return int(self.address.rpartition(":")[2])

    def start(self) -> None:
        """Start it if it does not run, and wait until it listens everywhere."""
        if self._process is not None:
            return
        with self._told.open("ab") as output:
            command = [*self._java, "kafka.Kafka", str(self._file)]
            self._process = subprocess.Popen(command, stdout=output, stderr=output)
        for port in self._listens:
            _wait_for(port, self._check)

    def kill(self) -> None:
        """Kill it; idempotent."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def move(self) -> None:
        """Listen somewhere else from its next start on."""
        old, new = self.port, free_port()
        self._file.write_text(re.sub(rf":{old}\b", f":{new}", self._file.read_text()))
        self._listens = [new if port == old else port for port in self._listens]
        self.address = f"127.0.0.1:{new}"

    def stop(self) -> None:
        """Let it end as an operator does: it hands over what it leads."""
        assert self._process is not None
        self._process.terminate()
        self._process.wait(_START_S)
        self._process = None

    def _check(self) -> None:
        assert self._process is not None
        if self._process.poll() is not None:
            raise NoBroker(f"the broker ended with {self._process.returncode}: {self._told.read_text()[-2000:]}")


def cluster_id() -> str:
    """Return the id of a cluster that there was never before."""
    return base64.urlsafe_b64encode(os.urandom(16)).rstrip(b"=").decode().replace("-", "A")


def fetched() -> Path:
    """Return the directory with Kafka's jars, which Maven fetches the first time.

    Raises:
        NoBroker: they cannot be fetched.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "headrace-tests"
    version = hashlib.sha256(POM.read_bytes()).hexdigest()[:16]
    jars = cache / f"kafka-{version}"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if jars.is_dir():
            return jars
        fresh = cache / f"kafka-{version}.part"
        shutil.rmtree(fresh, ignore_errors=True)
        command = ["mvn", "-q", "-B", "-f", str(POM), "dependency:copy-dependencies"]
        command += [f"-DoutputDirectory={fresh}", "-DincludeScope=runtime"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
        if done.returncode:
            raise NoBroker(f"Maven could not fetch Kafka: {(done.stdout + done.stderr)[-1000:]}. {REMEDY}")
        fresh.rename(jars)
    return jars


def archived() -> Path:
    """Return Kafka's classes as Java loads them fastest: a broker starts with a third of the work.

    They are of use only to the Java that made them; another one loads the jars instead.
    """
    jars = fetched()
    java = hashlib.sha256(os.path.realpath(shutil.which("java") or "").encode()).hexdigest()[:8]
    classes = jars.with_name(f"{jars.name}-{java}.jsa")
    with (jars.parent / "lock-classes").open("w") as lock, tempfile.TemporaryDirectory() as directory:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not classes.is_file():
            fresh = Path(directory) / "classes.jsa"
            maker = JavaBroker(Path(directory), archive=f"-XX:ArchiveClassesAtExit={fresh}")
            try:
                maker.start()
                maker.stop()
            finally:
                maker.kill()
            if fresh.is_file():
                shutil.move(fresh, classes)
    return classes


def _wait_for(port: int, check: Callable[[], None]) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        check()
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    raise NoBroker(f"the broker does not listen on port {port} after {_START_S} s")
