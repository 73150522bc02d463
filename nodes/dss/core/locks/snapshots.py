"""The lock group's snapshot: its format, by version, and back.

msgpack arrays, by position. Version 1 (before semaphores, several locks at once, history, and
exactly-once) is still read. Version 2 has no level: it is what a group at BASE_LEVEL writes, since
nodes of a release without levels must read it. Version 3 is the same with `level` and what later
levels add behind it. What must not live here: rules.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from struct import pack
from sys import intern
from typing import Any, Final

import msgspec

from dss.base.errors import CorruptData
from dss.base.levels import BASE_LEVEL
from dss.base.limits import SNAPSHOT_PIECE_ROWS
from dss.core.locks.history import Hold
from dss.core.locks.kept import size_of, size_of_wait
from dss.core.locks.keys import KeyEntry, KeyRow
from dss.core.locks.places import Place, Waiter
from dss.core.locks.state import Lock, LockState, Session
from dss.core.machine import swap_state

SNAPSHOT_VERSION: Final = 3
_VERSION_WITHOUT_LEVEL: Final = 2

_SessionRow1 = tuple[str, str, int, int, int]
_HoldRow1 = tuple[str, str, int, int, int]
_WaiterRow1 = tuple[int, str, str, bool, int, int, int, int]


class _State1(msgspec.Struct, array_like=True, frozen=True):
    version: int
    token: int
    ticket: int
    floor_ms: int
    sessions: list[_SessionRow1]
    locks: list[tuple[str, bool, list[_HoldRow1], list[_WaiterRow1]]]


_AnswerRow = tuple[int, int, Any]


class _PlaceRow(msgspec.Struct, array_like=True, frozen=True):
    owner: str
    names: tuple[str, ...]
    ticket: int
    since_ms: int
    until_ms: int = 0
    """Not in version 2."""


_SessionRow = tuple[str, str, int, int, int, int, list[_AnswerRow], list[_PlaceRow]]
_LockRow = tuple[str, str, int, list[Hold]]


class _WaiterRow(msgspec.Struct, array_like=True, frozen=True):
    ticket: int
    names: tuple[str, ...]
    session: str
    owner: str
    kind: str
    mode: str
    permits: int
    limit: int
    priority: int
    since_ms: int
    deadline_ms: int
    joined_ms: int
    confirm_ms: int
    index: int
    position: int
    seq: int
    key: str
    also: list[tuple[int, int]] | None = None
    """Not in version 2."""


class _State(msgspec.Struct, array_like=True, frozen=True):
    """Version 3; version 2 ends before `level`. A new field goes last, with a default."""

    version: int
    token: int
    ticket: int
    floor_ms: int
    sessions: list[_SessionRow]
    locks: list[_LockRow]
    waiters: list[_WaiterRow]
    history: list[Hold]
    keys: list[KeyRow]
    events: int
    level: int = BASE_LEVEL


_FIELDS: Final = _WaiterRow.__struct_fields__
_FIELDS_2: Final = _FIELDS[: _FIELDS.index("also")]


_number: Final = msgspec.msgpack.Decoder(int)
_ROWS: Final[dict[str, msgspec.msgpack.Decoder[Any]]] = {
    "sessions": msgspec.msgpack.Decoder(list[_SessionRow]),
    "locks": msgspec.msgpack.Decoder(list[_LockRow]),
    "waiters": msgspec.msgpack.Decoder(list[_WaiterRow]),
    "history": msgspec.msgpack.Decoder(list[Hold]),
    "keys": msgspec.msgpack.Decoder(list[KeyRow]),
}
_REPLACED: Final = (
    "level", "_token", "_ticket", "_floor_ms", "_sessions", "_locks", "_waiters", "_unconfirmed",
    "_places", "_due", "_due_ticket", "held", "answers_bytes", "waits_bytes", "past", "keys",
)  # fmt: skip
"""All that a snapshot says; what is not here counts since this process began."""

_encode: Final = msgspec.msgpack.Encoder().encode
_Section = tuple[Collection[Any], Callable[[Any], Any]]


def encode(state: LockState) -> bytes:
    """Equal states give equal bytes."""
    return b"".join(pieces(state))


def pieces(state: LockState) -> Iterator[bytes]:
    """A `_State`, at most SNAPSHOT_PIECE_ROWS rows at a time.

    The state must not change before the last one, but may be replaced as a whole (`take_over`):
    then what comes is worthless, and does no harm.
    """
    levelled = state.level > BASE_LEVEL
    version = SNAPSHOT_VERSION if levelled else _VERSION_WITHOUT_LEVEL
    head = (version, state._token, state._ticket, state._floor_ms)
    sections: tuple[_Section, ...] = (
        (state._sessions.values(), partial(_session_row, levelled)),
        (state._locks.values(), _lock_row),
        (state._waiters.values(), partial(_waiter_row, _FIELDS if levelled else _FIELDS_2)),
        (state.past.rows(), _as_it_is),
        (state.keys.items(), _key_row),
    )
    tail = (state.journal.newest, state.level) if levelled else (state.journal.newest,)
    return _pieces(head, sections, tail)


def _pieces(
    head: Collection[int], sections: Collection[_Section], tail: Collection[int]
) -> Iterator[bytes]:
    yield _array(len(head) + len(sections) + len(tail)) + b"".join(map(_encode, head))
    for rows, row_of in sections:
        yield _array(len(rows))
        left = iter(rows)
        while some := list(islice(left, SNAPSHOT_PIECE_ROWS)):
            yield _encode([row_of(each) for each in some])[len(_array(len(some))) :]
    yield b"".join(map(_encode, tail))


def _array(length: int) -> bytes:
    """The head of a msgpack array, the shortest one."""
    if length < 16:
        return pack("B", 0x90 | length)
    return pack(">BH", 0xDC, length) if length < 2**16 else pack(">BI", 0xDD, length)


def _as_it_is(row: Any) -> Any:
    return row


def _waiter_row(fields: Iterable[str], waiter: Waiter) -> Sequence[Any]:
    return [getattr(waiter, field) for field in fields]


def _key_row(item: tuple[str, KeyEntry]) -> KeyRow:
    key, entry = item
    return (key, entry.digest, entry.until_ms, *entry.answer)


def _session_row(levelled: bool, session: Session) -> Sequence[Any]:
    answers = [(seq, *answer) for seq, answer in (session.answers or {}).items()]
    places = [
        (each.owner, each.names, each.ticket, each.since_ms, *((each.until_ms,) * levelled))
        for each in (session.places or {}).values()
    ]
    return (
        session.id, session.name, session.ttl_ms, session.deadline_ms, session.renewals,
        session.floor, answers, places,
    )  # fmt: skip


def _lock_row(lock: Lock) -> _LockRow:
    held = bool(lock.holders)
    return (
        lock.name, lock.mode if held else "", lock.limit if held else 0,
        list(lock.holders.values()),
    )  # fmt: skip


def decode(data: bytes) -> LockState:
    """A state of its own, for `take_over`. Raises CorruptData for anything else's bytes."""
    try:
        (version, *_) = msgspec.msgpack.decode(data, type=list[msgspec.Raw])
        number = msgspec.msgpack.decode(version, type=int)
        if number == 1:
            found = _upgraded(msgspec.msgpack.decode(data, type=_State1))
        elif number in (_VERSION_WITHOUT_LEVEL, SNAPSHOT_VERSION):
            found = _decoded(data)
        else:
            raise CorruptData(
                f"the lock group's snapshot has version {number}, this node reads 1 to "
                f"{SNAPSHOT_VERSION}: run the newer release"
            )
    except (msgspec.DecodeError, msgspec.ValidationError, ValueError) as error:
        raise CorruptData(f"this is not a snapshot of the lock group: {error}") from error
    state = LockState()
    _fill(state, found)
    return state


