"""Peer lists: strict JSON arrays of `{id, host, port, peer_port}`, with the place of every fault.

What must not live here: reading JSON (jsonlist.py), the environment, rules between several
variables.
"""

from __future__ import annotations

import re
from typing import Any, Final

from dss.base.limits import NODES_PER_ROLE_MAX, PEER_LIST_CHARS_MAX
from dss.topology.jsonlist import Fault, Fields, ListReader, show
from dss.topology.nodes import NodeSpec

ID_PATTERN: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
"""A DNS label: a node's id is also its container's, its pod's and its metrics' name."""
ID_EXPECTED: Final = "1 to 63 characters of a-z, 0-9 and '-', like lock-1"
_HOST_PATTERN: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._:-]{0,251}[A-Za-z0-9])?|::1?")


def parse_peers(text: str) -> tuple[tuple[NodeSpec, ...], list[Fault]]:
    """Read one peer list; every fault with its place.

    Returns:
        The nodes whose entries are right, and all faults (after a syntax error: the first only,
        with those found before it).
    """
    reader = _PeerReader(text)
    if not reader.read(chars_max=PEER_LIST_CHARS_MAX):
        return (), reader.faults
    nodes = reader.nodes
    if len(nodes) > NODES_PER_ROLE_MAX:
        reader.fault(0, f"expected at most {NODES_PER_ROLE_MAX} nodes, found {len(nodes)}")
    return tuple(nodes), reader.faults


class _PeerReader(ListReader):
    fields = ("id", "host", "port", "peer_port")
    noun = "node"

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.nodes: list[NodeSpec] = []
        self._ids: dict[str, int] = {}

    def accept(self, fields: Fields) -> None:
        node = NodeSpec(**{name: fields[name][0] for name in self.fields})
        if node.id in self._ids:
            self.fault(
                fields["id"][1], f'the id "{node.id}" stands twice (nodes {self._ids[node.id]} and '
                f"{len(self.nodes) + 1} of the list)"
            )  # fmt: skip
        elif node.port == node.peer_port:
            self.fault(
                fields["peer_port"][1], f'"peer_port" is {node.port}, the same as "port": '
                "expected another one"
            )  # fmt: skip
        self._ids.setdefault(node.id, len(self.nodes) + 1)
        self.nodes.append(node)

    def check(self, name: str, value: Any, at: int) -> None:
        if name in ("port", "peer_port"):
            if not isinstance(value, int) or isinstance(value, bool):
                self.fault(at, f'"{name}" must be a number from 1 to 65535, found {show(value)}')
            elif not 1 <= value <= 65_535:
                self.fault(at, f'"{name}" must be from 1 to 65535, found {show(value)}')
        elif not isinstance(value, str):
            self.fault(at, f'"{name}" must be a string, found {show(value)}')
        elif name == "id" and not ID_PATTERN.fullmatch(value):
            self.fault(at, f'"id" must be {ID_EXPECTED}, found {show(value)}')
        elif name == "host" and not _HOST_PATTERN.fullmatch(value):
            self.fault(at, f'"host" must be a host name or an address, found {show(value)}')
