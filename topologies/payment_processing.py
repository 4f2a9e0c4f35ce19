"""Payment requests in, receipts out: each payment is charged once, and what cannot be charged is kept for a replay.

Three things make it so. The gateway is called with the payment's own id as the idempotency key, so that a call that is
repeated, after a time-out or a crash, charges nothing again. Answers are deduplicated by that id *behind* the call: a
request that was sent twice gives one receipt, and one that failed is not yet known when it is replayed. And what fails
for good goes, as it came, to the topic ``payment-processing-dead-letter``, from where ``headrace dead-letter replay``
sends it again once the cause is gone.
"""

from __future__ import annotations

from typing import Any, Protocol

import msgspec

from headrace import Cache, Topology, retry


class PaymentRequest(msgspec.Struct):
    """What a shop wants charged."""

    payment_id: str
    account: str
    cents: int
    currency: str
    at: int  # ms since the epoch


class Answer(msgspec.Struct):
    """What the gateway said."""

    payment_id: str
    account: str
    cents: int
    approved: bool
    reference: str


class Gateway(Protocol):
    """The service that charges accounts."""

    async def charge(self, key: str, account: str, cents: int, currency: str) -> tuple[bool, str]:
        """Charge an account once for each key; return whether that was approved, and a reference."""
        ...


class StubGateway:
    """Approves everything: put your own client here."""

    async def charge(self, key: str, account: str, cents: int, currency: str) -> tuple[bool, str]:
        return True, f"stub-{key}"


def valid(request: PaymentRequest) -> PaymentRequest:
    if request.cents <= 0:
        raise ValueError("nothing to charge")
    if request.currency not in ("CHF", "EUR", "GBP", "USD"):
        raise ValueError("a currency that the gateway does not take")
    return request


def processing(gateway: Gateway) -> Topology:
    async def charge(request: PaymentRequest) -> Answer:
        approved, reference = await gateway.charge(request.payment_id, request.account, request.cents, request.currency)
        return Answer(request.payment_id, request.account, request.cents, approved, reference)

    topology = Topology("payment-processing", on_error="dead-letter")
    answers = (
        topology.stream("payment-requests", value=PaymentRequest, keyed_by="account", time="at", out_of_orderness="10s")
        .map(valid)
        .map_async(
            charge,
            concurrency=50,
            timeout="5s",
            retry=retry(5, backoff="200ms", on=(ConnectionError, TimeoutError)),
            cache=Cache(by="payment_id", ttl="10m"),
        )
        .deduplicate(by="payment_id", within="7d")
    )
    outcome = answers.branch(approved=lambda answer: answer.approved, declined=lambda answer: True)
    outcome["approved"].to("receipts")
    outcome["declined"].to("declined-payments")
    return topology


topology = processing(StubGateway())


def simulation_input(random: Any) -> dict[str, list[PaymentRequest]]:
    """Return requests for ``headrace simulate``: some come twice, and some cannot be charged."""
    requests: list[PaymentRequest] = []
    for number in range(80):
        cents = 0 if random.random() < 0.1 else random.randrange(100, 10_000)
        currency = random.choice(("CHF", "EUR", "EUR", "XXX"))
        request = PaymentRequest(f"p{number}", f"account-{random.randrange(8)}", cents, currency, number * 500)
        requests += [request] * random.choice((1, 1, 1, 2))
    return {"payment-requests": requests}
