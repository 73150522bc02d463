"""The home's side: a blocking directory.

One transaction per key at a time; it stays open until the requester's GrantAck (or the end of its
lease), and later requests wait in a bounded queue. Write-through: a write's Grant leaves after
main memory has acknowledged, so M means "exclusive and newest" and a crash loses nothing.

Who may hold a copy is a superset of who does: a sharer leaves the list by an ack, an Evict, a
declined Grant, or the end of its node's lease. Messages to peers that do not answer are repeated
until one of these happens, so a dead sharer costs at most one lease.

Versions come from the slot's sequence in main memory (`Claimed`), so they rise for ever, across
deletion and restart. A write of unknown outcome is *fenced*: main memory then refuses every
version up to it that has not happened yet and reads the key, atomically; until that has worked the
transaction stays open, and the key serves no read.

What must not live here: copies (agent.py), how main memory does it (dss.memory), taking over a
dead home's keys (the epoch is fixed; a key with a dead home has no directory).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final

from dss.base import limits
from dss.core.mesi.agent import DRIFT_PPM, RETRY_AFTER_MS
from dss.core.mesi.effects import (
    FOREVER_MS,
    Claimed,
    DeleteMemory,
    Effect,
    FenceMemory,
    LinkUp,
    MemoryFailed,
    MemoryRead,
    MemoryWritten,
    ReadMemory,
    Receive,
    Send,
    WriteMemory,
)
from dss.core.mesi.messages import (
    ANY_VERSION,
    DELETE,
    INCR,
    CacheMessage,
    Downgrade,
    Evict,
    FetchReply,
    GetExclusive,
    GetShared,
    Grant,
    GrantAck,
    Invalidate,
    InvalidateAck,
    LeaseGrant,
    Record,
    Refuse,
    Renew,
    Request,
)
from dss.core.mesi.states import IllegalTransition, Phase, State

CLOCK_GRAIN_MS: Final = 2
"""Both clocks are read as whole ms: the home waits this much longer."""
RESOLVE_RETRY_MS: Final = 100
INTEGER_MAX: Final = 2**63 - 1


class PeerLease:
    """All copies of one node from this home. `number` grows at every gap."""

    __slots__ = ("end_ms", "number")

    def __init__(self) -> None:
        self.end_ms = 0
        self.number = 0


class Window:
    """Which request ids of one peer's process have been seen: a duplicate does nothing."""

    __slots__ = ("boot", "floor", "seen")

    def __init__(self, boot: str) -> None:
        self.boot = boot
        self.floor = 0
        self.seen: dict[int, None] = {}

    def is_new(self, request: int, floor: int) -> bool:
        if request < self.floor or request in self.seen:
            return False
        if floor > self.floor:
            self.floor = floor
            # Ids arrive nearly in order, so the ones below the floor stand in front.
            while self.seen:
                oldest = next(iter(self.seen))
                if oldest >= floor:
                    break
                del self.seen[oldest]
        self.seen[request] = None
        return True


class Txn:
    """The open transaction of a key."""

    __slots__ = (
        "boot",
        "created",
        "id",
        "message",
        "peer",
        "record",
        "retry_ms",
        "version",
        "waiting",
    )

    def __init__(self, txn_id: int, peer: str, boot: str, message: Request) -> None:
        self.id = txn_id
        self.peer = peer
        self.boot = boot
        self.message = message
        self.record: Record | None = None
        self.version = 0
        self.created = False
        self.waiting: dict[str, CacheMessage] = {}
        """Peers that have not answered yet, and what to repeat to them."""
        self.retry_ms = FOREVER_MS


