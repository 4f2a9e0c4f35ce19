"""Write generated card payments as newline-delimited JSON, for ``headrace produce`` and for tools that read files.

``python -m bench.payments --count 1000000 > payments.ndjson``
"""

import argparse
import sys

import msgspec

from headrace.demo.payments import Payments


def main() -> None:
    parser = argparse.ArgumentParser(description="Write generated card payments as newline-delimited JSON.")
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--customers", type=int, default=100_000)
    parser.add_argument("--duplicates", type=float, default=0.0, help="share of payments that repeat an earlier one")
    parser.add_argument("--late", type=float, default=0.0, help="share of payments that are minutes late")
    given = parser.parse_args()
    payments = Payments(
        count=given.count,
        seed=given.seed,
        customers=given.customers,
        duplicate_share=given.duplicates,
        late_share=given.late,
    )
    encoder = msgspec.json.Encoder()
    for batch in payments.batches():
        sys.stdout.buffer.write(encoder.encode_lines(batch))


if __name__ == "__main__":
    main()
