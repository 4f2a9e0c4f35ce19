"""The Dockerfile, read as text: there is no need of an engine to see these mistakes."""

import dataclasses
import fnmatch
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from headrace.runtime.hosts.http import StatusServer
from headrace.settings import Settings, variable_of

ROOT = Path(__file__).parent.parent.parent
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8")
INSTRUCTIONS = [
    (name, rest.strip())
    for name, rest in re.findall(r"^([A-Z]+)\s+(.*)$", re.sub(r"\\\n\s*", "", DOCKERFILE), re.MULTILINE)
]
FINAL = INSTRUCTIONS[max(i for i, (name, _) in enumerate(INSTRUCTIONS) if name == "FROM") :]


def only(instruction: str) -> str:
    found = [rest for name, rest in FINAL if name == instruction]
    assert len(found) == 1, f"one {instruction} in the final stage"
    return found[0]


def environment() -> dict[str, str]:
    return dict(pair.split("=", 1) for pair in only("ENV").split())


def health_command() -> list[str]:
    return json.loads(only("HEALTHCHECK").partition("CMD ")[2])


def kept_by_dockerignore(path: str) -> bool:
    kept = True
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").split():
        pattern = line.removeprefix("!")
        if any(fnmatch.fnmatch(part, pattern) for part in (path, path.partition("/")[0])):
            kept = line.startswith("!")
    return kept


def test_both_stages_start_from_the_same_python() -> None:
    assert len({rest.split()[0] for name, rest in INSTRUCTIONS if name == "FROM"}) == 1


def test_what_is_copied_exists_and_is_sent_to_the_engine() -> None:
    copies = [rest.split() for name, rest in INSTRUCTIONS if name == "COPY" and "--from" not in rest]
    sources = [source for copy in copies for source in copy[:-1]]
    assert sources
    for source in sources:
        assert (ROOT / source).exists(), source
        assert kept_by_dockerignore(source), f"{source} is excluded by .dockerignore"


def test_nothing_else_is_sent_to_the_engine() -> None:
    assert not any(kept_by_dockerignore(path) for path in (".git", ".venv", "tests", "bench", ".headrace"))


def test_signals_reach_headrace() -> None:
    assert json.loads(only("ENTRYPOINT")) == ["headrace"]
    assert isinstance(json.loads(only("CMD")), list)


def test_it_runs_as_an_unprivileged_user_that_owns_its_volumes() -> None:
    assert only("USER") == "10001:10001"
    volumes = json.loads(only("VOLUME"))
    assert volumes == ["/state", "/tmp"]
    (owned,) = re.findall(r"chown 10001:10001 (.*)$", only("RUN"))
    assert set(volumes) <= set(owned.split())
    order = [name for name, _ in FINAL]
    assert order.index("RUN") < order.index("VOLUME"), "what changes a volume after its declaration is lost"


_OTHERS = {"PATH", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED"}


def test_the_settings_of_the_image_are_settings() -> None:
    settings = Settings.load(environment())
    assert set(environment()) - _OTHERS <= {variable_of(field.name) for field in dataclasses.fields(Settings)}
    assert (settings.metrics_host, settings.metrics_port) == ("0.0.0.0", 9464)
    assert all(path.startswith("/state/") for path in (settings.log, settings.checkpoints, settings.state_dir))
    assert only("EXPOSE") == str(settings.metrics_port)


def test_dependencies_are_installed_by_hash() -> None:
    installs = [rest for name, rest in INSTRUCTIONS if name == "RUN" and "pip install" in rest]
    assert "--require-hashes -r requirements.lock" in installs[0]
    assert all("--no-deps" in rest for rest in installs[1:])


@pytest.mark.parametrize(("well", "code"), [(True, 0), (False, 1)])
def test_the_health_check_asks_the_worker(well: bool, code: int) -> None:
    server = StatusServer("127.0.0.1", 0, lambda: b"", lambda: (well, {}), lambda: (True, {}))
    server.start()
    python, *arguments = health_command()
    assert python == "python"
    variables = {**os.environ, "HEADRACE_METRICS_PORT": str(server.port)}
    result = subprocess.run([sys.executable, *arguments], env=variables, check=False, capture_output=True)
    server.stop()
    assert result.returncode == code, result.stderr


def test_the_health_check_fails_when_nobody_answers() -> None:
    variables = {**os.environ, "HEADRACE_METRICS_PORT": "1"}
    result = subprocess.run([sys.executable, *health_command()[1:]], env=variables, check=False, capture_output=True)
    assert result.returncode != 0


def test_the_task_definition_uses_the_same_health_check() -> None:
    definition = json.loads((ROOT / "docker" / "ecs-task-definition.json").read_text(encoding="utf-8"))
    assert definition["containerDefinitions"][0]["healthCheck"]["command"] == ["CMD", *health_command()]


def test_prometheus_accepts_its_configuration(promtool) -> None:
    result = promtool("check", "config", str(ROOT / "docker" / "prometheus.yml"))
    assert result.returncode == 0, result.stdout + result.stderr
