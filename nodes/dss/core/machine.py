"""The contract of a replicated state machine, and the codec of its commands.

A log entry's payload is a msgpack array of items `[request_id, op, args]`: exactly what a client
sends on a stream, so that the leader logs the client's own bytes. `request_id` means nothing to
a machine; `args` is a msgpack map decoded into the struct registered for `op`.

What must not live here: any particular machine, any I/O.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, Protocol, runtime_checkable

import msgspec

from dss.base.errors import Invalid
from dss.base.levels import BASE_LEVEL

Result = tuple[int, Any]
"""(status, body): an HTTP status and a msgpack/JSON-able body; status >= 400 bodies carry
`code` and `message`."""

PENDING: Final[Result] = (0, None)
"""The command waits inside the machine (a lock waiter): its answer comes later as a Wake."""


class Wake(msgspec.Struct, frozen=True, gc=False):
    """The late answer to the command that stood at `position` in entry `index`."""

    index: int
    position: int
    status: int
    body: Any


class Machine(Protocol):
    """Deterministic: the same entries in the same order give the same state on every node.

    `apply` is called with decoded commands of one entry, in log order. Reads are plain methods
    of the concrete machine, called by the service after a ReadIndex round.
    """

    codec: CommandCodec

    @property
    def level(self) -> int:
        """The feature level (base/levels.py): what a machine does may differ by it, and by nothing
        else that differs between releases. A machine begins at BASE_LEVEL."""
        ...

    def apply(self, index: int, log_ms: int, commands: Sequence[Any]) -> list[Result]:
        """One result per command, in order. Never raises for any decodable command."""
        ...

    def take_wakes(self) -> list[Wake]:
        """Late answers that the last `apply` calls produced; empties the list."""
        ...

    def leader_changed(self, index: int, log_ms: int) -> None:
        """A new leader's no-op is applied: leases get their full length from `log_ms`."""
        ...

    def set_level(self, index: int, log_ms: int, level: int) -> None:
        """The level entry at `index` is applied: from here on the machine behaves as of `level`.

        It never falls. State that needs another shape is converted here, like in `apply`.
        """
        ...

    def next_due_ms(self) -> int | None:
        """The log time at which `due` will have something to do; None: nothing is scheduled."""
        ...

    def due(self, log_ms: int) -> list[Any]:
        """Commands (structs of the codec) that the leader should propose now, at most 1,000.

        None above the machine's level: other nodes could not decode it. They must be conditional
        (on a renewal count, a delivery id), so that a late or repeated one does nothing.
        """
        ...

    def snapshot(self) -> bytes:
        """The whole state, `level` included; `restore` on an empty machine gives an equal state.

        At BASE_LEVEL the bytes are those that a release without levels reads.
        """
        ...

    def restore(self, data: bytes) -> None: ...

    def check_invariants(self) -> None:
        """Raise AssertionError with the state's story when the state is impossible."""
        ...


@runtime_checkable
class PiecewiseMachine(Protocol):
    """A machine whose state may be so large that encoding it in one go would hold the loop up."""

    def snapshot_rows(self) -> int:
        """How large a snapshot would be, roughly: what is encoded one by one."""
        ...

    def snapshot_pieces(self) -> Iterator[bytes]:
        """The bytes of `Machine.snapshot`, a bounded amount of work at a time.

        They may be drawn in another thread. Until the last one is, nothing may be applied; after a
        `restore` in between they are worthless.
        """
        ...


@runtime_checkable
class PreparedMachine(Protocol):
    """A machine whose `restore` may take so long that it would hold the loop up."""

    def prepare(self, data: bytes) -> Callable[[], None]:
        """`Machine.restore` in two parts. This one only reads `data`, and may run in another
        thread while entries are applied; the call that it returns replaces the state, at once."""
        ...


def swap_state(machine: Any, fresh: Any, fields: Sequence[str]) -> None:
    """Give `machine` the state of `fresh`, which keeps the old one: to be freed in a thread."""
    for field in fields:
        old = getattr(machine, field)
        setattr(machine, field, getattr(fresh, field))
        setattr(fresh, field, old)


UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for bytes that are not what was asked for."""


class CommandCodec:
    """Typed encoding of command items.

    A command that came with a feature level says so, and is proposed at that level only:

        since_level: ClassVar[int] = 2                         the whole command
        field_levels: ClassVar[dict[str, int]] = {"fair": 2}   a field, when it is not its default

    A new field is for commands that refuse unknown ones (`forbid_unknown_fields=True`), because
    a node of an older release must not take one for its own command: else make a new command.

    Args:
        ops: op name -> struct type of its args (`msgspec.Struct`, `omit_defaults=True`, bounds
            written as `Annotated[..., msgspec.Meta(...)]`, so that decoding validates).

    Attributes:
        newest_level: what its newest command needs.
    """

    def __init__(self, ops: Mapping[str, type[msgspec.Struct]]) -> None:
        self._decoders = {op: msgspec.msgpack.Decoder(kind) for op, kind in ops.items()}
        self._names = {kind: op for op, kind in ops.items()}
        self._items = msgspec.msgpack.Decoder(list[tuple[int, str, msgspec.Raw]])
        self._encoder = msgspec.msgpack.Encoder()
        self._since = {kind: _levels_of(kind) for kind in ops.values()}
        self.newest_level = BASE_LEVEL
        for since, fields in self._since.values():
            self.newest_level = max(
                self.newest_level, since, *(level for _, level in fields.values())
            )

    def level_of(self, command: msgspec.Struct) -> int:
        """The feature level that `command` needs."""
        since, fields = self._since[type(command)]
        for field, (default, level) in fields.items():
            if level > since and getattr(command, field) != default:
                since = level
        return since

    @property
    def ops(self) -> frozenset[str]:
        return frozenset(self._decoders)

    def split(self, payload: bytes | memoryview) -> list[tuple[int, str, msgspec.Raw]]:
        """Cut a batch into (request_id, op, raw args) without decoding the args.

        Raises:
            Invalid: the bytes are not a msgpack array of such triples.
        """
        try:
            return self._items.decode(payload)
        except UNREADABLE as error:
            raise Invalid(f"a message must be [[request_id, op, args], …]: {error}") from error

    def decode_args(self, op: str, args: bytes | msgspec.Raw) -> Any:
        """Decode and validate one item's args.

        Raises:
            Invalid: unknown op, missing field, wrong type or beyond a limit; names the field.
        """
        decoder = self._decoders.get(op)
        if decoder is None:
            raise Invalid(f"unknown op {op!r}; known: {', '.join(sorted(self._decoders))}")
        try:
            return decoder.decode(args)
        except UNREADABLE as error:
            raise Invalid(f"{op}: {error}") from error

    def decode(self, payload: bytes) -> list[Any]:
        """All commands of a log entry."""
        decoders = self._decoders
        return [decoders[op].decode(args) for _, op, args in self._items.decode(payload)]

    def encode_item(self, request_id: int, command: msgspec.Struct) -> bytes:
        """One `[request_id, op, args]` item, to be joined by `join_items`."""
        return self._encoder.encode((request_id, self._names[type(command)], command))


def _levels_of(kind: type[msgspec.Struct]) -> tuple[int, dict[str, tuple[Any, int]]]:
    """(level of the command, field -> (its default, its level))."""
    defaults = {each.name: each.default for each in msgspec.structs.fields(kind)}
    fields = getattr(kind, "field_levels", {})
    return getattr(kind, "since_level", BASE_LEVEL), {
        field: (defaults[field], level) for field, level in fields.items()
    }


def join_items(count: int, items: Sequence[bytes]) -> bytes:
    """A batch payload out of encoded items: a msgpack array header and their bytes.

    Args:
        count: how many items `items` hold together (a piece may hold several).
    """
    return b"\xdd" + count.to_bytes(4, "big") + b"".join(items)


def strip_array_header(payload: bytes) -> tuple[int, bytes]:
    """The inverse: (count, bytes of the items) of a msgpack array. Raises Invalid otherwise."""
    first = payload[0] if payload else 0
    if 0x90 <= first <= 0x9F:
        return first & 0x0F, payload[1:]
    if first == 0xDC and len(payload) >= 3:
        return int.from_bytes(payload[1:3], "big"), payload[3:]
    if first == 0xDD and len(payload) >= 5:
        return int.from_bytes(payload[1:5], "big"), payload[5:]
    raise Invalid("a message must be a msgpack array of [request_id, op, args]")
