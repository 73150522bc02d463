"""How much room an answer takes while it is kept for a repeat, and a wait: estimates, the same on
every node.

Cheap (nothing is encoded) and never far below what a snapshot holds. What must not live here: how
much room there is (base/limits.py), who is refused when there is none (once.py, lines.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dss.base.limits import ANSWER_BYTES, ANSWER_ITEM_BYTES, PLACE_BYTES, PLACE_ITEM_BYTES
from dss.core.machine import Result


def size_of(answer: Result) -> int:
    """Of an answer; of a wait, whose body is what was set aside for its answer."""
    status, body = answer
    if status == 200 and "locks" not in body and "broken" not in body:
        return ANSWER_BYTES  # one lock's token, a release: only numbers and words
    if not status:
        return body if isinstance(body, int) else ANSWER_BYTES
    return ANSWER_BYTES + sum(map(_size, body.values()))


def size_of_wait(names: Iterable[str]) -> int:
    """What the grant of a wait for these locks will take."""
    return ANSWER_BYTES + sum(ANSWER_ITEM_BYTES + _text(name) for name in names)


def size_of_place(names: tuple[str, ...], owner: str) -> int:
    """Of a waiter, or of its kept place, in memory."""
    size = PLACE_BYTES + _text(owner)
    for name in names:
        size += PLACE_ITEM_BYTES + _text(name)
    return size


def _size(value: Any) -> int:
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, dict):
        return ANSWER_ITEM_BYTES + sum(map(_size, value.values()))
    if isinstance(value, list):
        return sum(map(_size, value))
    return 0  # a number: counted with its item


def _text(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())
