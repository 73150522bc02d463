"""From the environment to a NodeConfig, or to every problem at once.

`check` and `load_node_config` are for one node, `check_env_file` for a compose `.env`. Callers exit
with 78 and print `report(problems)`. Secrets are never part of a message.
What must not live here: the list of variables (variables.py), what a peer list is (peers.py).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

import msgspec

from dss.base.errors import ConfigProblem
from dss.base.limits import SETTING_FILE_BYTES_MAX
from dss.topology.envfile import EnvFile
from dss.topology.model import HTTP_PORT, PEER_PORT, DSSCluster
from dss.topology.nodes import NodeConfig, NodeSpec
from dss.topology.peers import parse_peers
from dss.topology.tokens import parse_tokens
from dss.topology.variables import BY_NAME, PEER_LISTS, VARIABLES, BadValue, Variable

WATCHED_FILES: Final = ("AUTH_TOKENS", "CLUSTER_SECRET", "MEMORY_URL")
"""Variables whose file is looked at again while the node runs."""
EnvOrigin = tuple[str, Mapping[str, int]]
"""The name of the `.env` file that the values came from, and the line of each."""


class Problem(msgspec.Struct, frozen=True):
    """One bad setting.

    Attributes:
        variable: its name, or the name of the file that could not be read.
        message: what is wrong and what was expected.
        line, column: where in the value, from 1; 0: the value as a whole.
        origin: the file that the value came from, like `.env line 12`.
        example: a good setting, `NAME=value`.
    """

    variable: str
    message: str
    line: int = 0
    column: int = 0
    origin: str = ""
    example: str = ""

    def __str__(self) -> str:
        place = f" line {self.line}, column {self.column}" if self.line else ""
        origin = f" ({self.origin})" if self.origin else ""
        example = f" Example: {self.example}" if self.example else ""
        colon = "" if self.message.startswith(("is ", "lacks ")) else ":"
        return f"{self.variable}{place}{colon} {self.message}{origin}.{example}"


def report(problems: list[Problem]) -> str:
    """One line for each problem, in the order of docs/configuration.md."""
    return "\n".join(str(problem) for problem in problems)


def load_node_config(
    environ: Mapping[str, str], *, env_file: EnvOrigin | None = None
) -> NodeConfig:
    """The validated configuration of one node.

    Raises:
        ConfigProblem: its message holds one line for each problem.
    """
    settings = _Settings(environ, env_file, ("node", "cluster"))
    settings.check_node()
    if settings.problems:
        raise ConfigProblem(report(settings.sorted_problems()))
    fields = {BY_NAME[name].field: value for name, value in settings.values.items()}
    for name in WATCHED_FILES:
        fields[f"{BY_NAME[name].field}_file"] = settings.files.get(name, "")
    return NodeConfig(**fields)


def parse_watched(name: str, path: str, text: str) -> Any:
    """The value of a watched variable out of its file's new content.

    Raises:
        ConfigProblem: one line for each problem, as at the start.
    """
    settings = _Settings({}, None, ())
    settings.origins[name] = f"file {path}"
    if not text.strip():
        settings.add(name, f"the file is empty: expected {BY_NAME[name].expected}")
    else:
        settings.parse(BY_NAME[name], text)
    if settings.problems:
        raise ConfigProblem(report(settings.problems))
    return settings.values[name]


def check(environ: Mapping[str, str], *, env_file: EnvOrigin | None = None) -> list[Problem]:
    """Every problem of one node's environment; empty when the node can start with it."""
    settings = _Settings(environ, env_file, ("node", "cluster"))
    settings.check_node()
    return settings.sorted_problems()


def check_env_file(env: EnvFile) -> list[Problem]:
    """Every problem of a compose `.env`: what the nodes of that stack would refuse, and typos."""
    unread = [
        Problem(env.name, fault.message, origin=f"{env.name} line {fault.line}")
        for fault in env.faults
    ]
    # Compose hands no X_FILE on to the nodes, so here such a name is unknown like any other.
    values = {name: value for name, value in env.values.items() if name in BY_NAME}
    settings = _Settings(values, (env.name, env.lines), ("cluster", "stack"))
    settings.check_cluster()
    settings.check_containers(DSSCluster())
    if "CLUSTER_SECRET" not in settings.failed and not settings.values["CLUSTER_SECRET"]:
        settings.add("CLUSTER_SECRET", "is not set: containers listen for other machines")
    return unread + settings.sorted_problems() + list(_typos(env))


def _typos(env: EnvFile) -> Iterator[Problem]:
    known = [variable.name for variable in VARIABLES]
    for name, line in env.lines.items():
        if name in known:
            continue
        near = get_close_matches(name.upper(), known, n=1, cutoff=0.8)
        if near:
            yield Problem(
                name, f"unknown variable; did you mean {near[0]}", origin=f"{env.name} line {line}"
            )


