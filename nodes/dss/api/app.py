"""One node's HTTP application: routes in, answers and problem documents out.

There is no middleware: each route's handler is wrapped once, when the application is built, with
its own metric children, so that a request pays for no look-up. A catch-all route answers what no
route matched (404, 405, 421, 422). What must not live here: any service's routes or decisions.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Sequence
from http import HTTPStatus
from time import perf_counter
from typing import Any, Final

import msgspec
from aiohttp import web
from aiohttp.hdrs import AUTHORIZATION

from dss.api import openapi
from dss.api.auth import ADMIN, GUARDED_PREFIX, Guard, check_origin
from dss.api.cluster import ClusterView, node_url
from dss.api.problem import problem_response, result_response
from dss.api.routes import CALLER, IS_ADMIN, Route
from dss.api.stream import leave_streams
from dss.base.errors import DssError, Invalid, NotFound, TooLarge, Unavailable, WrongRole
from dss.base.limits import BODY_BYTES_MAX
from dss.base.names import has_dot_segment
from dss.observe.logs import unexpected
from dss.observe.metrics import CONTENT_TYPE as METRICS_TYPE
from dss.observe.metrics import Histogram, Registry
from dss.topology.nodes import NodeConfig

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

SHUTDOWN_S: Final = 2.0
"""How long open requests may take to end when the node stops: long polls must not delay it."""

DRAIN_S: Final = 0.5
"""How long connections may stay after the hand-over, for a request that is on its way."""

KEEP_ALIVE_S: Final = 3_630.0
"""An idle connection is kept this long: more than proxies do (Envoy: an hour), so that it is they
who close it. The other way round a request can meet the close, and a POST is not sent again."""

ROLE_OF_PREFIX: Final = {
    "sessions": "lock",
    "locks": "lock",
    "queues": "queue",
    "ring": "queue",
    "partitions": "queue",
    "cache": "cache",
}
"""The first word after /v1/ -> the role that serves it."""

_log = logging.getLogger("dss.http")


class Ending:
    """Whether this node has begun to stop: from then on each answer closes its connection, so
    that clients leave between two requests instead of losing one."""

    def __init__(self) -> None:
        self.begun = False


class Ready(msgspec.Struct):
    ready: bool


class Alive(msgspec.Struct):
    alive: bool


class _MethodNotAllowed(DssError):
    code = "method_not_allowed"
    status = 405


class _HttpFailure(DssError):
    """aiohttp's own refusals (a bad WebSocket handshake, …), as problems."""

    def __init__(self, error: web.HTTPException) -> None:
        super().__init__(error.text or error.reason)
        self.status = error.status
        self.code = HTTPStatus(error.status).name.lower()


def build_app(
    *,
    config: NodeConfig,
    routes: Sequence[Route],
    readiness: Callable[[], str | None],
    registry: Registry,
    cluster: Callable[[], dict[str, Any]],
    guard: Guard | None = None,
    ending: Ending | None = None,
) -> web.Application:
    """The application of one node.

    Args:
        routes: those of the node's role and of `api/cluster.py`.
        readiness: None when ready, else why not, in words.
        cluster: the body of `GET /v1/cluster` (`api.cluster.cluster_view`).
        guard: asks every request below /v1 for a token; None: nobody is asked.
        ending: set when the node begins to stop.
    """
    ending = ending or Ending()
    every = [*routes, *_node_routes(readiness, cluster)]
    app = web.Application(client_max_size=BODY_BYTES_MAX)
    for route in every:
        handler = _instrumented(
            route.handler, route.path, route.method, registry, ending, _check(guard, route)
        )
        app.router.add_route(route.method, route.path, handler)
    description = openapi.document(every, config.role, tokens=guard is not None)

    async def metrics(request: web.Request) -> web.Response:
        return web.Response(body=registry.render(), headers={"Content-Type": METRICS_TYPE})

    async def openapi_json(request: web.Request) -> web.Response:
        return web.Response(body=description, content_type="application/json")

    async def docs(request: web.Request) -> web.Response:
        return web.Response(body=openapi.DOCS_PAGE.encode(), headers=openapi.DOCS_HEADERS)

    for path, handler in (("/metrics", metrics), ("/openapi.json", openapi_json), ("/docs", docs)):
        app.router.add_get(path, _instrumented(handler, path, "GET", registry, ending))
    unmatched = _instrumented(
        _unmatched(config, every), "unmatched", "any", registry, ending, _check_unmatched(guard)
    )
    app.router.add_route("*", "/{path:.*}", unmatched)
    return app


async def serve(app: web.Application, host: str, port: int) -> web.AppRunner:
    """Listen; `await runner.cleanup()` stops. `runner.addresses` says where (port 0: any free).

    Raises:
        OSError: the port is taken, or the host is not one of this machine's.
    """
    runner = web.AppRunner(
        app, access_log=None, shutdown_timeout=SHUTDOWN_S, keepalive_timeout=KEEP_ALIVE_S
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port, backlog=1024).start()
    except OSError:
        await runner.cleanup()
        raise
    return runner


async def leave(runner: web.AppRunner) -> None:
    """Take no new connections, and nothing more on streams, which close when all is answered."""
    for site in list(runner.sites):
        await site.stop()
    leave_streams(runner.app)


async def drain(runner: web.AppRunner) -> None:
    """`leave`, and give the connections that are in use time to go (see Ending)."""
    await leave(runner)
    server = runner.server
    until = asyncio.get_running_loop().time() + DRAIN_S
    # Bounded, and once in a process's life.
    while (  # noqa: ASYNC110
        server is not None and server.connections and asyncio.get_running_loop().time() < until
    ):
        await asyncio.sleep(0.01)


