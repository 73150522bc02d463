"""A replicated machine with a witness: what it was given and what it answered, command by command.

Wraps the real machine on every simulated node. Whoever applies an index first shows it to the
workload's rules; everybody else must have given the same answers (state machine safety, seen from
outside). What must not live here: what the answers should be.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import msgspec

from dss.core.machine import CommandCodec, Machine, PiecewiseMachine, Result, Wake

_encode = msgspec.msgpack.Encoder().encode

STATE_EVERY = 64
"""Every so many entries the whole state is compared, by the hash of its snapshot."""


class Rules(Protocol):
    """What a workload checks in the order of the log, once per index."""

    def leader_changed(self, index: int, log_ms: int) -> None: ...

    def level_raised(self, index: int, log_ms: int, level: int) -> None: ...

    def applied(
        self, index: int, log_ms: int, steps: Sequence[tuple[Any, Result, Sequence[Wake]]]
    ) -> None:
        """(command, its result, the wakes it caused), in order."""


class Witness:
    """One group's log as far as anybody has applied it."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.top = 0
        self._answers: dict[int, bytes] = {}
        self._states: dict[int, bytes] = {}

    def seen(self, node: str, index: int, answers: bytes) -> bool:
        """True: nobody has applied `index` before."""
        digest = hashlib.blake2b(answers, digest_size=8).digest()
        earlier = self._answers.setdefault(index, digest)
        assert earlier == digest, f"{node} answers differently at index {index}"
        if index > self.top:
            self.top = index
            return True
        return False

    def state(self, node: str, index: int, data: bytes) -> None:
        digest = hashlib.blake2b(data, digest_size=8).digest()
        earlier = self._states.setdefault(index, digest)
        assert earlier == digest, f"{node} has another state at index {index}"


class _Watched(list[Any]):
    """The commands of an entry; tells when the machine goes on to the next one."""

    def __init__(self, commands: Sequence[Any], after: Callable[[], None]) -> None:
        super().__init__(commands)
        self._after = after

    def __iter__(self) -> Iterator[Any]:
        for command in super().__iter__():
            yield command
            self._after()


class Observed:
    """Implements core.machine.Machine around another one."""

    def __init__(self, node: str, inner: Machine, witness: Witness) -> None:
        self.codec: CommandCodec = inner.codec
        self.inner = inner
        self._node = node
        self._witness = witness
        self._wakes: list[Wake] = []

    def apply(self, index: int, log_ms: int, commands: Sequence[Any]) -> list[Result]:
        caused: list[list[Wake]] = []
        watched = _Watched(commands, lambda: caused.append(list(self.inner.take_wakes())))
        results = self.inner.apply(index, log_ms, watched)
        assert len(caused) == len(results) == len(commands)
        caused[-1] += self.inner.take_wakes()  # what came of the entry as a whole
        for wakes in caused:
            self._wakes.extend(wakes)
        if self._witness.seen(self._node, index, _encode((log_ms, results, caused))):
            steps = list(zip(commands, results, caused, strict=True))
            self._witness.rules.applied(index, log_ms, steps)
        if index % STATE_EVERY == 0:
            self._witness.state(self._node, index, self.inner.snapshot())
        return results

    def take_wakes(self) -> list[Wake]:
        wakes, self._wakes = self._wakes, []
        return wakes

    def leader_changed(self, index: int, log_ms: int) -> None:
        self.inner.leader_changed(index, log_ms)
        self._wakes.extend(self.inner.take_wakes())
        if self._witness.seen(self._node, index, _encode((log_ms, "leader"))):
            self._witness.rules.leader_changed(index, log_ms)

    @property
    def level(self) -> int:
        return self.inner.level

    def set_level(self, index: int, log_ms: int, level: int) -> None:
        self.inner.set_level(index, log_ms, level)
        if self._witness.seen(self._node, index, _encode((log_ms, "level", level))):
            self._witness.rules.level_raised(index, log_ms, level)

    def next_due_ms(self) -> int | None:
        return self.inner.next_due_ms()

    def due(self, log_ms: int) -> list[Any]:
        return self.inner.due(log_ms)

    def snapshot(self) -> bytes:
        return self.inner.snapshot()

    def restore(self, data: bytes) -> None:
        self.inner.restore(data)

    def check_invariants(self) -> None:
        self.inner.check_invariants()


class ObservedInPieces(Observed):
    """Implements core.machine.PiecewiseMachine too, around one that does."""

    def snapshot_rows(self) -> int:
        assert isinstance(self.inner, PiecewiseMachine)
        return self.inner.snapshot_rows()

    def snapshot_pieces(self) -> Iterator[bytes]:
        assert isinstance(self.inner, PiecewiseMachine)
        return self.inner.snapshot_pieces()
