"""The commands on a real broker."""

from __future__ import annotations

import json
import os
import subprocess

import pytest

from headrace.clock import SystemClock
from headrace.log.kafka.keys import java_hash
from headrace.log.kafka.log import KafkaLog
from tests.e2e.harness import HEADRACE, ROOT
from tests.kafka.clean import wipe


@pytest.fixture
def command(kafka, tmp_path):
    wipe(kafka)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HEADRACE_")}
    environment |= {"HEADRACE_LOG": f"kafka://{kafka}", "HEADRACE_STATE_DIR": str(tmp_path / "state")}
    environment |= {"HEADRACE_CHECKPOINTS": str(tmp_path / "checkpoints"), "HEADRACE_METRICS_PORT": "0"}

    def run(*arguments, stdin="", code=0):
        done = subprocess.run(
            [HEADRACE, *arguments], env=environment, input=stdin, cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == code, done.stderr
        return done.stdout + (done.stderr if code else "")

    return run


def payment(number):
    at = 1_700_000_000_000 + number
    return json.dumps({"transaction_id": f"t{number}", "customer_id": f"c{number % 5}", "total": 1.5, "at": at})


def test_from_lines_to_lines(command):
    lines = "\n".join(payment(number) for number in range(100))
    command("produce", "payments", "--key", "customer_id", "--time", "at", "--partitions", "3", stdin=lines)
    read = [json.loads(line) for line in command("consume", "payments").splitlines()]
    assert sorted(record["value"]["transaction_id"] for record in read) == sorted(f"t{i}" for i in range(100))
    assert all(record["partition"] == java_hash(record["key"].encode()) % 3 for record in read)
    assert len(command("consume", "payments", "--limit", "7").splitlines()) == 7
    assert "payments" in command("topics")
    command("run", "topologies.card_spend", "--until-end")
    windows = [json.loads(line)["value"] for line in command("consume", "spend-per-minute").splitlines()]
    assert sorted((w["key"], w["payments"], w["total"]) for w in windows) == [(f"c{i}", 20, 30.0) for i in range(5)]
    assert "card-spend" in command("groups")


def test_following_sees_what_comes(command, kafka):
    command("produce", "words", "--partitions", "1", stdin='{"w":1}\n')
    process = subprocess.Popen(
        [HEADRACE, "consume", "words", "--follow", "--log", f"kafka://{kafka}"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert json.loads(process.stdout.readline())["value"] == {"w": 1}
        command("produce", "words", stdin='{"w":2}\n')
        assert json.loads(process.stdout.readline())["value"] == {"w": 2}
    finally:
        process.kill()
        process.communicate()


def test_what_is_not_there(command, kafka):
    assert "nothing" in command("consume", "nothing", code=2)
    assert "payments" in command("run", "topologies.card_spend", code=2)
    assert "can be reached" in command("topics", "--log", "kafka://127.0.0.1:1", code=1)
    log = KafkaLog(f"kafka://{kafka}", clock=SystemClock())
    assert not log.topics()
    command("produce", "made", "--partitions", "3", stdin="")  # as docker/compose.yaml makes its topic
    assert log.topics()["made"].partitions == 3
    log.close()
