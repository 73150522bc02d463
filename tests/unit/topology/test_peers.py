"""The peer-list reader against the standard decoder, on damaged texts."""

from __future__ import annotations

import json
import random

from dss.topology.peers import parse_peers

GOOD = (
    '[{"id": "lock-1", "host": "10.0.0.1", "port": 8000, "peer_port": 9000},\n'
    ' {"id": "lock-2", "host": "::1", "port": 8001, "peer_port": 9001}]'
)
PIECES = ["", "[", "]", "{", "}", ",", ":", '"', "'", "\\", "\n", "\t", "0", "-", "1e5", "true",
          "null", '"id"', "\u00e9", "\ud800", "\x00", "NaN", " "]  # fmt: skip


def damaged(rng: random.Random) -> str:
    text = GOOD
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(text) + 1)
        text = text[:at] + rng.choice(PIECES) + text[at + rng.randint(0, 4) :]
    return text


def is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def test_damaged_list__never_accepted_unless_it_is_json_and_every_fault_has_a_place() -> None:
    rng = random.Random(3)
    refused = 0
    for _ in range(5_000):
        text = damaged(rng)
        nodes, faults = parse_peers(text)
        if not is_json(text):
            assert faults, text
        refused += bool(faults)
        rows = text.split("\n")
        for fault in faults:
            assert 1 <= fault.line <= len(rows)
            assert 1 <= fault.column <= len(rows[fault.line - 1]) + 1
            assert "\n" not in fault.message
            fault.message.encode("utf-8")
        if not faults:
            assert [node.id for node in nodes] == [item["id"] for item in json.loads(text)]
    assert refused > 4_000


def test_good_list__nodes_in_order() -> None:
    nodes, faults = parse_peers(GOOD)
    assert faults == []
    assert [(node.id, node.host, node.port, node.peer_port) for node in nodes] == [
        ("lock-1", "10.0.0.1", 8000, 9000),
        ("lock-2", "::1", 8001, 9001),
    ]
