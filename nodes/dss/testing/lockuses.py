"""What a simulated client does with locks: one use after the other, each a generator (lockclient).

Every use ends with nothing held, or gives its session up when it cannot know. What must not live
here: how calls travel and what is checked (lockload.py).
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any, Final

import msgspec

from dss.core.locks.commands import (
    Acquire,
    AcquireMany,
    Cancel,
    Confirm,
    Downgrade,
    Mode,
    Release,
    Upgrade,
    VerifyToken,
)
from dss.testing.lockaccount import Hold
from dss.testing.lockcalls import UNANSWERED, Answer, Call, ClientSession, Part

if TYPE_CHECKING:
    from dss.testing.lockclient import LockClient
    from dss.testing.lockload import Held

REPEATS_MAX: Final = 8
LIMIT: Final = 3
"""Of every semaphore."""
USES: Final = ("semaphore", "upgrade", "many", "nested", "cancel", "confirm", "priority", "break")
"""Beside plain ones, which are always there."""

Asked = Generator[float | Call, Answer, Answer]


def use(client: LockClient, session: ClientSession, owner: str) -> Part:
    """One of them, as the plan has them. A client without an owner of its own does plain ones."""
    plan, rng = client.load.sim.plan, client.rng
    kinds = [kind for kind in plan.lock_uses if kind in _SPECIAL]
    if owner and kinds and rng.random() < 0.6:
        yield from _SPECIAL[rng.choice(kinds)](client, session, owner)
    else:
        yield from _plain(client, session, owner)


# --- asking -------------------------------------------------------------------------------


def _call(client: LockClient, session: ClientSession, command: Any, *, once: bool) -> Call:
    """`once`: it is numbered or gets a key, so that a repeat does nothing new."""
    key = ""
    if once and session.numbered:
        # Sometimes the client does not say yet that it has answers.
        ack = session.ack if client.rng.random() < 0.5 else 0
        command = msgspec.structs.replace(command, seq=session.number(), ack=ack)
    elif once:
        key = f"k{client.load.next_number()}"
    timeout_ms = getattr(command, "wait_ms", 0) + client.rng.choice([300.0, 1_000.0])
    return Call(command, timeout_ms, key=key)


def _certain(client: LockClient, session: ClientSession, command: Any) -> Asked:
    """The one true answer, however often it takes; 504 when the session was given up for it."""
    call = _call(client, session, command, once=True)
    answer: Answer = UNANSWERED
    for _ in range(REPEATS_MAX):
        answer = yield from client.ask(call)
        if session.over:
            return UNANSWERED
        status, body = answer
        if status not in (429, 503, 504) and body.get("code") != "superseded":
            _heard(client, session, call, answer)
            if client.rng.random() < 0.05:
                yield from client.ask(call)  # a repeat that came late
            return answer
    client.load.gives_up(session)
    return UNANSWERED


def _heard(client: LockClient, session: ClientSession, call: Call, answer: Answer) -> None:
    seq = getattr(call.command, "seq", 0)
    if seq:
        session.answered(seq)
    if answer[0] == 409 and answer[1]["code"] == "session_expired":
        client.load.gives_up(session)


def _believe(client: LockClient, session: ClientSession, asked: Acquire, token: int) -> Held:
    hold = Hold(token, asked.mode, asked.permits, asked.limit)
    client.load.world_trace(client.name, asked.name, token)
    who = (asked.session, asked.owner or asked.session)
    return client.load.holds(session, who, asked.name, hold)


def _release(client: LockClient, session: ClientSession, held: Held) -> Part:
    """Once, and it is gone."""
    if session.over:
        return
    client.load.lets_go(held)
    command = Release(session.id, held.name, held.hold.token, held.who[1])
    yield from _certain(client, session, command)


def _linger(client: LockClient, session: ClientSession) -> Part:
    if client.rng.random() < 0.1:
        yield client.rng.uniform(0.0, 3.0) * session.ttl_ms
    else:
        yield client.rng.expovariate(1.0) * client.load.sim.plan.think_ms


def _acquire(client: LockClient, session: ClientSession, owner: str, name: str = "") -> Acquire:
    plan, rng = client.load.sim.plan, client.rng
    modes: list[Mode] = ["exclusive", "exclusive", "shared"]
    if "semaphore" in plan.lock_uses:
        modes += ["semaphore", "semaphore"]
    mode = rng.choice(modes)
    return Acquire(
        session.id,
        name or client.load.a_name(rng),
        mode,
        rng.choice([0, 50, 500, 3_000]),
        owner,
        permits=rng.choice([1, 1, 2]) if mode == "semaphore" else 1,
        limit=LIMIT if mode == "semaphore" else 0,
        priority=rng.choice([0, 0, 1, 9]) if "priority" in plan.lock_uses else 0,
    )


# --- plain --------------------------------------------------------------------------------


def _plain(client: LockClient, session: ClientSession, owner: str) -> Part:
    """Acquire, hold, perhaps once more, release; what came of it may be unknown."""
    call = _call(client, session, _acquire(client, session, owner), once=False)
    repeats, (status, body) = yield from _try(client, session, call)
    if status != 200 or session.over:
        return
    token = body["token"]
    held = _believe(client, session, call.command, token)
    yield from _linger(client, session)
    dice = client.rng.random()
    if dice < 0.1 and not session.over:
        repeats += 1
        again = yield call  # re-entrant: the same token, and one more release
        if again[0] == 200:
            same = again[1]["token"] == token
            assert same or not client.load.believes(held), "another token for the same holder"
            token = again[1]["token"]
    elif dice < 0.2:
        yield Call(VerifyToken(held.name, held.hold.token), timeout_ms=5_000.0)
    if not session.over:
        client.load.lets_go(held)
        yield from _release_all(client, session, call.command, token, certain=not repeats)


def _try(
    client: LockClient, session: ClientSession, call: Call
) -> Generator[float | Call, Answer, tuple[int, Answer]]:
    """A repeat after an unknown outcome joins its own wait, or is re-entrant.

    Returns:
        How often it was repeated, and the last answer.
    """
    answer: Answer = UNANSWERED
    for repeats in range(REPEATS_MAX):
        answer = yield from client.ask(call)
        if answer[0] == 409 and answer[1]["code"] == "session_expired":
            client.load.gives_up(session)
        if answer[0] != 504 or session.over:
            return repeats, answer
    client.load.gives_up(session)
    return REPEATS_MAX, answer


def _release_all(
    client: LockClient, session: ClientSession, acquired: Acquire, token: int, *, certain: bool
) -> Part:
    """Until nothing of it is left: unless `certain`, its count may be larger than known."""
    command = Release(session.id, acquired.name, token, acquired.owner)
    for _ in range(2 * REPEATS_MAX):
        status, body = yield from client.ask(Call(command))
        if status == 200 and certain:
            return
        if status == 409:
            if body["code"] == "session_expired":
                client.load.gives_up(session)
            return
    client.load.gives_up(session)


# --- special ------------------------------------------------------------------------------


def _semaphore(client: LockClient, session: ClientSession, owner: str) -> Part:
    """A share, by the one true answer."""
    name = client.load.a_name(client.rng)
    permits = client.rng.choice([1, 1, 2, LIMIT])
    wait_ms = client.rng.choice([0, 500, 3_000])
    asked = Acquire(session.id, name, "semaphore", wait_ms, owner, permits=permits, limit=LIMIT)
    status, body = yield from _certain(client, session, asked)
    if status == 200:
        held = _believe(client, session, asked, body["token"])
        yield from _linger(client, session)
        yield from _release(client, session, held)


def _upgrade(client: LockClient, session: ClientSession, owner: str) -> Part:
    """Read, then write, then perhaps read on: a deadlock of two that upgrade ends one of them."""
    rng = client.rng
    name = client.load.a_name(rng)
    asked = Acquire(session.id, name, "shared", rng.choice([0, 500, 3_000]), owner)
    status, body = yield from _certain(client, session, asked)
    if status != 200:
        return
    held = _believe(client, session, asked, body["token"])
    yield from _linger(client, session)
    if not session.over:
        up = Upgrade(session.id, name, held.hold.token, rng.choice([0, 500, 3_000]), owner)
        client.load.lets_go(held)  # its token changes at a moment that it cannot know
        status, body = yield from _certain(client, session, up)
        if status == 409 and body["code"] == "not_holder":
            return  # an administrator took it
        token = body["token"] if status == 200 else held.hold.token
        mode = "exclusive" if status == 200 else "shared"
        if not session.over:
            held = client.load.holds(session, held.who, name, Hold(token, mode))
            yield from _linger(client, session)
        if not session.over and rng.random() < 0.4:
            client.load.lets_go(held)
            held = client.load.holds(session, held.who, name, Hold(token, "shared"))
            yield from _certain(client, session, Downgrade(session.id, name, token, owner))
            yield from _linger(client, session)
    yield from _release(client, session, held)


def _many(client: LockClient, session: ClientSession, owner: str) -> Part:
    """All or none of several."""
    rng = client.rng
    names = [f"lock-{number}" for number in range(client.load.sim.plan.lock_names)]
    some = rng.sample(names, rng.randint(1, min(3, len(names))))
    priority = rng.choice([0, 0, 1, 9]) if "priority" in client.load.sim.plan.lock_uses else 0
    command = AcquireMany(session.id, some, rng.choice([0, 500, 3_000]), owner, priority)
    status, body = yield from _certain(client, session, command)
    if status != 200:
        return
    held = []
    for each in body["locks"]:
        asked = Acquire(session.id, each["name"], owner=owner)
        held.append(_believe(client, session, asked, each["token"]))
    yield from _linger(client, session)
    for hold in held:
        yield from _release(client, session, hold)


def _nested(client: LockClient, session: ClientSession, owner: str) -> Part:
    """One lock inside another, in any order: the victim of a deadlock gives way, or insists."""
    rng = client.rng
    names = [f"lock-{number}" for number in range(client.load.sim.plan.lock_names)]
    held: list[Held] = []
    for name in rng.sample(names, min(2, len(names))):
        asked = _acquire(client, session, owner, name)
        asked = msgspec.structs.replace(asked, wait_ms=rng.choice([500, 3_000]))
        for _ in range(2):
            status, body = yield from _certain(client, session, asked)
            if status == 200:
                held.append(_believe(client, session, asked, body["token"]))
                yield from _linger(client, session)
            elif status == 409 and body["code"] == "deadlock" and held:
                if rng.random() < 0.5:
                    yield from _release(client, session, held.pop())
                continue
            break
        if session.over:
            return
    for hold in reversed(held):
        yield from _release(client, session, hold)


def _cancel(client: LockClient, session: ClientSession, owner: str) -> Part:
    """Wait, and think better of it; it may have been granted meanwhile."""
    rng = client.rng
    asked = _acquire(client, session, owner)
    asked = msgspec.structs.replace(asked, wait_ms=3_000)
    done: list[Answer] = []

    def ask() -> Part:
        answer = yield from _certain(client, session, asked)
        done.append(answer)

    client.spawn(ask())
    yield rng.uniform(0.0, 1_000.0)
    while not done and not session.over:
        yield from client.ask(Call(Cancel(session.id, asked.name, owner)))
        yield rng.uniform(10.0, 500.0)
    if done and done[0][0] == 200:
        held = _believe(client, session, asked, done[0][1]["token"])
        yield from _release(client, session, held)


def _confirm(client: LockClient, session: ClientSession, owner: str) -> Part:
    """A grant that counts only once it is confirmed; sometimes the client is too late."""
    rng = client.rng
    confirm_ms = rng.choice([50, 300, 1_000])
    asked = msgspec.structs.replace(_acquire(client, session, owner), confirm_ms=confirm_ms)
    status, body = yield from _certain(client, session, asked)
    if status != 200:
        return
    if rng.random() < 0.3:
        yield rng.uniform(0.0, 3.0) * confirm_ms
    command = Confirm(session.id, asked.name, body["token"], owner)
    token = body["token"]
    status, _ = yield from client.ask(Call(command))
    if status != 200 and not session.over:
        yield from _certain(client, session, Release(session.id, asked.name, token, owner))
    if status != 200 or session.over:
        return
    held = _believe(client, session, asked, body["token"])
    yield from _linger(client, session)
    yield from _release(client, session, held)


_SPECIAL: Final = {
    "semaphore": _semaphore,
    "upgrade": _upgrade,
    "many": _many,
    "nested": _nested,
    "cancel": _cancel,
    "confirm": _confirm,
}
