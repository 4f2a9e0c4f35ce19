"""A step that does not come back ends its worker, and others go on."""

from __future__ import annotations

from pathlib import Path

from tests.e2e.harness import Site, kill_all
from tests.e2e.small import FAST, Telling, counted, counts_of, found, module, put, rows

GATED = """
import time
from pathlib import Path

from headrace import Topology, agg, tumbling

GATE = Path(__file__).with_name("gate")


def ask_somebody(row):
    while row["at"] == 150 and not GATE.exists():
        time.sleep(0.02)
    return row


topology = Topology("gated")
asked = topology.stream("in", time="at", keyed_by="k").map(ask_somebody, name="ask")
asked.window(tumbling("10ms")).aggregate(n=agg.count()).to("out")
"""
"""Waits at one record until somebody opens a gate."""


def test_a_worker_that_is_stuck_ends_and_is_started_again(tmp_path: Path) -> None:
    """The first attempt finds nobody to answer; the next one does, as when a connection had broken unseen."""
    site = Site(tmp_path)
    name, made = module(site, GATED), rows(400)
    put(site, made, 2)
    told = Telling(
        site.start("run", name, "--until-end", "--workers", "2", "--step-timeout", "600ms", **FAST, **found(site))
    )
    try:
        told.wait_for("did not come back within")
        (site.folder / "gate").touch()
        assert told.end(60) == 0, told.text
    finally:
        kill_all(told.process)
    assert "step 'ask' of task in-" in told.text
    assert "in ask_somebody" in told.text
    assert "HEADRACE_STEP_TIMEOUT" in told.text
    assert "died with exit code 1; it is started again" in told.text
    assert counted(site) == counts_of(made)
