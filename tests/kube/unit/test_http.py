"""The operator over real HTTP: kmock's server in front of the fake API, the real Kubernetes client,
kopf with its watches, and nodes' answers by an aiohttp server.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import kopf
import pytest
from aiohttp import web
from fake_api import FakeApi
from kmock import KubernetesScaffold, Server
from operator_lab import FakeNodes, run

from dss_operator import handlers
from dss_operator.kube import Kube, connect
from dss_operator.runtime import Runtime
from dss_operator.sampling import ANSWER_BYTES_MAX, HttpNodes, NodeError
from dss_operator.settings import Settings
from dss_operator.state import GROUP, PLURAL, VERSION


class KmockApi(KubernetesScaffold):
    """kmock's discovery and HTTP; objects and watches are the fake API's."""

    api: FakeApi

    async def _handle(self, request: Any) -> web.StreamResponse:
        if request.resource is None or request.resource.plural is None:
            answer: web.StreamResponse = await super()._handle(request)
            return answer
        if request.params.get("watch") == "true":
            return await self._watch(request)
        headers = {"Content-Type": request.headers.get("Content-Type", "")}
        path = request.url.raw_path_qs
        answer_ = await self.api.send(
            request.method.value.upper(), path, headers, self._body(request)
        )
        return web.Response(
            body=answer_.body, status=answer_.status, content_type="application/json"
        )

    def _body(self, request: Any) -> dict[str, Any] | None:
        return json.loads(request.body) if request.body else None

    async def _watch(self, request: Any) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request._raw_request)
        seen = int(request.params.get("resourceVersion") or 0)
        for _ in range(1_000):
            for version, word, plural, obj in self.api.log:
                if version > seen and plural == request.resource.plural:
                    event = {"type": word, "object": obj}
                    await response.write(json.dumps(event).encode() + b"\n")
            seen = max(seen, self.api.version)
            await asyncio.sleep(0.02)
        return response


@asynccontextmanager
async def _kmock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeApi]:
    handler = KmockApi()
    handler.api = FakeApi()
    for name in (f"{GROUP}/{VERSION}/{PLURAL}", "apps/v1/statefulsets", "v1/namespaces",
                 "apiextensions.k8s.io/v1/customresourcedefinitions"):  # fmt: skip
        handler.resources[name] = {"namespaced": True, "verbs": {"list", "watch", "get", "patch"}}
    async with handler, Server(handler) as server:
        config = {
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "clusters": [{"name": "c", "cluster": {"server": str(server.url).rstrip("/")}}],
            "users": [{"name": "u", "user": {"token": "t"}}],
        }  # fmt: skip
        path = tmp_path / "kubeconfig"
        path.write_text(json.dumps(config))
        monkeypatch.setenv("KUBECONFIG", str(path))
        monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
        yield handler.api


async def _until(check: Callable[[], bool], seconds: float = 20) -> None:
    for _ in range(round(seconds / 0.05)):
        if check():
            return
        await asyncio.sleep(0.05)
    raise AssertionError("it did not happen in time")


def _demo(api: FakeApi) -> None:
    spec = {"monitoring": {"grafana": {"enabled": False}}}
    meta = {"name": "demo", "namespace": "ns"}
    api.add("dssclusters", {"apiVersion": f"{GROUP}/{VERSION}", "metadata": meta, "spec": spec})


def test_client_over_http__verbs_bodies_and_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with _kmock(tmp_path, monkeypatch) as api:
            from dss_operator.kube import SECRETS, ApiError

            kube = Kube(await connect())
            secret = {
                "apiVersion": "v1", "kind": "Secret", "data": {"a": "MQ=="},
                "metadata": {"name": "s", "namespace": "ns"},
            }  # fmt: skip
            assert await kube.get(SECRETS, "ns", "s") is None
            made = await kube.apply(SECRETS, secret)
            assert made["metadata"]["uid"]
            patched = await kube.merge(SECRETS, "ns", "s", {"data": {"a": None, "b": "Mg=="}})
            assert patched["data"] == {"b": "Mg=="}
            with pytest.raises(ApiError, match="404"):
                await kube.merge(SECRETS, "ns", "other", {})
            assert len(await kube.list(SECRETS, "ns", name="s")) == 1
            assert await kube.delete(SECRETS, "ns", "s", uid=made["metadata"]["uid"])
            assert api.names("secrets") == []
            await kube.close()

    run(scenario())


@asynccontextmanager
async def _operator(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """kopf with the real handlers; the nodes are played."""
    for name, value in {
        "WATCH_NAMESPACE": "ns", "POD_NAMESPACE": "ns", "POD_ID": "me", "METRICS_PORT": "0",
        "SAMPLE_S": "0.5", "TICK_S": "5",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("dss_operator.runtime.HttpNodes", _PlayedNodes)
    stop = asyncio.Event()
    ready = asyncio.Event()
    task = asyncio.create_task(
        kopf.operator(standalone=True, namespaces=["ns"], stop_flag=stop, ready_flag=ready)
    )
    await asyncio.wait_for(ready.wait(), 20)
    try:
        yield
    finally:
        stop.set()
        await asyncio.wait_for(task, 20)


class _PlayedNodes(FakeNodes):
    async def close(self) -> None: ...


def test_operator_under_kopf__reconciles_by_events_and_leaves_no_finalizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with _kmock(tmp_path, monkeypatch) as api, _operator(monkeypatch):
            _demo(api)
            await _until(lambda: len(api.names("statefulsets")) == 5)
            api.run_sets()
            api.edit("statefulsets", "demo-lock", lambda obj: obj["spec"].update(replicas=1))
            await _until(lambda: api.get("statefulsets", "demo-lock")["spec"]["replicas"] == 3)
            api.run_sets()

            def ready() -> bool:
                status = api.get("dssclusters", "demo").get("status") or {}
                return bool(status) and status["conditions"][0]["status"] == "True"

            await _until(ready)
            meta = api.get("dssclusters", "demo")["metadata"]
            assert "finalizers" not in meta
            assert "annotations" not in meta
            lease = api.get("leases", "dss-operator.ns")
            assert lease["spec"]["holderIdentity"] == "me"
            api.remove("dssclusters", "demo")
            runtime = handlers._Process.runtime
            assert runtime is not None
            await _until(lambda: not runtime._clusters)
        assert api.get("leases", "dss-operator.ns")["spec"]["holderIdentity"] == ""
        assert api.names("statefulsets") == []

    run(scenario())


def test_crd_installed_after_the_operator__waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dss_operator.runtime.SERVED_S", 0.05)

    async def scenario() -> None:
        async with _kmock(tmp_path, monkeypatch):
            runtime = Runtime(Settings(pod_id="me"), await connect(), _PlayedNodes())
            served = runtime.kube.served
            answers = iter([False, False])

            async def later() -> bool:
                return next(answers, None) is None and await served()

            monkeypatch.setattr(runtime.kube, "served", later)
            await asyncio.wait_for(runtime.served(), 5)
            assert next(answers, None) is None
            await runtime.close()

    run(scenario())


def test_operator_started_after_the_resource__reconciles_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with _kmock(tmp_path, monkeypatch) as api:
            _demo(api)
            async with _operator(monkeypatch):
                await _until(lambda: len(api.names("statefulsets")) == 5)

    run(scenario())


@asynccontextmanager
async def _node(
    monkeypatch: pytest.MonkeyPatch, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> AsyncIterator[HttpNodes]:
    server = web.Server(handler)
    runner = web.ServerRunner(server)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    monkeypatch.setattr("dss_operator.sampling.HTTP_PORT", port)
    nodes = HttpNodes()
    try:
        yield nodes
    finally:
        await nodes.close()
        await runner.cleanup()


def test_node_answers_in_pieces__read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        assert request.headers["Authorization"] == "Bearer secret"
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b'{"groups": [' + b"1, " * 50_000)
        await asyncio.sleep(0.05)
        await response.write(b"2]}")
        return response

    async def scenario() -> None:
        async with _node(monkeypatch, handler) as nodes:  # type: ignore[arg-type]
            body = await nodes.get("127.0.0.1", "/v1/raft/status", "secret")
            assert body["groups"][-1] == 2

    run(scenario())


@pytest.mark.parametrize(
    ("status", "text", "expected"),
    [
        (409, '{"code": "boot_mismatch"}', "answered 409 boot_mismatch"),
        (401, "no", "answered 401"),
        (200, "[]", "not a JSON object"),
        (200, "x" * (ANSWER_BYTES_MAX + 1), "answered more than"),
    ],
)
def test_node_says_no_or_nonsense__the_reason_is_told(
    monkeypatch: pytest.MonkeyPatch, status: int, text: str, expected: str
) -> None:
    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=status, text=text)

    async def scenario() -> None:
        async with _node(monkeypatch, handler) as nodes:
            with pytest.raises(NodeError, match=expected):
                await nodes.post("127.0.0.1", "/v1/raft/backoff", "", {})

    run(scenario())


def test_node_does_not_answer__said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        nodes = HttpNodes()
        monkeypatch.setattr("dss_operator.sampling.HTTP_PORT", 1)
        with pytest.raises(NodeError, match="does not answer"):
            await nodes.get("127.0.0.1", "/v1/raft/status", "")
        await nodes.close()

    run(scenario())


@pytest.mark.parametrize(
    ("environ", "address"),
    [
        ({"KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT": "443"},
         "https://10.96.0.1:443"),
        ({"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT_HTTPS": "6443"},
         "https://[fd00::1]:6443"),
        ({"KUBERNETES_SERVICE_HOST": "10.96.0.1"}, "https://kubernetes.default.svc"),
    ],
)  # fmt: skip
def test_login_in_a_pod__asks_no_name_server_for_the_api(
    monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], address: str
) -> None:
    for name in ("HOST", "PORT", "PORT_HTTPS"):
        monkeypatch.delenv(f"KUBERNETES_SERVICE_{name}", raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    given = kopf.ConnectionInfo(server="https://kubernetes.default.svc", token="t", ca_path="/ca")
    monkeypatch.setattr(kopf, "login_with_service_account", lambda **_: given)
    found = handlers.login()
    assert found is not None
    assert (found.server, found.token, found.ca_path) == (address, "t", "/ca")
