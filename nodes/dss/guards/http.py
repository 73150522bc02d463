"""Guards for HTTP services: a request that would change something must carry a good token.

The service says which lock protects a path; the client sends only its token. The check comes before
the handler: a handler that awaits may still be at work for an older holder when a newer one's
request comes, so what must not interleave is checked again where it is written (SqlGuard).

What must not live here: where tokens are kept.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any, Final

from dss.guards.tokens import StaleToken

if TYPE_CHECKING:
    from aiohttp import web
    from aiohttp.typedefs import Handler, Middleware

TOKEN_HEADER: Final = "DSS-Lock-Token"  # noqa: S105 (a header's name)
SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
"""They change nothing and need no token, unless readers are guarded as well."""
READS: Final = frozenset({"GET", "HEAD"})

Check = Callable[..., Awaitable[None] | None]
"""`check(name, token)` remembers a token or raises StaleToken: `MemoryFences().check`, or one's
own, also async. Where readers are guarded as well: `check(name, token, mode)`."""
NameOf = Callable[[str], str | None]
"""The lock that protects a path; None: none does."""
Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
AsgiApp = Callable[
    [Scope, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]],
    Awaitable[None],
]


async def _refusal(
    check: Check, lock: str | NameOf, readers: bool, method: str, path: str, header: str | None
) -> tuple[int, str, str] | None:
    """(status, code, detail) of the answer to a request that must not pass."""
    name = lock if isinstance(lock, str) else lock(path)
    if name is None or (method in SAFE_METHODS and not (readers and method in READS)):
        return None
    if header is None:
        return 428, "token_required", f"{method} needs lock {name!r}: send {TOKEN_HEADER}"
    if not (header.isascii() and header.isdigit() and len(header) <= 19 and int(header) > 0):
        return 400, "invalid", f"{TOKEN_HEADER} is a number, the token of lock {name!r}"
    try:
        mode = ("shared" if method in READS else "exclusive",) if readers else ()
        waiting = check(name, int(header), *mode)
        if inspect.isawaitable(waiting):
            await waiting
    except StaleToken as stale:
        return 412, stale.code, stale.message
    return None


def _problem(status: int, code: str, detail: str) -> bytes:
    return json.dumps({"status": status, "code": code, "detail": detail}).encode()


def aiohttp_guard(check: Check, lock: str | NameOf, *, readers: bool = False) -> Middleware:
    """A middleware for `aiohttp.web.Application(middlewares=[…])`.

    Answers 428 without a token, 412 `stale_token` when a newer holder has been here.

    Args:
        lock: the lock's name, or what gives it for a path.
        readers: GET and HEAD need a token as well, of a shared hold or an exclusive one; all else
            needs one of an exclusive hold.

    Example:
        app = web.Application(middlewares=[aiohttp_guard(MemoryFences().check, "orders")])
        headers = {TOKEN_HEADER: "7"}  # what the client sends
    """
    from aiohttp import web

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        header = request.headers.get(TOKEN_HEADER)
        refused = await _refusal(check, lock, readers, request.method, request.path, header)
        if refused is None:
            return await handler(request)
        return web.Response(
            status=refused[0], body=_problem(*refused), content_type="application/problem+json"
        )

    return guard


class AsgiGuard:
    """The same for ASGI: `app = AsgiGuard(app, MemoryFences().check, "orders")`.

    Only requests are guarded; WebSockets pass.

    Example:
        app = AsgiGuard(asgi_app, MemoryFences().check, "orders")
    """

    def __init__(
        self, app: AsgiApp, check: Check, lock: str | NameOf, *, readers: bool = False
    ) -> None:
        self._app = app
        self._check = check
        self._lock = lock
        self._readers = readers

    async def __call__(
        self,
        scope: Scope,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        refused = None
        if scope["type"] == "http":
            wanted = TOKEN_HEADER.lower().encode()
            found = [value for key, value in scope["headers"] if key.lower() == wanted]
            header = found[0].decode("latin-1") if found else None
            method, path = scope["method"], scope["path"]
            refused = await _refusal(self._check, self._lock, self._readers, method, path, header)
        if refused is None:
            await self._app(scope, receive, send)
            return
        body = _problem(*refused)
        headers = [
            (b"content-type", b"application/problem+json"),
            (b"content-length", str(len(body)).encode()),
        ]
        await send({"type": "http.response.start", "status": refused[0], "headers": headers})
        await send({"type": "http.response.body", "body": body})
