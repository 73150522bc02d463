"""The one table of settings: what `check` enforces, `.env.example` and docs/configuration.md say.

What must not live here: reading the environment, rules between several variables (config.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from dss.base.levels import BASE_LEVEL, FEATURE_LEVEL
from dss.base.limits import PARTITIONS_MAX
from dss.topology.jsonlist import show
from dss.topology.peers import ID_EXPECTED, ID_PATTERN

TEST_MODES: Final = ("split-vote", "split-vote-no-backoff")
"""drivers/split_vote.py; with the second one, `POST /v1/raft/backoff` does nothing either."""
_LEVEL: Final = f"newest, or a level from {BASE_LEVEL} to {FEATURE_LEVEL}"
PEERS_EXAMPLE: Final = '[{"id": "lock-1", "host": "lock-1", "port": 8000, "peer_port": 9000}]'


class BadValue(Exception):
    """The value's fault, as the end of a sentence: `expected …, found …`."""


class Variable(msgspec.Struct, frozen=True, kw_only=True):
    """One setting.

    Attributes:
        name: in the environment; `<name>_FILE` names a file with the value instead.
        scope: `node` (its own for each process), `cluster` (the same on every node) or `stack`
            (for the other services of the compose file).
        parse: text -> value; raises BadValue. None for JSON lists (peers.py, tokens.py).
        default: as text; None: must be set.
        expected: the range or shape, for messages and documents.
        secret: its value is never printed.
        field: the field of NodeConfig; empty for the stack's variables.
    """

    name: str
    scope: str
    parse: Callable[[str], Any] | None
    default: str | None
    unit: str = ""
    expected: str
    example: str
    description: str
    secret: bool = False
    field: str = ""


