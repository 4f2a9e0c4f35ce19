"""Write the events as newline-delimited JSON, one file a topic, for ``headrace produce`` and tools that read files.

``python -m bench.nexmark --events 1000000 --write nexmark``
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import msgspec

from bench.nexmark.events import Nexmark, side_input

TOPICS = ("persons", "auctions", "bids")


def write(site: Nexmark, folder: Path) -> dict[str, int]:
    """Write one file a topic into ``folder``, which is made if it is not there, and return how many lines each has."""
    folder.mkdir(parents=True, exist_ok=True)
    encoder = msgspec.json.Encoder()
    counts = dict.fromkeys(TOPICS, 0)
    for topic in TOPICS:
        (folder / f"{topic}.ndjson").write_bytes(b"")
    for batch in site.batches():
        lists: tuple[Sequence[object], ...] = batch
        for topic, events in zip(TOPICS, lists, strict=True):
            counts[topic] += len(events)
            with (folder / f"{topic}.ndjson").open("ab") as file:
                file.write(encoder.encode_lines(events))
    looked_up = side_input()
    (folder / "side_input.ndjson").write_bytes(encoder.encode_lines(looked_up))
    return {**counts, "side_input": len(looked_up)}


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the events of Nexmark as newline-delimited JSON.")
    parser.add_argument("--events", type=int, default=1_000_000, help="persons, auctions and bids together")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate", type=int, default=10_000, help="events per second of event time")
    parser.add_argument("--disorder-ms", type=int, default=0, help="how long after it happened an event may arrive")
    parser.add_argument("--write", type=Path, required=True, metavar="DIR", help="where to write")
    given = parser.parse_args()
    site = Nexmark(count=given.events, seed=given.seed, rate=given.rate, disorder_ms=given.disorder_ms)
    for topic, count in write(site, given.write).items():
        print(f"{topic:<12}{count:>12,}")


if __name__ == "__main__":
    main()
