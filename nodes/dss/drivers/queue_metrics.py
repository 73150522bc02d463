"""`dss_queue_*`: the queue service's figures, read on scrape from plain ints.

Gauges of messages come from the partitions that a node leads, so that the sum over all nodes is
the cluster's. What must not live here: counting on the hot path (queues.py and the machines do).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from dss.drivers.queues import QueueService
from dss.observe.metrics import Registry

STATES: Final = ("ready", "leased", "delayed", "dead")
COUNTED: Final = {
    "sent": "Messages acknowledged to their producers, by the node that took them.",
    "received": "Messages delivered, by the node that was asked.",
    "redelivered": "Messages delivered again, by the node that was asked.",
    "acked": "Messages acknowledged, by the node that was asked.",
    "nacked": "Messages given back, by the node that was asked.",
}


def register(registry: Registry, service: QueueService) -> None:
    """Add the gauges and counters of `service` to `registry`."""
    registry.gauge(
        "dss_queue_messages",
        "Messages in the partitions that this node leads; leased ones are in flight.",
        lambda: _messages(service),
        ("queue", "state"),
    )
    for name, help_ in COUNTED.items():
        registry.counter_callback(
            f"dss_queue_{name}_total", help_, _counter(service, name), ("queue",)
        )
    registry.gauge(
        "dss_queue_partitions_led",
        "Partitions that this node leads.",
        lambda: len(service.partitions.led),
    )
    registry.gauge(
        "dss_queue_waiting_receives",
        "Long polls under way on this node.",
        lambda: service.polls.waiting,
    )


def _messages(service: QueueService) -> dict[tuple[str, ...], float]:
    found: dict[tuple[str, ...], float] = {}
    for partition in service.partitions.led:
        machine = service.partitions.machines[partition]
        for queue in machine.queues():
            stats = machine.stats(queue) or {}
            for state in STATES:
                key = (queue, state)
                found[key] = found.get(key, 0) + stats[state]
    return found


def _counter(service: QueueService, name: str) -> Callable[[], dict[tuple[str, ...], float]]:
    return lambda: {
        (queue,): float(getattr(counts, name)) for queue, counts in service.counts.items()
    }
