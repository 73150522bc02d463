"""The lock group's refusals: code, and a line that tells a person what happened and what next.

What must not live here: when to refuse (machine.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any, Final

from dss.base.handles import handle_of
from dss.base.limits import (
    ANSWERS_BYTES_MAX,
    HOLDS_MAX,
    IDEMPOTENCY_KEYS_BYTES_MAX,
    IDEMPOTENCY_KEYS_MAX,
    KIB,
    LOCKS_MAX,
    MIB,
    SEQUENCE_WINDOW,
    SESSION_ANSWERS_BYTES_MAX,
    SESSION_HOLDS_MAX,
    WAITERS_SHOWN_MAX,
    WAITS_BYTES_MAX,
)
from dss.core.locks.history import Hold
from dss.core.locks.places import Waiter
from dss.core.locks.state import Lock, LockState
from dss.core.machine import Result

OK: Final[Result] = (200, {})


def lock_timeout(state: LockState, lock: Lock, waiter: Waiter | None, now_ms: int) -> Result:
    """What a person needs to know: who has it, since when, where one stood in the line."""
    place = place_in_line(lock, waiter) if waiter else 0
    total = len(lock.waiters or ())
    body: dict[str, Any] = {"code": "lock_timeout", "name": lock.name}
    if lock.holders:
        hold = next(iter(lock.holders.values()))
        label = state.label(hold.session, hold.owner)
        held_ms = now_ms - hold.since_ms
        more = f" and {len(lock.holders) - 1} more" if len(lock.holders) > 1 else ""
        held = f"eld by {label}{more} for {duration(held_ms)} (token {hold.token})"
        busy = f"busy. H{held}"
        body |= {"holder": label, "held_ms": held_ms, "token": hold.token}
    else:
        held = "eld by nobody, but the first in its line waits for other locks as well"
        busy = "free, but the first in its line waits for other locks as well"
    if waiter is None:
        line = f"; {total} waiting" if total else ""
        text = f'lock "{lock.name}": {busy}{line}.'
    else:
        stood = ordinal(place) if place else f"behind more than {WAITERS_SHOWN_MAX}"
        waited = duration(now_ms - waiter.since_ms)
        text = (
            f'lock "{lock.name}": not granted within {waited}. H{held}; '
            f"you were {stood} of {total}."
        )
    return 409, body | {"message": text, "position": place, "waiters": total}


def place_in_line(lock: Lock, waiter: Waiter) -> int:
    """1 for the first in the line; 0 when it is further back than WAITERS_SHOWN_MAX."""
    for place, each in enumerate(islice(lock.waiters or (), WAITERS_SHOWN_MAX), start=1):
        if each is waiter:
            return place
    return 0


def duration(ms: int) -> str:
    if ms < 1_000:
        return f"{ms} ms"
    if ms < 10_000 and ms % 1_000:
        return f"{ms / 1_000:.1f} s"
    if ms < 120_000:
        return f"{ms // 1_000} s"
    return f"{ms // 60_000} min"


def ordinal(place: int) -> str:
    if 10 <= place % 100 <= 20:
        return f"{place}th"
    return f"{place}{ {1: 'st', 2: 'nd', 3: 'rd'}.get(place % 10, 'th') }"


def problem(status: int, code: str, message: str, **more: Any) -> Result:
    """`more`: other members, such as `retry_after_ms`."""
    return status, {"code": code, "message": message} | more


def session_expired(session_id: str) -> Result:
    return problem(
        409,
        "session_expired",
        f"session {handle_of(session_id)}… does not exist or has ended, and its locks were "
        "released: create a new one.",
    )


def too_many_holds() -> Result:
    return problem(
        429, "overloaded", f"a session holds or waits for at most {SESSION_HOLDS_MAX} locks"
    )


def too_many_locks() -> Result:
    return problem(429, "overloaded", f"{LOCKS_MAX} locks are held: release some")


def too_many_waiters(name: str, here: int, in_all: int) -> Result:
    return problem(
        429, "overloaded", f'lock "{name}": too many wait ({here} here, {in_all} in all)'
    )


def not_holder(name: str, token: int) -> Result:
    return problem(
        409,
        "not_holder",
        f'lock "{name}": not held by this session and owner with token {token}; it was released, '
        "or its session ended.",
    )


def superseded(names: Sequence[str]) -> Result:
    return problem(
        409,
        "superseded",
        f"{locks_named(names)}: a newer request of the same owner took this wait over.",
    )


def cancelled(names: Sequence[str]) -> Result:
    return problem(409, "cancelled", f"{locks_named(names)}: the wait was cancelled.")


def stopping(names: Sequence[str]) -> Result:
    return problem(
        503,
        "stopping",
        f"{locks_named(names)}: this node stops, nothing was done. Ask another node: the same "
        "request has its old place in the line.",
        retry_after_ms=100,
        waiting=True,
    )


def client_gone(names: Sequence[str]) -> Result:
    return problem(
        503,
        "client_gone",
        f"{locks_named(names)}: the client of this wait had gone, so it was ended; nothing was "
        "done. The same request again is carried out anew.",
        retry_after_ms=100,
    )


def waits_full() -> Result:
    return problem(
        429,
        "overloaded",
        f"the waits of all clients take {WAITS_BYTES_MAX // MIB} MiB: wait for fewer locks, or "
        "with shorter names",
        retry_after_ms=1_000,
    )


def too_many_holders() -> Result:
    return problem(429, "overloaded", f"locks have {HOLDS_MAX} holders: release some")


def locks_named(names: Sequence[str]) -> str:
    if len(names) == 1:
        return f'lock "{names[0]}"'
    return (
        "locks "
        + ", ".join(f'"{name}"' for name in names[:3])
        + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    )


def self_deadlock(lock: Lock, hold: Hold) -> Result:
    hint = "upgrade or release it" if lock.mode == "shared" else "release it first"
    return 409, {
        "code": "deadlock",
        "message": f'lock "{lock.name}": this owner holds it {lock.mode} (token {hold.token}) and '
        f"would wait for itself for ever: {hint}.",
        "cycle": [{"session": hold.session, "owner": hold.owner, "name": lock.name}],
    }


def deadlock(state: LockState, cycle: Sequence[Waiter]) -> Result:
    """The error of the wait that came last, first in `cycle`."""
    steps = [
        f"{state.label(each.session, each.owner)} waits for {locks_named(each.names)}"
        for each in cycle[:WAITERS_SHOWN_MAX]
    ]
    return 409, {
        "code": "deadlock",
        "message": f"deadlock of {len(cycle)}: {', '.join(steps)}. You came last: release what "
        "you hold, or try again and keep your place.",
        "cycle": [
            {
                "session": each.session,
                "owner": each.owner,
                "label": state.label(each.session, each.owner),
                "name": each.names[0],
                "names": list(each.names),
            }
            for each in cycle[:WAITERS_SHOWN_MAX]
        ],
    }


def other_permits(lock: Lock, hold: Hold) -> Result:
    return problem(
        409,
        "already_held",
        f'lock "{lock.name}": this owner holds {hold.permits} of {lock.limit} permits (token '
        f"{hold.token}); take more with another owner.",
    )


def other_limit(lock: Lock, limit: int) -> Result:
    return problem(
        409,
        "limit_mismatch",
        f'lock "{lock.name}": its holders share a limit of {lock.limit}, not {limit}; '
        "every user of a semaphore must name the same.",
    )


def wrong_mode(lock: Lock, wanted: str) -> Result:
    return problem(
        409, "wrong_mode", f'lock "{lock.name}" is held {lock.mode}; only {wanted} can do this.'
    )


def too_old(seq: int, floor: int) -> Result:
    return problem(
        409,
        "sequence_too_old",
        f"command {seq}: the session has acknowledged its answers up to {floor} already.",
    )


def window_full() -> Result:
    return problem(
        429,
        "overloaded",
        f"more than {SEQUENCE_WINDOW} commands of this session lie above its acknowledged ones: "
        "raise `ack`.",
    )


def session_answers_full() -> Result:
    return problem(
        429,
        "overloaded",
        f"the unacknowledged answers of this session take {SESSION_ANSWERS_BYTES_MAX // KIB} KiB: "
        "raise `ack`.",
    )


def answers_full() -> Result:
    return problem(
        429,
        "overloaded",
        f"the unacknowledged answers of all sessions take {ANSWERS_BYTES_MAX // MIB} MiB: raise "
        "`ack` in each, and end the sessions that nobody uses.",
        retry_after_ms=1_000,
    )


def too_many_keys() -> Result:
    return problem(
        429,
        "overloaded",
        f"{IDEMPOTENCY_KEYS_MAX} idempotency keys are remembered, or "
        f"{IDEMPOTENCY_KEYS_BYTES_MAX // MIB} MiB of them and their answers, each for 10 minutes: "
        "try later, or use a session's `seq` on the stream.",
        retry_after_ms=1_000,
    )


def other_body(key: str) -> Result:
    return problem(
        422,
        "idempotency_key_reused",
        f"Idempotency-Key {key!r} was used with another request: take a new key.",
    )
