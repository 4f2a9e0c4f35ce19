"""Every rule of a topology; all faults are reported at once."""

import pytest

from headrace import Topology, TopologyError


def faults(topology: Topology) -> list[str]:
    with pytest.raises(TopologyError) as failed:
        topology.graph()
    head, *listed = str(failed.value).split("\n  - ")
    assert head == f"topology {topology.name!r} cannot run:"
    return listed


def test_all_faults_at_once() -> None:
    topology = Topology("my topology")
    stream = topology.stream("in put", name="bad/name")
    stream.to("out/put", name="same")
    stream.to("out", name="same")
    topology.stream("in put", name="again").to("x" * 250, name="long")
    found = faults(topology)
    assert len(found) == 8
    for part in ("'my topology'", "'bad/name'", "'in put'", "'out/put'", "two steps are called 'same'", "is read twice",
                 "x" * 250):  # fmt: skip
        assert any(part in fault for fault in found), part
    assert all(__file__ in fault for fault in found if "its name" not in fault)


@pytest.mark.parametrize("name", ["", "a b", "a/b", "ä", "x" * 121, "a\n"])
def test_names_that_cannot_stand_in_a_topic(name: str) -> None:
    topology = Topology(name)
    topology.stream("in").to("out")
    assert len(faults(topology)) == 1


def test_a_topology_that_reads_nothing() -> None:
    assert "it reads nothing" in faults(Topology("t"))[0]


def test_a_topology_that_does_nothing() -> None:
    topology = Topology("t")
    topology.stream("in")
    assert "it does nothing with what it reads" in faults(topology)[0]
