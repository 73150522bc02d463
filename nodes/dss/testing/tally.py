"""The simplest replicated machine: it remembers every command id and a hash chain over them.

Strong for checking consensus: a lost, doubled or reordered command changes the chain.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import msgspec

from dss.base.levels import BASE_LEVEL
from dss.core.machine import CommandCodec, Result, Wake


class Add(msgspec.Struct, frozen=True):
    """Remember `ident`; `padding` makes entries as large as the workload wants."""

    ident: int
    padding: bytes = b""


class _State(msgspec.Struct, array_like=True):
    idents: list[int]
    chain: bytes
    noops: int
    level: int = BASE_LEVEL


class Tally:
    """Implements core.machine.Machine. From level 2 on every link of its chain holds the level."""

    def __init__(self) -> None:
        self.codec = CommandCodec({"add": Add})
        self.level = BASE_LEVEL
        self.idents: list[int] = []
        self.chain = b""
        self.noops = 0

    def apply(self, index: int, log_ms: int, commands: Sequence[Any]) -> list[Result]:
        results: list[Result] = []
        for command in commands:
            link = command.ident.to_bytes(8, "big")
            if self.level >= 2:
                link += self.level.to_bytes(2, "big")
            self.chain = hashlib.blake2b(self.chain + link, digest_size=8).digest()
            self.idents.append(command.ident)
            results.append((200, len(self.idents)))
        return results

    def take_wakes(self) -> list[Wake]:
        return []

    def leader_changed(self, index: int, log_ms: int) -> None:
        self.noops += 1

    def set_level(self, index: int, log_ms: int, level: int) -> None:
        self.level = level

    def next_due_ms(self) -> int | None:
        return None

    def due(self, log_ms: int) -> list[Any]:
        return []

    def snapshot(self) -> bytes:
        return msgspec.msgpack.encode(_State(self.idents, self.chain, self.noops, self.level))

    def restore(self, data: bytes) -> None:
        state = msgspec.msgpack.decode(data, type=_State)
        self.idents, self.chain, self.noops = state.idents, state.chain, state.noops
        self.level = state.level

    def check_invariants(self) -> None:
        assert len(set(self.idents)) == len(self.idents), "a command was applied twice"
