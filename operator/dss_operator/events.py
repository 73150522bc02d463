"""Kubernetes Events: told when something changes, never because time has passed.

What must not live here: what is worth telling (status.py, remedy.py, cluster.py decide).
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final, Literal

import msgspec

from dss_operator.kube import CLUSTERS, EVENTS, ApiError, Kube
from dss_operator.state import FIELD_MANAGER, Object, Resource

log = logging.getLogger(__name__)

REPEAT_S: Final = 300.0
"""The same words about the same cluster are told once in this time: a condition that flaps is seen
in its transition times."""
MESSAGE_CHARS_MAX: Final = 1_000
"""The API server refuses more than 1,024."""

EventType = Literal["Normal", "Warning"]


class Event(msgspec.Struct, frozen=True):
    """What to tell: `reason` is a CamelCase word, `message` a sentence."""

    type: EventType
    reason: str
    message: str


class Recorder:
    """Sends the Events of one cluster; a failure is logged and otherwise ignored."""

    def __init__(self, kube: Kube, identity: str, clock: Callable[[], float]) -> None:
        self._kube = kube
        self._identity = identity
        self._clock = clock
        self._told: dict[Event, float] = {}

    async def tell(self, resource: Resource, events: list[Event]) -> None:
        """Each of the events that was not told just now."""
        now = self._clock()
        self._told = {event: at for event, at in self._told.items() if at > now - REPEAT_S}
        for event in events:
            if event in self._told:
                continue
            self._told[event] = now
            log.log(
                logging.WARNING if event.type == "Warning" else logging.INFO,
                "%s/%s: %s: %s", resource.namespace, resource.name, event.reason, event.message,
            )  # fmt: skip
            try:
                await self._kube.create(EVENTS, resource.namespace, self._body(resource, event))
            except ApiError as error:
                if not error.namespace_ends:
                    log.warning("event %s not recorded: %s", event.reason, error)

    def _body(self, resource: Resource, event: Event) -> Object:
        at = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {
                "name": f"{resource.name}.{secrets.token_hex(8)}",
                "namespace": resource.namespace,
            },
            "involvedObject": {
                "apiVersion": CLUSTERS.api_version,
                "kind": CLUSTERS.kind,
                "name": resource.name,
                "namespace": resource.namespace,
                "uid": resource.uid,
                "resourceVersion": resource.resource_version,
            },
            "type": event.type,
            "reason": event.reason,
            "message": event.message[:MESSAGE_CHARS_MAX],
            "source": {"component": FIELD_MANAGER},
            "reportingComponent": FIELD_MANAGER,
            "reportingInstance": self._identity[:128],
            "firstTimestamp": at,
            "lastTimestamp": at,
            "count": 1,
        }
