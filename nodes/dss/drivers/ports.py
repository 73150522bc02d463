"""What the services use of the consensus driver: protocols, implemented by `host.py`.

Services never touch the engine or the WAL: they submit commands, ask for linearizable reads,
and are told about roles.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

import msgspec


class Sink(Protocol):
    """Where answers go: a stream connection, an HTTP multiplexer, a peer link."""

    def answer(self, request_id: int, status: int, body: Any) -> None:
        """Called once per submitted request id. Must not block and must not raise."""

    def flush(self) -> None:
        """Called at the end of each engine cycle in which `answer` was called."""


class Consensus(Protocol):
    """Submit to any group of this node; followers forward to the leader over the peer link.

    Errors arrive as answers: 503 `no_quorum` (nothing happened), 504 `indeterminate`
    (unknown outcome), 429/503 `overloaded`.
    """

    def submit(
        self,
        group: int,
        request_ids: Sequence[int],
        items: bytes,
        commands: Sequence[Any],
        sink: Sink,
    ) -> None:
        """Propose validated commands.

        Args:
            items: the msgpack bytes of the items `[request_id, op, args]`, joined, no header.
            commands: the same items' args, decoded by the machine's codec, in the same order.
        """

    def call(self, group: int, command: msgspec.Struct) -> Awaitable[tuple[int, Any]]:
        """Submit one command of the group's codec; (status, body), errors included."""
        ...

    def read(self, group: int) -> Awaitable[None]:
        """A linearizable point: when it returns, the *local* machine of `group` (this node must
        be its leader) may be read. Raises NoQuorum (with `leader` in extra) otherwise."""
        ...

    def leader_of(self, group: int) -> str | None:
        """The leader's node id as far as this node knows; None: unknown or no such group."""
        ...

    def is_leader(self, group: int) -> bool: ...

    def machine(self, group: int) -> Any:
        """This node's machine of `group`. KeyError when this node has no such group."""
        ...

    def log_ms(self, group: int) -> int:
        """The log time now, as the leader would stamp it; on followers the last applied."""
        ...

    def create_group(self, group: int, configuration: Any, machine: Any) -> None:
        """Found `group` on this node with its first configuration (a no-op if it exists)."""

    def open_group(self, group: int, machine: Any) -> bool:
        """Start `group` from what recovery found; False when nothing was recovered for it."""
        ...

    def has_recovered(self) -> dict[int, Any]:
        """Recovered groups that nobody has opened yet: group id -> its GroupState."""
        ...

    def on_role(self, listener: Callable[[int, str, int, str | None], None]) -> None:
        """listener(group, role, term, leader) on every change on this node."""

    def on_applied(self, group: int, listener: Callable[[], None]) -> None:
        """listener() at the end of each cycle in which entries of `group` were applied here."""

    def group_status(self) -> list[dict[str, Any]]:
        """The `groups` of `GET /v1/raft/status`."""
        ...

    def waits_here(self, group: int) -> list[tuple[int, int]]:
        """Places (entry index, position) of the requests of this node's own clients that wait
        inside the machine of `group`."""
        ...

    def transfer(self, group: int, target: str | None) -> None:
        """Hand the leadership of `group` to `target` (None: the most caught-up voter)."""


class StreamSink(Sink, Protocol):
    """A client's stream connection, whose unanswered requests are bounded (api/stream.py)."""

    def take(self, request_ids: Sequence[int]) -> int:
        """Announce the requests of one message, before any of them is answered.

        Returns:
            How many of them, from the first, may go on; the rest must be answered 429.

        Raises:
            Invalid: an id is 0, or still unanswered: the stream cannot go on.
        """
        ...
