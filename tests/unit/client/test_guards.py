"""The guards: a paused old holder is refused where it writes."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from dss.guards import TOKEN_HEADER, AsgiGuard, MemoryFences, SqlGuard, StaleToken, aiohttp_guard


def test_sql__paused_old_holder_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "orders.db"
    guard = SqlGuard(paramstyle=sqlite3.paramstyle)
    old, new = sqlite3.connect(path), sqlite3.connect(path)
    guard.create(old.cursor())
    old.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY, state TEXT)")
    old.execute("INSERT INTO orders VALUES (42, 'new')")
    old.commit()

    def write(connection: sqlite3.Connection, token: int, state: str) -> None:
        with connection:
            cursor = connection.cursor()
            guard.check(cursor, "orders/42", token)
            cursor.execute("UPDATE orders SET state = ? WHERE id = 42", (state,))

    write(old, 7, "packed")
    write(old, 7, "sent")  # the same holder may go on
    write(new, 9, "returned")  # it was paused, its lease ran out, another got the lock
    with pytest.raises(StaleToken) as stale:
        write(old, 7, "sent again")
    assert (stale.value.token, stale.value.newest) == (7, 9)
    assert new.execute("SELECT state FROM orders").fetchall() == [("returned",)]
    guard.check(new.cursor(), "orders/43", 1)
    new.rollback()
    old.close()
    new.close()


def test_sql__refuses_what_is_no_table_name() -> None:
    with pytest.raises(ValueError, match="not a table's name"):
        SqlGuard("fences; DROP TABLE orders")
    with pytest.raises(ValueError, match="paramstyle"):
        SqlGuard(paramstyle="named")


def test_memory__smaller_tokens_of_the_same_lock_are_refused() -> None:
    fences = MemoryFences()
    fences.check("a", 5)
    fences.check("a", 5)
    fences.check("b", 1)
    with pytest.raises(StaleToken):
        fences.check("a", 4)


def shared_sql(path: Path) -> Callable[..., None]:
    guard = SqlGuard(paramstyle=sqlite3.paramstyle, shared=True)
    database = sqlite3.connect(path)
    guard.create(database.cursor())

    def check(name: str, token: int, mode: str = "exclusive") -> None:
        with database:
            guard.check(database.cursor(), name, token, mode)

    return check


CHECKS = [lambda path: MemoryFences().check, shared_sql]


@pytest.mark.parametrize("make", CHECKS)
def test_readers__pass_beside_each_other_and_only_a_later_writer_makes_them_stale(
    make: Callable[..., Any], tmp_path: Path
) -> None:
    check = make(tmp_path / "fences.db")
    for token in (5, 6, 5):  # two readers, each with its own token
        check("c", token, "shared")
    check("c", 8)  # a writer, once both were gone
    with pytest.raises(StaleToken) as stale:
        check("c", 6, "shared")  # it was paused
    assert stale.value.newest == 8
    check("c", 8, "shared")  # downgraded: it keeps its token
    check("c", 9, "shared")
    with pytest.raises(StaleToken) as stale:
        check("c", 8)  # a reader has been let in since: it writes no more
    assert stale.value.newest == 9
    check("c", 9)
    check("d", 3, "shared")


@pytest.mark.parametrize("make", CHECKS)
def test_semaphore__is_refused_with_what_to_do_instead(
    make: Callable[..., Any], tmp_path: Path
) -> None:
    check = make(tmp_path / "fences.db")
    with pytest.raises(ValueError, match="verify"):
        check("s", 1, "semaphore")
    with pytest.raises(ValueError, match="'exclusive' or 'shared'"):
        check("s", 1, "read")


def test_sql_without_readers__says_how_to_make_one_with_them() -> None:
    database = sqlite3.connect(":memory:")
    with pytest.raises(ValueError, match="shared=True"):
        SqlGuard().check(database.cursor(), "a", 1, "shared")
    database.close()


Answer = tuple[int, str]


async def over_aiohttp(steps: Callable[[Callable[..., Any]], Any]) -> list[str]:
    written: list[str] = []

    async def handle(request: web.Request) -> web.Response:
        written.append(f"{request.method} {request.headers.get(TOKEN_HEADER)}")
        return web.json_response({})

    guard = aiohttp_guard(MemoryFences().check, lambda path: path.strip("/") or None)
    app = web.Application(middlewares=[guard])
    app.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        async with aiohttp.ClientSession() as http:

            async def ask(method: str, path: str, token: str | None = None) -> Answer:
                headers = {TOKEN_HEADER: token} if token is not None else {}
                async with http.request(method, url + path, headers=headers) as response:
                    return response.status, str(await response.json(content_type=None))

            await steps(ask)
    finally:
        await runner.cleanup()
    return written


async def over_asgi(steps: Callable[[Callable[..., Any]], Any]) -> list[str]:
    written: list[str] = []

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        token = dict(scope["headers"]).get(TOKEN_HEADER.lower().encode())
        written.append(f"{scope['method']} {token and token.decode()}")
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    fences = MemoryFences()

    async def check(name: str, token: int) -> None:  # one's own may be async
        await asyncio.sleep(0)
        fences.check(name, token)

    app = AsgiGuard(inner, check, lambda path: path.strip("/") or None)

    async def ask(method: str, path: str, token: str | None = None) -> Answer:
        name = TOKEN_HEADER.lower().encode()
        headers = [(name, token.encode())] if token is not None else []
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        async def receive() -> Any:
            return {"type": "http.request", "body": b""}

        scope = {"type": "http", "method": method, "path": path, "headers": headers}
        await app(scope, receive, send)
        return sent[0]["status"], sent[1]["body"].decode()

    await steps(ask)
    return written


@pytest.mark.parametrize("serve", [over_aiohttp, over_asgi])
def test_http__paused_old_holder_is_refused(serve: Callable[..., Any]) -> None:
    async def steps(ask: Callable[..., Any]) -> None:
        assert (await ask("POST", "/orders", "7"))[0] == 200
        assert (await ask("POST", "/orders", "9"))[0] == 200
        status, body = await ask("POST", "/orders", "7")
        assert status == 412
        assert "stale_token" in body
        assert (await ask("GET", "/orders", "7"))[0] == 200
        assert (await ask("POST", "/orders"))[0] == 428
        assert (await ask("POST", "/orders", "-7"))[0] == 400
        assert (await ask("POST", "/other", "1"))[0] == 200
        assert (await ask("POST", "/"))[0] == 200

    written = asyncio.run(serve(steps))
    assert written == ["POST 7", "POST 9", "GET 7", "POST 1", "POST None"]


@pytest.mark.parametrize("readers", [False, True])
def test_asgi__readers_need_a_token_only_where_they_are_guarded(readers: bool) -> None:
    async def inner(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    app = AsgiGuard(inner, MemoryFences().check, "c", readers=readers)

    async def ask(method: str, token: str | None) -> int:
        name = TOKEN_HEADER.lower().encode()
        headers = [(name, token.encode())] if token is not None else []
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "method": method, "path": "/", "headers": headers}
        await app(scope, None, send)  # type: ignore[arg-type]
        return int(sent[0]["status"])

    async def steps() -> list[int]:
        asked = [("GET", None), ("GET", "6"), ("GET", "5"), ("POST", "7"), ("GET", "6")]
        return [await ask(method, token) for method, token in asked]

    expected = [428, 200, 200, 200, 412] if readers else [200] * 5
    assert asyncio.run(steps()) == expected