def _integer(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not re.fullmatch(r"[+-]?[0-9]{1,18}", text):
            raise BadValue(f"expected a whole number from {low} to {high}, found {show(text)}")
        if not low <= int(text) <= high:
            raise BadValue(f"expected {low} to {high}, found {int(text)}")
        return int(text)

    return parse


def _odd(low: int, high: int) -> Callable[[str], int]:
    inner = _integer(low, high)

    def parse(text: str) -> int:
        value = inner(text)
        if value % 2 == 0:
            raise BadValue(f"expected an odd number from {low} to {high}, found {value}")
        return value

    return parse


def _choice(*words: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in words:
            raise BadValue(f"expected one of {', '.join(words)}, found {show(text)}")
        return text

    return parse


def _feature_level(text: str) -> int:
    if text == "newest":
        return FEATURE_LEVEL
    try:
        return _integer(BASE_LEVEL, FEATURE_LEVEL)(text)
    except BadValue:
        raise BadValue(f"expected {_LEVEL}, found {show(text)}") from None


def _flag(text: str) -> bool:
    if text not in ("0", "1"):
        raise BadValue(f"expected 0 or 1, found {show(text)}")
    return text == "1"


def _pattern(pattern: str, expected: str, *, secret: bool = False) -> Callable[[str], str]:
    compiled = re.compile(pattern)

    def parse(text: str) -> str:
        if not compiled.fullmatch(text):
            found = f"{len(text)} characters" if secret else show(text)
            raise BadValue(f"expected {expected}, found {found}")
        return text

    return parse


def _memory_url(text: str) -> str:
    """The value may hold a password, so messages never show it."""
    expected = "expected redis://[:password@]host[:port][/db] or sqlite:///path"
    scheme = text.split(":", 1)[0]
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError:
        raise BadValue(f"{expected}, found a URL whose host or port cannot be read") from None
    if scheme == "sqlite":
        if not text.startswith("sqlite:///") or not url.path.strip("/"):
            raise BadValue(f"{expected}, found a sqlite URL without a path")
        if url.query or url.fragment:
            raise BadValue(f"{expected}, found a '?' or '#': write %3F or %23 in a path")
    elif scheme == "redis":
        if not url.hostname or port == 0:
            raise BadValue(f"{expected}, found a redis URL without a host or with port 0")
        if url.path not in ("", "/") and not re.fullmatch(r"/[0-9]{1,5}", url.path):
            raise BadValue(f"{expected}, found a redis URL whose database is not a number")
    else:
        raise BadValue(f"{expected}, found a value with another scheme")
    return text


def _milliseconds(low: int, high: int) -> dict[str, Any]:
    return {"parse": _integer(low, high), "expected": f"{low} to {high}", "unit": "ms"}


_NODE_ID: Final = _pattern(ID_PATTERN.pattern, ID_EXPECTED)
_SECRET: Final = "16 to 256 printable ASCII characters without spaces"  # noqa: S105 - a message
_URL_SAFE: Final = "8 to 128 characters of a-z, A-Z, 0-9 and . _ ~ - (it becomes part of a URL)"

VARIABLES: Final[tuple[Variable, ...]] = (
    Variable(
        name="NODE_ID", field="node_id", scope="node", default=None,
        parse=_NODE_ID, expected=ID_EXPECTED, example="lock-1",
        description="This node's id: exactly one entry of the three peer lists has it.",
    ),
    Variable(
        name="NODE_ROLE", field="role", scope="node", default=None,
        parse=_choice("lock", "queue", "cache"), expected="lock, queue or cache", example="lock",
        description="What this node serves; its id must be in that role's list.",
    ),
    Variable(
        name="DATA_DIR", field="data_dir", scope="node", default=None,
        parse=_pattern(r"[^\x00-\x1f]{1,1024}", "a directory"), expected="a directory",
        example="/data", description="Where this node keeps its log, snapshots and identity. It "
        "must survive a restart: a node that comes back without it is a new member.",
    ),
    Variable(
        name="BIND_HOST", field="bind_host", scope="node", default="127.0.0.1",
        parse=_pattern(r"[A-Za-z0-9._:-]{1,253}", "an address or a host name"),
        expected="an address of this machine", example="0.0.0.0",  # noqa: S104 - documentation
        description="Where the node listens, at the ports of its own entry. The images set "
        "0.0.0.0. Anything but a loopback address needs a CLUSTER_SECRET.",
    ),
    Variable(
        name="MEMORY_URL", field="memory_url", scope="node", default="", parse=_memory_url,
        expected="redis://[:password@]host[:port][/db] or sqlite:///path", secret=True,
        example="sqlite:////data/memory.db",
        description="The cache's main memory. Cache nodes need it, others do not read it. With "
        "MEMORY_URL_FILE a new password is used from the next connection on; a URL of another "
        "place ends the node, so that it starts again with it.",
    ),
    Variable(
        name="ALLOW_TEST_MODE", field="allow_test_mode", scope="node", default="0", example="1",
        parse=_flag, expected="0 or 1",
        description="For tests of DSS alone: 1 lets TEST_MODE be set.",
    ),
    Variable(
        name="TEST_MODE", field="test_mode", scope="node", default="",
        parse=_choice(*TEST_MODES), expected=" or ".join(TEST_MODES), example="split-vote",
        description="For tests of DSS alone: a lock node breaks elections on purpose "
        "(docs/troubleshooting.md). Refused unless ALLOW_TEST_MODE is 1.",
    ),
    Variable(
        name="RAFT_PEERS", field="raft_peers", scope="cluster", default=None, parse=None,
        expected="a JSON array of 1 to 9 {id, host, port, peer_port}, an odd number",
        example=PEERS_EXAMPLE,
        description="The lock nodes. `host` is what others dial, `port` serves HTTP, `peer_port` "
        "the nodes among themselves.",
    ),
    Variable(
        name="QUEUE_NODES", field="queue_nodes", scope="cluster", default=None, parse=None,
        expected="a JSON array of 0 to 9 {id, host, port, peer_port}",
        example=PEERS_EXAMPLE.replace("lock", "queue"), description="The queue nodes.",
    ),
    Variable(
        name="CACHE_PEERS", field="cache_peers", scope="cluster", default=None, parse=None,
        expected="a JSON array of 0 to 9 {id, host, port, peer_port}",
        example=PEERS_EXAMPLE.replace("lock", "cache"), description="The cache nodes.",
    ),
    Variable(
        name="CLUSTER_ID", field="cluster_id", scope="cluster", default="local",
        parse=_pattern(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,127}", "1 to 128 of a-z A-Z 0-9 . _ / -"),
        expected="1 to 128 of a-z A-Z 0-9 . _ / -", example="demo",
        description="The cluster's name: nodes of another cluster are refused.",
    ),
    Variable(
        name="CLUSTER_SECRET", field="cluster_secret", scope="cluster", default="", secret=True,
        parse=_pattern(r"[!-~]{16,256}", _SECRET, secret=True), expected=_SECRET,
        example="the output of: openssl rand -hex 32",
        description="What nodes prove to each other before the first frame. With "
        "CLUSTER_SECRET_FILE a new secret is taken up while nodes run; the one before it stays "
        "good until the next restart.",
    ),
    Variable(
        name="AUTH_TOKENS", field="auth_tokens", scope="cluster", default="", secret=True,
        parse=None, expected="a JSON array of 1 to 100 {name, sha256, role}", example="[{"
        '"name": "ops", "sha256": "<hex SHA-256 of the token>", "role": "admin"}]',
        description="Who may use /v1: the bearer tokens, as their SHA-256, with the role admin or "
        "client. None: everybody may. With AUTH_TOKENS_FILE the file is looked at every 2 s, so "
        "tokens can be given and taken while nodes run.",
    ),
    Variable(
        name="HEARTBEAT_MS", field="heartbeat_ms", scope="cluster", default="50", example="50",
        description="How often a leader tells its followers that it lives.",
        **_milliseconds(10, 10_000),
    ),
    Variable(
        name="ELECTION_MIN_MS", field="election_min_ms", scope="cluster", default="300",
        example="300", description="A follower without a leader waits at least this long before "
        "it asks for votes; more than twice HEARTBEAT_MS.",
        **_milliseconds(50, 60_000),
    ),
    Variable(
        name="ELECTION_MAX_MS", field="election_max_ms", scope="cluster", default="900",
        example="900", description="And at most this long; the span between the two keeps votes "
        "from being split. At least 1.5 times ELECTION_MIN_MS.",
        **_milliseconds(75, 120_000),
    ),
    Variable(
        name="PARTITIONS", field="partitions", scope="cluster", default="32",
        parse=_integer(1, PARTITIONS_MAX), expected=f"1 to {PARTITIONS_MAX}", example="32",
        unit="partitions",
        description="Into how many Raft groups the queues are cut. Fixed for a cluster's life.",
    ),
    Variable(
        name="REPLICATION_FACTOR", field="replication_factor", scope="cluster", default="3",
        parse=_odd(1, 5), expected="1, 3 or 5",
        example="3", unit="copies",
        description="On how many queue nodes each partition lives; odd, at most their number.",
    ),
    Variable(
        name="CACHE_CAPACITY_MIB", field="cache_capacity_mib", scope="cluster", default="64",
        parse=_integer(1, 65_536), expected="1 to 65536", example="64", unit="MiB",
        description="How much one cache node keeps before it evicts.",
    ),
    Variable(
        name="CACHE_LEASE_MS", field="cache_lease_ms", scope="cluster", default="1000",
        example="1000", description="How long a cache node may serve a copy without asking again: "
        "a dead sharer delays a write by at most this.",
        **_milliseconds(100, 60_000),
    ),
    Variable(
        name="SNAPSHOT_EVERY_ENTRIES", field="snapshot_every_entries", scope="cluster",
        default="50000", parse=_integer(10, 10_000_000), expected="10 to 10000000",
        example="50000", unit="log entries",
        description="A group is snapshotted and its log compacted after this many entries.",
    ),
    Variable(
        name="FEATURE_LEVEL_MAX", field="feature_level_max", scope="cluster",
        default="newest", parse=_feature_level, expected=_LEVEL, example="1",
        description="Holds a node's feature level back: its groups are raised no further, so that "
        "the release before can still be started again (docs/operations.md). Take it away when you "
        "are content with the new release.",
    ),
    Variable(
        name="LOG_LEVEL", field="log_level", scope="cluster", default="info",
        parse=_choice("debug", "info", "warning", "error"),
        expected="debug, info, warning or error", example="info",
        description="The least severe message that is logged.",
    ),
    Variable(
        name="LOG_FORMAT", field="log_format", scope="cluster", default="text",
        parse=_choice("text", "json"), expected="text or json", example="json",
        description="Lines for people or for machines.",
    ),
    Variable(
        name="REDIS_PASSWORD", scope="stack", default=None, secret=True,
        parse=_pattern(r"[A-Za-z0-9._~-]{8,128}", _URL_SAFE, secret=True), expected=_URL_SAFE,
        example="the output of: openssl rand -hex 16",
        description="The password of the compose stack's Redis.",
    ),
    Variable(
        name="GRAFANA_ADMIN_USER", scope="stack", default="admin",
        parse=_pattern(r"[^\s]{1,64}", "1 to 64 characters without spaces"),
        expected="1 to 64 characters without spaces", example="admin",
        description="Grafana's first user.",
    ),
    Variable(
        name="GRAFANA_ADMIN_PASSWORD", scope="stack", default="admin", secret=True,
        parse=_pattern(r"[!-~]{1,128}", "1 to 128 printable ASCII characters", secret=True),
        expected="1 to 128 printable ASCII characters", example="admin",
        description="Its password.",
    ),
)  # fmt: skip

BY_NAME: Final = {variable.name: variable for variable in VARIABLES}
PEER_LISTS: Final = {"RAFT_PEERS": "lock", "QUEUE_NODES": "queue", "CACHE_PEERS": "cache"}
"""Peer-list variable -> the role whose nodes it lists."""
