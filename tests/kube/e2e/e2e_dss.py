"""One DSSCluster for tests: manifest, objects, HTTP API, and work that must not get lost.

What must not live here: what is right or wrong; kubectl itself (e2e_kubectl.py).
"""

from __future__ import annotations

import base64
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from asking import Answer, http, until
from e2e_faults import ingress_url
from e2e_kubectl import Kubectl, KubectlFailed, Object, PortForward, condition, pod_ready, say

ROLES: Final = ("lock", "queue", "cache")
LABEL: Final = "dss.io/cluster"
HTTP_PORT: Final = 8_000
READY_S: Final = 240.0
"""From apply to Ready, on a slow machine with images to pull."""
REDIS_IMAGE: Final = "redis:7.2.7-bookworm"


def manifest(name: str, namespace: str, spec: Object, **annotations: str) -> Object:
    """A DSSCluster with Grafana off: its image cannot be had everywhere."""
    grafana = {"monitoring": {"grafana": {"enabled": False}}}
    return {
        "apiVersion": "dss.io/v1alpha1",
        "kind": "DSSCluster",
        "metadata": {"name": name, "namespace": namespace, "annotations": annotations},
        "spec": grafana | spec,
    }


def small(**changes: Any) -> Object:
    """A spec with one node of each role, without monitoring and ingress."""
    return {
        "lock": {"replicas": 1},
        "queue": {"replicas": 1, "replicationFactor": 1, "partitions": 4},
        "cache": {"replicas": 1, "capacityMiB": 16},
        "monitoring": {"prometheus": {"enabled": False}, "grafana": {"enabled": False}},
        "ingress": {"enabled": False},
    } | changes


NOWHERE: Final = {"pod": {"nodeSelector": {"dss.io/test-nowhere": "true"}}}
"""No node has this label: the pods stay Pending, and cost nothing."""


class Api:
    """The HTTP API of one cluster: by its ingress where the tests have one, else port-forwards."""

    def __init__(self, cluster: Cluster, *, forwards: bool = False) -> None:
        self._cluster = cluster
        self._ingress = "" if forwards or not cluster.host else ingress_url()
        self._forwards: dict[str, PortForward] = {}

    def __call__(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        role: str = "lock",
        pod: str = "",
        token: str | None = None,
        timeout_s: float = 10.0,
    ) -> Answer:
        """To any node of `role`, or to one pod. Raises OSError when nobody answers."""
        token = self._cluster.token("client") if token is None else token
        if self._ingress and not pod:
            host = self._cluster.host
            return http(
                method, self._ingress + path, body, host=host, token=token, timeout_s=timeout_s
            )
        url = self.base_url(role, pod)
        try:
            return http(method, url + path, body, token=token, timeout_s=timeout_s)
        except OSError:
            self._forwards.pop(pod or role).close()
            raise

    def base_url(self, role: str, pod: str = "") -> str:
        """Of a port-forward to that pod, or to a ready pod of the role."""
        key = pod or role
        if key not in self._forwards:
            if not pod:
                ready = [name for name, found in self._cluster.pods(role).items()
                         if pod_ready(found)]  # fmt: skip
                if not ready:
                    raise OSError(f"no {role} pod is ready")
                pod = ready[0]
            namespace = self._cluster.namespace
            forward = PortForward(self._cluster.kubectl, namespace, f"pod/{pod}", HTTP_PORT)
            self._forwards[key] = forward
        try:
            return self._forwards[key].open()
        except KubectlFailed as error:
            self._forwards.pop(key).close()
            raise OSError(str(error)) from error

    def raft(self, pod: str) -> Object:
        """`GET /v1/raft/status` of one lock node."""
        answer = self("GET", "/v1/raft/status", pod=pod, token=self._cluster.token("admin"))
        assert answer.status == 200, answer.body
        found: Object = answer.json
        return found

    def close(self) -> None:
        for forward in self._forwards.values():
            forward.close()
        self._forwards.clear()


