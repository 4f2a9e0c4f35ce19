"""A topology keeps its checkpoints in S3, is killed, and goes on elsewhere with an empty disk."""

from functools import partial

import pytest

from headrace.checkpoint.checkpoints import Checkpoints
from headrace.checkpoint.inspection import read_kept, verify
from headrace.demo.payments import Payments
from tests.e2e.harness import Site, committed, expected, fill, kill_all, results, wait_for
from tests.s3 import servers

PAYMENTS = Payments(count=40_000, customers=2_000, duplicate_share=0.02, late_share=0.01)
SLOW = {"HEADRACE_CHECKPOINT_INTERVAL": "100ms", "HEADRACE_BATCH_RECORDS": "200"}


def test_kills_and_empty_disks_lose_nothing(server, prefix, tmp_path):
    site = Site(tmp_path)
    fill(site, PAYMENTS, 2)
    place = {
        **servers.environment(server),
        "HEADRACE_CHECKPOINTS": f"s3://{servers.BUCKET}/{prefix}",
        "HEADRACE_SESSION_TIMEOUT": "2s",
        "HEADRACE_HEARTBEAT_INTERVAL": "200ms",
    }
    for life, goal in enumerate((5_000, 15_000, 25_000)):
        state = {"HEADRACE_STATE_DIR": str(tmp_path / f"state{life}")}
        process = site.start("run", "topologies.card_spend", **place, **SLOW, **state)
        try:
            wait_for(partial(reached, site, process, goal), 60)
            if process.poll() is not None:
                pytest.fail(process.communicate()[0])
        finally:
            kill_all(process)
    site.run("run", "topologies.card_spend", "--until-end", **place, HEADRACE_STATE_DIR=str(tmp_path / "last"))
    assert results(site.read("spend-per-minute")) == expected(site)
    # What is left there is whole, and no more than the last two checkpoints of each task.
    objects = servers.opened(server, prefix, servers.Patience())
    for task in Checkpoints(objects, "card-spend").tasks():
        kept = read_kept(objects, "card-spend", task)
        assert len(kept.manifests) == 2
        assert verify(objects, "card-spend", kept) == []


def reached(site, process, goal):
    return committed(site, "card-spend") >= goal or process.poll() is not None


@pytest.mark.parametrize(("place", "told"), [("s3://nowhere/p", "bucket of s3://nowhere/p does not exist")])
def test_a_bucket_that_does_not_exist_is_said_before_anything_runs(server, tmp_path, place, told):
    site = Site(tmp_path)
    fill(site, Payments(count=100, customers=10), 2)
    process = site.start(
        "run", "topologies.card_spend", "--until-end", "--checkpoints", place, **servers.environment(server)
    )
    try:
        output, _ = process.communicate(timeout=60)
    finally:
        kill_all(process)
    assert process.returncode in (1, 2)
    assert told in output
    assert "Traceback" not in output
    assert site.read("spend-per-minute") == []
