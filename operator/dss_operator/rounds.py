"""Rounds of questions to one cluster's members: lock nodes each time, queue nodes now and then.

What must not live here: how one node is asked (sampling.py), what the answers mean.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from dss_operator.members import pods_by_member, replicas_of
from dss_operator.sampling import Answered, Nodes, ask_all
from dss_operator.state import Observed

QUEUES_S: Final = 10.0
"""Between two questions to the queue nodes: their answers have a part for each partition, and only
the status needs them."""


class Rounds:
    """The newest answers of one cluster's members, in `answers`."""

    def __init__(self, nodes: Nodes, clock: Callable[[], float]) -> None:
        self._nodes = nodes
        self._clock = clock
        self._queues_at = float("-inf")
        self.answers: dict[str, Answered] = {}

    async def ask(self, cluster: str, observed: Observed, token: str) -> dict[str, Answered]:
        """The lock members' answers or silences; none while there is no StatefulSet."""
        found = {name: each for name, each in self.answers.items() if name.startswith("queue-")}
        if self._clock() >= self._queues_at + QUEUES_S:
            found = await self._ask_role(cluster, "queue", observed, token)
            self._queues_at = self._clock()
        locks = await self._ask_role(cluster, "lock", observed, token)
        self.answers = found | locks
        return locks

    async def _ask_role(
        self, cluster: str, role: str, observed: Observed, token: str
    ) -> dict[str, Answered]:
        pods = pods_by_member(observed)
        replicas = replicas_of(observed, f"{cluster}-{role}")
        members = [f"{role}-{ordinal}" for ordinal in range(1, replicas + 1)]
        at_ms = round(self._clock() * 1_000)
        answers = await ask_all(self._nodes, pods, members, token, at_ms)
        return {answer.member: answer for answer in answers}
