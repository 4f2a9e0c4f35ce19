"""Topics of the embedded log that grow or are made again under a worker; see also ``tests/kafka``."""

from __future__ import annotations

from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from tests.e2e.harness import Site, committed
from tests.e2e.small import found, module, put, rows, starting

TOTALS = """
from headrace import Topology, agg

topology = Topology("job")
topology.stream("in", keyed_by="k", time="at").aggregate(n=agg.count(), k=agg.max("k")).to("out")
"""


@pytest.fixture
def site(tmp_path: Path) -> Site:
    site = Site(tmp_path)
    module(site, TOTALS, "job")
    return site


def run(site: Site, *arguments: str, code: int) -> str:
    process = site.start("run", "job", "--until-end", *arguments, **found(site))
    output, _ = process.communicate(timeout=100)
    assert process.returncode == code, output
    return output


def totals(site: Site) -> dict[str, int]:
    return {record.value["k"]: record.value["n"] for record in site.read("out")}


def test_an_input_grows(site: Site) -> None:
    put(site, rows(200), 2)
    with starting(site) as start, closing(site.open()) as log:
        worker = start("job")
        worker.until(lambda: committed(site, "job") == 200)
        log.grow_topic("in", 4)
        put(site, rows(300, start=200), 4)
        assert worker.end() == 1
        assert "topic in has 4 partitions now, and had 2" in worker.text
        assert "headrace rescale" in worker.text
    site.run("rescale", "job", "--yes", **found(site))
    run(site, code=0)
    assert totals(site) == Counter(row["k"] for row in rows(500))


def test_an_input_is_deleted_and_made_again(site: Site) -> None:
    put(site, rows(200))
    with starting(site) as start, closing(site.open()) as log:
        worker = start("job")
        worker.until(lambda: committed(site, "job") == 200)
        log.delete_topic("in")
        put(site, rows(200))
        assert worker.end() == 1
        assert "topic in was deleted while it was in use" in worker.text
    assert totals(site) == Counter(row["k"] for row in rows(200))
    assert "topic in was deleted and made again since the last checkpoint of task" in run(site, code=2)
    run(site, "--group", "anew", code=0)
