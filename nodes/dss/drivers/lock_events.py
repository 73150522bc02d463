"""Who hears what happens to locks on this node: streams that watch sessions, event streams.

Every node applies the whole log, so each tells its own clients, without asking anybody. What must
not live here: frames and server-sent events (api/lock_stream.py, api/lock_events.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any, Final, Protocol

from dss.base.errors import NoQuorum, Overloaded
from dss.base.handles import shown_owner
from dss.base.ids import LOCK_GROUP
from dss.base.limits import EVENT_STREAMS_MAX, STREAM_WATCHES_MAX
from dss.core.locks.history import Hold
from dss.core.locks.journal import WAITING, Happening, Loss
from dss.core.locks.machine import LockMachine
from dss.core.locks.state import label_of
from dss.drivers.ports import Consensus

BATCH: Final = 500
"""Events looked at together: a client far behind must not hold the loop up."""
RETRY_MS: Final = 1_000
"""How long a client waits before it comes back, to any node."""
UNKNOWN: Final = "unknown"
"""Why a session is gone that ended inside a snapshot."""


class Watcher(Protocol):
    """A client's connection that is told about its sessions."""

    def push(self, body: dict[str, Any]) -> None: ...

    def flush(self) -> None: ...


class LockEvents:
    """Call `applied` after entries of the lock group were applied."""

    def __init__(self, consensus: Consensus) -> None:
        self._consensus = consensus
        self._watchers: dict[str, dict[Watcher, bool]] = {}
        self._watched: dict[Watcher, dict[str, None]] = {}
        self._grant_watches = 0
        self._told = 0
        self._jumps = 0
        self._streams = 0
        self._news: asyncio.Future[None] | None = None
        self.stopped = False

    def start(self) -> None:
        self._consensus.on_applied(LOCK_GROUP, self.applied)

    def stop(self) -> None:
        """End the event streams."""
        self.stopped = True
        self._wake()

    def _machine(self) -> LockMachine | None:
        try:
            machine: LockMachine = self._consensus.machine(LOCK_GROUP)
        except KeyError:
            return None
        return machine

    # --- sessions of streams ------------------------------------------------------------

    def watch(self, watcher: Watcher, session: str, grants: bool = False) -> None:
        """Tell it of losses of this session (and of its late grants)."""
        mine = self._watched.setdefault(watcher, {})
        if session not in mine:
            if len(mine) >= STREAM_WATCHES_MAX:
                return
            mine[session] = None
        others = self._watchers.setdefault(session, {})
        if grants and not others.get(watcher):
            if not self._grant_watches:
                machine = self._machine()
                self._told = machine.journal.newest if machine is not None else 0
            self._grant_watches += 1
        others[watcher] = grants or others.get(watcher, False)

    def unwatch(self, watcher: Watcher) -> None:
        """Its connection is over."""
        for session in self._watched.pop(watcher, {}):
            self._drop(session, watcher)

    def _drop(self, session: str, watcher: Watcher) -> None:
        watchers = self._watchers[session]
        if watchers.pop(watcher):
            self._grant_watches -= 1
        if not watchers:
            del self._watchers[session]

    def applied(self) -> None:
        """Push what concerns watched sessions; wake the event streams."""
        machine = self._machine()
        if machine is None:
            return
        journal = machine.journal
        touched: dict[Watcher, None] = {}
        if journal.jumps != self._jumps:
            self._jumps = journal.jumps
            self._told = journal.newest
            gone = [each for each in self._watchers if machine.find_session(each) is None]
            for session in gone:
                self._push_loss((session, "", 0, "", UNKNOWN), touched)
        for loss in journal.take_losses():
            if loss[0] in self._watchers:
                self._push_loss(loss, touched)
        if self._grant_watches:
            self._push_grants(machine, touched)
        for watcher in touched:
            watcher.flush()
        if self._news is not None:
            self._wake()

    def _push_loss(self, loss: Loss, touched: dict[Watcher, None]) -> None:
        session, name, token, owner, why = loss
        body: dict[str, Any] = {"event": "session_lost", "session": session, "reason": why}
        if name:
            body |= {"event": "lock_lost", "name": name, "token": token, "owner": owner}
        for watcher in list(self._watchers[session]):
            watcher.push(body)
            touched[watcher] = None
            if not name:
                self._watched[watcher].pop(session, None)
                self._drop(session, watcher)

    def _push_grants(self, machine: LockMachine, touched: dict[Watcher, None]) -> None:
        journal = machine.journal
        start = max(self._told, journal.oldest - 1)
        self._told = journal.newest
        for happening in journal.since(start, journal.newest - start):
            if not isinstance(happening, Hold) or happening.session not in self._watchers:
                continue
            session = happening.session
            body = {
                "event": "lock_granted",
                "session": session,
                "name": happening.name,
                "token": happening.token,
                "owner": happening.owner,
                "mode": happening.mode,
            }
            for watcher, wants_grants in self._watchers[session].items():
                if wants_grants:
                    watcher.push(body)
                    touched[watcher] = None

    # --- event streams ------------------------------------------------------------------

    def open_stream(self) -> None:
        """One more event stream; `close_stream` gives its room back.

        Raises:
            NoQuorum: this node knows no leader.
            Overloaded: there are EVENT_STREAMS_MAX.
        """
        if not self.current:
            raise self.not_current()
        if self._streams >= EVENT_STREAMS_MAX:
            raise Overloaded(
                f"{EVENT_STREAMS_MAX} event streams are open on this node: use another node",
                retry_after_ms=RETRY_MS,
            )
        self._streams += 1

    def close_stream(self) -> None:
        self._streams -= 1

    @property
    def current(self) -> bool:
        """Whether a leader is known: else what happens may be decided without this node."""
        return self._consensus.leader_of(LOCK_GROUP) is not None

    def not_current(self) -> NoQuorum:
        """Why there is no event stream here."""
        return NoQuorum(
            "this node knows no leader, so it hears of nothing new: use another node",
            retry_after_ms=RETRY_MS,
        )

    @property
    def newest(self) -> int:
        """The number of the last event that this node has applied."""
        machine = self._machine()
        return machine.journal.newest if machine is not None else 0

    def since(self, number: int, prefix: str) -> tuple[int, list[dict[str, Any]]]:
        """A batch of events after `number`.

        Returns:
            (number of the last one looked at, those whose name begins so). An event `gap` stands
            for what this node does not remember: read the locks anew.
        """
        machine = self._machine()
        if machine is None:
            return number, []
        journal = machine.journal
        found: list[dict[str, Any]] = []
        if number < journal.oldest - 1:
            last = journal.oldest - 1
            found.append({"index": last, "event": "gap", "from": number + 1, "to": last})
            number = last
        if number >= journal.newest:
            return number, found
        log_ms = self._consensus.log_ms(LOCK_GROUP)
        batch = journal.since(number, BATCH)
        for index, happening in enumerate(batch, start=number + 1):
            event = rendered(index, happening, log_ms)
            if event["name"].startswith(prefix):
                found.append(event)
        return number + len(batch), found

    async def follow(
        self, number: int, prefix: str, quiet_s: float
    ) -> AsyncGenerator[tuple[int, list[dict[str, Any]]], None]:
        """Batches after `number`, as of `since`; an empty one after each `quiet_s` without any.

        Ends when this node stops, or has been quiet and knows no leader.
        """
        loop = asyncio.get_running_loop()
        quiet_until = loop.time() + quiet_s
        while not self.stopped:
            before = number
            number, found = self.since(number, prefix)
            if found:
                yield number, found
                quiet_until = loop.time() + quiet_s
            elif loop.time() >= quiet_until:
                if not self.current:
                    return
                # The number moves on even when no name began so: less to skip next time.
                yield number, found
                quiet_until = loop.time() + quiet_s
            if number == before:
                await self.news(max(0.0, quiet_until - loop.time()))
            elif not found:
                await asyncio.sleep(0)

    async def news(self, timeout_s: float) -> None:
        """Return after the next change, or this time."""
        if self._news is None:
            self._news = asyncio.get_running_loop().create_future()
        await asyncio.wait((self._news,), timeout=timeout_s)

    def _wake(self) -> None:
        news, self._news = self._news, None
        if news is not None and not news.done():
            news.set_result(None)


def rendered(index: int, happening: Happening, log_ms: int) -> dict[str, Any]:
    if isinstance(happening, Hold):
        return _of_hold(index, "granted", happening) | {
            "mode": happening.mode,
            "ago_ms": max(0, log_ms - happening.since_ms),
        }
    if len(happening) == 1:
        (hold,) = happening
        return _of_hold(index, "released", hold) | {
            "reason": hold.how,
            "ago_ms": max(0, log_ms - hold.until_ms),
        }
    kind, name, session, session_name, owner, detail, at_ms = happening
    return {
        "index": index,
        "event": kind,
        "name": name,
        "waiter": label_of(session, session_name, owner),
        "mode" if kind == WAITING else "reason": detail,
        "ago_ms": max(0, log_ms - at_ms),
        "owner": shown_owner(session, owner),
    }


def _of_hold(index: int, kind: str, hold: Hold) -> dict[str, Any]:
    return {
        "index": index,
        "event": kind,
        "name": hold.name,
        "token": hold.token,
        "holder": label_of(hold.session, hold.session_name, hold.owner),
        "owner": shown_owner(hold.session, hold.owner),
    }
