"""A thin client of the Kubernetes API over `kubernetes.aio`: paths, verbs, retries; dicts.

Every call of the operator's own goes through `Kube.request`: there it is counted, refused when the
Lease is lost, and there the kill-point tests end the process. What must not live here: what is
asked for and why (observe.py, apply.py, …). kopf's two watches have their own connection.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any, Final, Protocol
from urllib.parse import quote, urlencode

import aiohttp
import msgspec

from dss_operator.state import FIELD_MANAGER, GROUP, PLURAL, VERSION, Object

REQUEST_TIMEOUT_S: Final = 15.0
"""For one attempt. The API server's own limit for writes is longer, but a tick that hangs for a
minute is worse than one that is tried again."""
RETRIES_MAX: Final = 3
"""After these the tick fails as a whole and its cluster backs off."""
RETRY_FIRST_S: Final = 0.2
RETRY_AFTER_S_MAX: Final = 5.0
LIST_LIMIT: Final = 500
"""Objects in one page of a LIST: bounds the memory that one answer takes."""
APPLY: Final = "application/apply-patch+yaml"
MERGE: Final = "application/merge-patch+json"
KILLED: Final = 137


class Api(msgspec.Struct, frozen=True):
    """Where objects of one kind live."""

    api_version: str
    kind: str
    plural: str

    def path(self, namespace: str, name: str = "", subresource: str = "") -> str:
        root = "/api" if "/" not in self.api_version else "/apis"
        parts = [root, self.api_version]
        if namespace:
            parts += ["namespaces", quote(namespace, safe="")]
        parts.append(self.plural)
        if name:
            parts.append(quote(name, safe=""))
        if subresource:
            parts.append(subresource)
        return "/".join(parts)


CLUSTERS: Final = Api(f"{GROUP}/{VERSION}", "DSSCluster", PLURAL)
PODS: Final = Api("v1", "Pod", "pods")
VOLUMES: Final = Api("v1", "PersistentVolumeClaim", "persistentvolumeclaims")
SECRETS: Final = Api("v1", "Secret", "secrets")
EVENTS: Final = Api("v1", "Event", "events")
LEASES: Final = Api("coordination.k8s.io/v1", "Lease", "leases")


class ApiError(Exception):
    """The API server (or the way to it) said no. `status` 0: no answer at all."""

    def __init__(self, status: int, reason: str, message: str, body: Object | None = None) -> None:
        super().__init__(f"{status} {reason}: {message}" if status else message)
        self.status = status
        self.reason = reason
        self.message = message
        self.body = body or {}

    @property
    def causes(self) -> list[dict[str, Any]]:
        details = self.body.get("details") or {}
        causes: list[dict[str, Any]] = details.get("causes") or []
        return causes

    @property
    def namespace_ends(self) -> bool:
        """Nothing can be made in a namespace that is being deleted."""
        return any(cause.get("reason") == "NamespaceTerminating" for cause in self.causes)

    @property
    def transient(self) -> bool:
        return self.status == 0 or self.status == HTTPStatus.TOO_MANY_REQUESTS or self.status >= 500


class NotHolder(Exception):
    """A write was about to leave while another operator may hold the Lease."""


class Answer(msgspec.Struct, frozen=True):
    status: int
    headers: Mapping[str, str]
    body: bytes


class Transport(Protocol):
    async def send(
        self, method: str, path: str, headers: dict[str, str], body: Object | None, timeout_s: float
    ) -> Answer: ...

    async def close(self) -> None: ...


class ClientTransport:
    """`kubernetes.aio`'s connection pool, TLS and tokens (refreshed from their file)."""

    def __init__(self, client: Any) -> None:
        self._client = client

    async def send(
        self, method: str, path: str, headers: dict[str, str], body: Object | None, timeout_s: float
    ) -> Answer:
        await self._client.update_params_for_auth(headers, [], ["BearerToken"], path, method, body)
        url = self._client.configuration.host + path
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        response = await self._client.rest_client.request(
            method, url, headers=headers, body=body, _request_timeout=timeout
        )
        data = await response.read()
        return Answer(response.status, dict(response.headers), data)

    async def close(self) -> None:
        await self._client.close()


