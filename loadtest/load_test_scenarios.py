"""Locust scenarios for locks, queues and the cache.

    python -m locust -f loadtest/load_test_scenarios.py        # UI on http://localhost:8089

`--host http://localhost` (the default) spreads the users over the published ports of a local
cluster: 8001… lock, 8011… queue, 8021… cache nodes. Any other host is one base URL in front of all
roles (an ingress).

| environment | what |
|---|---|
| `DSS_BASE_PORT` | local base port when it is not 8000 |
| `DSS_LOCK_NODES`, `DSS_QUEUE_NODES`, `DSS_CACHE_NODES` | local counts (3, 3, 2) |
| `DSS_HOST_HEADER` | sent as Host, for an ingress that is reached by its address |
| `DSS_TOKEN` | sent as bearer token |

What counts as failure: every answer that breaks a promise. A contended lock that is not granted in
time (409 `lock_timeout`) is a good answer and is listed under a name of its own; 503 is a failure.
"""

from __future__ import annotations

import itertools
import os
import random
import uuid
from typing import Any
from urllib.parse import urlsplit

from locust import HttpUser, between, task

LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")
ROLE_OFFSET = {"lock": 0, "queue": 10, "cache": 20}
CONTENDED_LOCKS = 5
SHARED_KEYS = 20
QUEUES = 3
SESSION_TTL_MS = 30_000


def base_urls(host: str, role: str, environ: dict[str, str] | None = None) -> list[str]:
    """The URLs of `role`: one for each local node, or the one base URL of an ingress."""
    env = dict(os.environ) if environ is None else environ
    parts = urlsplit(host)
    if parts.hostname not in LOCAL_HOSTS or parts.port is not None:
        return [host.rstrip("/")]
    first = int(env.get("DSS_BASE_PORT", "8000")) + ROLE_OFFSET[role] + 1
    default = "2" if role == "cache" else "3"
    count = int(env.get(f"DSS_{role.upper()}_NODES", default))
    # The address, not the name: nodes listen on IPv4, and localhost may mean ::1 first.
    return [f"http://127.0.0.1:{port}" for port in range(first, first + count)]


def said(answer: Any) -> str:
    """A failure in one line: what the node said, or why nobody answered."""
    if not answer.status_code:
        return f"no answer: {type(answer.error).__name__}"
    return f"{answer.status_code}: {answer.text[:200]}"


class DssUser(HttpUser):
    """One client. Each user talks to one node at a time, chosen at its start."""

    abstract = True
    host = "http://localhost"
    wait_time = between(0.05, 0.2)
    role = ""

    def on_start(self) -> None:
        self.urls = base_urls(self.host or "http://localhost", self.role)
        self.base = random.choice(self.urls)
        self.id = uuid.uuid4().hex[:12]
        if header := os.environ.get("DSS_HOST_HEADER"):
            self.client.headers["Host"] = header
        if token := os.environ.get("DSS_TOKEN"):
            self.client.headers["Authorization"] = f"Bearer {token}"
        self.begin()

    def begin(self) -> None:
        """What a user does once."""

    def ask(
        self, method: str, path: str, name: str, *, accept: tuple[int, ...] = (200,), **options: Any
    ) -> Any:
        """One request, listed as `name`; a status outside `accept` is a failure."""
        url = options.pop("base", self.base) + path
        with self.client.request(method, url, name=name, catch_response=True, **options) as answer:
            if answer.status_code in accept:
                answer.success()
            else:
                answer.failure(said(answer))
            return answer


