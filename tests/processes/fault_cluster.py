"""Lock nodes as processes of their own behind a fault proxy, and what can be done to them.

Nothing starts a node again but the test. What must not live here: the load, what must hold.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from itertools import permutations
from pathlib import Path
from typing import Any

from cluster_process import READY_S, Cluster, T, environment, request, until
from fault_proxy import DROP, PASS, FaultProxy

from dss.topology.model import cluster_of
from dss.topology.render_local import render_local

LOCKS = 1
"""The lock group."""
_libc = ctypes.CDLL(None, use_errno=True)


def _die_with_parent() -> None:
    _libc.prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG: nothing outlives the tests


class FaultCluster(Cluster):
    """`nodes` lock nodes and nothing else; every peer connection passes the proxy.

    Args:
        dirs: where a node's data is, when not below `data_dir`.
        env: for every node, over what the topology says.
    """

    def __init__(
        self,
        data_dir: Path,
        nodes: int,
        *,
        dirs: Mapping[str, Path] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(data_dir, (nodes, 0, 0), dict(env or {}))
        self.dirs = dict(dirs or {})
        self.proxy = FaultProxy()
        self.nodes: dict[str, subprocess.Popen[str]] = {}
        self.logs: dict[str, list[str]] = {name: [] for name in self.names("lock")}
        self._readers: list[threading.Thread] = []
        self._env = self._environments(nodes)

    def _environments(self, nodes: int) -> dict[str, dict[str, str]]:
        rendered = render_local(
            cluster_of(nodes, 1, 1),
            self.data_dir,
            base_port=self.base_port,
            cluster_secret="only-for-tests-0123456789",
        )
        names = self.names("lock")
        ports = {node.id: node.peer_port for node in rendered}
        pairs = list(permutations(names, 2))
        found = self.proxy.listen([(a, b, ports[b]) for a, b in pairs])
        seen_at = dict(zip(pairs, found, strict=True))
        made = {}
        for node in rendered:
            if node.role != "lock":
                continue
            peers = json.loads(node.env["RAFT_PEERS"])
            for peer in peers:
                peer["peer_port"] = seen_at.get((node.id, peer["id"]), peer["peer_port"])
            made[node.id] = {
                **environment(),
                **node.env,
                "RAFT_PEERS": json.dumps(peers),
                "QUEUE_NODES": "[]",
                "CACHE_PEERS": "[]",
                "DATA_DIR": str(self.dir_of(node.id)),
                **self.env,
            }
        return made

    def env_of(self, name: str) -> dict[str, str]:
        """What a node is started with the next time."""
        return self._env[name]

    def dir_of(self, name: str) -> Path:
        return self.dirs.get(name, self.data_dir / name)

    # --- processes ---

    def start(self, *, wait: bool = True) -> None:
        for name in self.names("lock"):
            self.start_node(name)
        if wait:
            self.wait_ready()

    def start_node(self, name: str) -> None:
        """From the main thread only: the kernel ends a child with the thread that made it."""
        assert threading.current_thread() is threading.main_thread()
        assert not self.pid(name), f"{name} runs"
        process = self.nodes[name] = subprocess.Popen(
            [sys.executable, "-m", "dss.cli.main", "node"],
            stdin=subprocess.DEVNULL,
            # A pipe, not a file: a node without room for files must be able to say so.
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=self._env[name],
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )
        reader = threading.Thread(target=self._read, args=(process, self.logs[name]), daemon=True)
        reader.start()
        self._readers.append(reader)

    def _read(self, process: subprocess.Popen[str], lines: list[str]) -> None:
        assert process.stdout is not None
        with process.stdout as stdout:
            lines.extend(line.rstrip("\n") for line in stdout)

    def _collect(self, process: subprocess.Popen[str]) -> None:
        raise AssertionError("there is no dss up here")

    def wait_ready(self) -> None:
        self.until(self.all_ready, "every node is ready", READY_S)
        self.lock_leader()

    def until(self, look: Callable[[], T | None], what: str, timeout_s: float = 30) -> T:
        """As cluster_process.until; a failure shows what every node says."""
        try:
            return until(look, what, timeout_s)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.report()}") from None

    def pid(self, name: str) -> int:
        process = self.nodes.get(name)
        return process.pid if process is not None and process.poll() is None else 0

    def kill(self, name: str) -> int:
        pid = self.pid(name)
        assert pid, f"{name} does not run\n{self.report()}"
        self.nodes[name].kill()
        self.nodes[name].wait()
        return pid

    def ended(self, name: str, timeout_s: float = 30) -> int:
        """Wait until a node has ended by itself; its exit code."""
        code = self.until(self.nodes[name].poll, f"{name} ends", timeout_s)
        for reader in self._readers:  # a node's last words
            if not self.running():
                reader.join(5)
        return code

    def running(self) -> list[str]:
        return [name for name in self.names("lock") if self.pid(name)]

    def send(self, names: Iterable[str], number: signal.Signals) -> None:
        for name in names:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid(name), number)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.send(self.running(), signal.SIGCONT)
        for process in self.nodes.values():
            process.send_signal(number)
        for process in self.nodes.values():
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for reader in self._readers:
            reader.join(10)
        self.proxy.stop()
        return 0

    def report(self) -> str:
        parts = []
        for name, lines in self.logs.items():
            seen = self.status(name) if self.pid(name) else None
            ready = request("GET", f"{self.url(name)}/readyz", timeout=2)
            parts += [f"--- {name} (pid {self.pid(name)})", *lines[-25:], str(seen), str(ready)]
        return "\n".join(parts)

    # --- the network ---

    def others(self, *names: str) -> list[str]:
        return [name for name in self.names("lock") if name not in names]

    def between(self, one: Iterable[str], other: Iterable[str]) -> list[tuple[str, str]]:
        """Pairs from `one` to `other`; both ways: add the reverse."""
        other = list(other)
        return [(a, b) for a in one for b in other if a != b]

    def isolate(self, names: Iterable[str], what: str = DROP) -> None:
        """Cut the part `names` off from the rest, both ways."""
        names = list(names)
        rest = self.others(*names)
        self.proxy.change(self.between(names, rest) + self.between(rest, names), what)

    def heal(self) -> None:
        pairs = list(permutations(self.names("lock"), 2))
        self.proxy.change(pairs, PASS)

    # --- looking ---

    def status(self, name: str) -> dict[str, Any] | None:
        """The lock group as one node sees it."""
        reply = request("GET", f"{self.url(name)}/v1/raft/status", timeout=2)
        groups = reply.body["groups"] if reply.status == 200 else []
        return next((group for group in groups if group["group_id"] == LOCKS), None)

    def leader_of(self, names: Iterable[str]) -> str | None:
        """Who of them says that it leads, in the highest term."""
        found = [
            (seen["term"], name)
            for name in names
            if (seen := self.status(name)) is not None and seen["role"] == "leader"
        ]
        return max(found)[1] if found else None

    def lock_leader(self) -> str:
        return self.until(lambda: self.leader_of(self.running()), "a leader of the lock group")