Check = Callable[[web.Request], object]
"""Raises Unauthenticated or Forbidden."""


def _check(guard: Guard | None, route: Route) -> Check | None:
    if not route.path.startswith(GUARDED_PREFIX):
        return None
    if guard is None:
        return (lambda request: check_origin(request.headers)) if route.writes else None
    check, admin = guard.check, route.admin

    def guarded(request: web.Request) -> None:
        token = check(request.headers.get(AUTHORIZATION), admin=admin)
        request[CALLER] = token.name
        request[IS_ADMIN] = token.role == ADMIN

    return guarded


def _check_unmatched(guard: Guard | None) -> Check | None:
    """What is not a route tells nothing either, below /v1."""
    if guard is None:
        return None
    check = guard.check

    def guarded(request: web.Request) -> None:
        if request.rel_url.path_safe.startswith(GUARDED_PREFIX):
            check(request.headers.get(AUTHORIZATION), admin=False)

    return guarded


def _instrumented(
    handler: Handler,
    route: str,
    method: str,
    registry: Registry,
    ending: Ending,
    check: Check | None = None,
) -> Handler:
    """`handler` with its caller checked, its errors rendered and its duration observed."""
    children: dict[int, Histogram] = {}

    def child(status: int) -> Histogram:
        made = children[status] = registry.histogram(
            "dss_http_request_duration_seconds",
            "Time to answer an HTTP request (long polls include their wait).",
            route=route,
            method=method,
            status=str(status),
        )
        return made

    async def handle(request: web.Request) -> web.StreamResponse:
        started = perf_counter()
        response: web.StreamResponse
        try:
            if check is not None:
                check(request)
            response = await handler(request)
        except DssError as error:
            response = _failed(request, error)
        except web.HTTPRequestEntityTooLarge:
            limit = BODY_BYTES_MAX
            too_large = TooLarge(f"the body is larger than {limit} bytes", limit=limit)
            response = _failed(request, too_large)
        except web.HTTPException as refused:
            response = _failed(request, _HttpFailure(refused))
        except Exception as bug:
            if request.transport is None or request.transport.is_closing():
                raise  # the client has gone: nobody to answer, nothing to report
            unexpected(_log, f"{method} {route}", bug)
            response = _failed(request, DssError("internal error; the node's log has the cause"))
        status = response.status
        if ending.begun:
            response.force_close()
        if status != 101:  # a stream's duration is not a request's
            (children.get(status) or child(status)).observe(perf_counter() - started)
        return response

    return handle


def _failed(request: web.Request, error: DssError) -> web.Response:
    """The problem document; or, when a streamed answer has begun, the end of the connection."""
    if request.writer.output_size > 0:
        raise ConnectionResetError(f"the answer had begun: {error.message}") from error
    return problem_response(error)


def _node_routes(
    readiness: Callable[[], str | None], cluster: Callable[[], dict[str, Any]]
) -> list[Route]:
    async def healthz(request: web.Request) -> web.Response:
        return result_response(200, Alive(True))

    async def readyz(request: web.Request) -> web.Response:
        reason = readiness()
        if reason is not None:
            raise Unavailable(reason, retry_after_ms=1_000, ready=False)
        return result_response(200, Ready(True))

    async def get_cluster(request: web.Request) -> web.Response:
        return result_response(200, cluster())

    return [
        Route(
            method="GET", path="/healthz", handler=healthz, response=Alive,
            summary="The process is alive; depends on nothing else",
        ),
        Route(
            method="GET", path="/readyz", handler=readyz, response=Ready, errors=(503,),
            summary="Ready to serve, or 503 with the reason",
        ),
        Route(
            method="GET", path="/v1/cluster", handler=get_cluster, response=ClusterView,
            summary="All nodes: role, URL, state of the link to each",
        ),
    ]  # fmt: skip


def _unmatched(config: NodeConfig, routes: Sequence[Route]) -> Handler:
    """Answers whatever no route matched: wrong role, bad name, wrong method, no such route."""
    patterns = [
        (re.compile(re.sub(r"{\w+}", "[^/]+", route.path)), route.method) for route in routes
    ]
    urls = {
        role: [node_url(peer) for peer in peers]
        for role, peers in (
            ("lock", config.raft_peers),
            ("queue", config.queue_nodes),
            ("cache", config.cache_peers),
        )
    }

    async def handle(request: web.Request) -> web.StreamResponse:
        path = request.rel_url.path_safe
        segments = path.split("/")[1:]
        if segments[0] == "v1" and len(segments) > 1:
            role = ROLE_OF_PREFIX.get(segments[1].partition(":")[0])
            if role is not None and role != config.role:
                where = ", ".join(urls[role]) or "none in this cluster"
                raise WrongRole(
                    f"{config.node_id} is a {config.role} node; {path} is served by the "
                    f"{role} nodes: {where}",
                    role=role,
                    urls=urls[role],
                )
            if has_dot_segment(path[1:]):
                raise Invalid(
                    f"the path {path!r} has an empty, '.' or '..' segment: a name must not be one, "
                    "and a slash in a name is written %2F"
                )
        methods = sorted({method for pattern, method in patterns if pattern.fullmatch(path)})
        if methods:
            response = problem_response(
                _MethodNotAllowed(f"{request.method} {path}: only {', '.join(methods)} here")
            )
            response.headers["Allow"] = ", ".join(methods)
            return response
        slash = " (a slash in a name is written %2F)" if len(segments) > 3 else ""
        raise NotFound(f"no route {request.method} {path}{slash}; GET /docs lists them")

    return handle
