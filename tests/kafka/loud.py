"""A topology that says all that it can get at, and fails."""

from __future__ import annotations

import logging
import os
import urllib.request
from pathlib import Path

from headrace import Topology

topology = Topology("loud")

if os.environ.get("LOUD") == "yes":
    logging.basicConfig(level=logging.DEBUG)
    logging.getLogger("aiokafka").setLevel(logging.DEBUG)


def tell(value: str) -> str:
    """Print what can be seen of the process from outside, and fail."""
    print(Path("/proc/self/cmdline").read_bytes(), flush=True)
    with urllib.request.urlopen(f"http://127.0.0.1:{os.environ['HEADRACE_METRICS_PORT']}/metrics") as metrics:
        print(metrics.read().decode(), flush=True)
    raise ValueError("on purpose")


topology.stream("loud", value=str).map(tell).to("louder")
