"""A load on lock nodes under faults: many clients, every mode, everything noted for the checker.

Three kinds of clients. All ask any node for anything, and read 503 and 429 as the contract says:
nothing was done.

    plain    HTTP; after an answer that stays unknown it ends its session
    keyed    HTTP with Idempotency-Key: repeats, anywhere, until it has the one true answer
    stream   the stream protocol with sequence numbers: repeats likewise

An operation of unknown outcome has no end in the history. What must not live here: faults.
"""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Sequence
from typing import Any

from fault_clients import NOT_SENT, UNKNOWN, HttpClient, LockClient, StreamClient
from fault_cluster import FaultCluster
from fault_history import SEMAPHORE_LIMIT, check, tokens_increase, unknown

from dss.testing import lockspec as spec
from dss.testing.linearize import Operation

KINDS = ("plain", "keyed", "stream", "plain", "keyed", "stream")
SETTLE_S = 60.0
"""All is whole at a load's end: within this time every question has an answer."""
PAUSE_S = 0.01
SESSION_MS = 120_000


class Load:
    """`KINDS` clients on the locks `{prefix}/…` until `end()`; then `judge()`.

    Args:
        names: the nodes that are asked; default all.
    """

    def __init__(self, cluster: FaultCluster, prefix: str, names: Sequence[str] = ()) -> None:
        self.cluster = cluster
        self.urls = [cluster.url(name) for name in names or cluster.names("lock")]
        self.modes = {
            f"{prefix}/a": ("exclusive",),
            f"{prefix}/b": ("exclusive",),
            f"{prefix}/rw": ("shared", "shared", "exclusive"),
            f"{prefix}/sem": ("semaphore",),
        }
        self.history: dict[str, list[Operation]] = {name: [] for name in self.modes}
        self.granted = 0
        self.raised = False
        """The cluster was at level 2 before this: copies of a request share its one answer."""
        self.superseded = 0
        self.refused: list[str] = []
        """Every 503: nothing was done."""
        self.failures: list[str] = []
        """Every answer of unknown outcome, every broken connection."""
        self.waits: list[tuple[float, str, float]] = []
        """When a request began, whom it asked, how much longer it took than it may wait, in s."""
        self.errors: list[str] = []
        self.stopped = threading.Event()
        self.lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._run, args=(number, kind))
            for number, kind in enumerate(KINDS)
        ]
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        self.stopped.set()
        for thread in self._threads:
            thread.join(SETTLE_S + 60)
            assert not thread.is_alive(), "a client hangs"

    def _run(self, number: int, kind: str) -> None:
        client: LockClient = StreamClient() if kind == "stream" else HttpClient()
        user = _User(self, client, kind != "plain", random.Random(number))
        try:
            while not self.stopped.is_set():
                user.session()
        except Exception as error:
            self.errors.append(f"{kind} client {number}: {error!r}")
            raise
        finally:
            client.close()

    def note(self, name: str, began: float, ended: float, what: spec.What) -> None:
        with self.lock:
            self.history[name].append(Operation(began, ended, what))

    def slowest_ms(self, names: Sequence[str], since: float) -> int:
        """The longest wait for an answer of `names` to what was asked after `since`."""
        urls = {self.cluster.url(name) for name in names}
        waits = [took_s for began, url, took_s in self.waits if url in urls and began > since]
        return round(max(waits, default=0) * 1_000)

    def judge(self) -> None:
        """Every lock's history is linearizable, its tokens increase."""
        assert not self.errors, f"{self.errors}\n{self.cluster.report()}"
        for name, operations in self.history.items():
            check(name, operations)
            assert tokens_increase(operations), name
        total = sum(map(len, self.history.values()))
        lost = sum(map(unknown, self.history.values()))
        print(
            f"\n{total} operations, {self.granted} grants, {len(self.refused)} times 503, "
            f"{len(self.failures)} without an answer, {lost} of them for good, "
            f"{self.superseded} superseded by their own copies: linearizable"
        )


