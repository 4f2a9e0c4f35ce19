"""Questions that get another answer each time they are asked, and how often each answer was given."""

import asyncio
import random
from typing import Any

from headrace import Topology, agg

topology = Topology("uncertain")


async def ask(question: dict[str, Any]) -> dict[str, Any]:
    """Answer by chance, after a little while."""
    await asyncio.sleep(random.random() / 1000)
    return {**question, "answer": random.choice(["yes", "no", "perhaps", "never"])}


asked = topology.stream("questions", time="at").map_async(ask, order="input", concurrency=64, name="ask")
asked.to("answers")
asked.key_by("answer").aggregate(times=agg.count(), name="given").changes().to("times")
