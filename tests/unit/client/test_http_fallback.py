"""The SDK where no WebSocket gets through: commands are numbered over HTTP, too."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web

from dss.base.errors import Indeterminate
from dss.client import sessions as sessions_module
from dss.client.client import Client, connect

SESSION = "5" * 32
GRANT = {"token": 7, "mode": "exclusive", "expires_in_ms": 10_000}


class Node:
    """Refuses WebSockets; writes down what else it is asked for."""

    def __init__(self, *, takes_numbers: bool = True) -> None:
        self.takes_numbers = takes_numbers
        self.seen: list[tuple[str, dict[str, Any], str | None]] = []
        """Of each write: its path, body and Idempotency-Key."""
        self.on_write: Callable[[str], None] = lambda path: None
        self.hangs_up: list[str] = []
        """Requests whose path ends so are carried out and not answered, once each."""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if request.path.endswith(":stream"):
            return web.Response(status=400)
        if request.method == "GET":
            return web.json_response({})
        body = await request.json() if request.can_read_body else {}
        self.seen.append((request.path, body, request.headers.get("Idempotency-Key")))
        self.on_write(request.path)
        if request.path == "/v1/sessions":
            return web.json_response({"session": SESSION, "ttl_ms": 10_000}, status=201)
        if "seq" in body and not self.takes_numbers:
            problem = {
                "code": "invalid",
                "field": "seq",
                "detail": "field 'seq': Object contains unknown field `seq`",
            }
            return web.json_response(problem, status=422)
        for end in self.hangs_up:
            if request.path.endswith(end):
                self.hangs_up.remove(end)
                assert request.transport is not None
                request.transport.close()
        return web.json_response(GRANT)

    def sent(self, op: str) -> list[tuple[tuple[int, int] | None, str | None]]:
        """(seq, ack) and key of each try of `op`."""
        return [
            ((body["seq"], body["ack"]) if "seq" in body else None, key)
            for path, body, key in self.seen
            if path.endswith(op)
        ]


async def turned(node: Node, *, takes_numbers: bool) -> None:
    """Once it has hung up, it is of another release."""
    while node.hangs_up:  # noqa: ASYNC110 - of the other side
        await asyncio.sleep(0.001)
    node.takes_numbers = takes_numbers


def run(test: Callable[[Client, Node], Awaitable[None]], node: Node) -> None:
    async def main() -> None:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", node.answer)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        try:
            async with (
                asyncio.timeout(20),
                connect(f"http://127.0.0.1:{runner.addresses[0][1]}") as client,
            ):
                await test(client, node)
        finally:
            await runner.cleanup()

    asyncio.run(main())


async def take_and_give_back(client: Client, node: Node) -> None:
    async with client.lock("a/b", wait=1) as held:
        assert held.token == 7


def test_proxy_without_websockets__http_carries_the_same_numbers() -> None:
    node = Node()
    run(take_and_give_back, node)
    assert [path for path, _, _ in node.seen] == [
        "/v1/sessions", "/v1/locks/a/b/acquire", "/v1/locks/a/b/release", f"/v1/sessions/{SESSION}",
    ]  # fmt: skip
    assert node.seen[1][1] == {
        "session": SESSION, "owner": "1", "seq": 1, "ack": 0,
        "wait_ms": node.seen[1][1]["wait_ms"],
    }  # fmt: skip
    assert node.sent("acquire") == [((1, 0), None)]
    assert node.sent("release") == [((2, 1), None)]


def test_lost_answer__asked_for_again_by_its_number() -> None:
    node = Node()
    node.hangs_up = ["acquire", "release"]
    run(take_and_give_back, node)
    assert node.sent("acquire") == [((1, 0), None)] * 2
    assert node.sent("release") == [((2, 1), None)] * 2


def test_node_of_an_older_release__keys_instead_and_numbers_are_not_tried_each_time() -> None:
    node = Node(takes_numbers=False)
    node.hangs_up = ["release"]
    run(take_and_give_back, node)
    assert node.sent("acquire") == [((1, 0), None), (None, f"{SESSION}-1")]
    assert node.sent("release") == [(None, f"{SESSION}-2")] * 2


def test_sent_by_number_with_no_answer_to_be_had__never_sent_by_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The next node is of an older release: it cannot know what the first one has done."""
    monkeypatch.setattr(sessions_module, "RESOLVE_S", 0.3)

    async def scenario(client: Client, node: Node) -> None:
        async with client.lock("a", wait=1):
            node.hangs_up = ["release"]

            turning = asyncio.create_task(turned(node, takes_numbers=False))
        await turning

    monkeypatch.setattr("dss.client.locks.RELEASE_S", 0.3)
    node = Node()
    with pytest.raises(Indeterminate):
        run(scenario, node)
    releases = node.sent("release")
    assert len(releases) > 1
    assert set(releases) == {((2, 1), None)}


def test_sent_by_key_with_no_answer_to_be_had__stays_with_its_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Though numbers are tried anew by the time it is repeated, and the node takes them now."""
    monkeypatch.setattr("dss.client.lock_calls.OLDER_S", 0.005)

    async def scenario(client: Client, node: Node) -> None:
        async with client.lock("warm-up", wait=1):
            pass
        node.hangs_up = ["acquire"]

        turning = asyncio.create_task(turned(node, takes_numbers=True))
        async with client.lock("a", wait=1):
            pass
        await turning

    node = Node(takes_numbers=False)
    run(scenario, node)
    assert node.sent("locks/a/acquire")[-2:] == [(None, f"{SESSION}-3")] * 2
    assert node.sent("locks/a/release") == [((4, 3), None)]


def test_sent_by_key__remembered_until_its_answer_or_until_it_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dss.client.locks.RELEASE_S", 0.1)
    monkeypatch.setattr(sessions_module, "RESOLVE_S", 0.1)
    remembered: list[dict[str, set[int]]] = []

    async def scenario(client: Client, node: Node) -> None:
        keyed = client._locks.calls._keyed

        def note(path: str) -> None:
            remembered.append({session: set(seqs) for session, seqs in keyed.items()})
            if path.endswith("release"):
                node.hangs_up = ["release"]  # each time

        node.hangs_up = ["acquire"]
        node.on_write = note
        handle = client.lock("a", wait=1)
        await handle.acquire()
        assert remembered[-1] == {SESSION: {1}}  # while it was asked for again
        assert keyed == {}
        with pytest.raises(Indeterminate):
            await handle.release()
        assert {SESSION: {2}} in remembered
        assert keyed == {}

    run(scenario, Node(takes_numbers=False))
