"""One wait in line, of any length, however often the connection, a node or the leader is lost.

Servers wait at most WAIT_MS_MAX, so a longer wait is asked for again in time, under a new number:
the same owner asking again takes its own wait over, with its place. What was asked and has no
certain answer stays open until it has one, so nothing is held twice or by nobody. What must not
live here: sessions, who may hold (locks.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec

from dss.base.errors import DssError, Indeterminate
from dss.base.limits import WAIT_MS_MAX
from dss.client.errors import REPEATABLE, LockTimeout
from dss.client.lock_calls import LockCalls, clock_s
from dss.client.sessions import Session

ASK_AGAIN_S: Final = 20.0
"""The rest of WAIT_MS_MAX is for a time without a leader."""
LATE_S: Final = 0.05
"""The servers' clock and ours need not agree to the millisecond on when a wait is over."""
LOOK_S: Final = 1.0
"""Between two tries to end a wait that is not wanted any more."""


class Want(msgspec.Struct, frozen=True):
    """What to acquire: `op` and its arguments but session, owner and wait."""

    op: str
    names: tuple[str, ...]
    args: dict[str, Any]
    mode: str = "exclusive"
    ttl_ms: int = 0
    own: Session | None = None
    """A session of the user's, instead of the one for `ttl_ms`."""
    wait_s: float = math.inf
    confirm_s: float = 0.0


def tokens_of(want: Want, body: Any) -> dict[str, int]:
    """Name and token of each lock, in the order asked for."""
    if want.op != "acquire_many":
        return {want.names[0]: int(body["token"])}
    tokens = {str(one["name"]): int(one["token"]) for one in body["locks"]}
    return {name: tokens[name] for name in want.names}


