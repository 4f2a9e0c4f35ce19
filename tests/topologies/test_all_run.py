"""Every topology of ``topologies/`` is drawn and run as its users would, and has a test that they can copy."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from headrace.cli.main import app

ROOT = Path(__file__).parents[2]
NAMES = sorted(path.stem for path in (ROOT / "topologies").glob("*.py"))

Lines = tuple[list[dict[str, Any]], list[str]]
"""What is produced into one topic, and the options of ``headrace produce``."""

INPUT: dict[str, dict[str, Lines]] = {
    "card_spend": {
        "payments": ([{"transaction_id": "t1", "customer_id": "ann", "total": 9.5, "at": 0}], ["--key", "customer_id"])
    },
    "cloudwatch_alarms": {
        "metrics": (
            [{"metric": "cpu", "value": 99.0, "at": minute * 60_000} for minute in range(20)], ["--key", "metric"]
        )
    },
    "fire_and_resolve": {
        "requests": ([{"service": "web", "status": 500, "at": n} for n in range(50)], ["--key", "service"])
    },
    "monthly_revenue": {"sales": ([{"shop": "a", "cents": 995, "at": 0}], ["--key", "shop"])},
    "order_enrichment": {
        "customers": ([{"id": "c1", "name": "Ann", "segment": "new", "at": 0}], ["--key", "id"]),
        "prices": ([{"product_id": "p1", "cents": 100, "at": 0}], ["--key", "product_id"]),
        "orders": (
            [{"order_id": "o1", "customer_id": "c1", "product_id": "p1", "quantity": 2, "at": 1000}],
            ["--key", "customer_id"],
        ),
    },
    "payment_processing": {
        "payment-requests": (
            [{"payment_id": "p1", "account": "ann", "cents": 500, "currency": "EUR", "at": 0}], ["--key", "account"]
        )
    },
    "session_analytics": {
        "access-log": (
            [
                {
                    "time": f"2026-03-01T12:00:0{second}+01:00", "address": "192.0.2.1", "agent": "Firefox",
                    "method": "GET", "host": "shop.example", "uri": uri, "status": 200,
                }
                for second, uri in enumerate(["/", "/product/1", "/cart"])
            ],
            ["--value-serde", "json"],
        )
    },
}  # fmt: skip

OUTPUT = {
    "card_spend": {"spend-per-minute": 1, "alerts": 0},
    "cloudwatch_alarms": {"alarms": 3},
    "fire_and_resolve": {"alerts": 2},
    "monthly_revenue": {"monthly-revenue": 1},
    "order_enrichment": {"orders-priced": 1, "orders-without-price": 0},
    "payment_processing": {"receipts": 1, "declined-payments": 0},
    "session_analytics": {"visits": 1, "popular-pages": 1, "funnel": 2},
}
"""How many records each topic then has."""


def headrace(*arguments: str, stdin: str = "") -> str:
    result = CliRunner().invoke(app, arguments, input=stdin)
    assert result.exit_code == 0, f"headrace {' '.join(arguments)}\n{result.output}"
    return result.stdout


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.setenv("HEADRACE_METRICS_PORT", "0")
    monkeypatch.setenv("HEADRACE_FSYNC", "never")


def lines_of(topic: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in headrace("consume", topic).splitlines()]


@pytest.mark.parametrize("name", NAMES)
def test_it_runs_to_the_end_of_its_input(name: str) -> None:
    for topic, (lines, options) in INPUT[name].items():
        headrace("produce", topic, "--partitions", "2", *options, stdin="\n".join(map(json.dumps, lines)))
    headrace("run", f"topologies.{name}", "--until-end")
    assert {topic: len(lines_of(topic)) for topic in OUTPUT[name]} == OUTPUT[name]


@pytest.mark.parametrize("name", NAMES)
def test_it_can_be_drawn(name: str) -> None:
    described = json.loads(headrace("describe", f"topologies.{name}", "--format", "json"))
    drawn = headrace("describe", f"topologies.{name}", "--format", "mermaid")
    told = headrace("describe", f"topologies.{name}")
    for sub in described["subtopologies"]:
        for output in sub["outputs"]:
            assert output["topic"] in told
            assert output["name" if output["internal"] else "topic"] in drawn


@pytest.mark.parametrize("name", NAMES)
def test_it_has_a_test_to_copy(name: str) -> None:
    text = (ROOT / "tests" / "topologies" / f"test_{name}.py").read_text()
    assert "from headrace.testing import " in text
    assert f"from topologies.{name} import " in text
    assert "headrace.testing.driver" not in text
