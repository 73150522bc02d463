"""The queue routes over HTTP: shapes of the contract, over fakes of consensus and links."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from declared import declared
from queue_world import World

from dss.api.problem import problem_response
from dss.api.queues import routes
from dss.base.errors import DssError
from dss.drivers import queue_metrics
from dss.observe.metrics import Registry

Call = Callable[..., Awaitable[tuple[int, Any]]]


@web.middleware
async def problems(request: web.Request, handler: Any) -> web.StreamResponse:
    try:
        response: web.StreamResponse = await handler(request)
    except DssError as error:
        return problem_response(error)
    return response


def run(scenario: Callable[[Call], Awaitable[None]]) -> None:
    """The scenario gets `call(method, path, json, node=1)` -> (status, JSON)."""

    async def whole() -> None:
        world = World()
        services = await world.start()
        clients = []
        for service in services:
            app = web.Application(middlewares=[problems])
            for route in routes(service):
                app.router.add_route(route.method, route.path, route.handler)
            trace = declared(routes(service))
            client = TestClient(TestServer(app), trace_configs=[trace])
            await client.start_server()
            clients.append(client)

        async def call(method: str, path: str, json: Any = None, node: int = 1) -> tuple[int, Any]:
            async with clients[node - 1].request(method, path, json=json) as answer:
                return answer.status, await answer.json() if await answer.read() else None

        try:
            await scenario(call)
        finally:
            for client in clients:
                await client.close()
            await world.stop()

    asyncio.run(whole())


def test_life_of_a_queue__put_get_list_stats_delete() -> None:
    async def scenario(call: Call) -> None:
        status, made = await call("PUT", "/v1/queues/a%2Fb", {"visibility_ms": 5_000})
        assert (status, made["name"], made["visibility_ms"]) == (201, "a/b", 5_000)
        assert (await call("PUT", "/v1/queues/a%2Fb", {"visibility_ms": 5_000}))[0] == 200
        status, changed = await call("PUT", "/v1/queues/a%2Fb", {"max_deliveries": 3}, node=2)
        assert (status, changed["max_deliveries"], changed["visibility_ms"]) == (200, 3, 30_000)
        assert changed["version"] > made["version"]
        assert (await call("GET", "/v1/queues/a%2Fb", node=3)) == (200, changed)
        await call("POST", "/v1/queues/a%2Fb/messages", {"body": 1})
        status, listed = await call("GET", "/v1/queues")
        item = {"name": "a/b", "ready": 1, "leased": 0, "delayed": 0, "dead": 0}
        assert listed == {"items": [item], "next": None}
        status, stats = await call("GET", "/v1/queues/a%2Fb/stats", node=2)
        assert (status, stats["ready"], stats["sent"]) == (200, 1, 1)
        assert stats["oldest_age_ms"] >= 0
        assert (await call("DELETE", "/v1/queues/a%2Fb")) == (204, None)
        status, problem = await call("DELETE", "/v1/queues/a%2Fb")
        assert (status, problem["code"]) == (404, "unknown_queue")

    run(scenario)


def test_single_message__201_and_the_very_bytes_come_back() -> None:
    async def scenario(call: Call) -> None:
        await call("PUT", "/v1/queues/q", {})
        sent = {"body": {"a": [1.0, None, "ü"]}, "headers": {"trace": "1"}, "key": "k"}
        status, answer = await call("POST", "/v1/queues/q/messages", sent)
        assert status == 201
        status, received = await call("POST", "/v1/queues/q/receive", {}, node=2)
        [message] = received["messages"]
        assert message == {
            "id": answer["id"],
            "receipt": message["receipt"],
            "body": sent["body"],
            "headers": {"trace": "1"},
            "key": "k",
            "deliveries": 1,
            "redelivered": False,
        }
        one = {"receipt": message["receipt"]}
        assert (await call("POST", "/v1/queues/q/ack", one, node=3)) == (200, {})
        status, problem = await call("POST", "/v1/queues/q/ack", one)
        assert (status, problem["code"]) == (409, "stale_receipt")

    run(scenario)


def test_batch_with_any_bytes__results_in_order_and_per_item_errors() -> None:
    async def scenario(call: Call) -> None:
        await call("PUT", "/v1/queues/q", {})
        data = base64.b64encode(bytes(range(256))).decode()
        batch = {"messages": [{"body": None}, {"body_base64": data}, {"body": "x", "key": ""}]}
        status, answer = await call("POST", "/v1/queues/q/messages", batch)
        assert status == 200
        assert [result["ok"] for result in answer["results"]] == [True] * 3
        messages: list[Any] = []
        for node in (1, 2, 3, 1, 2, 3):
            received = await call("POST", "/v1/queues/q/receive", {"max": 2}, node=node)
            messages += received[1]["messages"]
        by_id = {message["id"]: message for message in messages}
        found = [by_id[result["id"]] for result in answer["results"]]
        assert (found[0]["body"], found[1]["body_base64"], found[2]["body"]) == (None, data, "x")
        assert len(messages) == 3
        nack = {"receipts": [found[0]["receipt"], "nonsense"], "delay_ms": 0}
        status, answer = await call("POST", "/v1/queues/q/nack", nack)
        [good, bad] = answer["results"]
        assert (status, good) == (200, {"ok": True})
        assert (bad["ok"], bad["code"], bad["status"]) == (False, "invalid", 422)
        extend = {"receipts": [found[0]["receipt"], found[2]["receipt"]], "visibility_ms": 60_000}
        status, answer = await call("POST", "/v1/queues/q/extend", extend)
        assert [result.get("code") for result in answer["results"]] == ["stale_receipt", None]
        [again] = (await call("POST", "/v1/queues/q/receive", {"max": 9}))[1]["messages"] or (
            await call("POST", "/v1/queues/q/receive", {"max": 9}, node=2)
        )[1]["messages"]
        assert (again["redelivered"], again["deliveries"]) == (True, 2)

    run(scenario)


@pytest.mark.parametrize(
    ("path", "json", "status", "named"),
    [
        ("messages", {}, 422, "body"),
        ("messages", {"body": 1, "body_base64": "AA=="}, 422, "body"),
        ("messages", {"body_base64": "%"}, 422, "body_base64"),
        ("messages", {"body": 1, "priority": 3}, 422, "priority"),
        ("messages", {"messages": [{"body": 1}], "body": 2}, 422, "messages"),
        ("messages", {"messages": [{"body": 1}, {}]}, 422, "messages[1].body"),
        ("messages", {"messages": [{"body": 1}] * 1_001}, 422, "messages"),
        ("messages", {"body": 1, "delay_ms": -1}, 422, "delay_ms"),
        ("messages", {"body": 1, "key": "k" * 257}, 422, "key"),
        ("receive", {"max": 0}, 422, "max"),
        ("receive", {"wait_ms": 30_001}, 422, "wait_ms"),
        ("receive", {"visibility_ms": 0}, 422, "visibility_ms"),
        ("ack", {}, 422, "receipts"),
        ("ack", {"receipt": "1", "receipts": []}, 422, "receipts"),
    ],
)
def test_wrong_request__422_that_names_the_field(
    path: str, json: Any, status: int, named: str
) -> None:
    async def scenario(call: Call) -> None:
        await call("PUT", "/v1/queues/q", {})
        got, problem = await call("POST", f"/v1/queues/q/{path}", json)
        assert (got, problem["code"], problem["field"]) == (status, "invalid", named)

    run(scenario)


def test_ring_and_partitions__tell_who_has_and_leads_what() -> None:
    async def scenario(call: Call) -> None:
        _, listed = await call("GET", "/v1/partitions", node=2)
        assert [row["partition"] for row in listed["items"]] == list(range(8))
        assert all(len(set(row["replicas"])) == 3 for row in listed["items"])
        assert all(row["preferred_leader"] == row["replicas"][0] for row in listed["items"])
        _, ring = await call("GET", "/v1/ring")
        assert ring["partitions"] == 8
        assert sum(node["leads"] for node in ring["nodes"]) == 8
        assert [node["replicas"] for node in ring["nodes"]] == [8, 8, 8]

    run(scenario)


def test_metrics__sum_over_the_nodes_is_the_clusters() -> None:
    async def whole() -> None:
        world = World()
        services = await world.start()
        registries = [Registry() for _ in services]
        for registry, service in zip(registries, services, strict=True):
            queue_metrics.register(registry, service)
        from dss.core.queueing.commands import Message, QueueSettings

        await services[0].put("q", QueueSettings())
        for number in range(20):
            await services[number % 3].send("q", [Message(b"1", key=str(number))])
        await services[0].receive("q", 1, 0, None)
        lines = [line for r in registries for line in r.render().decode().splitlines()]
        await world.stop()

        def total(start: str) -> float:
            return sum(float(line.split()[-1]) for line in lines if line.startswith(start))

        assert total('dss_queue_messages{queue="q",state="ready"}') == 19
        assert total('dss_queue_messages{queue="q",state="leased"}') == 1
        assert total('dss_queue_sent_total{queue="q"}') == 20
        assert total('dss_queue_received_total{queue="q"}') == 1
        assert total("dss_queue_partitions_led") == 8

    asyncio.run(whole())
