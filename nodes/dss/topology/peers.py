"""Peer lists: strict JSON arrays of `{id, host, port, peer_port}`, with the place of every fault.

The standard decoder knows the place of a syntax error, not that of a wrong field; this reader walks
the two fixed levels (array, object) itself and leaves strings and numbers to the standard decoder.
What must not live here: the environment, rules between several variables.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

import msgspec

from dss.base.limits import NODES_PER_ROLE_MAX, PEER_LIST_CHARS_MAX
from dss.topology.nodes import NodeSpec

FIELDS: Final = ("id", "host", "port", "peer_port")
ID_PATTERN: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
"""A DNS label: a node's id is also its container's, its pod's and its metrics' name."""
ID_EXPECTED: Final = "1 to 63 characters of a-z, 0-9 and '-', like lock-1"
_HOST_PATTERN: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._:-]{0,251}[A-Za-z0-9])?|::1?")
_SPACE: Final = " \t\r\n"
_DECODER: Final = json.JSONDecoder()
_TYPE_NAMES: Final = {"[": "an array", "{": "an object", '"': "a string"}


class Fault(msgspec.Struct, frozen=True):
    """What is wrong at one place of a value; line and column count from 1."""

    line: int
    column: int
    message: str


class _Stop(Exception):
    """The text cannot be read any further."""


def show(value: object) -> str:
    """`value` as it may be printed: short, ASCII, on one line."""
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "…"


def parse_peers(text: str) -> tuple[tuple[NodeSpec, ...], list[Fault]]:
    """Read one peer list; every fault with its place.

    Returns:
        The nodes whose entries are right, and all faults (after a syntax error: the first only,
        with those found before it).
    """
    reader = _Reader(text)
    if len(text) > PEER_LIST_CHARS_MAX:
        reader.fault(0, f"expected at most {PEER_LIST_CHARS_MAX} characters, found {len(text)}")
        return (), reader.faults
    try:
        nodes = reader.array()
    except _Stop:
        return (), reader.faults
    if len(nodes) > NODES_PER_ROLE_MAX:
        reader.fault(0, f"expected at most {NODES_PER_ROLE_MAX} nodes, found {len(nodes)}")
    return tuple(nodes), reader.faults


class _Reader:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.faults: list[Fault] = []

    def fault(self, at: int, message: str) -> None:
        before = self.text[:at]
        line = before.count("\n") + 1
        self.faults.append(Fault(line, at - (before.rfind("\n") + 1) + 1, message))

    def stop(self, at: int, message: str) -> _Stop:
        self.fault(at, message)
        return _Stop()

    def peek(self) -> str:
        """The next character that is not white space; '' at the end."""
        while self.at < len(self.text) and self.text[self.at] in _SPACE:
            self.at += 1
        return self.text[self.at : self.at + 1]

    def found(self) -> str:
        """What stands here, for a message."""
        mark = self.peek()
        if mark in _TYPE_NAMES:
            return _TYPE_NAMES[mark]
        if not mark:
            return "the end"
        word = re.match(r"[-+.\w]+", self.text[self.at :])
        return show(word.group()[:40] if word else mark)

    def array(self) -> list[NodeSpec]:
        if self.peek() != "[":
            raise self.stop(
                self.at, f"expected a JSON array of nodes, starting with '[', found {self.found()}"
            )
        self.at += 1
        nodes: list[NodeSpec] = []
        ids: dict[str, int] = {}
        if self.peek() == "]":
            self.at += 1
        else:
            while True:
                self._element(nodes, ids)
                mark = self.peek()
                if mark not in (",", "]"):
                    raise self.stop(
                        self.at, f"expected ',' or ']' after the object, found {self.found()}"
                    )
                self.at += 1
                if mark == "]":
                    break
        if self.peek():
            raise self.stop(
                self.at, f"expected nothing after the closing ']', found {self.found()}"
            )
        return nodes

    def _element(self, nodes: list[NodeSpec], ids: dict[str, int]) -> None:
        if self.peek() != "{":
            raise self.stop(self.at, f"expected an object {{…}} for a node, found {self.found()}")
        start, faults_before = self.at, len(self.faults)
        fields = self._object()
        missing = [name for name in FIELDS if name not in fields]
        if missing:
            names = ", ".join(f'"{name}"' for name in missing)
            self.fault(start, f"the object lacks {names}")
        for name, (value, at) in fields.items():
            self._check(name, value, at)
        if len(self.faults) > faults_before:
            return
        node = NodeSpec(**{name: fields[name][0] for name in FIELDS})
        if node.id in ids:
            self.fault(
                fields["id"][1], f'the id "{node.id}" stands twice (nodes {ids[node.id]} and '
                f"{len(nodes) + 1} of the list)"
            )  # fmt: skip
        elif node.port == node.peer_port:
            self.fault(
                fields["peer_port"][1], f'"peer_port" is {node.port}, the same as "port": '
                "expected another one"
            )  # fmt: skip
        ids.setdefault(node.id, len(nodes) + 1)
        nodes.append(node)

    def _object(self) -> dict[str, tuple[Any, int]]:
        """The fields of the object at hand: name -> (value, its place)."""
        self.at += 1
        fields: dict[str, tuple[Any, int]] = {}
        if self.peek() == "}":
            self.at += 1
            return fields
        while True:
            if self.peek() != '"':
                raise self.stop(
                    self.at, f"expected a field name in double quotes, found {self.found()}"
                )
            name_at = self.at
            name = self._scalar("a field name")
            if self.peek() != ":":
                raise self.stop(
                    self.at, f"expected ':' after the field name {show(name)}, found {self.found()}"
                )
            self.at += 1
            self.peek()
            value_at = self.at
            value = self._scalar(f"a value for {show(name)}")
            if name in fields:
                self.fault(name_at, f"the field {show(name)} stands twice in the object")
            elif name not in FIELDS:
                self.fault(
                    name_at, f"unknown field {show(name)}: expected id, host, port, peer_port"
                )
            else:
                fields[name] = (value, value_at)
            mark = self.peek()
            if mark not in (",", "}"):
                raise self.stop(
                    self.at,
                    f"expected ',' or '}}' after the value of {show(name)}, found {self.found()}",
                )
            self.at += 1
            if mark == "}":
                return fields

    def _scalar(self, what: str) -> Any:
        mark = self.peek()
        if mark in ("[", "{"):
            raise self.stop(
                self.at, f"expected {what} (a string or a number), found {self.found()}"
            )
        if mark and mark not in '"-0123456789tfn':
            raise self.stop(self.at, f"expected {what}, found {self.found()}")
        try:
            value, self.at = _DECODER.raw_decode(self.text, self.at)
        except json.JSONDecodeError as error:
            if "escape" in error.msg.lower():
                message = "a string has an invalid escape after '\\'"
            elif error.msg.startswith("Unterminated"):
                message = "the string that starts here has no closing '\"'"
            elif error.msg.startswith("Invalid control"):
                message = "a string has a line break or a control character"
            else:
                message = f"expected {what}, found {self.found()}"
            raise self.stop(error.pos, message) from None
        except ValueError:  # more digits than Python converts
            raise self.stop(self.at, f"expected {what}, found a number that is too long") from None
        return value

    def _check(self, name: str, value: Any, at: int) -> None:
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
