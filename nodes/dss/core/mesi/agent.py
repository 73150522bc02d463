"""The requester's side: this node's copies, the requests it has open at homes, eviction.

A line has at most one request open at its home; what comes meanwhile waits at the line, in order.
Reads that wait when a read is sent share its answer.

Copies from one home live under one lease. It counts from the *send* time of the last request (or
Renew) that the home answered, less the drift bound; the home counts from the receipt, plus the
bound, so it always ends here first. A lease that has ended never revives: its lines are dead for
good, later copies get a new `Lease` object. A copy is served only while `now < lease.end_ms` and
before its own expiry; check and read happen in one call without a pause.

A Grant's value always answers the request that asked for it (the home's transaction lies between
question and answer). It becomes a copy only if the lease held throughout and no Invalidate of a
later transaction overtook it (`voided_by`).

A home that is silent for a lease while reads wait for it is taken for stopped: halfway it is asked
to renew, which a live one answers at once however slow its main memory is; then the reads fail with
503, and later ones at once, until it is heard again (each may ask it to renew). Nothing depends on
that guess being right: a late Grant is answered as any that nobody waits for. Writes wait for their
full time, because giving one up makes its outcome unknown.

What must not live here: who may write, main memory (directory.py).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final

import msgspec

from dss.base import limits
from dss.core.mesi.effects import (
    FOREVER_MS,
    Answer,
    Effect,
    LinkDown,
    LinkUp,
    Read,
    Receive,
    Send,
    Write,
)
from dss.core.mesi.eviction import Link, Sieve
from dss.core.mesi.messages import (
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
    Refuse,
    Renew,
    Request,
)
from dss.core.mesi.states import STABLE_MAX, IllegalTransition, State

DRIFT_PPM: Final = 1_000
RENEWALS_OPEN_MAX: Final = 8
RETRY_AFTER_MS: Final = 200


class Lease:
    """The life of all copies from one home, up to its first gap."""

    __slots__ = ("end_ms", "lines", "renew_at_ms")

    def __init__(self) -> None:
        self.end_ms = 0
        self.lines = 0
        self.renew_at_ms = 0


class Pending:
    """The one request that a line has open at its home."""

    __slots__ = ("deadline_ms", "home", "key", "lease", "message", "refs", "sent_ms", "voided_by")

    def __init__(
        self,
        key: str,
        home: str,
        message: Request,
        refs: list[int],
        sent_ms: int,
        lease: Lease | None,
    ) -> None:
        self.key = key
        self.home = home
        self.message = message
        self.refs = refs
        self.sent_ms = sent_ms
        self.deadline_ms = sent_ms + message.wait_ms
        self.lease = lease
        self.voided_by = 0


class Line(Link):
    """One key here. Data is meaningful in S, E, M and S_M only."""

    __slots__ = (
        "before",
        "content_type",
        "expires_ms",
        "key",
        "lease",
        "pending",
        "state",
        "txn",
        "value",
        "version",
        "waiting",
    )

    def __init__(self, key: str) -> None:
        super().__init__()
        self.key = key
        self.state = State.I
        self.before = State.I
        self.value = b""
        self.content_type = ""
        self.version = 0
        self.txn = 0
        self.expires_ms = FOREVER_MS
        self.lease: Lease = _NO_LEASE
        self.pending: Pending | None = None
        self.waiting: deque[tuple[int, Read | Write]] = deque()


_NO_LEASE: Final = Lease()


class Counters(msgspec.Struct):
    """Since start. Shown by `/v1/cache:stats` and as metrics."""

    hits: int = 0
    misses: int = 0
    writes: int = 0
    invalidations: int = 0
    evictions: int = 0
    lapsed: int = 0


class Agent:
    """Copies of one node.

    Args:
        me: this node's id; `boot`: this process's.
        home_of: key -> node id of its home.
        lease_ms: the cluster's lease length.
        capacity_bytes: of all copies.
        story: called with one line per notable step.
    """

    def __init__(
        self,
        me: str,
        boot: str,
        *,
        home_of: Callable[[str], str],
        lease_ms: int,
        capacity_bytes: int,
        epoch: int,
        story: deque[str],
    ) -> None:
        self.me = me
        self.boot = boot
        self.epoch = epoch
        self.counters = Counters()
        self._home_of = home_of
        self._lease_ms = lease_ms * (1_000_000 - DRIFT_PPM) // 1_000_000 - 1
        self._renew_ms = max(1, lease_ms // 3)
        self._silence_ms = lease_ms
        self._reads: dict[str, dict[int, Pending]] = {}
        """Open reads by home, in the order they were sent; none at this node itself."""
        self._heard_ms: dict[str, int] = {}
        self._probed_ms: dict[str, int] = {}
        """When a home was last heard, and last asked to say something because reads waited."""
        self._silent: dict[str, None] = {}
        """Homes that reads waited for in vain and that have not been heard since."""
        self._lines: dict[str, Line] = {}
        self._sieve = Sieve(capacity_bytes)
        self._boots: dict[str, str] = {me: boot}
        self._reachable: dict[str, bool] = {me: True}
        self._leases: dict[str, Lease] = {}
        self._pending: dict[int, Pending] = {}
        self._renewals: dict[int, tuple[str, int]] = {}
        self._next_request = 1
        self._story = story
        self._out: list[Effect] = []

    # --- what the driver reads --------------------------------------------------------------

    def lookup(self, key: str, now_ms: int) -> Line | None:
        """A local hit: the readable line, or None. The whole hot path of a cached read."""
        line = self._lines.get(key)
        if (
            line is None
            or not 0 < line.state <= STABLE_MAX
            or now_ms >= line.lease.end_ms
            or now_ms >= line.expires_ms
        ):
            return None
        line.visited = True
        self.counters.hits += 1
        return line

    def state_of(self, key: str, now_ms: int) -> tuple[State, int, int]:
        """(state, version, ms left of the lease): a copy past its lease or TTL is I."""
        line = self._lines.get(key)
        if line is None:
            return State.I, 0, 0
        if 0 < line.state <= STABLE_MAX and self._is_dead(line, now_ms):
            return State.I, 0, 0
        left = max(0, line.lease.end_ms - now_ms) if line.state <= STABLE_MAX else 0
        return line.state, line.version, left

    def states(self) -> dict[str, int]:
        """How many lines are in each state (a walk over all lines: for status pages)."""
        counts = {state.name: 0 for state in State}
        for line in self._lines.values():
            counts[line.state.name] += 1
        return counts

    @property
    def held_bytes(self) -> int:
        return self._sieve.held_bytes

    @property
    def line_count(self) -> int:
        return self._sieve.count

    @property
    def pending_count(self) -> int:
        return len(self._pending)

    def drop_all(self) -> None:
        """Forget every line: after a defect, nothing here may be read any more."""
        self._lines.clear()
        self._pending.clear()
        self._reads.clear()
        self._leases.clear()

    def take_effects(self) -> list[Effect]:
        effects, self._out = self._out, []
        return effects

    # --- events -----------------------------------------------------------------------------

    def on_operation(self, op: Read | Write, now_ms: int) -> None:
        """A client's read or write."""
        line = self._lines.get(op.key)
        if line is None:
            line = self._lines[op.key] = Line(op.key)
        elif 0 < line.state <= STABLE_MAX and self._is_dead(line, now_ms):
            self._drop(line, State.I)
        self._handle(line, op, now_ms)

    def on_message(self, event: Receive, now_ms: int) -> None:
        """Grant, Refuse, Invalidate, Downgrade or LeaseGrant. Stale ones end here."""
        message: Any = event.message
        if message.epoch != self.epoch or message.home_boot != self._boots.get(event.peer):
            return
        self._heard_ms[event.peer] = now_ms
        self._silent.pop(event.peer, None)
        if type(message) is LeaseGrant:
            if message.boot == self.boot:
                self._renewed(event.peer, message, now_ms)
            return
        line = self._lines.get(message.key)
        if type(message) in (Grant, Refuse):
            mine = message.boot == self.boot  # else an earlier process of this node asked
            pending = self._pending.get(message.request) if mine else None
            if pending is None or line is None or line.pending is not pending:
                self._decline(event.peer, message, line)
                return
        if line is None:
            line = Line(message.key)  # I: answers, and is not kept
            self._handle(line, message, now_ms)
            return
        if 0 < line.state <= STABLE_MAX and self._is_dead(line, now_ms):
            self._drop(line, State.I)
        self._handle(line, message, now_ms)

    def on_link_up(self, event: LinkUp, now_ms: int) -> None:
        """A home with a new boot has forgotten its sharers: copies from the old one are dead."""
        if self._boots.get(event.peer) != event.boot:
            self._leases.pop(event.peer, None)
            self._fail_pending(event.peer, f"{event.peer} restarted", now_ms)
            self._boots[event.peer] = event.boot
        self._reachable[event.peer] = True
        self._silent.pop(event.peer, None)

    def on_link_down(self, event: LinkDown, now_ms: int) -> None:
        """Open requests fail at once; copies stay readable until their lease ends."""
        self._fail_pending(event.peer, f"no link to {event.peer}", now_ms)

    def on_tick(self, now_ms: int) -> None:
        """Renew leases that carry lines; give up requests past their deadline."""
        for home in list(self._leases):
            lease = self._lease(home, now_ms)
            if lease.lines and lease.renew_at_ms <= now_ms and lease.end_ms < FOREVER_MS:
                self._renew(home, lease, now_ms)
        for home, reads in list(self._reads.items()):
            if reads and now_ms >= self._silence_due_ms(home, reads):
                self._on_silence(home, reads, now_ms)
        while self._pending:
            pending = next(iter(self._pending.values()))
            if pending.deadline_ms > now_ms:
                break
            self._fail(pending, f"{pending.home} has not answered in time", now_ms)

    def next_deadline_ms(self) -> int:
        """When `on_tick` will have something to do."""
        due = FOREVER_MS
        for lease in self._leases.values():
            if lease.lines and lease.end_ms < FOREVER_MS:
                due = min(due, lease.renew_at_ms)
        for home, reads in self._reads.items():
            if reads:
                due = min(due, self._silence_due_ms(home, reads))
        for pending in self._pending.values():
            return min(due, pending.deadline_ms)
        return due

    # --- handlers of the table --------------------------------------------------------------

    def _handle(self, line: Line, event: Any, now_ms: int) -> None:
        handler = TABLE.get((line.state, type(event)))
        if handler is None:
            raise IllegalTransition(
                f"{self.me}'s copy of {line.key!r}",
                line.state.name,
                type(event).__name__,
                self._story,
            )
        handler(self, line, event, now_ms)

    def _hit(self, line: Line, op: Read, now_ms: int) -> None:
        line.visited = True
        self.counters.hits += 1
        self._out.append(Answer(op.ref, 200, "", "", line.version, line.value, line.content_type))

    def _ask_shared(self, line: Line, op: Read, now_ms: int) -> None:
        """I -> I_S. Reads that wait right behind this one share the answer."""
        refs = [op.ref]
        while line.waiting and type(line.waiting[0][1]) is Read:
            refs.append(line.waiting.popleft()[1].ref)
        self.counters.misses += len(refs)
        self._ask(line, State.I_S, op, refs, now_ms)

    def _ask_exclusive(self, line: Line, op: Write, now_ms: int) -> None:
        """I -> I_M; S, E, M -> S_M."""
        self.counters.writes += 1
        line.before = line.state
        state = State.I_M if line.state is State.I else State.S_M
        self._ask(line, state, op, [op.ref], now_ms)

    def _wait(self, line: Line, op: Read | Write, now_ms: int) -> None:
        if len(line.waiting) >= limits.CACHE_LINE_QUEUE_MAX:
            self._refuse(
                [op.ref],
                429,
                "overloaded",
                f"cache key {line.key!r}: {limits.CACHE_LINE_QUEUE_MAX} requests wait already",
            )
            return
        line.waiting.append((now_ms + limits.CACHE_REQUEST_MS, op))

    def _granted(self, line: Line, grant: Grant, now_ms: int) -> None:
        """I_S, I_M, S_M -> S, E, M (or I, when no copy may be kept)."""
        pending = self._close(line)
        keep = grant.state != State.I and self._may_keep(pending, grant, now_ms)
        if line.state is State.S_M:
            self._drop(line, State.I)
        line.state = State.I
        if keep:
            self._install(line, grant, pending, now_ms)
        if grant.state != State.I:
            self._send(
                pending.home, GrantAck(line.key, self.epoch, grant.home_boot, grant.txn, keep)
            )
        status = 200
        if type(pending.message) is GetExclusive:
            status = 204 if grant.version == 0 else 201 if grant.created else 200
        for ref in pending.refs:
            self._out.append(
                Answer(ref, status, "", "", grant.version, grant.value, grant.content_type)
            )
        self._drain(line, now_ms)
        self._make_room(now_ms)

    def _refused(self, line: Line, refuse: Refuse, now_ms: int) -> None:
        """Back to I, or after 412 and 422 (nothing was touched) to what the line was before."""
        pending = self._close(line)
        if line.state is State.S_M:
            if refuse.status in (412, 422) and not self._is_dead(line, now_ms):
                line.state = line.before
            else:
                self._drop(line, State.I)
        line.state = line.state if line.state <= STABLE_MAX else State.I
        self._refuse(
            pending.refs,
            refuse.status,
            refuse.code,
            refuse.message,
            version=refuse.version,
            retry_after_ms=refuse.retry_after_ms,
        )
        self._drain(line, now_ms)

    def _invalidated(self, line: Line, message: Invalidate, now_ms: int) -> None:
        """S, E, M -> I; S_M -> I_M; I, I_S, I_M stay. Always acknowledged."""
        if line.pending is not None:
            line.pending.voided_by = max(line.pending.voided_by, message.txn)
        if line.state in (State.S, State.E, State.M, State.S_M):
            if line.txn > message.txn:  # a late one: this copy was granted after it
                return
            self.counters.invalidations += 1
            self._drop(line, State.I_M if line.state is State.S_M else State.I)
        self._forget_if_idle(line)
        self._send(
            self._home_of(line.key),
            InvalidateAck(line.key, self.epoch, message.home_boot, message.txn),
        )

    def _downgraded(self, line: Line, message: Downgrade, now_ms: int) -> None:
        """M, E -> S; the value goes to the home. Without a copy the reply says so."""
        version, value, kind = 0, b"", ""
        if line.state in (State.S, State.E, State.M, State.S_M) and line.txn < message.txn:
            if line.state is State.S_M:
                line.before = State.S
            else:
                line.state = State.S
            version, value, kind = line.version, line.value, line.content_type
        elif line.pending is not None and line.pending.voided_by < message.txn:
            line.pending.voided_by = message.txn
        self._send(
            self._home_of(line.key),
            FetchReply(line.key, self.epoch, message.home_boot, message.txn, version, value, kind),
        )
        self._forget_if_idle(line)

    # --- requests ---------------------------------------------------------------------------

    def _ask(
        self, line: Line, state: State, op: Read | Write, refs: list[int], now_ms: int
    ) -> None:
        home = self._home_of(line.key)
        if not self._reachable.get(home):
            self._refuse(
                refs,
                503,
                "home_unavailable",
                f"cache key {line.key!r}: its home {home} is not reachable",
                retry_after_ms=RETRY_AFTER_MS,
            )
            self._forget_if_idle(line)
            return
        if home in self._silent and type(op) is Read:
            self._refuse_silent(line, home, refs, now_ms)
            return
        if len(self._pending) >= limits.CACHE_PENDING_MAX:
            self._refuse(refs, 429, "overloaded", "too many cache requests are open here")
            self._forget_if_idle(line)
            return
        request = self._next_request
        self._next_request += 1
        floor = next(iter(self._pending), request)
        boot = self._boots[home]
        common = (line.key, self.epoch, boot, request, floor, limits.CACHE_REQUEST_MS)
        message: Request
        if type(op) is Write:
            message = GetExclusive(
                *common,
                op.op,
                op.value,
                op.content_type,
                op.ttl_ms,
                op.if_match,
                op.if_none_match,
                op.delta,
            )
        else:
            message = GetShared(*common)
        lease = self._lease(home, now_ms)
        held = lease if now_ms < lease.end_ms else None
        pending = Pending(line.key, home, message, refs, now_ms, held)
        line.state = state
        line.pending = pending
        self._pending[request] = pending
        if home != self.me and type(message) is GetShared:
            self._reads.setdefault(home, {})[request] = pending
        self._send(home, message)

    def _close(self, line: Line) -> Pending:
        pending = line.pending
        assert pending is not None, (line.key, line.state)
        del self._pending[pending.message.request]
        self._reads.get(pending.home, {}).pop(pending.message.request, None)
        line.pending = None
        return pending

    def _fail(self, pending: Pending, why: str, now_ms: int) -> None:
        """No answer will be taken any more. A write may still happen: its outcome is unknown."""
        line = self._lines[pending.key]
        self._close(line)
        if line.state is State.S_M:
            self._drop(line, State.I)
        line.state = State.I
        if type(pending.message) is GetExclusive:
            self._refuse(
                pending.refs,
                504,
                "indeterminate",
                f"cache key {pending.key!r}: {why}; the write may or may not have happened",
            )
        else:
            self._refuse(
                pending.refs,
                503,
                "home_unavailable",
                f"cache key {pending.key!r}: {why}",
                retry_after_ms=RETRY_AFTER_MS,
            )
        self._drain(line, now_ms)

    def _fail_pending(self, home: str, why: str, now_ms: int) -> None:
        # First unreachable: what waits behind these must fail too, not be sent.
        self._reachable[home] = False
        for pending in [p for p in self._pending.values() if p.home == home]:
            self._fail(pending, why, now_ms)

    def _silent_since_ms(self, home: str, reads: dict[int, Pending]) -> int:
        oldest = next(iter(reads.values()))
        return max(oldest.sent_ms, self._heard_ms.get(home, 0))

    def _silence_due_ms(self, home: str, reads: dict[int, Pending]) -> int:
        """When `_on_silence` has to look at a home that says nothing."""
        since_ms = self._silent_since_ms(home, reads)
        probed_ms = self._probed_ms.get(home, -1)
        # Counted from the question: this node itself may have been paused before it.
        return max(since_ms, probed_ms) + self._silence_ms // 2

    def _on_silence(self, home: str, reads: dict[int, Pending], now_ms: int) -> None:
        """Half a lease without a word: ask for one. As long again: the reads that wait fail."""
        since_ms = self._silent_since_ms(home, reads)
        if self._probed_ms.get(home, -1) < since_ms:
            self._probe(home, now_ms)
            return
        self._silent[home] = None  # first, so that reads behind these fail too
        for pending in list(reads.values()):
            self._fail(pending, f"its home {home} is silent", now_ms)

    def _probe(self, home: str, now_ms: int) -> None:
        self._probed_ms[home] = now_ms
        self._renew(home, self._lease(home, now_ms), now_ms)

    def _refuse_silent(self, line: Line, home: str, refs: list[int], now_ms: int) -> None:
        if now_ms - self._probed_ms[home] >= self._silence_ms // 2:
            self._probe(home, now_ms)
        self._refuse(
            refs,
            503,
            "home_unavailable",
            f"cache key {line.key!r}: its home {home} is silent",
            retry_after_ms=RETRY_AFTER_MS,
        )
        self._forget_if_idle(line)

    def _drain(self, line: Line, now_ms: int) -> None:
        """Handle what waited, up to the next request that has to be sent."""
        while line.waiting and line.pending is None:
            deadline_ms, op = line.waiting.popleft()
            if deadline_ms <= now_ms:
                self._refuse(
                    [op.ref],
                    503,
                    "home_unavailable",
                    f"cache key {line.key!r}: waited too long for earlier requests",
                    retry_after_ms=RETRY_AFTER_MS,
                )
                continue
            self._handle(line, op, now_ms)
        self._forget_if_idle(line)

    def _decline(self, peer: str, message: Grant | Refuse, line: Line | None) -> None:
        """A Grant nobody waits for: late (no copy is kept) or a duplicate (the copy stays)."""
        if type(message) is not Grant or message.state == State.I:
            return
        kept = line is not None and line.txn == message.txn and line.state != State.I
        self._send(peer, GrantAck(message.key, self.epoch, message.home_boot, message.txn, kept))

    def _refuse(
        self,
        refs: list[int],
        status: int,
        code: str,
        message: str,
        *,
        version: int = 0,
        retry_after_ms: int = 0,
    ) -> None:
        for ref in refs:
            self._out.append(
                Answer(ref, status, code, message, version, retry_after_ms=retry_after_ms)
            )

    def _send(self, peer: str, message: CacheMessage) -> None:
        self._out.append(Send(peer, message))

    # --- leases -----------------------------------------------------------------------------

    def _is_dead(self, line: Line, now_ms: int) -> bool:
        return now_ms >= line.lease.end_ms or now_ms >= line.expires_ms

    def _lease(self, home: str, now_ms: int) -> Lease:
        """The lease that a copy asked for now would join: a fresh one after a gap."""
        lease = self._leases.get(home)
        if lease is None or now_ms >= lease.end_ms > 0:
            if lease is not None and lease.lines:
                self.counters.lapsed += lease.lines
                self._story.append(f"{now_ms}: lease from {home} lapsed, {lease.lines} lines")
            lease = self._leases[home] = Lease()
        return lease

    def _extend(self, home: str, sent_ms: int, now_ms: int) -> Lease:
        lease = self._lease(home, now_ms)
        if home == self.me:
            lease.end_ms = FOREVER_MS  # home and copies live and die together
        elif sent_ms + self._lease_ms > lease.end_ms:
            lease.end_ms = sent_ms + self._lease_ms
            lease.renew_at_ms = sent_ms + self._renew_ms
        return lease

    def _may_keep(self, pending: Pending, grant: Grant, now_ms: int) -> bool:
        if pending.voided_by > grant.txn:
            return False
        lease = self._extend(pending.home, pending.sent_ms, now_ms)
        unbroken = lease is pending.lease  # held when the request left, and ever since
        if (
            not unbroken
            and pending.sent_ms + self._lease_ms <= now_ms
            and lease.end_ms != FOREVER_MS
        ):
            return False
        if grant.ttl_left_ms and pending.sent_ms + grant.ttl_left_ms <= now_ms:
            return False
        return now_ms < lease.end_ms

    def _renew(self, home: str, lease: Lease, now_ms: int) -> None:
        lease.renew_at_ms = now_ms + self._renew_ms
        if not self._reachable.get(home):
            return
        request = self._next_request
        self._next_request += 1
        self._renewals[request] = (home, now_ms)
        while len(self._renewals) > RENEWALS_OPEN_MAX:
            del self._renewals[next(iter(self._renewals))]
        self._send(home, Renew(self.epoch, self._boots[home], request))

    def _renewed(self, home: str, message: LeaseGrant, now_ms: int) -> None:
        renewal = self._renewals.pop(message.request, None)
        if renewal is not None and renewal[0] == home:
            self._extend(home, renewal[1], now_ms)

    # --- lines ------------------------------------------------------------------------------

    def _install(self, line: Line, grant: Grant, pending: Pending, now_ms: int) -> None:
        message = pending.message
        written = type(message) is GetExclusive and not grant.value
        line.state = State(grant.state)
        line.value = message.value if written else grant.value  # type: ignore[union-attr]
        line.content_type = (
            message.content_type if written else grant.content_type  # type: ignore[union-attr]
        )
        line.version = grant.version
        line.txn = grant.txn
        line.expires_ms = pending.sent_ms + grant.ttl_left_ms if grant.ttl_left_ms else FOREVER_MS
        line.lease = self._leases[pending.home]
        line.lease.lines += 1
        size = len(line.value) + len(line.key) + limits.CACHE_LINE_OVERHEAD_BYTES
        self._sieve.add(line, size)

    def _drop(self, line: Line, state: State) -> None:
        """Destroy the copy's data; the line goes to `state`."""
        self._sieve.remove(line)
        line.lease.lines -= 1
        line.lease = _NO_LEASE
        line.value = b""
        line.version = 0
        line.state = state

    def _forget_if_idle(self, line: Line) -> None:
        if line.state is State.I and line.pending is None and not line.waiting:
            self._lines.pop(line.key, None)

    def _make_room(self, now_ms: int) -> None:
        while True:
            victim = self._sieve.victim(_is_stable)
            if victim is None:
                return
            assert type(victim) is Line
            home, txn = self._home_of(victim.key), victim.txn
            alive = not self._is_dead(victim, now_ms)
            self._drop(victim, State.I)
            self._forget_if_idle(victim)
            self.counters.evictions += 1
            if alive and self._reachable.get(home):
                self._send(home, Evict(victim.key, self.epoch, self._boots[home], txn))

    def check_invariants(self) -> None:
        """Raise AssertionError when lines, queue, leases and requests disagree."""
        held = 0
        for line in self._lines.values():
            has_data = line.state in (State.S, State.E, State.M, State.S_M)
            held += line.size
            assert has_data == (line.size > 0), (line.key, line.state, line.size)
            assert (line.pending is None) == (line.state <= STABLE_MAX), (line.key, line.state)
            assert line.state is not State.I or line.waiting or line.pending, line.key
            if line.pending is not None:
                assert self._pending[line.pending.message.request] is line.pending, line.key
        assert held == self._sieve.held_bytes, (held, self._sieve.held_bytes)


def _is_stable(link: Link) -> bool:
    return type(link) is Line and 0 < link.state <= STABLE_MAX


Handler = Callable[[Agent, Line, Any, int], None]
TABLE: Final[dict[tuple[State, type], Handler]] = {
    (State.I, Read): Agent._ask_shared,
    (State.I, Write): Agent._ask_exclusive,
    (State.I, Invalidate): Agent._invalidated,
    (State.I, Downgrade): Agent._downgraded,
    **{
        (state, event): handler
        for state in (State.S, State.E, State.M)
        for event, handler in (
            (Read, Agent._hit),
            (Write, Agent._ask_exclusive),
            (Invalidate, Agent._invalidated),
            (Downgrade, Agent._downgraded),
        )
    },
    **{
        (state, event): handler
        for state in (State.I_S, State.I_M, State.S_M)
        for event, handler in (
            (Read, Agent._wait),
            (Write, Agent._wait),
            (Grant, Agent._granted),
            (Refuse, Agent._refused),
            (Invalidate, Agent._invalidated),
            (Downgrade, Agent._downgraded),
        )
    },
}