class Wait:
    """One `acquire`, `acquire_many` or `upgrade`.

    Args:
        args: of `op`, without `wait_ms`; `owner` included.
        name: the lock, or one of several: to end the wait.
        until_s: on `clock_s()`.
        unwanted: called with a grant's body that nobody waits for.
    """

    __slots__ = (
        "_again_s", "_args", "_calls", "_granted", "_name", "_op", "_open", "_session", "_unsure",
        "_until_s", "_unwanted",
    )  # fmt: skip

    def __init__(
        self,
        calls: LockCalls,
        session: Session,
        op: str,
        args: dict[str, Any],
        name: str,
        until_s: float,
        unwanted: Callable[[Any], Awaitable[None]],
    ) -> None:
        self._calls = calls
        self._session = session
        self._op = op
        self._args = args
        self._name = name
        self._until_s = until_s
        self._unwanted = unwanted
        self._open: dict[asyncio.Task[Any], dict[str, Any]] = {}
        """Questions without a certain answer, and their arguments."""
        self._again_s = math.inf
        self._granted: Any = None
        self._unsure: dict[str, Any] | None = None
        """A question's arguments: nobody waits for its answer, and what came of it is unknown."""

    async def answer(self) -> Any:
        """The grant's body.

        Raises:
            Conflict: it was refused, or is not granted in time.
            Indeterminate, NoQuorum, Unavailable, Overloaded: `undo` is needed. So it is after a
                cancellation.
        """
        left_s = self._until_s - clock_s()
        if left_s <= WAIT_MS_MAX / 1_000:
            # The usual case, without a task: one question.
            args = self._arguments(left_s)
            try:
                self._granted = await self._session.do(self._op, args, self._until_s)
                return self._granted
            except (asyncio.CancelledError, DssError) as error:
                self._not_granted(args, error)
        else:
            self._ask()
        return await self._answer_to_many()

    def _not_granted(self, args: dict[str, Any], error: BaseException) -> None:
        """Raises it, unless there is time to ask anew."""
        if isinstance(error, asyncio.CancelledError | Indeterminate):
            self._unsure = args
        elif isinstance(error, REPEATABLE):
            if "wait_ms" in args:
                self._unsure = args
            else:
                self._session.skip(args)
        elif isinstance(error, DssError):
            self._ask_anew_after(error)
            return
        raise error

    async def _answer_to_many(self) -> Any:
        refusal: DssError | None = None
        while self._open:
            for task in await self._answered():
                try:
                    body = self._settle(task)
                except _Unknown as unknown:
                    raise unknown.error from None
                except DssError as error:
                    if refusal is None or refusal.code == "superseded":
                        refusal = error
                    continue
                if self._granted is None:
                    self._granted, self._again_s = body, math.inf
                else:  # asked again just as it was granted: it counts twice now
                    await self._unwanted(body)
            if not self._open and self._granted is None:
                assert refusal is not None, "answered neither way"
                self._ask_anew_after(refusal)
                refusal = None
        return self._granted

    async def _answered(self) -> set[asyncio.Task[Any]]:
        """Questions that have an answer; none when it is time to ask again, which is done."""
        # Two questions open mean that no server answers: a third would not help.
        again_s = self._again_s if len(self._open) == 1 else math.inf
        pause_s = None if math.isinf(again_s) else max(0.0, again_s - clock_s())
        done, _ = await asyncio.wait(
            self._open, timeout=pause_s, return_when=asyncio.FIRST_COMPLETED
        )
        if not done:
            self._ask()
        return done

    def _ask(self) -> None:
        """Take a place in line, or keep it."""
        left_s = self._until_s - clock_s()
        more = left_s > WAIT_MS_MAX / 1_000
        self._again_s = clock_s() + ASK_AGAIN_S if more else math.inf
        self._put(self._arguments(left_s), self._until_s)

    def _arguments(self, left_s: float) -> dict[str, Any]:
        args = self._args.copy()
        wait_ms = round(1_000 * left_s) if left_s < WAIT_MS_MAX / 1_000 else WAIT_MS_MAX
        if wait_ms > 0:
            args["wait_ms"] = wait_ms
        return args

    def _put(self, args: dict[str, Any], until_s: float) -> None:
        work = self._session.do(self._op, args, until_s)
        self._open[asyncio.create_task(work, name=f"dss-{self._op}")] = args

    def _settle(self, task: asyncio.Task[Any]) -> Any:
        """Its body; raises its refusal. It stays open when what has come of it is unknown."""
        args = self._open[task]
        try:
            body = task.result()
        except Indeterminate as error:
            raise _Unknown(error) from error
        except REPEATABLE as error:
            if "wait_ms" not in args:  # else a node that stops may have left it in line
                del self._open[task]
                self._session.skip(args)
            raise _Unknown(error) from error
        except DssError:
            del self._open[task]
            raise
        del self._open[task]
        return body

    def _ask_anew_after(self, refusal: DssError) -> None:
        """The place is lost, but there is time left; else raises the refusal."""
        late = clock_s() + LATE_S >= self._until_s
        if refusal.code == "cancelled" and late:
            raise LockTimeout("lock_timeout", f'lock "{self._name}": not granted in time')
        if late or refusal.code not in ("cancelled", "lock_timeout"):
            raise refusal
        self._ask()

    async def undo(self) -> None:
        """End the wait; what was granted, before or after all, is unwanted."""
        cancel = {
            "session": self._session.id, "name": self._name, "owner": self._args["owner"],
        }  # fmt: skip
        if self._unsure is not None and not self._session.lost:
            self._put(self._unsure, clock_s())
        while self._open and not self._session.lost:
            with contextlib.suppress(DssError):
                await self._calls.ask("cancel", cancel)
            done, _ = await asyncio.wait(
                self._open, timeout=LOOK_S, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                args = self._open[task]
                try:
                    body = self._settle(task)
                except _Unknown:
                    if self._open.pop(task, None) is not None:
                        await asyncio.sleep(LOOK_S / 5)
                        self._put(args, clock_s())
                except DssError:
                    continue
                else:
                    await self._unwanted(body)
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)
        if self._granted is not None:
            await self._unwanted(self._granted)


class _Unknown(Exception):
    """Of `Wait._settle`: what has come of it cannot be said now; `error` is the one to raise."""

    def __init__(self, error: DssError) -> None:
        super().__init__(error.message)
        self.error = error
