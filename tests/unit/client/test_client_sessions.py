"""client/sessions.py: numbers of commands that cannot be sent, and what a new connection missed."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from fake_cluster import FakeCluster, run

from dss.base.errors import Indeterminate, Invalid
from dss.client import Client
from dss.client import sessions as sessions_module
from dss.client.lock_calls import LockCalls
from dss.client.sessions import Session


class Share(float):
    """A number that msgpack does not know, as numpy's are."""


def test_command_that_cannot_be_encoded__its_number_is_done_with() -> None:
    async def scenario(fake: FakeCluster, client: Client) -> None:
        async with client.session() as session:
            for wrong in ("\ud800", Share(3), 2**64):
                with pytest.raises(Invalid, match="cannot be sent"):
                    await session.do("acquire", {"name": "a", "owner": wrong}, 0.0)
            args: dict[str, Any] = {"name": "a", "owner": "1"}
            await session.do("acquire", args, 0.0)
            assert (args["seq"], args["ack"]) == (4, 3)
        assert fake.ops.count("acquire") == 1

    run(scenario)


def test_acquire_that_cannot_be_sent__holds_nothing_and_its_owner_is_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario(fake: FakeCluster, client: Client) -> None:
        async with client.lock("warm-up"):
            pass
        locks = client._locks
        with monkeypatch.context() as patch:
            patch.setattr("dss.client.client.check_priority", lambda _: Share(3))
            with pytest.raises(Invalid, match="cannot be sent"):
                async with client.lock("a", priority=3):
                    raise AssertionError("not reached")
        assert not locks._sessions.holds
        assert not locks.owners._taken
        async with client.lock("a", wait=0):
            pass

    run(scenario)


def test_acquire_that_fails_unforeseen__its_session_ends_with_what_it_may_hold(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario(fake: FakeCluster, client: Client) -> None:
        with monkeypatch.context() as patch:
            patch.setattr("dss.client.locks.tokens_of", lambda want, body: body["no such member"])
            with pytest.raises(KeyError):
                await client.lock("a").acquire()
        # Granted, and nobody has its token. A new session's turn comes when the old one has ended.
        async with client.lock("a", wait=2):
            assert client._locks._sessions.holds
        assert not client._locks._sessions.holds
        assert fake.ops.count("session.create") == 2

    run(scenario)


class Calls:
    """Of LockCalls what a session needs. `broken` are the tokens that are not held any more."""

    def __init__(self) -> None:
        self.connection: object | None = object()
        self.broken: set[int] = set()
        self.verified: list[int] = []
        self.fails_after = 1_000_000

    async def ask(self, op: str, args: dict[str, Any]) -> Any:
        assert op == "verify"
        if len(self.verified) >= self.fails_after:
            raise Indeterminate("the stream broke")
        self.verified.append(args["token"])
        return {"valid": args["token"] not in self.broken}

    def forget_session(self, session: str) -> None:
        """Nothing is kept of it."""


class Holder:
    changing = False

    def __init__(self) -> None:
        self.lost = False

    def lose(self, reason: str) -> None:
        self.lost = True


def look(monkeypatch: pytest.MonkeyPatch, holds: int) -> tuple[Session, Calls, dict[int, Holder]]:
    """A session whose holds are looked at in pages of three."""
    monkeypatch.setattr(sessions_module, "LOOKED_AT_MAX", 3)
    calls = Calls()
    session = Session(cast(LockCalls, calls), "5" * 32, 60_000, 0.0)
    holders = {token: Holder() for token in range(holds)}
    session.holders = {(f"l{token}", token): holder for token, holder in holders.items()}
    return session, calls, holders


def test_another_connection__all_holds_are_looked_at_page_by_page(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario() -> None:
        session, calls, holders = look(monkeypatch, 8)
        await session._look_at_holds()
        assert calls.verified == []  # the connection it began with tells of its losses
        calls.connection, calls.broken = object(), {7}
        await session._look_at_holds()
        assert calls.verified == list(range(8))
        assert [token for token, holder in holders.items() if holder.lost] == [7]
        await session._look_at_holds()
        assert len(calls.verified) == 8
        session.lose("the test is over")

    asyncio.run(scenario())


def test_look_that_fails_midway__goes_on_where_it_stood(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        session, calls, holders = look(monkeypatch, 8)
        calls.connection, calls.broken, calls.fails_after = object(), {7}, 3
        with pytest.raises(Indeterminate):
            await session._look_at_holds()
        calls.fails_after = 1_000_000
        await session._look_at_holds()
        assert calls.verified == list(range(8))
        assert holders[7].lost
        calls.connection, calls.verified = object(), []  # once more another one: all of them again
        await session._look_at_holds()
        assert calls.verified == list(range(7))
        session.lose("the test is over")

    asyncio.run(scenario())


def test_over_http__a_page_at_each_keepalive_and_all_in_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario() -> None:
        session, calls, holders = look(monkeypatch, 5)
        calls.connection, calls.broken = None, {4}
        for seen in (3, 5, 8):
            await session._look_at_holds()
            assert len(calls.verified) == seen
        assert calls.verified == [0, 1, 2, 3, 4, 0, 1, 2]
        assert holders[4].lost
        session.lose("the test is over")

    asyncio.run(scenario())
