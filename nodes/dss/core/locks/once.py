"""Commands that are carried out once: sequenced by a session, or under an Idempotency-Key.

Source: Ongaro 2014 §6.3. What must not live here: what they do (acquiring.py, machine.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from dss.base.errors import DssError
from dss.base.limits import (
    ANSWERS_BYTES_MAX,
    REPEATS_ANSWERED_MAX,
    SEQUENCE_WINDOW,
    SESSION_ANSWERS_BYTES_MAX,
)
from dss.core.locks import answers
from dss.core.locks.answers import problem
from dss.core.locks.commands import (
    KEYED_CODEC,
    Acquire,
    AcquireMany,
    Downgrade,
    Keyed,
    Release,
    Upgrade,
)
from dss.core.locks.kept import size_of, size_of_wait
from dss.core.locks.lines import NO_KEY, TRY_LATER, LockLines
from dss.core.locks.places import Waiter
from dss.core.locks.state import Session
from dss.core.machine import PENDING, Result, Wake

Once = TypeVar("Once", Acquire, AcquireMany, Release, Upgrade, Downgrade)


class LockOnce(LockLines):
    """See the module."""

    _handlers: dict[type, Callable[[Any, int], Result]]

    def _once(
        self,
        session: Session,
        command: Once,
        position: int,
        handler: Callable[[Once, Session, int], Result],
    ) -> Result:
        """A sequenced command: carried out once, then answered from memory.

        No answer is dropped early: while there is no room, new commands are refused.
        """
        kept = session.answers
        if kept is None:
            kept = session.answers = {}
        ack = command.ack
        if ack > session.floor:
            session.floor = ack
            freed = 0
            for seq in [seq for seq in kept if seq <= ack]:
                freed += size_of(kept.pop(seq))
            session.answers_bytes -= freed
            self.answers_bytes -= freed
        seq = command.seq
        earlier = kept.get(seq)
        if earlier is not None:
            return earlier if earlier[0] else self._rejoin(session, command, position)
        if seq <= session.floor:
            return answers.too_old(seq, session.floor)
        if seq > session.floor + SEQUENCE_WINDOW:
            return answers.window_full()
        if session.answers_bytes >= SESSION_ANSWERS_BYTES_MAX:
            return answers.session_answers_full()
        if self.answers_bytes >= ANSWERS_BYTES_MAX:
            return answers.answers_full()
        result = handler(command, session, position)
        if result[0] not in TRY_LATER:
            if result[0]:
                size = size_of(result)
                kept[seq] = result
            else:
                size = size_of_wait(command.locks if isinstance(command, AcquireMany) else ())
                kept[seq] = (0, size)
            session.answers_bytes += size
            self.answers_bytes += size
        return result

    def _rejoin(self, session: Session, command: Once, position: int) -> Result:
        """It still waits: the repeat waits with it."""
        owner = command.owner or command.session
        name = command.locks[0] if isinstance(command, AcquireMany) else command.name
        waiter = session.waits.get(owner, {}).get(name)
        if waiter is None or waiter.seq != command.seq:
            return problem(409, "sequence_reused", f"command {command.seq} was another request")
        return self._join(waiter, position)

    def _join(self, waiter: Waiter, position: int) -> Result:
        """The same request once more: which of the two has a client that still listens nobody
        knows (a node that was stopped may send one on late), so both get the one answer."""
        if self.level < 2:
            return self._take_over(waiter, position)
        questions = waiter.questions
        if len(questions) >= REPEATS_ANSWERED_MAX:
            self._wakes.append(Wake(*questions.pop(0), *answers.superseded(waiter.names)))
        waiter.also = questions
        return self._wait_on(waiter, position)

    def _take_over(self, waiter: Waiter, position: int) -> Result:
        """The older question is answered; the wait goes on for the newer one."""
        self._tell(waiter, answers.superseded(waiter.names))
        waiter.also = None
        return self._wait_on(waiter, position)

    def _wait_on(self, waiter: Waiter, position: int) -> Result:
        waiter.index = self._index
        waiter.position = position
        waiter.joined_ms = self._now_ms
        self._asked = waiter
        self._suspects.append(waiter)  # see DEADLOCK_EDGES_ENTRY_MAX
        return PENDING

    def _keyed(self, command: Keyed, position: int) -> Result:
        """An HTTP request with its Idempotency-Key."""
        entry = self.keys.find(command.key, self._now_ms)
        if entry is not None:
            if entry.digest != command.digest:
                return answers.other_body(command.key)
            if entry.answer[0]:
                return entry.answer
            return self._join(self._waiters[entry.answer[1]], position)
        if self.keys.full:
            return answers.too_many_keys()
        try:
            inner = KEYED_CODEC.decode_args(command.op, command.args)
        except DssError as error:
            return error.status, error.body()
        self._key = command.key
        self._asked = None
        self.keys.keep(command.key, command.digest, self._now_ms, PENDING)
        result = self._handlers[type(inner)](inner, position)
        self._key = NO_KEY
        if result[0] in TRY_LATER:
            self.keys.forget(command.key)
        elif result[0] or self._asked is None:
            self.keys.settle(command.key, result, size_of(result))
        else:
            waiter = self._asked
            self.keys.settle(command.key, (0, waiter.ticket), size_of_wait(waiter.names))
        return result
