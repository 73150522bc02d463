"""What a caller gets wrong is said in his own words, before anything is sent."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Any

import pytest

from dss.base.errors import Invalid
from dss.client import Client, connect
from dss.client.checks import check_permits, check_priority, check_wait

WRONG: list[tuple[Callable[[Any], Any], str]] = [
    (lambda c: c.lock("a", ttl=0.01), r"ttl is 0\.1 to 86400 seconds, not 0\.01"),
    (lambda c: c.lock("a", ttl=math.nan), "ttl is"),
    (lambda c: c.lock("a", ttl="10"), "ttl is a number, not str"),
    (lambda c: c.lock("a", wait=-1), "wait is a number of seconds from 0 on"),
    (lambda c: c.lock("a", wait=math.nan), "wait is"),
    (lambda c: c.lock("a", priority=10), "priority is 0 to 9, not 10"),
    (lambda c: c.lock(""), "1 to 256 bytes of UTF-8, not 0"),
    (lambda c: c.lock("ä" * 129), "not 258"),
    (lambda c: c.lock("a//b"), "no empty"),
    (lambda c: c.lock(".."), "no empty"),
    (lambda c: c.lock("\ud800"), "UTF-8 can carry"),
    (lambda c: c.lock(7), "is a str, not int"),
    (lambda c: c.lock("a", priority=2.5), r"priority is a whole number, not 2\.5"),
    (lambda c: c.semaphore("a", limit=2.5), r"limit is a whole number, not 2\.5"),
    (lambda c: c.lock("a", owner="\ud800"), "owner is text that UTF-8 can carry"),
    (lambda c: c.locks(["a"], owner=7), "owner is a str, not int"),
    (lambda c: c.rwlock("a", owner=None), "owner is a str, not NoneType"),
    (lambda c: c.semaphore("a", limit=2, owner="o" * 129), "at most 128 characters, not 129"),
    (lambda c: c.locks("ab"), "a list of names, not one str"),
    (lambda c: c.locks([]), "1 to 100 locks are taken at once, not 0"),
    (lambda c: c.locks(["a", "b", "a"]), "named twice: 'a'"),
    (lambda c: c.semaphore("a", limit=2, permits=3), "permits is 1 to the limit of 2, not 3"),
    (lambda c: c.semaphore("a", limit=0), "limit is 1 to 10000, not 0"),
    (lambda c: c.rwlock("a", ttl=True), "ttl is a number, not bool"),
    (lambda c: c.election("..", ttl=5), "no empty"),
]


@pytest.mark.parametrize(("wrong", "said"), WRONG)
def test_wrong_argument__is_invalid_where_it_is_given(
    wrong: Callable[[Client], Any], said: str
) -> None:
    async def scenario() -> None:
        async with connect("http://127.0.0.1:9") as client:  # nobody there: nothing is sent
            with pytest.raises(Invalid, match=said):
                wrong(client)

    asyncio.run(scenario())


def test_numbers_of_other_kinds__are_sent_as_ints() -> None:
    class Number(float):
        """As numpy's: msgpack does not know it."""

    sent = (check_priority(Number(3)), *check_permits(Number(1), Number(2)))  # type: ignore[arg-type]
    assert sent == (3, 1, 2)
    assert {type(number) for number in sent} == {int}


def test_wait_without_end__is_infinite() -> None:
    assert check_wait(None) == math.inf