class Cluster:
    """One DSSCluster as kubectl sees it."""

    def __init__(self, kubectl: Kubectl, name: str, namespace: str, host: str = "") -> None:
        self.kubectl, self.name, self.namespace, self.host = kubectl, name, namespace, host
        self._tokens: dict[str, str] = {}
        self.api = Api(self)
        self.forwards = Api(self, forwards=True)

    def apply(self, spec: Object, **annotations: str) -> None:
        self.kubectl.apply(manifest(self.name, self.namespace, spec, **annotations))

    def patch(self, spec: Object) -> None:
        self.kubectl.patch(self.namespace, "dss", self.name, {"spec": spec})

    def annotate(self, **annotations: str | None) -> None:
        change = {"metadata": {"annotations": annotations}}
        self.kubectl.patch(self.namespace, "dss", self.name, change)

    def resource(self) -> Object:
        return self.kubectl.get("-n", self.namespace, "dss", self.name)

    def status(self) -> Object:
        found: Object = self.resource().get("status", {})
        return found

    def condition(self, kind: str, field: str = "status") -> str:
        return condition(self.resource(), kind, field)

    def wait(self, what: str = "Ready", timeout_s: float = READY_S) -> float:
        """`kubectl wait --for=condition=…`; how long it took."""
        began = time.monotonic()
        self.kubectl(
            "-n", self.namespace, "wait", f"--for=condition={what}", f"dss/{self.name}",
            f"--timeout={timeout_s:.0f}s", timeout_s=timeout_s + 10,
        )  # fmt: skip
        return time.monotonic() - began

    def wait_settled(self, timeout_s: float = READY_S) -> None:
        """Every pod is ready, and the operator has seen it so."""
        wanted = ("Ready", "True"), ("Progressing", "False"), ("Degraded", "False")

        def settled() -> bool:
            resource = self.resource()
            seen = (resource.get("status") or {}).get("observedGeneration")
            return (
                seen == resource["metadata"]["generation"]
                and all(condition(resource, kind) == value for kind, value in wanted)
                and all(pod_ready(pod) for pod in self.pods().values())
            )

        until(f"{self.name} is Ready and quiet", settled, timeout_s)

    def pods(self, role: str = "") -> dict[str, Object]:
        selector = f"{LABEL}={self.name}" + (f",app.kubernetes.io/component={role}" if role else "")
        found = self.kubectl.items("-n", self.namespace, "pods", "-l", selector)
        return {pod["metadata"]["name"]: pod for pod in found}

    def owned(self, kinds: str) -> dict[tuple[str, str], Object]:
        """(kind, name) -> object, by the cluster's label."""
        found = self.kubectl.items("-n", self.namespace, kinds, "-l", f"{LABEL}={self.name}")
        return {(obj["kind"], obj["metadata"]["name"]): obj for obj in found}

    def secret(self, name: str) -> dict[str, str]:
        found = self.kubectl.get("-n", self.namespace, "secret", f"{self.name}-{name}")
        return {key: base64.b64decode(value).decode() for key, value in found["data"].items()}

    def token(self, who: str) -> str:
        """A bearer token; read once, so that it is there while the API server is not."""
        if not self._tokens:
            self._tokens = self.secret("tokens")
        return self._tokens[who]

    def events(self) -> list[Object]:
        """Events about the DSSCluster itself."""
        return self.kubectl.items(
            "-n", self.namespace, "events", "--field-selector",
            f"involvedObject.kind=DSSCluster,involvedObject.name={self.name}",
        )  # fmt: skip

    def leader(self) -> str:
        """The pod that leads the lock service's data group, by the status."""
        return f"{self.name}-{self.status().get('leader') or '?'}"

    def delete(self, timeout_s: float = 90.0) -> None:
        self.close()
        self._tokens.clear()
        self.kubectl(
            "-n", self.namespace, "delete", "dss", self.name, "--ignore-not-found",
            f"--timeout={timeout_s:.0f}s", timeout_s=timeout_s + 10,
        )  # fmt: skip

    def close(self) -> None:
        self.api.close()
        self.forwards.close()


