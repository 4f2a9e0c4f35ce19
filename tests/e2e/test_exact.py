"""The main job over the command line gives exactly the rows that SQL gives."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.demo.payments import Payments
from tests.e2e.harness import Site, expected, fill, results

PAYMENTS = Payments(count=60_000, customers=5_000, duplicate_share=0.02, late_share=0.01)


@pytest.mark.parametrize(("partitions", "workers"), [(1, 1), (4, 1), (4, 2)])
def test_card_spend_equals_sql(tmp_path: Path, partitions: int, workers: int) -> None:
    site = Site(tmp_path)
    fill(site, PAYMENTS, partitions)
    site.run("run", "topologies.card_spend", "--until-end", "--workers", str(workers))
    wanted = expected(site)
    assert len(wanted) > 10_000
    assert results(site.read("spend-per-minute")) == wanted
    alerts = results(site.read("alerts"))
    assert alerts == {key: row for key, row in wanted.items() if row[1] > 5_000}


def test_a_second_run_counts_only_what_is_new(tmp_path: Path) -> None:
    site = Site(tmp_path)
    fill(site, PAYMENTS, 2)
    site.run("run", "topologies.card_spend", "--until-end")
    first = len(site.read("spend-per-minute"))
    site.run("run", "topologies.card_spend", "--until-end")
    assert len(site.read("spend-per-minute")) == first
