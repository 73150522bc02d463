"""The HTTP floor: the least an aiohttp server can do. `python -m bench.hello PORT` serves it."""

from __future__ import annotations

import asyncio
import json
import sys

import uvloop
from aiohttp import web


async def hello(request: web.Request) -> web.Response:
    return web.Response(text="hello")


async def greet(request: web.Request) -> web.Response:
    """JSON in, JSON out: what a lock request over HTTP costs without the lock."""
    name = json.loads(await request.read())["name"]
    return web.Response(body=json.dumps({"hello": name}).encode(), content_type="application/json")


async def serve(port: int) -> None:
    app = web.Application()
    app.router.add_get("/", hello)
    app.router.add_post("/", greet)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
