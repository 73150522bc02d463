"""The lock service of one node: streams and HTTP in, the lock group's commands and reads out.

Writes go to consensus, which finds the leader. What must not live here: what a command does
(core/locks), reads (lock_reads.py), parsing of HTTP or WebSocket frames (api).
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from hashlib import blake2b
from typing import Any, Final, Protocol

import msgspec

from dss.base.errors import DssError, Invalid, Overloaded
from dss.base.ids import LOCK_GROUP
from dss.base.limits import (
    BATCH_ITEMS_MAX,
    STREAM_IN_FLIGHT_MAX,
)
from dss.core.locks.commands import (
    CLIENT_CODEC,
    KEYED_CODEC,
    LOCAL_OPS,
    READ_OPS,
    Acquire,
    AcquireMany,
    Break,
    Keyed,
    Read,
    SessionCreate,
    SessionKeepalive,
    Upgrade,
    WatchSession,
    Withdraw,
    Write,
)
from dss.core.locks.machine import LockMachine
from dss.core.machine import Result, join_items, strip_array_header
from dss.drivers.gone_clients import GoneClients, Waiting
from dss.drivers.lock_events import LockEvents, Watcher
from dss.drivers.lock_reads import LockReads
from dss.drivers.lock_subscriptions import Subscriber, Subscriptions
from dss.drivers.ports import Consensus, Sink, StreamSink
from dss.observe.metrics import Registry
from dss.transport.ports import Transport

END_WAITS_LOOK_S: Final = 0.01
"""Between two looks at the waits of a node that stops: their answers come with the log."""

_NOT_LOGGED: Final = READ_OPS | LOCAL_OPS
_WAITING: Final = frozenset((Acquire, AcquireMany, Upgrade))

_encode = msgspec.msgpack.Encoder().encode
_results = msgspec.msgpack.Decoder(list[tuple[int, Any]])


def new_session_id() -> str:
    """128 random bits: made here, so that applying the command stays deterministic."""
    return secrets.token_hex(16)


class LockSink(StreamSink, Watcher, Subscriber, Protocol):
    """A client's stream of the lock service (api/lock_stream.py)."""

    def note_wait(self, request_id: int, command: Waiting) -> None:
        """Until this is answered, the client's end ends this wait."""


class LockService:
    """See the module.

    Args:
        read_timeout_ms: a read that finds no leader within this time is 503 `no_quorum`; about
            one election timeout.
    """

    def __init__(
        self, consensus: Consensus, transport: Transport, *, read_timeout_ms: int = 1_000
    ) -> None:
        self._consensus = consensus
        self._read_timeout_ms = read_timeout_ms
        self._tasks: dict[asyncio.Task[None], None] = {}
        self.events = LockEvents(consensus)
        self._subscriptions = Subscriptions(self.events)
        self.gone = GoneClients(consensus, self.write, self._spawn)
        self._reads = LockReads(consensus, transport, self._spawn, read_timeout_ms)

    async def start(self) -> None:
        """Answer other nodes' reads. The lock group itself is opened by the composition root."""
        self._reads.start()
        self.events.start()

    async def stop(self) -> None:
        """Cancel reads under way; writes end with consensus."""
        self.gone.stopped = True
        self.events.stop()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def end_waits(self) -> None:
        """Before a planned stop, after leadership went: whoever waits here must ask elsewhere.

        Their waits end by a log entry, so that the answer (503 `stopping`, or the grant that came
        before) is final. Without a quorum they end with consensus: 504.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + self._read_timeout_ms / 1_000
        while loop.time() < until:
            places = self._consensus.waits_here(LOCK_GROUP)[:BATCH_ITEMS_MAX]
            if not places:
                return
            with contextlib.suppress(DssError, TimeoutError):
                async with asyncio.timeout_at(until):
                    await self._consensus.call(LOCK_GROUP, Withdraw(places))
            await asyncio.sleep(END_WAITS_LOOK_S)

    def readiness(self) -> str | None:
        """None: this node has the lock group. It never depends on a leader (decisions/0004)."""
        if self._machine() is None:
            return "the lock group is not founded yet: it waits for all lock nodes to answer"
        return None

    def status(self) -> dict[str, Any]:
        """Figures of this node's copy of the state, and what it applied since it started."""
        machine = self._machine()
        if machine is None:
            return {"leader": None}
        return {
            "leader": self._consensus.leader_of(LOCK_GROUP),
            "sessions": machine.sessions,
            "locks": machine.locks,
            "held": machine.held,
            "waiting": machine.waiting,
            "grants": machine.grants,
            "releases": machine.releases,
            "timeouts": machine.timeouts,
            "expirations": machine.expirations,
            "deadlocks": machine.deadlocks,
            "idempotency_keys": len(machine.keys),
        }

    def _machine(self) -> LockMachine | None:
        try:
            machine: LockMachine = self._consensus.machine(LOCK_GROUP)
        except KeyError:
            return None
        return machine

    # --- streams ------------------------------------------------------------------------

    def submit_stream(self, sink: LockSink, payload: bytes) -> None:
        """One message of a stream: a msgpack array of `[request_id, op, args]`.

        When all of it are writes, the client's own bytes become the log's.

        Raises:
            Invalid: not such a message, or ids that cannot be answered: the stream must end.
        """
        triples = CLIENT_CODEC.split(payload)
        admitted = sink.take([triple[0] for triple in triples])
        untouched = admitted == len(triples)
        request_ids: list[int] = []
        commands: list[Write] = []
        reads: list[tuple[int, Read]] = []
        decode = CLIENT_CODEC.decode_args
        for request_id, op, args in triples if untouched else triples[:admitted]:
            try:
                command = decode(op, args)
            except Invalid as error:
                sink.answer(request_id, error.status, error.body())
                untouched = False
                continue
            if op in _NOT_LOGGED:
                untouched = False
                if op in LOCAL_OPS:
                    self._subscriptions.ask(sink, request_id, command)
                    continue
                reads.append((request_id, command))
                if type(command) is WatchSession:
                    self.events.watch(sink, command.session, grants=True)
                continue
            kind = type(command)
            if kind in _WAITING:
                if command.wait_ms:
                    sink.note_wait(request_id, command)
            elif kind is SessionCreate:
                if command.session is None:
                    command = SessionCreate(command.ttl_ms, command.name, new_session_id())
                    untouched = False
                self.events.watch(sink, command.session)
            elif kind is SessionKeepalive:
                self.events.watch(sink, command.session)
            request_ids.append(request_id)
            commands.append(command)
        if untouched:
            _, items = strip_array_header(payload)
        else:
            _answer_overload(sink, triples[admitted:])
            sink.flush()
            encode = CLIENT_CODEC.encode_item
            items = b"".join(map(encode, request_ids, commands))
        if commands:
            self._consensus.submit(LOCK_GROUP, request_ids, items, commands, sink)
        if reads:
            self._spawn(self._answer_reads(sink, reads))

    def stream_ended(self, sink: LockSink, waits: Mapping[int, Waiting]) -> None:
        """Nobody listens to it any more; `waits` have no answer yet, while they stand there."""
        self.events.unwatch(sink)
        self._subscriptions.end(sink)
        if waits:
            self.gone.left_stream(waits)

    async def _answer_reads(self, sink: Sink, reads: Sequence[tuple[int, Read]]) -> None:
        """One ReadIndex round, or one call to the leader, for all reads of a message."""
        results: Sequence[Result]
        try:
            results = await self._reads.read([read for _, read in reads])
        except DssError as error:
            results = [(error.status, error.body())] * len(reads)
        for (request_id, _), (status, body) in zip(reads, results, strict=True):
            sink.answer(request_id, status, body)
        sink.flush()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks[task] = None
        task.add_done_callback(self._tasks.pop)

    # --- single requests (HTTP) ---------------------------------------------------------

    def create_session(self, ttl_ms: int, name: str = "", key: str = "") -> Awaitable[Result]:
        """201 `{session, ttl_ms}`."""
        return self.write(SessionCreate(ttl_ms, name, new_session_id()), key)

    def write(self, command: Write | Break, key: str = "") -> Awaitable[Result]:
        """One write, its errors as answers.

        Args:
            key: an `Idempotency-Key`: the same command under the same key is carried out once.
        """
        checked = _checked(command)
        if not key:
            return self._consensus.call(LOCK_GROUP, checked)
        return self._consensus.call(LOCK_GROUP, _checked(_keyed(checked, key)))

    async def read(self, query: Read, *, whole: bool = False) -> Result:
        """One linearizable read; `whole`: with other clients' session ids."""
        return (await self._reads.read([_checked(query)], whole=whole))[0]