def take_over(state: LockState, fresh: LockState) -> None:
    """Replace `state` by what `decode` gave."""
    swap_state(state, fresh, _REPLACED)
    state.journal.jump(fresh.journal.newest)


def _decoded(data: bytes) -> _State:
    """A bounded number of rows at a time: a thread that decodes a million must let others run."""
    parts = msgspec.msgpack.decode(data, type=list[msgspec.Raw])
    fields = dict(zip(_State.__struct_fields__, parts, strict=False))
    if "events" not in fields:
        raise ValueError(f"it has only {len(parts)} fields")
    values: dict[str, Any] = {
        name: _rows(part, _ROWS[name]) if name in _ROWS else _number.decode(part)
        for name, part in fields.items()
    }
    return _State(**values)


def _rows(section: msgspec.Raw, decoder: msgspec.msgpack.Decoder[list[Any]]) -> list[Any]:
    rows = msgspec.msgpack.decode(section, type=list[msgspec.Raw])
    found: list[Any] = []
    for start in range(0, len(rows), SNAPSHOT_PIECE_ROWS):
        some = rows[start : start + SNAPSHOT_PIECE_ROWS]
        found += decoder.decode(_array(len(some)) + b"".join(some))
    return found


def _upgraded(old: _State1) -> _State:
    sessions: list[_SessionRow] = [(*row, 0, [], []) for row in old.sessions]
    names = {row[0]: row[1] for row in old.sessions}
    locks: list[_LockRow] = []
    waiters: list[_WaiterRow] = []
    for name, shared, holds, waits in old.locks:
        mode = "shared" if shared else "exclusive"
        held = [
            Hold(name, session, names[session], owner, mode, token, since_ms, count)
            for session, owner, token, since_ms, count in holds
        ]
        locks.append((name, mode, 0, held))
        for ticket, session, owner, wants_shared, since_ms, deadline_ms, index, position in waits:
            waiters.append(
                _WaiterRow(
                    ticket, (name,), session, owner, "one",
                    "shared" if wants_shared else "exclusive", 1, 0, 0,
                    since_ms, deadline_ms, since_ms, 0, index, position, 0, "",
                )
            )  # fmt: skip
    waiters.sort(key=lambda row: row.ticket)
    return _State(
        _VERSION_WITHOUT_LEVEL,
        old.token,
        old.ticket,
        old.floor_ms,
        sessions,
        locks,
        waiters,
        [],
        [],
        0,
    )