async def connect() -> ClientTransport:
    """By the ServiceAccount's token in a pod, else by $KUBECONFIG."""
    from kubernetes.aio import config
    from kubernetes.aio.client import ApiClient, Configuration

    configuration = Configuration()
    if os.environ.get("KUBERNETES_SERVICE_HOST") and not os.environ.get("KUBECONFIG"):
        config.load_incluster_config(configuration)  # type: ignore[no-untyped-call]
    else:
        await config.load_kube_config(  # type: ignore[no-untyped-call]
            config_file=os.environ.get("KUBECONFIG"), client_configuration=configuration
        )
    configuration.connection_pool_maxsize = 8
    return ClientTransport(ApiClient(configuration))


class Kube:
    """The verbs that the operator uses.

    Args:
        write_s: asked before every write but the Lease's own: for how many seconds the Lease is
            held still. A write is given up after them, so none of ours is on its way later.
        on_call: told (verb, plural, status) after every attempt.
        exit_at_call: see Settings.
    """

    def __init__(
        self,
        transport: Transport,
        *,
        write_s: Callable[[], float] = lambda: float("inf"),
        on_call: Callable[[str, str, int], None] = lambda verb, plural, status: None,
        exit_at_call: int = 0,
        sleep: Callable[[float], Any] = asyncio.sleep,
    ) -> None:
        self.write_s = write_s
        self.on_call = on_call
        self.calls = 0
        self._transport = transport
        self._exit_at_call = exit_at_call
        self._sleep = sleep

    async def close(self) -> None:
        await self._transport.close()

    # --- reads ---

    async def get(self, api: Api, namespace: str, name: str) -> Object | None:
        """None: there is no such object."""
        try:
            return await self.request("get", api, api.path(namespace, name))
        except ApiError as error:
            if error.status == HTTPStatus.NOT_FOUND:
                return None
            raise

    async def list(
        self, api: Api, namespace: str, *, labels: str = "", name: str = ""
    ) -> list[Object]:
        """All pages; items carry apiVersion and kind as single objects do."""
        query = {"limit": str(LIST_LIMIT)}
        if labels:
            query["labelSelector"] = labels
        if name:
            query["fieldSelector"] = f"metadata.name={name}"
        items: list[Object] = []
        while True:
            page = await self.request("list", api, api.path(namespace), query=query)
            for item in page.get("items") or []:
                items.append({"apiVersion": api.api_version, "kind": api.kind, **item})
            token = (page.get("metadata") or {}).get("continue")
            if not token:
                return items
            query["continue"] = token

    async def served(self) -> bool:
        """Whether this API server knows DSSClusters."""
        group = f"/apis/{CLUSTERS.api_version}"
        try:
            found = await self.request("get", CLUSTERS, group)
        except ApiError as error:
            if error.status == HTTPStatus.NOT_FOUND:
                return False
            raise
        return any(each.get("name") == PLURAL for each in found.get("resources") or [])

    # --- writes ---

    async def apply(self, api: Api, obj: Object, *, force: bool = False) -> Object:
        """Server-side apply. Raises ApiError 409 when another manager owns a field differently."""
        meta = obj["metadata"]
        query = {"fieldManager": FIELD_MANAGER, "force": "true" if force else "false"}
        path = api.path(meta["namespace"], meta["name"])
        return await self.request("patch", api, path, query=query, body=obj, content_type=APPLY)

    async def merge(self, api: Api, namespace: str, name: str, patch: Object) -> Object:
        """A JSON merge patch: takes away what server-side apply cannot, other managers' fields."""
        query = {"fieldManager": FIELD_MANAGER}
        path = api.path(namespace, name)
        return await self.request("patch", api, path, query=query, body=patch, content_type=MERGE)

    async def apply_status(self, obj: Object) -> Object:
        meta = obj["metadata"]
        path = CLUSTERS.path(meta["namespace"], meta["name"], "status")
        query = {"fieldManager": FIELD_MANAGER, "force": "true"}
        return await self.request(
            "patch", CLUSTERS, path, query=query, body=obj, content_type=APPLY
        )

    async def delete(
        self, api: Api, namespace: str, name: str, *, uid: str, propagation: str = "Background"
    ) -> bool:
        """Whether it was there. Only the object with this UID: never its successor."""
        body = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "preconditions": {"uid": uid},
            "propagationPolicy": propagation,
        }
        try:
            await self.request("delete", api, api.path(namespace, name), body=body)
        except ApiError as error:
            if error.status in (HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT):
                return False
            raise
        return True

    async def evict(self, namespace: str, pod: str, uid: str) -> None:
        """Asks the API server to end a pod within its disruption budget; tried once only: a 429
        is the budget's word, and an answer lost on the way may have been a yes."""
        body = {
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"name": pod, "namespace": namespace},
            "deleteOptions": {"preconditions": {"uid": uid}},
        }
        path = PODS.path(namespace, pod, "eviction")
        await self.request("create", PODS, path, body=body, retry=False)

    async def create(self, api: Api, namespace: str, body: Object) -> Object:
        query = {"fieldManager": FIELD_MANAGER}
        return await self.request("create", api, api.path(namespace), query=query, body=body)

    async def replace(self, api: Api, namespace: str, name: str, body: Object) -> Object:
        """With the resourceVersion that `body` carries: 409 when someone was faster."""
        query = {"fieldManager": FIELD_MANAGER}
        path = api.path(namespace, name)
        return await self.request("update", api, path, query=query, body=body)

    # --- the one way out ---

    async def request(
        self,
        verb: str,
        api: Api,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Object | None = None,
        content_type: str = "application/json",
        retry: bool = True,
    ) -> Object:
        """One call, repeated while the answer is transient. Raises ApiError, NotHolder."""
        method = _METHODS[verb]
        url = f"{path}?{urlencode(query)}" if query else path
        for attempt in range(RETRIES_MAX + 1):
            timeout_s = REQUEST_TIMEOUT_S
            if method != "GET" and api != LEASES:
                timeout_s = min(timeout_s, self.write_s())
                if timeout_s <= 0:
                    raise NotHolder(f"{verb} {path}")
            try:
                return await self._attempt(verb, api, method, url, body, content_type, timeout_s)
            except ApiError as error:
                if not retry or not error.transient or attempt == RETRIES_MAX:
                    raise
                wait_s = RETRY_FIRST_S * 2**attempt * random.uniform(0.75, 1.25)  # noqa: S311
                asked_s = float(error.body.get("retry_after_s", 0))
                await self._sleep(min(max(wait_s, asked_s), RETRY_AFTER_S_MAX))
        raise AssertionError("the loop ends by return or raise")

    async def _attempt(
        self,
        verb: str,
        api: Api,
        method: str,
        url: str,
        body: Object | None,
        content_type: str,
        timeout_s: float,
    ) -> Object:
        self.calls += 1
        number = self.calls
        self._maybe_exit(2 * number - 1)
        headers = {"Accept": "application/json", "Content-Type": content_type}
        try:
            answer = await self._transport.send(method, url, headers, body, timeout_s)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self.on_call(verb, api.plural, 0)
            text = str(error) or type(error).__name__
            raise ApiError(0, "Unreachable", f"{method} {url}: {text}") from error
        self._maybe_exit(2 * number)
        self.on_call(verb, api.plural, answer.status)
        return _parsed(method, url, answer)

    def _maybe_exit(self, point: int) -> None:
        if point == self._exit_at_call:
            os._exit(KILLED)


_METHODS: Final = {
    "get": "GET",
    "list": "GET",
    "create": "POST",
    "update": "PUT",
    "patch": "PATCH",
    "delete": "DELETE",
}


def _parsed(method: str, url: str, answer: Answer) -> Object:
    try:
        body = json.loads(answer.body) if answer.body else {}
    except ValueError:
        body = {}
    if not isinstance(body, dict):
        body = {}
    if answer.status < 400:
        return body
    seconds = answer.headers.get("Retry-After", "")
    if seconds.isdigit():
        body["retry_after_s"] = int(seconds)
    reason = str(body.get("reason") or answer.status)
    message = str(body.get("message") or answer.body[:200].decode(errors="replace"))
    raise ApiError(answer.status, reason, f"{method} {url.partition('?')[0]}: {message}", body)