class _Settings:
    """The values of some scopes' variables, and what is wrong with them."""

    def __init__(
        self, environ: Mapping[str, str], env_file: EnvOrigin | None, scopes: tuple[str, ...]
    ) -> None:
        self.environ = environ
        self.env_file = env_file
        self.values: dict[str, Any] = {}
        self.problems: list[Problem] = []
        self.failed: dict[str, None] = {}
        self.origins: dict[str, str] = {}
        self.files: dict[str, str] = {}
        for variable in VARIABLES:
            if variable.scope in scopes:
                self._load(variable)

    def sorted_problems(self) -> list[Problem]:
        order = {variable.name: at for at, variable in enumerate(VARIABLES)}
        return sorted(self.problems, key=lambda problem: order.get(problem.variable, -1))

    def add(self, name: str, message: str, line: int = 0, column: int = 0) -> None:
        example = f"{name}={BY_NAME[name].example}"
        self.failed[name] = None
        self.problems.append(
            Problem(name, message, line, column, self.origins.get(name, ""), example)
        )

    # --- one variable ---

    def _load(self, variable: Variable) -> None:
        text = self._text(variable)
        if text is None:
            return
        if not text:
            if variable.default is None:
                given = variable.name in self.environ
                state = "is empty" if given else "is not set"
                self.add(variable.name, f"{state}: expected {variable.expected}")
                return
            text = variable.default
            if not text:
                self.values[variable.name] = () if variable.parse is None else ""
                return
        self.parse(variable, text)

    def parse(self, variable: Variable, text: str) -> None:
        """Keep the value that `text` gives, or the problems with it."""
        if variable.parse is None:
            read = parse_tokens if variable.name == "AUTH_TOKENS" else parse_peers
            items, faults = read(text)
            for fault in faults:
                self.add(variable.name, fault.message, fault.line, fault.column)
            if not faults:
                self.values[variable.name] = items
            return
        try:
            self.values[variable.name] = variable.parse(text.strip())
        except BadValue as fault:
            self.add(variable.name, str(fault))

    def _text(self, variable: Variable) -> str | None:
        """The value's text, '' when there is none; None after a problem."""
        name, file_name = variable.name, f"{variable.name}_FILE"
        if self.env_file is not None:
            for key in (file_name, name):
                if key in self.env_file[1]:
                    self.origins[name] = f"{self.env_file[0]} line {self.env_file[1][key]}"
        text = self.environ.get(name, "")
        text = text.rstrip() if text.strip() else ""
        path = self.environ.get(file_name, "").strip()
        if not path:
            return text
        if text:
            self.add(name, f"{name} and {file_name} are both set: expected one of them")
            return None
        content = self._read(name, file_name, path)
        if content is not None:
            self.origins[name] = f"file {path}"
            self.files[name] = path
            if not content:
                self.add(name, f"the file is empty: expected {variable.expected}")
                return None
        return content

    def _read(self, name: str, file_name: str, path: str) -> str | None:
        try:
            if not Path(path).is_file():
                reason = "is not a file" if Path(path).exists() else "does not exist"
                self.add(name, f"{file_name}: {path} {reason}: expected a readable file")
                return None
            with open(path, "rb") as file:
                data = file.read(SETTING_FILE_BYTES_MAX + 1)
            if len(data) > SETTING_FILE_BYTES_MAX:
                self.add(name, f"{file_name}: {path} has more than {SETTING_FILE_BYTES_MAX} bytes")
                return None
            return data.decode("utf-8-sig").rstrip()
        except UnicodeDecodeError:
            self.add(name, f"{file_name}: {path} is not UTF-8 text")
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "it cannot be opened"
            self.add(name, f"{file_name}: {path} cannot be read: {reason}")
        return None

    # --- rules between variables ---

    def check_cluster(self) -> None:
        """What must hold among variables that all nodes share."""
        locks = self._peers("RAFT_PEERS")
        if locks == ():
            self.add("RAFT_PEERS", "is an empty list: expected at least one lock node")
        elif locks is not None and len(locks) % 2 == 0:
            self.add(
                "RAFT_PEERS",
                f"expected an odd number of lock nodes, found {len(locks)}: an even one tolerates "
                "no more failures than one node less",
            )
        self._check_collisions()
        self._check_timing()
        queues = self._peers("QUEUE_NODES")
        factor = self.values.get("REPLICATION_FACTOR")
        if queues and factor is not None and factor > len(queues):
            self.add(
                "REPLICATION_FACTOR",
                f"expected at most the number of queue nodes, {len(queues)}, found {factor}",
            )

    def check_node(self) -> None:
        """What must hold for one node besides."""
        self.check_cluster()
        self._check_identity()
        role = self.values.get("NODE_ROLE")
        if role == "cache" and self.values.get("MEMORY_URL") == "":
            self.add("MEMORY_URL", f"is not set: a cache node needs {_expected('MEMORY_URL')}")
        host = self.values.get("BIND_HOST", "")
        if not _is_loopback(host) and self.values.get("CLUSTER_SECRET") == "":
            self.add(
                "CLUSTER_SECRET",
                f"is not set, but BIND_HOST is {host}, which other machines may reach: "
                f"expected {_expected('CLUSTER_SECRET')}",
            )
        self._check_test_mode(role)
        data_dir = self.values.get("DATA_DIR")
        if data_dir and os.path.exists(data_dir) and not os.path.isdir(data_dir):
            self.add("DATA_DIR", f"expected a directory, but {data_dir} is a file")

    def _check_test_mode(self, role: str | None) -> None:
        mode = self.values.get("TEST_MODE")
        if not mode:
            return
        if not self.values.get("ALLOW_TEST_MODE"):
            self.add(
                "TEST_MODE",
                f"is {mode}, which breaks elections on purpose: expected ALLOW_TEST_MODE=1 beside "
                "it in a test, and no TEST_MODE anywhere else",
            )
        elif role not in (None, "lock"):
            self.add("TEST_MODE", f"is set on a {role} node: expected it on lock nodes alone")

    def check_containers(self, cluster: DSSCluster) -> None:
        """What must hold for the services of docker/docker-compose.yml."""
        for name, role in PEER_LISTS.items():
            peers = self._peers(name)
            if peers is None or name in self.failed:
                continue
            listed = {peer.id: peer for peer in peers}
            for member in cluster.members():
                if member.role == role and member.id not in listed:
                    self.add(name, f"lacks {member.id}, which docker/docker-compose.yml starts")
            for peer in peers:
                if (peer.port, peer.peer_port) != (HTTP_PORT, PEER_PORT):
                    self.add(
                        name,
                        f"{peer.id} has the ports {peer.port} and {peer.peer_port}: in containers "
                        f"nodes listen on {HTTP_PORT} and {PEER_PORT}",
                    )

    def _peers(self, name: str) -> tuple[NodeSpec, ...] | None:
        peers: tuple[NodeSpec, ...] | None = self.values.get(name)
        return peers

    def _check_identity(self) -> None:
        node_id = self.values.get("NODE_ID")
        lists = {name: self._peers(name) for name in PEER_LISTS}
        if node_id is None:
            return
        found = [
            name for name, peers in lists.items() if any(peer.id == node_id for peer in peers or ())
        ]
        if not found:
            if lists["RAFT_PEERS"] and all(peers is not None for peers in lists.values()):
                ids = ", ".join(peer.id for peers in lists.values() for peer in peers or ())
                self.add(
                    "NODE_ID",
                    f'"{node_id}" is in none of {", ".join(PEER_LISTS)}: expected one of {ids}',
                )
            return
        role = self.values.get("NODE_ROLE")
        if role is not None and role not in [PEER_LISTS[name] for name in found]:
            self.add(
                "NODE_ROLE",
                f"is {role}, but {found[0]} lists {node_id}: expected {PEER_LISTS[found[0]]}",
            )

    def _check_collisions(self) -> None:
        """No id and no address stands in two places."""
        ids: dict[str, str] = {}
        addresses: dict[tuple[str, int], str] = {}
        for name in PEER_LISTS:
            for peer in self._peers(name) or ():
                if peer.id in ids:
                    self.add(name, f'the id "{peer.id}" is also in {ids[peer.id]}')
                    continue
                ids[peer.id] = name
                for port in (peer.port, peer.peer_port):
                    other = addresses.setdefault((peer.host, port), peer.id)
                    if other != peer.id:
                        self.add(name, f"{peer.id} and {other} both have {peer.host}:{port}")

    def _check_timing(self) -> None:
        heartbeat = self.values.get("HEARTBEAT_MS")
        low, high = self.values.get("ELECTION_MIN_MS"), self.values.get("ELECTION_MAX_MS")
        if heartbeat is not None and low is not None and low <= 2 * heartbeat:
            self.add(
                "ELECTION_MIN_MS",
                f"expected more than twice HEARTBEAT_MS, {2 * heartbeat}, found {low}: one late "
                "heartbeat must not start an election",
            )
        if low is not None and high is not None and 2 * high < 3 * low:
            self.add(
                "ELECTION_MAX_MS",
                f"expected at least 1.5 times ELECTION_MIN_MS, {-(-3 * low // 2)}, found {high}: "
                "too small a span splits votes",
            )


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host in ("localhost", "")


def _expected(name: str) -> str:
    return BY_NAME[name].expected