def _fill(state: LockState, found: _State) -> None:
    """`state` is new."""
    state.level = found.level
    state._token = found.token
    state._ticket = found.ticket
    state._floor_ms = found.floor_ms
    for session_id, name, ttl_ms, deadline_ms, renewals, floor, answers, places in found.sessions:
        session = Session(session_id, name, ttl_ms, deadline_ms, renewals, {}, {}, floor=floor)
        if answers:
            session.answers = {seq: (status, body) for seq, status, body in answers}
            session.answers_bytes = sum(map(size_of, session.answers.values()))
        for row in places:
            place = Place(
                row.ticket, session_id, row.owner, row.names, row.since_ms, row.until_ms
            )  # fmt: skip
            state._keep(place, session)
        state._sessions[session_id] = session
    state.answers_bytes = sum(each.answers_bytes for each in state._sessions.values())
    for name, mode, limit, holds in found.locks:
        _fill_lock(state, Lock(name, intern(mode), {}, limit=limit), holds)
    for each in found.waiters:
        waiter = Waiter(*[getattr(each, field) for field in _FIELDS])
        state._enter(waiter, state._sessions[waiter.session])
    state.past.restore(found.history)
    state.keys.restore(found.keys, partial(_size_of_keyed, state))
    state.journal.jump(found.events)
    state._rebuild_due()


def _size_of_keyed(state: LockState, answer: tuple[int, Any]) -> int:
    status, ticket = answer
    return size_of(answer) if status else size_of_wait(state._waiters[ticket].names)


def _fill_lock(state: LockState, lock: Lock, holds: list[Hold]) -> None:
    state._locks[lock.name] = lock
    state.held += len(holds)
    for hold in holds:
        session = state._sessions[hold.session]
        if hold.owner == session.id:
            hold.owner = session.id
            lock.holders[session.me] = hold
        else:
            lock.holders[session.id, hold.owner] = hold
        # One string for all: a restored lock takes no more memory than one that was granted here.
        hold.name, hold.session, hold.session_name = lock.name, session.id, session.name
        hold.mode = lock.mode if lock.mode == hold.mode else intern(hold.mode)
        lock.used += hold.permits if lock.mode == "semaphore" else 0
        session.holds[hold.token] = hold
        if hold.confirm_by_ms:
            state._unconfirmed[hold.token] = hold
