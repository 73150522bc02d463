"""Writes the status of one cluster: on a change of meaning, and not too often.

What must not live here: what a status says (status.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec

from dss_operator.kube import CLUSTERS, Kube
from dss_operator.state import Resource

STATUS_S: Final = 5.0
"""The shortest time between two writes of a status, but for what remediation must store."""


class Reporter:
    """Remembers what it wrote last.

    Attributes:
        due: when a status that was held back may be written, on `clock`; infinite when none was.
    """

    def __init__(self, kube: Kube, clock: Callable[[], float]) -> None:
        self._kube = kube
        self._clock = clock
        self._written: dict[str, Any] = {}
        self._returned: dict[str, Any] = {}
        self._written_at = float("-inf")
        self.due = float("inf")

    def overwritten(self, resource: Resource) -> bool:
        """Whether someone else wrote the status since: another holder of the Lease, or a person."""
        return bool(self._returned) and resource.status != self._returned

    async def write(
        self, resource: Resource, status: dict[str, Any], *, at_once: bool
    ) -> Resource | None:
        """The resource with the status as the API server keeps it; None: nothing was to be
        written, or not yet. Raises ApiError 409 when the resource was changed since it was read.

        Args:
            at_once: must be stored now, or ApiError, NotHolder is raised.
        """
        self.due = float("inf")
        if status == resource.status:
            return None
        if status == self._written and resource.status == self._returned:
            return None  # the schema keeps less than what was written: again changes nothing
        now = self._clock()
        if not at_once and now < self._written_at + STATUS_S:
            self.due = self._written_at + STATUS_S
            return None
        body = {
            "apiVersion": CLUSTERS.api_version,
            "kind": CLUSTERS.kind,
            "metadata": {
                "name": resource.name, "namespace": resource.namespace, "uid": resource.uid,
                # A write of a former holder of the Lease, late on its way, must find it changed.
                "resourceVersion": resource.resource_version,
            },
            "status": status,
        }  # fmt: skip
        answer = await self._kube.apply_status(body)
        self._written, self._written_at = status, now
        self._returned = answer.get("status") or {}
        return msgspec.structs.replace(
            resource,
            status=self._returned,
            resource_version=answer["metadata"].get("resourceVersion", ""),
        )
