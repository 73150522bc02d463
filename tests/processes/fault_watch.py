"""Who serves during a fault, and since when; and whether what was given once is still there.

What must not live here: faults, the history for the checker (fault_load.py).
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Sequence
from itertools import pairwise

from fault_clients import HttpClient
from fault_cluster import FaultCluster

ASK_S = 0.5
"""A client that looks whether a node serves asks anew after this time: it measures when new
requests are served, not how long old ones hang."""
PAUSE_S = 0.01


class Watch:
    """A client at every node takes and gives back a lock all the time; `nothing_lost` looks for
    the locks that were taken for good, at every node."""

    def __init__(self, cluster: FaultCluster) -> None:
        self.cluster = cluster
        self.prefix = uuid.uuid4().hex[:8]
        self.grants: dict[str, list[tuple[float, float]]] = {
            name: [] for name in cluster.names("lock")
        }
        """When each was asked for and given."""
        self.kept: dict[str, int] = {}
        """Locks taken for good -> token."""
        self._stopped = threading.Event()
        client, url = HttpClient(), cluster.url(cluster.lock_leader())
        _, made = client.ask(url, "session.create", "", {"ttl_ms": 600_000}, "")
        client.close()
        self.session = str(made["session"])
        for _ in range(3):
            self.keep(url)
        self._threads = [threading.Thread(target=self._run, args=(name,)) for name in self.grants]
        for thread in self._threads:
            thread.start()

    def keep(self, url: str) -> None:
        """Take one more lock for good, there."""
        client, name = HttpClient(), f"{self.prefix}/kept-{len(self.kept)}"
        status, held = client.ask(url, "acquire", name, {"session": self.session}, "")
        client.close()
        assert status == 200, held
        self.kept[name] = held["token"]

    def end(self) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()

    def _run(self, node: str) -> None:
        client, url, number, newest = HttpClient(ASK_S), self.cluster.url(node), 0, 0
        while not self._stopped.is_set():
            name = f"{self.prefix}/{node}-{number}"
            began = time.monotonic()
            status, body = client.ask(url, "acquire", name, {"session": self.session}, "")
            if status == 200:
                self.grants[node].append((began, time.monotonic()))
                token = body["token"]
                if token <= newest:  # never again: `nothing_lost` then says so
                    self.kept[f"{name} has the token {token} after {newest}"] = 0
                newest = token
                args = {"session": self.session, "token": token}
                status, body = client.ask(url, "release", name, args, "")
            if status != 200:
                number += 1  # it may be held now
                time.sleep(0.02)
            time.sleep(PAUSE_S)
        client.close()

    def asked_since(self, names: Sequence[str], since: float) -> int:
        """How many locks `names` have given that were asked for after `since`."""
        return sum(began > since for name in names for began, _ in list(self.grants[name]))

    def served(self, names: Sequence[str], since: float, timeout_s: float = 30) -> None:
        """Wait until each of `names` has given locks that were asked for after `since`."""

        def all_have() -> bool:
            return all(self.asked_since([name], since) > 3 for name in names)

        self.cluster.until(all_have, f"{' '.join(names)} serve again", timeout_s)

    def gap_ms(self, names: Sequence[str], since: float, to: float) -> int:
        """The longest time without a lock given by any of `names`, from `since`, begun by `to`."""
        times = sorted(ended for name in names for _, ended in list(self.grants[name]))
        line = [since, *(at for at in times if at > since), time.monotonic()]
        gaps = [b - a for a, b in pairwise(line) if a < to]
        return round(max(gaps) * 1_000)

    def nothing_lost(self) -> None:
        """Every lock taken for good is held, with its token, as every node says."""
        client = HttpClient()
        for url in self.cluster.urls("lock"):
            for name, token in self.kept.items():
                assert token, name
                status, seen = client.ask(url, "verify", name, {"token": token}, "")
                assert status == 200, f"{url} {name}: {seen}"
                assert (seen["valid"], seen["newest"]) == (True, token), f"{url} {name}: {seen}"
        client.close()
