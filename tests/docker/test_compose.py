"""The compose file, read as text: what it mentions exists, and says what headrace understands."""

import shlex
from pathlib import Path

import pytest
import yaml

from headrace.cli.main import app
from headrace.settings import Settings
from tests.kafka.broker import IMAGE

ROOT = Path(__file__).parent.parent.parent
COMPOSE = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text(encoding="utf-8"))
SERVICES = COMPOSE["services"]
OURS = [name for name, service in SERVICES.items() if service["image"].startswith("headrace:")]


def test_the_broker_is_the_one_that_tests_use() -> None:
    assert SERVICES["kafka"]["image"] == IMAGE


@pytest.mark.parametrize("name", SERVICES)
def test_what_is_mounted_exists(name: str) -> None:
    for mount in SERVICES[name].get("volumes", ()):
        source = mount.split(":")[0]
        assert (ROOT / "docker" / source).exists() if source.startswith(".") else source in COMPOSE["volumes"], mount


@pytest.mark.parametrize("name", SERVICES)
def test_what_is_waited_for_exists(name: str) -> None:
    for other, how in SERVICES[name].get("depends_on", {}).items():
        assert how["condition"] != "service_healthy" or "test" in SERVICES[other]["healthcheck"]
    shared = SERVICES[name].get("network_mode", "").removeprefix("service:")
    assert not shared or shared in SERVICES


@pytest.mark.parametrize("name", OURS)
def test_our_services_are_built_from_the_image_and_reach_the_broker(name: str) -> None:
    service = SERVICES[name]
    built = [other["build"] for other in SERVICES.values() if other["image"] == service["image"] and "build" in other]
    (build,) = built  # two that build one image at the same time fail, as both export it
    assert (ROOT / "docker" / build["context"] / build["dockerfile"]).exists()
    loaded = Settings.load(service["environment"])
    listener = SERVICES["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"]
    assert loaded.log == listener.replace("PLAINTEXT", "kafka")


def test_the_commands_are_understood() -> None:
    from typer.main import get_command

    commands = get_command(app).commands
    words = shlex.split(SERVICES["topics"]["entrypoint"][2].partition("<")[0])
    for name, *arguments in (words[1:], SERVICES["worker"]["command"]):
        assert commands[name].make_context(name, arguments)
    module = SERVICES["worker"]["command"][1]
    assert (ROOT / module.replace(".", "/")).with_suffix(".py").exists()
