"""Payments that are not keyed by customer: keyed through an internal topic, then counted per hour of lateness."""

from headrace import Topology, agg, tumbling

topology = Topology("repartitioned")

(
    topology.stream("payments", time="at", out_of_orderness="1d")
    .key_by("customer_id")
    .window(tumbling("1m"))
    .aggregate(total=agg.sum("total"), payments=agg.count())
    .to("spend-per-minute")
)
