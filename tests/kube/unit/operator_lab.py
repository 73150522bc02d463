"""One operator process over the fake API, with a clock of its own and nodes that answer.

What must not live here: assertions.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import count
from typing import Any

from fake_api import FakeApi

from dss_operator.cluster import Cluster, Deps
from dss_operator.kube import Kube
from dss_operator.lease import Leadership
from dss_operator.metrics import Metrics
from dss_operator.observe import Observer
from dss_operator.sampling import NodeError
from dss_operator.settings import Settings

NS = "ns"


class Clock:
    """Monotonic and wall time of a test."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now

    def wall(self) -> float:
        return 1_700_000_000.0 + self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        await asyncio.sleep(0)


class FakeNodes:
    """Lock and queue nodes. `views` overrides what a member says, `silent` who says nothing."""

    def __init__(self) -> None:
        self.leader: str | None = "lock-1"
        self.term = 3
        self.candidates: tuple[str, ...] = ()
        self.silent: set[str] = set()
        self.boots: dict[str, int] = {}
        self.posts: list[tuple[str, dict[str, Any]]] = []
        self.post_fault = ""
        self.tokens: set[str] = set()
        self.on_post: Callable[[], None] = lambda: None

    async def get(self, host: str, path: str, token: str) -> dict[str, Any]:
        self.tokens.add(token)
        role, ordinal = host.rsplit("-", 2)[-2:]
        member = f"{role}-{ordinal}"
        if member in self.silent:
            raise NodeError("does not answer (TimeoutError)")
        voters = [f"{role}-{each}" for each in (1, 2, 3)]
        return {
            "node_id": member,
            "boot_id": f"{member}/{self.boots.get(member, 1)}",
            "role": role,
            "links": {peer: {"up": True, "since_ms": 1} for peer in voters if peer != member},
            "groups": [self._group(group, member, voters) for group in (0, 1)],
        }

    def _group(self, group_id: int, member: str, voters: list[str]) -> dict[str, Any]:
        leader = self.leader if member.startswith("lock-") else "queue-1"
        role = "leader" if member == leader else "follower"
        if leader is None and member in self.candidates:
            role = "candidate"
        return {
            "group_id": group_id, "role": role, "leader": leader, "term": self.term,
            "voted_for": member if role == "candidate" else leader, "last_log_term": 2,
            "last_log_index": 10, "commit_index": 10, "applied_index": 10, "voters": voters,
        }  # fmt: skip

    async def post(self, host: str, path: str, token: str, body: dict[str, Any]) -> None:
        self.posts.append((host, body))
        self.on_post()
        if self.post_fault:
            raise NodeError(self.post_fault)


class Lab:
    """A process of the operator: `process()` again is a restart that remembers nothing."""

    def __init__(self, **spec: Any) -> None:
        self.api = FakeApi()
        self.clock = Clock()
        self.nodes = FakeNodes()
        self.settings = Settings(pod_id="op-1", pod_namespace="dss-system")
        self.secrets = count(1)
        self.make(**spec)
        self.process()

    def make(self, **spec: Any) -> None:
        """The DSSCluster `demo`; Grafana off unless asked for."""
        spec.setdefault("monitoring", {"grafana": {"enabled": False}})
        meta = {"name": "demo", "namespace": NS}
        self.api.add(
            "dssclusters", {"apiVersion": "dss.io/v1alpha1", "metadata": meta, "spec": spec}
        )

    def process(self, settings: Settings | None = None) -> Cluster:
        self.settings = settings or self.settings
        self.kube = Kube(self.api, sleep=self.clock.sleep)
        self.metrics = Metrics()
        self.leadership = Leadership(
            self.kube, namespace="dss-system", name="dss-operator",
            identity=self.settings.pod_id, lease_s=15, clock=self.clock,
        )  # fmt: skip
        self.cluster = Cluster(self.deps(), NS, "demo")
        return self.cluster

    def deps(self) -> Deps:
        return Deps(
            kube=self.kube,
            observer=Observer(self.kube, self.clock),
            nodes=self.nodes,
            leadership=self.leadership,
            metrics=self.metrics,
            settings=self.settings,
            gate=asyncio.Semaphore(8),
            clock=self.clock,
            wall=self.clock.wall,
            new_secret=lambda: f"secret-{next(self.secrets)}-with-enough-characters",
        )

    # --- steps ---

    async def tick(self, after_s: float = 10.0) -> bool:
        self.clock.now += after_s
        return await self.cluster.tick()

    async def sample(self, after_s: float = 5.0) -> None:
        self.clock.now += after_s
        await self.cluster.sample()

    async def settle(self, ticks: int = 12) -> int:
        """Ticks with controllers at work until a good one writes nothing; how many it took."""
        for number in range(1, ticks + 1):
            self.api.run_sets()
            before = len(self.api.writes)
            await self.tick()
            await self.sample()
            if len(self.api.writes) == before and not self.cluster.failures:
                return number
        raise AssertionError(f"still writing: {self.api.writes[-5:]}")

    async def formed(self) -> None:
        """A cluster that serves, and a clean list of calls."""
        await self.settle()
        self.api.forget_calls()

    # --- looks ---

    @property
    def resource(self) -> dict[str, Any]:
        return self.api.get("dssclusters", "demo")

    @property
    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.resource.get("status") or {}
        return found

    def condition(self, kind: str) -> tuple[str, str]:
        """(status, reason)."""
        for each in self.status["conditions"]:
            if each["type"] == kind:
                return each["status"], each["reason"]
        raise KeyError(kind)

    def message(self, kind: str) -> str:
        return next(c["message"] for c in self.status["conditions"] if c["type"] == kind)

    def state(self) -> dict[str, Any]:
        """All owned objects without what differs from run to run."""
        found = {}
        for (plural, _, name), obj in self.api.objects.items():
            if plural in ("events", "leases", "dssclusters", "pods"):
                continue
            kept = {k: v for k, v in obj.items() if k not in ("status", "metadata", "data")}
            kept["keys"] = sorted(obj.get("data") or {})
            kept["labels"] = obj["metadata"].get("labels")
            found[plural, name] = kept
        return found


def run(coroutine: Any) -> Any:
    return asyncio.run(coroutine)