class LockUser(DssUser):
    """A session that takes private and contended locks and keeps itself alive."""

    role = "lock"
    weight = 3

    def begin(self) -> None:
        self.newest: dict[str, int] = {}
        self._open()

    def _open(self) -> bool:
        """A session, tried again by the next task when it could not be had."""
        answer = self.ask(
            "POST", "/v1/sessions", "session: open", accept=(201,), json={"ttl_ms": SESSION_TTL_MS}
        )
        self.session = answer.json()["session"] if answer.status_code == 201 else ""
        return bool(self.session)

    def on_stop(self) -> None:
        if self.session:
            self.ask("DELETE", f"/v1/sessions/{self.session}", "session: end", accept=(200, 204))

    @task(10)
    def own_lock(self) -> None:
        self._cycle(f"load-{self.id}", "lock: acquire", 0)

    @task(3)
    def contended_lock(self) -> None:
        self._cycle(f"load-shared-{random.randrange(CONTENDED_LOCKS)}", "lock: contended", 500)

    @task(2)
    def keepalive(self) -> None:
        if self.session or self._open():
            self.ask(
                "POST", f"/v1/sessions/{self.session}/keepalive", "session: keepalive", json={}
            )

    @task(1)
    def list_locks(self) -> None:
        self.ask("GET", "/v1/locks?prefix=load-shared-&limit=10", "lock: list")

    def _cycle(self, lock: str, name: str, wait_ms: int) -> None:
        if not self.session and not self._open():
            return
        body = {"session": self.session, "mode": "exclusive", "wait_ms": wait_ms}
        with self.client.post(
            f"{self.base}/v1/locks/{lock}/acquire", json=body, name=name, catch_response=True
        ) as answer:
            if answer.status_code == 409 and answer.json().get("code") == "lock_timeout":
                answer.request_meta["name"] = f"{name} (busy, not granted in time: good)"
                answer.success()
                return
            if answer.status_code != 200:
                answer.failure(said(answer))
                return
            token = answer.json()["token"]
            if token <= self.newest.get(lock, 0):
                answer.failure(f"token {token} is not above {self.newest[lock]}")
            self.newest[lock] = token
        body = {"session": self.session, "token": token}
        self.ask("POST", f"/v1/locks/{lock}/release", "lock: release", json=body)


class QueueUser(DssUser):
    """Sends, receives and acknowledges; all users share a few queues."""

    role = "queue"
    weight = 3
    numbers = itertools.count(1)

    def begin(self) -> None:
        self.queue = f"load-{random.randrange(QUEUES)}"
        self.ask("PUT", f"/v1/queues/{self.queue}", "queue: create", accept=(200, 201), json={})

    @task(5)
    def send(self) -> None:
        message = {"body": {"number": next(self.numbers), "by": self.id}}
        self._send(message, "queue: send")

    @task(2)
    def send_with_key(self) -> None:
        message = {"body": {"number": next(self.numbers)}, "key": self.id}
        self._send(message, "queue: send (key)")

    @task(5)
    def receive_and_ack(self) -> None:
        answer = self.ask(
            "POST",
            f"/v1/queues/{self.queue}/receive",
            "queue: receive",
            json={"max": 10, "wait_ms": 200},
        )
        if answer.status_code != 200:
            return
        receipts = [message["receipt"] for message in answer.json()["messages"]]
        if receipts:
            done = {"receipts": receipts}
            self.ask("POST", f"/v1/queues/{self.queue}/ack", "queue: ack", json=done)

    def _send(self, message: dict[str, Any], name: str) -> None:
        path = f"/v1/queues/{self.queue}/messages"
        self.ask("POST", path, name, accept=(201,), json=message)


class CacheUser(DssUser):
    """Reads and writes; a read after an own write, on whichever node, must return it."""

    role = "cache"
    weight = 2
    versions = itertools.count(1)

    @task(10)
    def read_shared(self) -> None:
        key = f"load-shared-{random.randrange(SHARED_KEYS)}"
        self.ask("GET", f"/v1/cache/{key}", "cache: get", accept=(200, 404))

    @task(2)
    def write_shared(self) -> None:
        key = f"load-shared-{random.randrange(SHARED_KEYS)}"
        self._put(key, f"{self.id}-{next(self.versions)}")

    @task(3)
    def read_own_write(self) -> None:
        key, value = f"load-{self.id}", str(next(self.versions))
        if self._put(key, value).status_code >= 300:
            return
        url = random.choice(self.urls) + f"/v1/cache/{key}"
        with self.client.get(url, name="cache: read own write", catch_response=True) as answer:
            if answer.status_code != 200:
                answer.failure(said(answer))
            elif answer.text != value:
                answer.failure(f"stale: wrote {value}, read {answer.text[:50]}")

    def _put(self, key: str, value: str) -> Any:
        headers = {"Content-Type": "text/plain"}
        return self.ask(
            "PUT",
            f"/v1/cache/{key}",
            "cache: put",
            accept=(200, 201, 204),
            data=value.encode(),
            headers=headers,
        )