class _User:
    """One client's life: a session, in it one hold after the other."""

    def __init__(
        self, load: Load, client: LockClient, repeats: bool, chance: random.Random
    ) -> None:
        self.load, self.client, self.repeats, self.chance = load, client, repeats, chance
        self.mine = ""
        """The session. What nodes show of it, and the history has, is its handle."""

    @property
    def handle(self) -> str:
        return self.mine[:8]

    def session(self) -> None:
        """Until an outcome is unknown or the load ends; then the session is ended."""
        load = self.load
        status, body = self._once("session.create", "", {"ttl_ms": SESSION_MS})
        if status != 201:
            time.sleep(0.05)
            return
        self.mine = str(body["session"])
        self.client.begin()
        while not load.stopped.is_set() and self._cycle():
            time.sleep(PAUSE_S)
        began = time.monotonic()
        while True:
            status, body = self._once("session.end", "", {"session": self.mine})
            if status in (200, 404, 409):  # ended now, or by a try whose answer was lost
                break
            assert time.monotonic() - began < SETTLE_S, f"a session cannot be ended: {body}"
            time.sleep(0.05)
        for name in load.modes:
            load.note(name, began, time.monotonic(), spec.EndOp(self.handle))

    def _once(self, op: str, name: str, args: dict[str, Any], key: str = "") -> tuple[int, Any]:
        url = self.chance.choice(self.load.urls)
        began = time.monotonic()
        status, body = self.client.ask(url, op, name, args, key)
        took_s = time.monotonic() - began - args.get("wait_ms", 0) / 1_000
        self.load.waits.append((began, url, took_s))
        if status == 503 and body["code"] == "stopping" and "wait_ms" in args:
            pass  # who waits at a node that is stopped is sent on, by docs/locks.md
        elif status in (429, 503):
            self.load.refused.append(f"{url} {op} {name}: {status} {body}")
        elif status == UNKNOWN or status in (500, 502, 504):
            self.load.failures.append(f"{url} {op} {name}: {status} {body}")
        return status, body

    def _cycle(self) -> bool:
        """Take, look, give back. False: an outcome is unknown."""
        load, chance = self.load, self.chance
        name = chance.choice(list(load.modes))
        mode = chance.choice(load.modes[name])
        args: dict[str, Any] = {"session": self.mine, "mode": mode}
        if wait_ms := chance.choice((0, 0, 200, 1_000)):
            args["wait_ms"] = wait_ms
        if mode == "semaphore":
            args |= {"permits": chance.choice((1, 1, 2)), "limit": SEMAPHORE_LIMIT}
        began = time.monotonic()
        status, body = self._ask("acquire", name, args)
        ended = time.monotonic()
        if status == 200:
            load.granted += 1
            token = int(body["token"])
            load.note(name, began, ended, self._acquired(args, spec.GRANTED, token))
            if chance.random() < 0.3:
                self._verify(name, token)
            return self._release(name, token)
        if status == 409:
            assert body["code"] == spec.BUSY, body
            load.note(name, began, ended, self._acquired(args, spec.BUSY))
            if chance.random() < 0.3:
                self._read(name)
            return True
        if status != UNKNOWN:
            return True  # nothing was done
        load.note(name, began, math.inf, self._acquired(args, spec.GRANTED))
        return False

    def _acquired(self, args: dict[str, Any], answer: str, token: int = 0) -> spec.AcquireOp:
        permits, limit = args.get("permits", 1), args.get("limit", 0)
        return spec.AcquireOp(self.handle, "", args["mode"], answer, token, permits, limit)

    def _release(self, name: str, token: int) -> bool:
        began = time.monotonic()
        while True:
            status, body = self._ask("release", name, {"session": self.mine, "token": token})
            ended = time.monotonic()
            released = spec.ReleaseOp(self.handle, "", token, spec.DONE)
            if status == 200:
                self.load.note(name, began, ended, released)
                return True
            if status == UNKNOWN:
                self.load.note(name, began, math.inf, released)
                return False
            assert status != 409, f"{name} was lost before it was given back: {body}"
            assert ended - began < SETTLE_S, f"a lock cannot be given back: {body}"
            time.sleep(0.05)

    def _ask(self, op: str, name: str, args: dict[str, Any]) -> tuple[int, Any]:
        """(status, body); UNKNOWN only when the client does not repeat. 503: nothing was done."""
        began, doubtful = time.monotonic(), False
        key = self.client.next_key() if self.repeats else ""
        while True:
            status, body = self._once(op, name, args, key)
            if status == UNKNOWN or status == 504:
                if not self.repeats:
                    return UNKNOWN, body
                doubtful = True
            elif key and status == 409 and body["code"] == "superseded":
                # Below level 2 a late copy of this very request, from a node that was stopped,
                # takes its wait over. The key still has one answer.
                assert not self.load.raised, f"a repeat has superseded the first: {body}"
                self.load.superseded += 1
            elif status < 429:
                return status, body
            elif status not in (429, 503, NOT_SENT):
                raise AssertionError(f"{op} {name}: {status} {body}")
            elif not doubtful and op == "acquire" and not self.repeats:
                return status, body
            assert time.monotonic() - began < SETTLE_S, f"no answer: {status} {body}"
            time.sleep(0.03)

    def _verify(self, name: str, token: int) -> None:
        began = time.monotonic()
        status, body = self._once("verify", name, {"token": token})
        if status == 200:
            what = spec.VerifyOp(token, body["valid"], own=True, newest=body["newest"] or 0)
            self.load.note(name, began, time.monotonic(), what)

    def _read(self, name: str) -> None:
        began = time.monotonic()
        status, body = self._once("get", name, {})
        if status == 200:
            seen = spec.read_op(body)
            # Nodes of older releases show sessions and their default owners whole.
            holders = tuple(
                (session[:8], "" if owner == session else owner, token, count, permits)
                for session, owner, token, count, permits in seen.holders
            )
            self.load.note(name, began, time.monotonic(), spec.ReadOp(seen.mode, holders))
