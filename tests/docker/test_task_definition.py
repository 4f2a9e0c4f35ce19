"""The ECS task definition is one that Fargate accepts."""

import copy
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from headrace.settings import Settings, variable_of

ROOT = Path(__file__).parent.parent.parent
DEFINITION: dict[str, Any] = json.loads((ROOT / "docker" / "ecs-task-definition.json").read_text(encoding="utf-8"))
WORKER = DEFINITION["containerDefinitions"][0]
ENVIRONMENT = {variable["name"]: variable["value"] for variable in WORKER["environment"]}


def in_cloudformation(value: Any, name: str = "") -> Any:
    """Spell a task definition as CloudFormation does; the names of log options belong to the driver."""
    if isinstance(value, dict):
        keep = name == "options"
        return {(k if keep else k[0].upper() + k[1:]): in_cloudformation(v, k) for k, v in value.items()}
    if isinstance(value, list):
        return [in_cloudformation(item, name) for item in value]
    return value


def lint(definition: dict[str, Any], folder: Path) -> subprocess.CompletedProcess[str]:
    resource = {"Type": "AWS::ECS::TaskDefinition", "Properties": in_cloudformation(definition)}
    template = folder / "template.json"
    template.write_text(
        json.dumps({"AWSTemplateFormatVersion": "2010-09-09", "Resources": {"Worker": resource}}), encoding="utf-8"
    )
    command = [str(Path(sys.executable).with_name("cfn-lint")), "--regions", "eu-central-1", "--", str(template)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "HOME": str(folder)})


def test_cloudformation_accepts_it(tmp_path) -> None:
    result = lint(DEFINITION, tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_linter_would_see_a_mistake(tmp_path) -> None:
    wrong = copy.deepcopy(DEFINITION)
    wrong["memory"] = "512"
    wrong["containerDefinitions"][0]["readOnlyRoot"] = True
    said = lint(wrong, tmp_path).stdout
    assert "memory" in said.lower()
    assert "ReadOnlyRoot" in said


def test_the_drain_ends_before_the_task_is_killed() -> None:
    settings = Settings.load(ENVIRONMENT)
    assert settings.drain_timeout_ms + 10_000 <= WORKER["stopTimeout"] * 1000 <= 120_000


def test_state_is_written_to_volumes_only() -> None:
    settings = Settings.load(ENVIRONMENT)
    mounted = {mount["containerPath"] for mount in WORKER["mountPoints"]}
    assert WORKER["readonlyRootFilesystem"] is True
    assert settings.state_dir.startswith("/state/")
    assert mounted == {"/state", "/tmp"}
    assert {mount["sourceVolume"] for mount in WORKER["mountPoints"]} == {v["name"] for v in DEFINITION["volumes"]}


def test_checkpoints_survive_the_task() -> None:
    settings = Settings.load(ENVIRONMENT)
    assert settings.checkpoints.startswith("s3://")
    assert settings.log.startswith("kafka://")


def test_it_is_scraped_where_it_listens() -> None:
    settings = Settings.load(ENVIRONMENT)
    assert settings.metrics_host == "0.0.0.0"
    assert WORKER["portMappings"] == [{"containerPort": settings.metrics_port, "protocol": "tcp"}]


def test_it_does_not_run_as_root() -> None:
    assert WORKER["user"] == "10001:10001"


def test_every_variable_is_a_setting() -> None:
    known = {variable_of(field.name) for field in dataclasses.fields(Settings)}
    assert {name for name in ENVIRONMENT if name.startswith("HEADRACE_")} <= known


@pytest.mark.parametrize("key", ["awslogs-group", "awslogs-region", "awslogs-stream-prefix"])
def test_logs_go_to_cloudwatch(key: str) -> None:
    assert WORKER["logConfiguration"]["logDriver"] == "awslogs"
    assert WORKER["logConfiguration"]["options"][key]