class Entry:
    """A key at its home. `known`: `version` and `expires_ms` are what main memory has."""

    __slots__ = (
        "expires_ms",
        "key",
        "known",
        "phase",
        "queue",
        "sharers",
        "state",
        "txn",
        "version",
    )

    def __init__(self, key: str) -> None:
        self.key = key
        self.phase = Phase.IDLE
        self.state = State.I
        self.sharers: dict[str, tuple[int, int]] = {}
        """node -> (transaction that granted the copy, number of the node's lease then)."""
        self.known = False
        self.version = 0
        self.expires_ms = FOREVER_MS
        self.txn: Txn | None = None
        self.queue: deque[tuple[int, str, str, Request]] = deque()
        """(give up at, node, its process, request)."""


class Directory:
    """The home of this node's slots.

    Args:
        me: this node's id; `boot`: this process's, in every message.
        slot_of: key -> slot; `owns`: is this node the key's home.
        lease_ms: the cluster's lease length.
        started_ms: copies granted by an earlier process of this node may live until a lease after.
    """

    def __init__(
        self,
        me: str,
        boot: str,
        *,
        slot_of: Callable[[str], int],
        owns: Callable[[str], bool],
        lease_ms: int,
        started_ms: int,
        epoch: int,
        story: deque[str],
    ) -> None:
        self.me = me
        self.boot = boot
        self.epoch = epoch
        self.withdrawn = ""
        """Why this home serves no more; empty: it serves."""
        self._slot_of = slot_of
        self._owns = owns
        self._lease_ms = (
            lease_ms * (1_000_000 + DRIFT_PPM) + 999_999
        ) // 1_000_000 + CLOCK_GRAIN_MS
        self._retry_ms = max(10, lease_ms // 4)
        self.serving_from_ms = started_ms + self._lease_ms
        self._entries: dict[str, Entry] = {}
        self._leases: dict[str, PeerLease] = {}
        self._windows: dict[str, Window] = {}
        self._sequences: dict[int, int] = {}
        self._acknowledged: dict[int, int] = {}
        self._timed: dict[int, Entry] = {}
        """Transactions that wait for peers or for a retry, by id."""
        self._wake_ms = FOREVER_MS
        self._claimed = False
        self._draining: Entry | None = None
        self._next_txn = 1
        self._story = story
        self._out: list[Effect] = []

    # --- what the driver reads --------------------------------------------------------------

    def why_not_serving(self, now_ms: int) -> str:
        """Empty when this home serves, else a reason for a person."""
        if self.withdrawn:
            return self.withdrawn
        if not self._claimed:
            return "main memory has not been reached yet"
        if now_ms < self.serving_from_ms:
            left = self.serving_from_ms - now_ms
            return f"copies granted before the restart may live for {left} ms more"
        return ""

    def view(self, key: str, now_ms: int) -> tuple[State, str | None, list[str], Phase]:
        """(state, owner in E or M, nodes that hold a copy, phase) as the home knows it."""
        entry = self._entries.get(key)
        if entry is None:
            return State.I, None, [], Phase.IDLE
        live = [peer for peer in entry.sharers if self._is_live(entry, peer, now_ms)]
        owner = live[0] if live and entry.state in (State.E, State.M) else None
        return entry.state if live else State.I, owner, sorted(live), entry.phase

    @property
    def entry_count(self) -> int:
        return len(self._entries)

    @property
    def open_transactions(self) -> int:
        return sum(1 for entry in self._entries.values() if entry.txn is not None)

    def take_effects(self) -> list[Effect]:
        effects, self._out = self._out, []
        return effects

    # --- events -----------------------------------------------------------------------------

    def on_claimed(self, event: Claimed) -> None:
        self._claimed = True
        self._sequences = dict(event.sequences)
        self._acknowledged = dict(event.sequences)

    def on_link_up(self, event: LinkUp) -> None:
        """A peer's new process: the old one is dead, and its copies with it."""
        window = self._windows.get(event.peer)
        if window is None or window.boot != event.boot:
            self._windows[event.peer] = Window(event.boot)
            lease = self._leases.setdefault(event.peer, PeerLease())
            lease.number += 1
            lease.end_ms = 0
            self._wake_ms = 0  # whoever waits for the old process need not

    def on_message(self, event: Receive, now_ms: int) -> None:
        """Anything from a requester; stale and duplicate messages end here."""
        message: Any = event.message
        window = self._windows.get(event.peer)
        if window is None or window.boot != event.boot:
            return
        kind = type(message)
        if kind in (GetShared, GetExclusive):
            self._on_request(event.peer, window, message, now_ms)
            return
        if message.epoch != self.epoch or message.home_boot != self.boot:
            return
        if kind is Renew:
            self._extend(event.peer, now_ms)
            self._send(event.peer, LeaseGrant(self.epoch, self.boot, message.request, event.boot))
            return
        entry = self._entries.get(message.key)
        if entry is None:
            return
        if kind is Evict:
            if entry.sharers.get(event.peer, (0, 0))[0] == message.txn:
                self._remove_sharer(entry, event.peer)
                self._forget_if_idle(entry)
            return
        txn = entry.txn
        if txn is None or txn.id != message.txn or event.peer not in txn.waiting:
            return
        self._handle(entry, txn, message, event.peer, now_ms)

    def on_memory(self, event: MemoryRead | MemoryWritten | MemoryFailed, now_ms: int) -> None:
        """An answer of main memory; one for a closed transaction is stale."""
        entry = self._entries.get(event.key)
        txn = entry.txn if entry is not None else None
        if entry is None or txn is None or txn.id != event.txn:
            return
        if type(event) is MemoryFailed and event.lost and not self.withdrawn:
            self.withdrawn = f"withdrawn from main memory: {event.why}"
            self._story.append(f"{now_ms}: {self.withdrawn}")
        self._handle(entry, txn, event, self.me, now_ms)

    def on_tick(self, now_ms: int) -> None:
        """Peers whose lease has ended count as having answered; repeat to the others."""
        if now_ms < self._wake_ms:
            return
        for txn_id, entry in list(self._timed.items()):
            txn = entry.txn
            if txn is None or txn.id != txn_id or now_ms < self._due_ms(txn):
                continue
            for peer in [p for p in txn.waiting if not self._peer_lives(p, now_ms)]:
                if txn.waiting.pop(peer, None) is not None:
                    self._remove_sharer(entry, peer)
            if txn.waiting or entry.phase is Phase.RESOLVING:
                self._repeat(entry, txn, now_ms)
            else:
                self._advance(entry, txn, now_ms)
        self._wake_ms = FOREVER_MS
        for entry in self._timed.values():
            if entry.txn is not None:
                self._wake_ms = min(self._wake_ms, self._due_ms(entry.txn))

    def next_deadline_ms(self) -> int:
        """When `on_tick` may have something to do: at times early, never late."""
        return self._wake_ms

    # --- requests ---------------------------------------------------------------------------

    def _on_request(self, peer: str, window: Window, message: Request, now_ms: int) -> None:
        if not window.is_new(message.request, message.floor):
            return
        why = self.why_not_serving(now_ms)
        if message.epoch != self.epoch or message.home_boot != self.boot:
            why = f"{self.me} has restarted"
        elif not self._owns(message.key):
            why = f"{self.me} is not its home"
        if why:
            self._refuse(
                peer, window.boot, message, 0, 503, "home_unavailable", why, RETRY_AFTER_MS
            )
            return
        self._extend(peer, now_ms)
        entry = self._entries.get(message.key)
        if entry is None:
            entry = self._entries[message.key] = Entry(message.key)
        if entry.txn is None:
            self._begin(entry, peer, window.boot, message, now_ms)
        elif len(entry.queue) < limits.CACHE_LINE_QUEUE_MAX:
            entry.queue.append((now_ms + message.wait_ms, peer, window.boot, message))
        else:
            why = f"{limits.CACHE_LINE_QUEUE_MAX} requests wait already"
            self._refuse(peer, window.boot, message, 0, 429, "overloaded", why, RETRY_AFTER_MS)

    def _begin(self, entry: Entry, peer: str, boot: str, message: Request, now_ms: int) -> None:
        """IDLE -> FETCHING, READING, EXPIRING, INVALIDATING or WRITING."""
        assert entry.phase is Phase.IDLE, entry.key
        txn = entry.txn = Txn(self._next_txn, peer, boot, message)
        self._next_txn += 1
        for other in [p for p in entry.sharers if not self._is_live(entry, p, now_ms)]:
            self._remove_sharer(entry, other)
        if entry.known and entry.expires_ms <= now_ms:
            self._expire(entry, txn)
        elif type(message) is GetShared:
            if peer in entry.sharers:  # it asks, so it has none (evicted, or declined)
                self._remove_sharer(entry, peer)
            source = self._source(entry)
            if source is None:
                self._read(entry, txn)
            else:
                fetch = Downgrade(entry.key, self.epoch, self.boot, txn.id)
                entry.phase = Phase.FETCHING
                self._ask_peers(entry, txn, {source: fetch}, now_ms)
        elif self._needs_record(entry, message):
            self._read(entry, txn)
        else:
            self._check_and_write(entry, txn, now_ms)

    def _needs_record(self, entry: Entry, message: Request) -> bool:
        assert type(message) is GetExclusive, message
        if message.op == INCR:
            return True
        conditional = message.if_match is not None or message.if_none_match is not None
        return (conditional or message.op == DELETE) and not entry.known

    def _source(self, entry: Entry) -> str | None:
        """Who sends the value: the owner, else this node's own copy, else nobody."""
        if entry.state in (State.E, State.M):
            return next(iter(entry.sharers), None)
        return self.me if self.me in entry.sharers else None

    def _check_and_write(self, entry: Entry, txn: Txn, now_ms: int) -> None:
        """The conditions, on the state this transaction has exclusively; then invalidate."""
        message = txn.message
        assert type(message) is GetExclusive, message
        version = entry.version if entry.known else 0
        if not _conditions_hold(message, version):
            self._finish_refused(
                entry, txn, 412, "precondition_failed", _condition_text(version), now_ms
            )
            return
        if message.op == INCR and not _is_integer(txn.record, message.delta):
            self._finish_refused(
                entry, txn, 422, "invalid", "its value is not a 64-bit integer", now_ms
            )
            return
        entry.phase = Phase.INVALIDATING
        order = Invalidate(entry.key, self.epoch, self.boot, txn.id)
        others = {p: order for p in entry.sharers if p != txn.peer}
        self._ask_peers(entry, txn, dict(others), now_ms)

    def _write(self, entry: Entry, txn: Txn, now_ms: int) -> None:
        """INVALIDATING -> WRITING: no copy is left that may be read."""
        message = txn.message
        assert type(message) is GetExclusive, message
        entry.phase = Phase.WRITING
        slot = self._slot_of(entry.key)
        txn.version = self._sequences[slot] = self._sequences[slot] + 1
        acknowledged = self._acknowledged[slot]
        if message.op == DELETE:
            self._out.append(DeleteMemory(entry.key, txn.id, slot, txn.version, acknowledged))
            return
        value, kind = message.value, message.content_type
        expires_ms = now_ms + message.ttl_ms if message.ttl_ms else 0
        if message.op == INCR:
            old = txn.record
            value = b"%d" % (int(old.value if old else b"0") + message.delta)
            kind = "text/plain; charset=utf-8"
            expires_ms = old.expires_ms if old and not message.ttl_ms else expires_ms
        txn.record = Record(value, txn.version, kind, expires_ms)
        self._out.append(
            WriteMemory(entry.key, txn.id, slot, txn.version, acknowledged, value, kind, expires_ms)
        )

    def _read(self, entry: Entry, txn: Txn) -> None:
        entry.phase = Phase.READING
        self._out.append(ReadMemory(entry.key, txn.id))

    def _expire(self, entry: Entry, txn: Txn) -> None:
        """The TTL has ended, and with it every copy's life: delete, then go on without it."""
        entry.phase = Phase.EXPIRING
        slot = self._slot_of(entry.key)
        txn.version = self._sequences[slot] = self._sequences[slot] + 1
        self._out.append(
            DeleteMemory(entry.key, txn.id, slot, txn.version, self._acknowledged[slot])
        )

    # --- handlers of the table --------------------------------------------------------------

    def _handle(self, entry: Entry, txn: Txn, event: Any, peer: str, now_ms: int) -> None:
        handler = TABLE.get((entry.phase, type(event)))
        if handler is None:
            raise IllegalTransition(
                f"{self.me}'s directory of {entry.key!r}",
                entry.phase.name,
                type(event).__name__,
                self._story,
            )
        handler(self, entry, txn, event, peer, now_ms)

    def _have_record(
        self, entry: Entry, txn: Txn, event: MemoryRead, peer: str, now_ms: int
    ) -> None:
        """READING: main memory's record, or None."""
        self._learn(entry, event.record)
        if event.record is not None and entry.expires_ms <= now_ms:
            self._expire(entry, txn)
            return
        txn.record = event.record
        self._go_on(entry, txn, now_ms)

    def _go_on(self, entry: Entry, txn: Txn, now_ms: int) -> None:
        if type(txn.message) is GetShared:
            self._grant_read(entry, txn, now_ms)
        else:
            self._check_and_write(entry, txn, now_ms)

    def _read_failed(
        self, entry: Entry, txn: Txn, event: MemoryFailed, peer: str, now_ms: int
    ) -> None:
        self._finish_refused(
            entry, txn, 503, "memory_unavailable", event.why, now_ms, RETRY_AFTER_MS
        )

    def _expired(
        self, entry: Entry, txn: Txn, event: MemoryWritten, peer: str, now_ms: int
    ) -> None:
        self._acknowledge(entry, txn)
        entry.sharers.clear()
        entry.state = State.I
        self._learn(entry, None)
        txn.record = None
        self._go_on(entry, txn, now_ms)

    def _written(
        self, entry: Entry, txn: Txn, event: MemoryWritten, peer: str, now_ms: int
    ) -> None:
        """WRITING -> GRANTED: the write is committed."""
        self._acknowledge(entry, txn)
        message = txn.message
        assert type(message) is GetExclusive, message
        entry.sharers.clear()
        entry.state = State.I
        if message.op == DELETE:
            self._learn(entry, None)
            if event.existed:
                self._send_grant(entry, txn, State.I, None, now_ms)
                self._finish(entry, now_ms)
            else:
                self._finish_refused(entry, txn, 404, "not_found", "no such key", now_ms)
            return
        txn.created = not event.existed
        self._learn(entry, txn.record)
        self._grant(entry, txn, State.M, txn.record, now_ms)

    def _write_failed(
        self, entry: Entry, txn: Txn, event: MemoryFailed, peer: str, now_ms: int
    ) -> None:
        """Nothing happened: 503. Unknown: 504 to the client, and RESOLVING."""
        if not event.unknown:
            self._finish_refused(
                entry, txn, 503, "memory_unavailable", event.why, now_ms, RETRY_AFTER_MS
            )
            return
        why = f"{event.why}; the write may or may not have happened"
        expiring_read = entry.phase is Phase.EXPIRING
        self._story.append(f"{now_ms}: {entry.key!r} txn {txn.id}: outcome unknown: {event.why}")
        if expiring_read:
            self._refuse(
                txn.peer,
                txn.boot,
                txn.message,
                txn.id,
                503,
                "memory_unavailable",
                event.why,
                RETRY_AFTER_MS,
            )
        else:
            self._refuse(txn.peer, txn.boot, txn.message, txn.id, 504, "indeterminate", why)
        entry.known = False
        entry.sharers.clear()
        entry.state = State.I
        entry.phase = Phase.RESOLVING
        self._repeat(entry, txn, now_ms)

    def _resolved(self, entry: Entry, txn: Txn, event: MemoryRead, peer: str, now_ms: int) -> None:
        """RESOLVING -> IDLE: the write has happened or never will; main memory says which."""
        self._learn(entry, event.record)
        self._acknowledge(entry, txn)
        self._story.append(f"{now_ms}: {entry.key!r} txn {txn.id}: resolved, {entry.version}")
        self._finish(entry, now_ms)

    def _resolve_failed(
        self, entry: Entry, txn: Txn, event: MemoryFailed, peer: str, now_ms: int
    ) -> None:
        txn.retry_ms = now_ms + RESOLVE_RETRY_MS
        self._watch(entry, txn)

    def _acked(self, entry: Entry, txn: Txn, event: InvalidateAck, peer: str, now_ms: int) -> None:
        del txn.waiting[peer]
        self._remove_sharer(entry, peer)
        if not txn.waiting:
            self._advance(entry, txn, now_ms)

    def _fetched(self, entry: Entry, txn: Txn, event: FetchReply, peer: str, now_ms: int) -> None:
        """FETCHING: the owner is a sharer now, or has no copy."""
        del txn.waiting[peer]
        if event.version:
            assert entry.known, entry.key
            assert event.version == entry.version, (entry.key, event.version, entry.version)
            entry.state = State.S
            expires_ms = entry.expires_ms if entry.expires_ms < FOREVER_MS else 0
            txn.record = Record(event.value, event.version, event.content_type, expires_ms)
        else:
            self._remove_sharer(entry, peer)
        self._advance(entry, txn, now_ms)

    def _grant_acked(self, entry: Entry, txn: Txn, event: GrantAck, peer: str, now_ms: int) -> None:
        del txn.waiting[peer]
        if not event.kept:
            self._remove_sharer(entry, peer)
        self._advance(entry, txn, now_ms)

    def _advance(self, entry: Entry, txn: Txn, now_ms: int) -> None:
        """Nobody is waited for any more."""
        self._timed.pop(txn.id, None)
        txn.retry_ms = FOREVER_MS
        if entry.phase is Phase.INVALIDATING:
            self._write(entry, txn, now_ms)
        elif entry.phase is Phase.FETCHING:
            if txn.record is not None and entry.expires_ms > now_ms:
                self._grant_read(entry, txn, now_ms)
            elif txn.record is not None:
                self._expire(entry, txn)
            else:
                self._read(entry, txn)
        else:
            assert entry.phase is Phase.GRANTED, (entry.key, entry.phase)
            self._finish(entry, now_ms)

    # --- ends -------------------------------------------------------------------------------

    def _grant_read(self, entry: Entry, txn: Txn, now_ms: int) -> None:
        record = txn.record
        if record is None:
            self._finish_refused(entry, txn, 404, "not_found", "no such key", now_ms)
        elif len(self._entries) > limits.CACHE_DIRECTORY_LINES_MAX and not entry.sharers:
            self._send_grant(entry, txn, State.I, record, now_ms)
            self._finish(entry, now_ms)
        else:
            self._grant(entry, txn, State.S if entry.sharers else State.E, record, now_ms)

    def _grant(
        self, entry: Entry, txn: Txn, state: State, record: Record | None, now_ms: int
    ) -> None:
        entry.phase = Phase.GRANTED
        entry.state = state
        lease = self._leases.setdefault(txn.peer, PeerLease())
        entry.sharers[txn.peer] = (txn.id, lease.number)
        grant = self._grant_message(entry, txn, state, record, now_ms)
        self._ask_peers(entry, txn, {txn.peer: grant}, now_ms)

    def _send_grant(
        self, entry: Entry, txn: Txn, state: State, record: Record | None, now_ms: int
    ) -> None:
        self._send(txn.peer, self._grant_message(entry, txn, state, record, now_ms))

    def _grant_message(
        self, entry: Entry, txn: Txn, state: State, record: Record | None, now_ms: int
    ) -> Grant:
        message = txn.message
        # A put's requester has the value already.
        echo = record is not None and not (type(message) is GetExclusive and message.op != INCR)
        ttl_left_ms = entry.expires_ms - now_ms if entry.expires_ms < FOREVER_MS else 0
        return Grant(
            entry.key,
            self.epoch,
            self.boot,
            txn.id,
            message.request,
            int(state),
            record.version if record else 0,
            record.value if echo and record else b"",
            record.content_type if echo and record else "",
            ttl_left_ms,
            txn.created,
            txn.boot,
        )

    def _finish_refused(
        self,
        entry: Entry,
        txn: Txn,
        status: int,
        code: str,
        why: str,
        now_ms: int,
        retry_after_ms: int = 0,
    ) -> None:
        self._refuse(txn.peer, txn.boot, txn.message, txn.id, status, code, why, retry_after_ms)
        self._finish(entry, now_ms)

    def _finish(self, entry: Entry, now_ms: int) -> None:
        """Close the transaction and begin the next request whose time is not over."""
        assert entry.txn is not None, entry.key
        self._timed.pop(entry.txn.id, None)
        entry.txn = None
        entry.phase = Phase.IDLE
        if self._draining is entry:
            return  # the loop below, further up the stack, goes on: no recursion
        self._draining = entry
        while entry.queue and entry.txn is None:
            until_ms, peer, boot, message = entry.queue.popleft()
            if self._windows[peer].boot != boot:
                continue  # its process is dead: nobody waits for an answer
            why = self.why_not_serving(now_ms)
            if not why and until_ms <= now_ms:
                why = "waited too long for earlier requests"
            if why:
                self._refuse(peer, boot, message, 0, 503, "home_unavailable", why, RETRY_AFTER_MS)
            else:
                self._begin(entry, peer, boot, message, now_ms)
        self._draining = None
        self._forget_if_idle(entry)

    def _refuse(
        self,
        peer: str,
        boot: str,
        message: Request,
        txn: int,
        status: int,
        code: str,
        why: str,
        retry_after_ms: int = 0,
    ) -> None:
        entry = self._entries.get(message.key)
        self._send(
            peer,
            Refuse(
                message.key,
                self.epoch,
                message.home_boot,
                txn,
                message.request,
                status,
                code,
                f"cache key {message.key!r}: {why}",
                entry.version if entry is not None and entry.known else 0,
                retry_after_ms,
                boot,
            ),
        )

    # --- bookkeeping ------------------------------------------------------------------------

    def _ask_peers(
        self, entry: Entry, txn: Txn, messages: dict[str, CacheMessage], now_ms: int
    ) -> None:
        """Send to each, and wait for all; with nobody to ask, go on at once."""
        if not messages:
            self._advance(entry, txn, now_ms)
            return
        txn.waiting = messages
        txn.retry_ms = now_ms + self._retry_ms
        self._watch(entry, txn)
        for peer, message in messages.items():
            self._send(peer, message)

    def _watch(self, entry: Entry, txn: Txn) -> None:
        self._timed[txn.id] = entry
        self._wake_ms = min(self._wake_ms, self._due_ms(txn))

    def _repeat(self, entry: Entry, txn: Txn, now_ms: int) -> None:
        if entry.phase is Phase.RESOLVING:
            txn.retry_ms = FOREVER_MS  # its answer sets the next one
            slot = self._slot_of(entry.key)
            self._out.append(FenceMemory(entry.key, txn.id, slot, txn.version))
            return
        if now_ms >= txn.retry_ms:
            txn.retry_ms = now_ms + self._retry_ms
            for peer, message in txn.waiting.items():
                self._send(peer, message)

    def _due_ms(self, txn: Txn) -> int:
        due = txn.retry_ms
        for peer in txn.waiting:
            if peer != self.me:
                lease = self._leases.get(peer)
                due = min(due, lease.end_ms if lease is not None else 0)
        return due

    def _learn(self, entry: Entry, record: Record | None) -> None:
        entry.known = True
        entry.version = record.version if record is not None else 0
        entry.expires_ms = record.expires_ms if record and record.expires_ms else FOREVER_MS

    def _acknowledge(self, entry: Entry, txn: Txn) -> None:
        slot = self._slot_of(entry.key)
        self._acknowledged[slot] = max(self._acknowledged[slot], txn.version)

    def _extend(self, peer: str, now_ms: int) -> None:
        lease = self._leases.setdefault(peer, PeerLease())
        if lease.end_ms <= now_ms:
            lease.number += 1
        lease.end_ms = max(lease.end_ms, now_ms + self._lease_ms)

    def _peer_lives(self, peer: str, now_ms: int) -> bool:
        if peer == self.me:
            return True
        lease = self._leases.get(peer)
        return lease is not None and now_ms < lease.end_ms

    def _is_live(self, entry: Entry, peer: str, now_ms: int) -> bool:
        if peer == self.me:
            return True
        lease = self._leases[peer]
        return now_ms < lease.end_ms and entry.sharers[peer][1] == lease.number

    def _remove_sharer(self, entry: Entry, peer: str) -> None:
        entry.sharers.pop(peer, None)
        if not entry.sharers:
            entry.state = State.I

    def _forget_if_idle(self, entry: Entry) -> None:
        if entry.txn is None and not entry.sharers and not entry.queue:
            self._entries.pop(entry.key, None)

    def _send(self, peer: str, message: CacheMessage) -> None:
        self._out.append(Send(peer, message))

    def check_invariants(self) -> None:
        """Raise AssertionError when an entry contradicts itself."""
        for entry in self._entries.values():
            assert (entry.txn is None) == (entry.phase is Phase.IDLE), (entry.key, entry.phase)
            assert entry.txn is not None or not entry.queue, entry.key
            if entry.state in (State.E, State.M):
                assert len(entry.sharers) == 1, (entry.key, entry.state, entry.sharers)
            assert (entry.state is State.I) == (not entry.sharers), (entry.key, entry.state)
            assert not entry.sharers or entry.known, (entry.key, entry.sharers)


def _conditions_hold(message: GetExclusive, version: int) -> bool:
    """RFC 9110 §13.2.2, on strong validators; `version` 0: the key does not exist."""
    wanted, unwanted = message.if_match, message.if_none_match
    if wanted is not None and not (version and (ANY_VERSION in wanted or version in wanted)):
        return False
    return not (
        unwanted is not None and version and (ANY_VERSION in unwanted or version in unwanted)
    )


def _condition_text(version: int) -> str:
    state = f"its version is {version}" if version else "it does not exist"
    return f"the condition does not hold: {state}"


def _is_integer(record: Record | None, delta: int) -> bool:
    if record is None:
        return True
    text = record.value
    if not 0 < len(text) <= 20 or not text.removeprefix(b"-").isdigit():
        return False
    return abs(int(text) + delta) <= INTEGER_MAX


Handler = Callable[[Directory, Entry, Txn, Any, str, int], None]
TABLE: Final[dict[tuple[Phase, type], Handler]] = {
    (Phase.READING, MemoryRead): Directory._have_record,
    (Phase.READING, MemoryFailed): Directory._read_failed,
    (Phase.FETCHING, FetchReply): Directory._fetched,
    (Phase.INVALIDATING, InvalidateAck): Directory._acked,
    (Phase.WRITING, MemoryWritten): Directory._written,
    (Phase.WRITING, MemoryFailed): Directory._write_failed,
    (Phase.EXPIRING, MemoryWritten): Directory._expired,
    (Phase.EXPIRING, MemoryFailed): Directory._write_failed,
    (Phase.RESOLVING, MemoryRead): Directory._resolved,
    (Phase.RESOLVING, MemoryFailed): Directory._resolve_failed,
    (Phase.GRANTED, GrantAck): Directory._grant_acked,
}
