"""Configuration: every bad value gives one line with variable, place, expectation, example."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dss.base.errors import ConfigProblem
from dss.base.levels import FEATURE_LEVEL
from dss.topology.config import check, check_env_file, load_node_config, report
from dss.topology.envfile import parse_env
from dss.topology.variables import VARIABLES


def peers(role: str, count: int, base: int = 8000) -> list[dict[str, object]]:
    return [
        {"id": f"{role}-{i}", "host": f"{role}-{i}", "port": base, "peer_port": base + 1000}
        for i in range(1, count + 1)
    ]


def good(**changes: str | None) -> dict[str, str]:
    environ: dict[str, str | None] = {
        "NODE_ID": "lock-1",
        "NODE_ROLE": "lock",
        "DATA_DIR": "/tmp/dss-none",
        "RAFT_PEERS": json.dumps(peers("lock", 3)),
        "QUEUE_NODES": json.dumps(peers("queue", 3)),
        "CACHE_PEERS": json.dumps(peers("cache", 2)),
        "CLUSTER_SECRET": "0123456789abcdef",
    }
    environ.update(changes)
    return {name: value for name, value in environ.items() if value is not None}


PEERS_SHAPE = "a JSON array of 1 to 9 {id, host, port, peer_port}, an odd number"
RAFT_EXAMPLE = (
    'Example: RAFT_PEERS=[{"id": "lock-1", "host": "lock-1", "port": 8000, "peer_port": 9000}]'
)
ONE = '{"id": "lock-1", "host": "h1", "port": 8000, "peer_port": 9000}'


def one(**changes: object) -> str:
    return json.dumps([{"id": "lock-1", "host": "h", "port": 8000, "peer_port": 9000} | changes])


TOKENS_EXAMPLE = (
    'Example: AUTH_TOKENS=[{"name": "ops", "sha256": "<hex SHA-256 of the token>", '
    '"role": "admin"}]'
)

BAD_PEERS = [
    ("", f"RAFT_PEERS is empty: expected {PEERS_SHAPE}."),
    ("   ", f"RAFT_PEERS is empty: expected {PEERS_SHAPE}."),
    (None, f"RAFT_PEERS is not set: expected {PEERS_SHAPE}."),
    ("[]", "RAFT_PEERS is an empty list: expected at least one lock node."),
    (
        "[" + ONE + " " + ONE.replace("lock-1", "lock-2") + "]",
        "RAFT_PEERS line 1, column 66: expected ',' or ']' after the object, found an object.",
    ),
    (
        "[" + ONE,
        "RAFT_PEERS line 1, column 65: expected ',' or ']' after the object, found the end.",
    ),
    (
        "[" + ONE + ",]",
        'RAFT_PEERS line 1, column 66: expected an object {…} for a node, found "]".',
    ),
    (
        "[" + ONE + "] x",
        "RAFT_PEERS line 1, column 67: expected nothing after the closing ']', found \"x\".",
    ),
    (
        "[\n  " + ONE + ",\n  {'id': 1}]",
        'RAFT_PEERS line 3, column 4: expected a field name in double quotes, found "\'".',
    ),
    (
        '[{"id": "lock-1"',
        "RAFT_PEERS line 1, column 17: expected ',' or '}' after the value of \"id\", "
        "found the end.",
    ),
    (
        '[{"id" "lock-1"}]',
        "RAFT_PEERS line 1, column 8: expected ':' after the field name \"id\", found a string.",
    ),
    (
        '[{"id": }]',
        'RAFT_PEERS line 1, column 9: expected a value for "id", found "}".',
    ),
    (
        '[{"id": NaN}]',
        'RAFT_PEERS line 1, column 9: expected a value for "id", found "NaN".',
    ),
    (
        '[{"id": tru}]',
        'RAFT_PEERS line 1, column 9: expected a value for "id", found "tru".',
    ),
    (
        '[{"id": "lock-1',
        "RAFT_PEERS line 1, column 9: the string that starts here has no closing '\"'.",
    ),
    (
        '[{"id": "lock\n-1"}]',
        "RAFT_PEERS line 1, column 14: a string has a line break or a control character.",
    ),
    (
        '[{"id": "lock\\q"}]',
        "RAFT_PEERS line 1, column 14: a string has an invalid escape after '\\'.",
    ),
    (
        '[{"id": ["lock-1"]}]',
        'RAFT_PEERS line 1, column 9: expected a value for "id" (a string or a number), '
        "found an array.",
    ),
    (
        "lock-1:8000",
        "RAFT_PEERS line 1, column 1: expected a JSON array of nodes, starting with '[', "
        'found "lock-1".',
    ),
    (
        ONE,
        "RAFT_PEERS line 1, column 1: expected a JSON array of nodes, starting with '[', "
        "found an object.",
    ),
    (
        '["lock-1"]',
        "RAFT_PEERS line 1, column 2: expected an object {…} for a node, found a string.",
    ),
    (
        '[{"id": "lock-1", "host": "h"}]',
        'RAFT_PEERS line 1, column 2: the object lacks "port", "peer_port".',
    ),
    (
        one(weight=3),
        'RAFT_PEERS line 1, column 65: unknown field "weight": expected id, host, port, peer_port.',
    ),
    (
        '[{"id": "lock-1", "id": "lock-2", "host": "h", "port": 1, "peer_port": 2}]',
        'RAFT_PEERS line 1, column 19: the field "id" stands twice in the object.',
    ),
    (
        one(port="8000"),
        'RAFT_PEERS line 1, column 40: "port" must be a number from 1 to 65535, found "8000".',
    ),
    (
        one(port=True),
        'RAFT_PEERS line 1, column 40: "port" must be a number from 1 to 65535, found true.',
    ),
    (
        one(port=80.5),
        'RAFT_PEERS line 1, column 40: "port" must be a number from 1 to 65535, found 80.5.',
    ),
    (
        one(port=0),
        'RAFT_PEERS line 1, column 40: "port" must be from 1 to 65535, found 0.',
    ),
    (
        one(peer_port=70000),
        'RAFT_PEERS line 1, column 59: "peer_port" must be from 1 to 65535, found 70000.',
    ),
    (
        one(peer_port=8000),
        'RAFT_PEERS line 1, column 59: "peer_port" is 8000, the same as "port": '
        "expected another one.",
    ),
    (
        one(id=7),
        'RAFT_PEERS line 1, column 9: "id" must be a string, found 7.',
    ),
    (
        one(id="Lock_1"),
        "RAFT_PEERS line 1, column 9: \"id\" must be 1 to 63 characters of a-z, 0-9 and '-', "
        'like lock-1, found "Lock_1".',
    ),
    (
        one(host="http://lock-1"),
        'RAFT_PEERS line 1, column 27: "host" must be a host name or an address, '
        'found "http://lock-1".',
    ),
    (
        f"[{ONE}, {ONE}]",
        'RAFT_PEERS line 1, column 74: the id "lock-1" stands twice (nodes 1 and 2 of the list).',
    ),
    (
        json.dumps(peers("lock", 11)),
        "RAFT_PEERS line 1, column 1: expected at most 9 nodes, found 11.",
    ),
    (
        "[" + " " * 65_536 + "]",
        "RAFT_PEERS line 1, column 1: expected at most 65536 characters, found 65538.",
    ),
    (
        '[{"id": ' + "9" * 5_000 + "}]",
        'RAFT_PEERS line 1, column 9: expected a value for "id", found a number that is too long.',
    ),
    (
        "[" * 50_000,
        "RAFT_PEERS line 1, column 2: expected an object {…} for a node, found an array.",
    ),
    (
        json.dumps(peers("lock", 2)),
        "RAFT_PEERS: expected an odd number of lock nodes, found 2: an even one tolerates no more "
        "failures than one node less.",
    ),
]


@pytest.mark.parametrize(("value", "line"), BAD_PEERS, ids=range(len(BAD_PEERS)))
def test_bad_raft_peers__one_line_with_place_expectation_and_example(
    value: str | None, line: str
) -> None:
    assert report(check(good(RAFT_PEERS=value))) == f"{line} {RAFT_EXAMPLE}"


BAD_VALUES = [
    ({"NODE_ID": None}, "NODE_ID is not set: expected 1 to 63 characters of a-z, 0-9 and '-', "
     "like lock-1. Example: NODE_ID=lock-1"),
    ({"NODE_ID": "lock 1"}, "NODE_ID: expected 1 to 63 characters of a-z, 0-9 and '-', like "
     'lock-1, found "lock 1". Example: NODE_ID=lock-1'),
    ({"NODE_ID": "lock-9"}, 'NODE_ID: "lock-9" is in none of RAFT_PEERS, QUEUE_NODES, '
     "CACHE_PEERS: expected one of lock-1, lock-2, lock-3, queue-1, queue-2, queue-3, cache-1, "
     "cache-2. Example: NODE_ID=lock-1"),
    ({"NODE_ID": "queue-2"}, "NODE_ROLE is lock, but QUEUE_NODES lists queue-2: expected queue. "
     "Example: NODE_ROLE=lock"),
    ({"NODE_ROLE": "leader"}, 'NODE_ROLE: expected one of lock, queue, cache, found "leader". '
     "Example: NODE_ROLE=lock"),
    ({"DATA_DIR": ""}, "DATA_DIR is empty: expected a directory. Example: DATA_DIR=/data"),
    ({"DATA_DIR": __file__}, f"DATA_DIR: expected a directory, but {__file__} is a file. "
     "Example: DATA_DIR=/data"),
    ({"BIND_HOST": "a b"}, 'BIND_HOST: expected an address or a host name, found "a b". '
     "Example: BIND_HOST=0.0.0.0"),
    ({"BIND_HOST": "0.0.0.0", "CLUSTER_SECRET": None}, "CLUSTER_SECRET is not set, but BIND_HOST "
     "is 0.0.0.0, which other machines may reach: expected 16 to 256 printable ASCII characters "
     "without spaces. Example: CLUSTER_SECRET=the output of: openssl rand -hex 32"),
    ({"CLUSTER_SECRET": "hunter2"}, "CLUSTER_SECRET: expected 16 to 256 printable ASCII characters "
     "without spaces, found 7 characters. "
     "Example: CLUSTER_SECRET=the output of: openssl rand -hex 32"),
    ({"NODE_ID": "cache-1", "NODE_ROLE": "cache"}, "MEMORY_URL is not set: a cache node needs "
     "redis://[:password@]host[:port][/db] or sqlite:///path. "
     "Example: MEMORY_URL=sqlite:////data/memory.db"),
    ({"MEMORY_URL": "http://u:hunter2@x"}, "MEMORY_URL: expected "
     "redis://[:password@]host[:port][/db] or sqlite:///path, found a value with another scheme. "
     "Example: MEMORY_URL=sqlite:////data/memory.db"),
    ({"MEMORY_URL": "redis://:hunter2@h:99999/0"}, "MEMORY_URL: expected "
     "redis://[:password@]host[:port][/db] or sqlite:///path, found a URL whose host or port "
     "cannot be read. Example: MEMORY_URL=sqlite:////data/memory.db"),
    ({"MEMORY_URL": "redis://:hunter2@h/db"}, "MEMORY_URL: expected "
     "redis://[:password@]host[:port][/db] or sqlite:///path, found a redis URL whose database is "
     "not a number. Example: MEMORY_URL=sqlite:////data/memory.db"),
    ({"MEMORY_URL": "redis://"}, "MEMORY_URL: expected redis://[:password@]host[:port][/db] or "
     "sqlite:///path, found a redis URL without a host or with port 0. "
     "Example: MEMORY_URL=sqlite:////data/memory.db"),
    ({"MEMORY_URL": "sqlite://memory.db"}, "MEMORY_URL: expected "
     "redis://[:password@]host[:port][/db] or sqlite:///path, found a sqlite URL without a path. "
     "Example: MEMORY_URL=sqlite:////data/memory.db"),
    ({"MEMORY_URL": "sqlite:////data/a?b"}, "MEMORY_URL: expected "
     "redis://[:password@]host[:port][/db] or sqlite:///path, found a '?' or '#': write %3F or "
     "%23 in a path. Example: MEMORY_URL=sqlite:////data/memory.db"),
    ({"CLUSTER_ID": "a b"}, "CLUSTER_ID: expected 1 to 128 of a-z A-Z 0-9 . _ / -, found "
     '"a b". Example: CLUSTER_ID=demo'),
    ({"HEARTBEAT_MS": "fast"}, "HEARTBEAT_MS: expected a whole number from 10 to 10000, found "
     '"fast". Example: HEARTBEAT_MS=50'),
    ({"HEARTBEAT_MS": "50.0"}, "HEARTBEAT_MS: expected a whole number from 10 to 10000, found "
     '"50.0". Example: HEARTBEAT_MS=50'),
    ({"HEARTBEAT_MS": "5"}, "HEARTBEAT_MS: expected 10 to 10000, found 5. "
     "Example: HEARTBEAT_MS=50"),
    ({"HEARTBEAT_MS": "150"}, "ELECTION_MIN_MS: expected more than twice HEARTBEAT_MS, 300, found "
     "300: one late heartbeat must not start an election. Example: ELECTION_MIN_MS=300"),
    ({"ELECTION_MAX_MS": "449"}, "ELECTION_MAX_MS: expected at least 1.5 times ELECTION_MIN_MS, "
     "450, found 449: too small a span splits votes. Example: ELECTION_MAX_MS=900"),
    ({"PARTITIONS": "0"}, "PARTITIONS: expected 1 to 256, found 0. Example: PARTITIONS=32"),
    ({"REPLICATION_FACTOR": "2"}, "REPLICATION_FACTOR: expected an odd number from 1 to 5, found "
     "2. Example: REPLICATION_FACTOR=3"),
    ({"REPLICATION_FACTOR": "5"}, "REPLICATION_FACTOR: expected at most the number of queue nodes, "
     "3, found 5. Example: REPLICATION_FACTOR=3"),
    ({"CACHE_CAPACITY_MIB": "-1"}, "CACHE_CAPACITY_MIB: expected 1 to 65536, found -1. "
     "Example: CACHE_CAPACITY_MIB=64"),
    ({"CACHE_LEASE_MS": "1s"}, "CACHE_LEASE_MS: expected a whole number from 100 to 60000, found "
     '"1s". Example: CACHE_LEASE_MS=1000'),
    ({"SNAPSHOT_EVERY_ENTRIES": "1"}, "SNAPSHOT_EVERY_ENTRIES: expected 10 to 10000000, found 1. "
     "Example: SNAPSHOT_EVERY_ENTRIES=50000"),
    ({"LOG_LEVEL": "INFO"}, "LOG_LEVEL: expected one of debug, info, warning, error, found "
     '"INFO". Example: LOG_LEVEL=info'),
    ({"LOG_FORMAT": "xml"}, 'LOG_FORMAT: expected one of text, json, found "xml". '
     "Example: LOG_FORMAT=json"),
    ({"AUTH_TOKENS": "[]"}, "AUTH_TOKENS line 1, column 1: the list is empty, so nobody could "
     "enter: expected at least one token. " + TOKENS_EXAMPLE),
    ({"FEATURE_LEVEL_MAX": "0"}, "FEATURE_LEVEL_MAX: expected newest, or a level from 1 to "
     f'{FEATURE_LEVEL}, found "0". Example: FEATURE_LEVEL_MAX=1'),
    ({"ALLOW_TEST_MODE": "yes"}, 'ALLOW_TEST_MODE: expected 0 or 1, found "yes". '
     "Example: ALLOW_TEST_MODE=1"),
    ({"TEST_MODE": "on", "ALLOW_TEST_MODE": "1"}, "TEST_MODE: expected one of split-vote, "
     'split-vote-no-backoff, found "on". Example: TEST_MODE=split-vote'),
    ({"TEST_MODE": "split-vote"}, "TEST_MODE is split-vote, which breaks elections on purpose: "
     "expected ALLOW_TEST_MODE=1 beside it in a test, and no TEST_MODE anywhere else. "
     "Example: TEST_MODE=split-vote"),
    ({"TEST_MODE": "split-vote", "ALLOW_TEST_MODE": "1", "NODE_ID": "queue-1",
      "NODE_ROLE": "queue"}, "TEST_MODE is set on a queue node: expected it on lock nodes alone. "
     "Example: TEST_MODE=split-vote"),
    ({"QUEUE_NODES": None}, "QUEUE_NODES is not set: expected a JSON array of 0 to 9 "
     '{id, host, port, peer_port}. Example: QUEUE_NODES=[{"id": "queue-1", "host": "queue-1", '
     '"port": 8000, "peer_port": 9000}]'),
    ({"CACHE_PEERS": json.dumps(peers("lock", 1))}, 'CACHE_PEERS: the id "lock-1" is also in '
     'RAFT_PEERS. Example: CACHE_PEERS=[{"id": "cache-1", "host": "cache-1", "port": 8000, '
     '"peer_port": 9000}]'),
    ({"CACHE_PEERS": one(id="cache-1", host="lock-1", peer_port=9001)}, "CACHE_PEERS: cache-1 and "
     'lock-1 both have lock-1:8000. Example: CACHE_PEERS=[{"id": "cache-1", "host": "cache-1", '
     '"port": 8000, "peer_port": 9000}]'),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "line"), BAD_VALUES, ids=range(len(BAD_VALUES)))
def test_bad_value__one_line(changes: dict[str, str | None], line: str) -> None:
    assert report(check(good(**changes))) == line


def test_every_variable_of_a_node__has_a_bad_value_in_these_tables() -> None:
    seen = {"RAFT_PEERS"} | {line.split()[0].rstrip(":") for _, line in BAD_VALUES}
    assert {v.name for v in VARIABLES if v.scope != "stack"} <= seen


def test_test_mode_with_permission__taken_and_off_by_default() -> None:
    assert load_node_config(good()).test_mode == ""
    config = load_node_config(good(ALLOW_TEST_MODE="1", TEST_MODE="split-vote-no-backoff"))
    assert config.test_mode == "split-vote-no-backoff"


def test_several_bad_values__all_reported_at_once_in_table_order() -> None:
    bad = good(LOG_LEVEL="loud", NODE_ID=None, RAFT_PEERS="[", PARTITIONS="x")
    names = [problem.variable for problem in check(bad)]
    assert names == ["NODE_ID", "RAFT_PEERS", "PARTITIONS", "LOG_LEVEL"]


def test_several_faults_in_one_list__each_with_its_place() -> None:
    value = '[{"id": "lock-1", "host": 1, "port": 0, "peer_port": 9000},\n {"id": ""}]'
    places = [(p.line, p.column) for p in check(good(RAFT_PEERS=value))]
    assert places == [(1, 27), (1, 38), (2, 2), (2, 9)]


def test_good_environment__loads_with_defaults_and_types() -> None:
    config = load_node_config(good(PARTITIONS=" 8 ", HEARTBEAT_MS=""))
    assert (config.node_id, config.role, config.partitions, config.heartbeat_ms) == (
        "lock-1", "lock", 8, 50,
    )  # fmt: skip
    assert [peer.id for peer in config.peers][:4] == ["lock-1", "lock-2", "lock-3", "queue-1"]
    assert config.me.peer_port == 9000


def test_load_with_problems__raises_one_error_with_all_lines() -> None:
    with pytest.raises(ConfigProblem) as caught:
        load_node_config(good(NODE_ROLE="x", LOG_FORMAT="y"))
    assert [line.split(":")[0] for line in str(caught.value).splitlines()] == [
        "NODE_ROLE", "LOG_FORMAT",
    ]  # fmt: skip


def test_value_from_file__read_and_named_in_problems(tmp_path: Path) -> None:
    file = tmp_path / "peers.json"
    file.write_text(json.dumps(peers("lock", 1)) + "\n")
    environ = good(RAFT_PEERS=None, RAFT_PEERS_FILE=str(file))
    assert len(load_node_config(environ).raft_peers) == 1
    file.write_text("[\n  {]")
    assert report(check(environ)) == (
        'RAFT_PEERS line 2, column 4: expected a field name in double quotes, found "]" '
        f"(file {file}). {RAFT_EXAMPLE}"
    )
    file.write_text("\n")
    assert "the file is empty" in report(check(environ))
    file.write_bytes(b"\xff\xfe[")
    assert f"{file} is not UTF-8 text" in report(check(environ))
    file.unlink()
    assert report(check(environ)) == (
        f"RAFT_PEERS: RAFT_PEERS_FILE: {file} does not exist: expected a readable file. "
        f"{RAFT_EXAMPLE}"
    )


def test_value_and_file_both_set__problem() -> None:
    environ = good(CLUSTER_SECRET_FILE="/run/secrets/cluster")
    assert report(check(environ)).startswith(
        "CLUSTER_SECRET: CLUSTER_SECRET and CLUSTER_SECRET_FILE are both set: expected one of them."
    )


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost", ""])
def test_loopback_without_a_secret__accepted(host: str) -> None:
    assert check(good(BIND_HOST=host, CLUSTER_SECRET=None)) == []


@pytest.mark.parametrize("host", ["10.0.0.1", "::", "127.example.org"])
def test_reachable_address_without_a_secret__refused(host: str) -> None:
    assert [p.variable for p in check(good(BIND_HOST=host, CLUSTER_SECRET=None))] == [
        "CLUSTER_SECRET"
    ]


def test_secrets__never_printed() -> None:
    secret = "correct-horse-battery"
    environ = good(CLUSTER_SECRET=secret, MEMORY_URL=f"redis://:{secret}@h:6379/0")
    assert secret not in repr(load_node_config(environ))
    for name in ("CLUSTER_SECRET", "MEMORY_URL"):
        bad = good(**{name: f"{secret} with spaces\u00e9"})
        assert secret not in report(check(bad))
        assert report(check(bad))


def test_env_file_origin__line_of_the_file_in_the_message() -> None:
    lines = report(check(good(RAFT_PEERS="[{]"), env_file=(".env", {"RAFT_PEERS": 12})))
    assert lines == (
        'RAFT_PEERS line 1, column 3: expected a field name in double quotes, found "]" '
        f"(.env line 12). {RAFT_EXAMPLE}"
    )


def test_broken_env_file__every_problem_with_its_line() -> None:
    text = "\n".join(
        [
            "# comment",
            "RAFT_PEERS=[{",
            f"QUEUE_NODES={json.dumps(peers('queue', 3))}",
            f"CACHE_PEERS={json.dumps(peers('cache', 2))}",
            "HEARTBEATS_MS=50",
            "REDIS_PASSWORD=short",
            "just words",
        ]
    )
    found = [str(problem) for problem in check_env_file(parse_env(text))]
    assert found == [
        '.env: expected NAME=value, found "just words" (.env line 7).',
        "RAFT_PEERS line 1, column 3: expected a field name in double quotes, found the end "
        f"(.env line 2). {RAFT_EXAMPLE}",
        "CLUSTER_SECRET is not set: containers listen for other machines. "
        "Example: CLUSTER_SECRET=the output of: openssl rand -hex 32",
        "REDIS_PASSWORD: expected 8 to 128 characters of a-z, A-Z, 0-9 and . _ ~ - (it becomes "
        "part of a URL), found 5 characters (.env line 6). "
        "Example: REDIS_PASSWORD=the output of: openssl rand -hex 16",
        "HEARTBEATS_MS: unknown variable; did you mean HEARTBEAT_MS (.env line 5).",
    ]


def test_env_file_that_does_not_fit_the_compose_file__says_what_differs() -> None:
    text = "\n".join(
        [
            f"RAFT_PEERS={json.dumps(peers('lock', 1))}",
            f"QUEUE_NODES={json.dumps(peers('queue', 3, 8010))}",
            f"CACHE_PEERS={json.dumps(peers('cache', 2))}",
            "CLUSTER_SECRET=0123456789abcdef",
            "REDIS_PASSWORD=0123456789abcdef",
        ]
    )
    found = [str(problem).split(" (")[0] for problem in check_env_file(parse_env(text))]
    assert found[:3] == [
        "RAFT_PEERS lacks lock-2, which docker/docker-compose.yml starts",
        "RAFT_PEERS lacks lock-3, which docker/docker-compose.yml starts",
        "QUEUE_NODES: queue-1 has the ports 8010 and 9010: in containers nodes listen on 8000 and "
        "9000",
    ]