@dataclass
class Ledger:
    """Locks held and messages acknowledged: all of it must be there, whatever happens."""

    cluster: Cluster
    name: str
    locks: dict[str, int] = field(default_factory=dict)
    """Name -> token."""
    sent: set[str] = field(default_factory=set)
    """Ids of acknowledged messages."""
    session: str = ""

    def __post_init__(self) -> None:
        self.queue = f"{self.name}-{secrets.token_hex(3)}"
        """Of this run alone: a suite may be repeated on a cluster that was kept."""

    def write(self, locks: int, messages: int) -> None:
        api = self.cluster.api
        made = until_answer("a session", lambda: api("POST", "/v1/sessions", {"ttl_ms": 3_600_000}))
        self.session = made.json["session"]
        for number in range(locks):
            name = f"{self.queue}-{number}"
            body = {"session": self.session, "mode": "exclusive"}
            path = f"/v1/locks/{name}/acquire"
            held = until_answer(f"lock {name}", lambda p=path, b=body: api("POST", p, b))  # type: ignore[misc]
            self.locks[name] = held.json["token"]
        path = f"/v1/queues/{self.queue}"
        until_answer("the queue", lambda: api("PUT", path, {}, role="queue"))
        for number in range(messages):
            assert self.send(number), f"message {number} was not acknowledged"

    def send(self, number: int) -> bool:
        """One message; whether it was acknowledged. Keys spread them over the partitions."""
        body = {"body": {"n": number}, "key": f"k{number}"}
        path = f"/v1/queues/{self.queue}/messages"
        try:
            answer = self.cluster.api("POST", path, body, role="queue")
        except OSError:
            return False
        if answer.status == 201:
            self.sent.add(answer.json["id"])
        return answer.status == 201

    def keep_alive(self) -> bool:
        """A write through the lock leader."""
        try:
            path = f"/v1/sessions/{self.session}/keepalive"
            return self.cluster.api("POST", path, {}).status == 200
        except OSError:
            return False

    def check(self) -> None:
        """All locks are held with their tokens; every acknowledged message can be received."""
        api = self.cluster.api
        for name, token in self.locks.items():
            path = f"/v1/locks/{name}"
            found = until_answer(f"lock {name}", lambda p=path: api("GET", p)).json  # type: ignore[misc]
            held = [holder["token"] for holder in found["holders"]]
            assert held == [token], f"lock {name}: {found}"
        missing = set(self.sent)
        end = time.monotonic() + 60
        while missing and time.monotonic() < end:
            missing -= self._receive()
        assert not missing, f"{len(missing)} of {len(self.sent)} acknowledged messages are lost"
        say(f"{len(self.locks)} locks and {len(self.sent)} messages are all there")

    def _receive(self) -> set[str]:
        """A batch received and acknowledged; its ids."""
        path, asked = f"/v1/queues/{self.queue}", {"max": 100, "wait_ms": 1_000}
        api = self.cluster.api
        try:
            got = api("POST", f"{path}/receive", asked, role="queue")
            if got.status != 200:
                return set()
            messages = got.json["messages"]
            if messages:
                receipts = {"receipts": [message["receipt"] for message in messages]}
                api("POST", f"{path}/ack", receipts, role="queue")
            return {message["id"] for message in messages}
        except OSError:
            return set()


def until_answer(what: str, ask: Callable[[], Answer], timeout_s: float = 60.0) -> Answer:
    """The first 2xx answer; refusals and broken connections are tried again."""
    last = ""

    def good() -> Answer | None:
        nonlocal last
        try:
            answer = ask()
        except OSError as error:
            last = str(error)
            return None
        last = f"{answer.status} {answer.body[:200]!r}"
        return answer if answer.status // 100 == 2 else None

    try:
        found = until(what, good, timeout_s)
    except AssertionError as error:
        raise AssertionError(f"{error}; last: {last}") from None
    assert found is not None
    return found


class Traffic:
    """Messages and keepalives, one after another, on a thread: how long was service away?"""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.good: dict[str, int] = {"lock": 0, "queue": 0}
        self.longest_gap_s: dict[str, float] = {"lock": 0.0, "queue": 0.0}

    def __enter__(self) -> Traffic:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(60)

    def _run(self) -> None:
        last = dict.fromkeys(self.good, time.monotonic())
        number = 1_000_000
        while not self._stop.wait(0.1):
            number += 1
            for role, ok in (("queue", self._ledger.send(number)),
                             ("lock", self._ledger.keep_alive())):  # fmt: skip
                now = time.monotonic()
                self.longest_gap_s[role] = max(self.longest_gap_s[role], now - last[role])
                if ok:
                    self.good[role] += 1
                    last[role] = now

    @property
    def line(self) -> str:
        gaps = ", ".join(f"{role} {gap:.1f} s" for role, gap in self.longest_gap_s.items())
        return f"longest time without an acknowledged write: {gaps}; {len(self._ledger.sent)} sent"