def _keyed(command: Write | Break, key: str) -> Keyed:
    """What the client asked for, not what was filled in here, tells two requests apart."""
    asked = command
    if isinstance(command, SessionCreate):
        asked = SessionCreate(command.ttl_ms, command.name)
    digest = blake2b(KEYED_CODEC.encode_item(0, asked), digest_size=16).digest()
    [(_, op, args)] = KEYED_CODEC.split(join_items(1, [KEYED_CODEC.encode_item(0, command)]))
    return Keyed(key, digest, op, args)


def _answer_overload(sink: Sink, triples: Sequence[tuple[int, str, msgspec.Raw]]) -> None:
    if not triples:
        return
    body = Overloaded(
        f"more than {STREAM_IN_FLIGHT_MAX} unanswered requests on this stream: wait for answers",
        retry_after_ms=100,
    ).body()
    for request_id, _, _ in triples:
        sink.answer(request_id, Overloaded.status, body)


def _checked(command: Any) -> Any:
    """Validate what code built: the log must never hold what a follower cannot decode."""
    try:
        return msgspec.msgpack.decode(_encode(command), type=type(command))
    except (msgspec.ValidationError, UnicodeEncodeError) as error:
        raise Invalid(str(error)) from error


def register_metrics(registry: Registry, service: LockService) -> None:
    """`dss_lock_*`: read from plain ints on scrape. Counters restart with the process."""

    def figure(name: str) -> Callable[[], int | None]:
        return lambda: service.status().get(name)

    for name, key, text in (
        ("dss_lock_grants_total", "grants", "Lock grants applied by this node."),
        ("dss_lock_releases_total", "releases", "Lock releases applied, session ends included."),
        ("dss_lock_timeouts_total", "timeouts", "Acquires that ended in lock_timeout."),
        ("dss_lock_deadlocks_total", "deadlocks", "Waits that ended because of a deadlock."),
        ("dss_lock_session_expirations_total", "expirations", "Sessions ended by their TTL."),
    ):
        registry.counter_callback(name, text, figure(key))
    for name, key, text in (
        ("dss_lock_sessions", "sessions", "Live sessions."),
        ("dss_lock_held", "held", "Holders of locks (a shared lock has several)."),
        ("dss_lock_locks", "locks", "Locks that somebody holds or waits for."),
        ("dss_lock_idempotency_keys", "idempotency_keys", "Idempotency keys remembered."),
        ("dss_lock_waiting", "waiting", "Acquires waiting for a lock."),
    ):
        registry.gauge(name, text, figure(key))
