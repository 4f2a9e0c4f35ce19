"""Workers on several machines share a topology: one comes, another goes, and nothing is done twice."""

from __future__ import annotations

import signal
from functools import partial

from tests.e2e.harness import expected, results, wait_for
from tests.kafka.machines import Machine, beyond, fed, holders, machines, positions

PATIENT = {"HEADRACE_SESSION_TIMEOUT": "30s"}  # so that nobody is taken for dead, however busy the machine is


def test_one_comes_and_the_other_goes(site):
    first, second = Machine(site, "first", PATIENT), Machine(site, "second", PATIENT)
    with fed(site) as log, machines(first, second):
        first.start()
        wait_for(lambda: holders(log) == [4])
        wait_for(partial(beyond, log, positions(log), 200))
        second.start()
        wait_for(lambda: holders(log) == [2, 2])
        wait_for(partial(beyond, log, positions(log), 200))
        first.end(signal.SIGTERM)
        wait_for(lambda: holders(log) == [4])
        wait_for(partial(beyond, log, positions(log), 200))
        second.end(signal.SIGTERM)
    site.run("run", "topologies.card_spend", "--until-end")
    records = site.read("spend-per-minute")
    assert results(records) == expected(site)
    assert len(records) == len(results(records)), "an orderly hand-over repeats nothing"
