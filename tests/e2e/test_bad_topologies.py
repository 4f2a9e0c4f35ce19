"""Topologies that cannot work: one readable message with the user's line, before anything starts."""

from __future__ import annotations

import os
import sys
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from headrace.cli.main import app
from tests.e2e.harness import Site
from tests.e2e.small import put_rows

HEAD = """\
import asyncio
from headrace import *
import msgspec

class Sale(msgspec.Struct):
    k: str
    at: int
    cents: int{field}

topology = Topology("bad")
sales = topology.stream("sales", value=Sale, keyed_by="k", time="at")
narrow = topology.stream("narrow", keyed_by="k", time="at")
"""

_names = count()


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in os.environ if name.startswith("HEADRACE_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    site = Site(tmp_path)
    rows: list[Any] = [("k0", at, {"k": "k0", "at": at, "cents": at}) for at in range(1, 60)]
    for topic, partitions in (("sales", 2), ("narrow", 3), ("more", 3)):
        put_rows(site, topic, rows, partitions)
    return site


def run(site: Site, text: str, field: str = "") -> tuple[int, str, int]:
    """Run a topology in this process; return the exit code, what was told, and the number of the text's last line."""
    text = (HEAD.format(field=field) + text).rstrip() + "\n"
    name = f"bad_topology_{next(_names)}"
    (site.folder / f"{name}.py").write_text(text)
    arguments = ["run", name, "--until-end", "--metrics-port", "0", "--log", str(site.log), "--fsync", "never"]
    result = CliRunner().invoke(app, arguments)
    sys.modules.pop(name, None)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stderr.replace(f"{site.folder}/", ""), text.count("\n")


BAD = {
    "unequal-partitions": (
        "sales.join(narrow, lambda a, b: 1, within='1s').to('out')",
        ["different numbers of partitions: narrow has 3, sales has 2", "key_by()"],
    ),
    "unequal-partitions-of-a-table": (
        "sales.join(topology.table('more'), lambda a, b: 1).to('out')",
        ["more has 3, sales has 2", ".repartition() for a table"],
    ),
    "window-of-nothing": ("sales.window(tumbling('0s'))", ["the size of a tumbling window must be at least 1ms"]),
    "session-of-nothing": ("sales.window(session('0s'))", ["the gap of a session must be at least 1ms"]),
    "hop-beyond-window": ("sales.window(hopping('1m', '2m'))", ["leave records between them in no window"]),
    "negative-lateness": ("sales.window(tumbling('1m'), lateness='-1s')", ["lateness", "must not be negative"]),
    "negative-join-lateness": (
        "sales.join(sales, lambda a, b: 1, within='1s', lateness='-1s')",
        ["lateness of join", "not negative: '-1s'"],
    ),
    "negative-within": ("sales.join(sales, lambda a, b: 1, within='-1s')", ["within of join", "not negative: '-1s'"]),
    "no-duration": ("sales.deduplicate('at', within='soon')", ["within of deduplicate", "is not a duration: 'soon'"]),
    "async-map": ("sales.map(asyncio.sleep)", ["map was given an async function", "map_async"]),
    "plain-map-async": ("sales.map_async(print)", ["map_async", "async def"]),
    "nameless-process": ("sales.process(lambda sale, context: [])", ["a function that has none", "name="]),
    "missing-table": ("topology.table('rows').to('out')", ["'rows', which does not exist", "headrace produce rows"]),
    "missing-global-table": (
        "sales.join(topology.global_table('rows'), lambda a, b: 1, on='k').to('out')",
        ["'rows', which does not exist", "headrace produce rows"],
    ),
    "unknown-field": ("sales.key_by('kk')", ["Sale has no field 'kk'", "Did you mean 'k'?"]),
    "unknown-field-of-aggregate": (
        "sales.window(tumbling('1m')).aggregate(n=agg.sum('cent'))",
        ["n= of aggregate: Sale has no field 'cent'", "Did you mean 'cents'?"],
    ),
    "unknown-field-of-deduplicate": ("sales.deduplicate('id', within='1m')", ["Sale has no field 'id'", "'cents'"]),
    "unknown-field-of-global-join": (
        "sales.join(topology.global_table('more'), lambda a, b: 1, on='card')",
        ["Sale has no field 'card'"],
    ),
    "unknown-field-of-foreign-key": (
        "topology.table('more', value=Sale).join(topology.table('rows'), max, on='card')",
        ["Sale has no field 'card'"],
    ),
    "retry-of-a-window": (
        "sales.window(tumbling('1m')).aggregate(n=agg.count(), on_error=retry(3))",
        ["cannot make its calls again", "do what may fail in one of those"],
    ),
    "aggregate-without-call": ("sales.window(tumbling('1m')).aggregate(n=agg.count)", ["n", "agg.count()"]),
    "window-without-key": ("topology.stream('sales', name='s').window(tumbling('1m'))", ["needs a keyed stream"]),
    "join-without-within": ("sales.join(sales, lambda a, b: 1)", ["needs within="]),
    "two-of-one-name": ("sales.map(str, name='narrow').to('out')", ["'narrow'"]),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_a_topology_that_cannot_work(site: Site, kind: str) -> None:
    text, told = BAD[kind]
    code, output, line = run(site, text)
    check(output, told, f":{line}")
    assert code == 2, output
    assert not (site.folder / ".headrace" / "state").exists(), "nothing was started"


def check(output: str, told: list[str], line: str) -> None:
    for part in [*told, line]:
        assert part in output, output
    assert output.startswith("error: ")
    assert output.count("error: ") == 1
    assert "Traceback" not in output
    assert "headrace/" not in output, "it names lines of its own"
    assert output.count("\n") == 1 + output.count("\n  - ")
    assert ".." not in output.replace("...", ""), output


# --- what changed since the state was written

COUNTED = """
class Counter(Process):
    seen = ValueState(int, default=0)
    {second}
    def on_record(self, record, context):
        self.seen.value += 1
        return []

sales.process(Counter{drop}).to("out")
"""
TWO_STATES = COUNTED.format(second="other = ValueState(int, default=0)", drop="")
OTHER_TYPE = COUNTED.format(second="other = ValueState(str, default='')", drop="")
ONE_STATE = COUNTED.format(second="", drop="")
LATEST = "sales.reduce(lambda a, b: b, name='latest').to('out')"
JOINED = "sales.join(sales, lambda a, b: 1, within='{within}', name='pairs').to('out')"

CHANGED = {
    "new-field": (LATEST, LATEST, "\n    discount: int", ["step 'latest'", "'discount'", "--allow-reset latest"]),
    "state-removed": (TWO_STATES, ONE_STATE, "", ["has no state 'other' any more", 'drop=("other",)']),
    "state-of-another-type": (TWO_STATES, OTHER_TYPE, "", ["state 'other' of step", "migrations={1: function}"]),
    "join-within": (
        JOINED.format(within="1s"), JOINED.format(within="2s"), "", ["step 'pairs'", "within_ms", "--allow-reset pairs"]
    ),
}  # fmt: skip
"""A topology, what it is changed into, a field that ``Sale`` gets, and what is told."""


@pytest.mark.parametrize("kind", CHANGED)
def test_a_change_that_stored_state_cannot_follow(site: Site, kind: str) -> None:
    before, after, field, told = CHANGED[kind]
    assert run(site, before)[0] == 0
    code, output, line = run(site, after, field)
    check(output, told, f":{line}")
    assert code == 2
    code, output, _ = run(site, before)
    assert code == 0, output


def test_a_state_that_is_gone_can_be_dropped(site: Site) -> None:
    assert run(site, TWO_STATES)[0] == 0
    code, output, _ = run(site, COUNTED.format(second="", drop=", drop=['other']"))
    assert code == 0, output


def test_all_faults_of_a_graph_are_told_at_once(site: Site) -> None:
    code, output, _ = run(site, "sales.map(str, name='narrow').filter(str, name='sales').to('out')")
    assert code == 2
    assert output.count("error: ") == 1
    assert "'narrow'" in output
    assert "'sales'" in output
