"""Reads what is there: LISTs by label, Secrets by their names. No cache: a LIST begins after it
was asked for, so what an outage hid is never believed.

Clusters of one namespace that ask at the same moment share their LISTs. What must not live here:
any judgement of what was read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus
from typing import Final

import msgspec

from dss.base.errors import ConfigProblem
from dss.topology.crd import cluster_of_resource
from dss.topology.kube import MANAGED_KINDS, OPTIONAL_KINDS, secret_names
from dss_operator.kube import CLUSTERS, PODS, SECRETS, Api, ApiError, Kube
from dss_operator.state import CLUSTER_LABEL, Object, Observed, Resource, key_of

SHARED_MAX: Final = 25
"""Clusters in one LIST: bounds the answer's size and the selector's length in the URL."""
LISTS_AT_ONCE: Final = 4
"""Calls in flight for one namespace: the API server's fairness counts them."""

MISSING_S: Final = 600.0
"""How long a kind that the API server does not serve is not asked for again."""

MANAGED: Final[Mapping[str, Api]] = {names[1]: Api(*names) for names in MANAGED_KINDS}
"""Kinds that are listed; Secrets are read one by one, for the operator may not list them."""
OPTIONAL: Final[Mapping[str, Api]] = {names[1]: Api(*names) for names in OPTIONAL_KINDS}
"""Kinds of someone else's CRD."""


def api_of(kind: str) -> Api:
    return SECRETS if kind == "Secret" else {**MANAGED, **OPTIONAL}[kind]


async def read_resource(kube: Kube, namespace: str, name: str) -> Resource | None:
    """The DSSCluster as it is now; None: there is none."""
    obj = await kube.get(CLUSTERS, namespace, name)
    return None if obj is None else parse_resource(obj)


def parse_resource(obj: Object) -> Resource:
    meta = obj["metadata"]
    spec, fault = None, ""
    try:
        spec = cluster_of_resource(obj)
    except ConfigProblem as problem:
        fault = str(problem)
    return Resource(
        name=meta["name"],
        namespace=meta["namespace"],
        uid=meta["uid"],
        generation=meta.get("generation", 0),
        resource_version=meta.get("resourceVersion", ""),
        annotations=meta.get("annotations") or {},
        spec=spec,
        status=obj.get("status") or {},
        fault=fault,
        deleting=bool(meta.get("deletionTimestamp")),
    )


def _belongs(secret: Object, cluster: str) -> bool:
    """By its label or its owner: a Secret that lost one of them must not count as missing, for
    then it would get new values."""
    meta = secret["metadata"]
    owners = meta.get("ownerReferences") or []
    by_owner = any((o["kind"], o["name"]) == (CLUSTERS.kind, cluster) for o in owners)
    return by_owner or (meta.get("labels") or {}).get(CLUSTER_LABEL) == cluster


class Lists(msgspec.Struct, frozen=True):
    """One namespace's objects of all kinds, of some clusters."""

    by_cluster: dict[str, list[Object]]
    missing_kinds: frozenset[str]


class Observer:
    """Gathers the wishes of clusters that wake together into common LISTs."""

    def __init__(self, kube: Kube, clock: Callable[[], float]) -> None:
        self._kube = kube
        self._clock = clock
        self._missing: dict[str, float] = {}
        self._wishes: dict[str, dict[str, asyncio.Future[Lists]]] = {}
        self._readers: dict[str, asyncio.Task[None]] = {}

    async def observe(self, namespace: str, name: str) -> Observed:
        """Everything of one cluster, read after this call. Raises ApiError."""
        lists = await self._wish(namespace, name)
        owned = {}
        pods = {}
        for obj in lists.by_cluster.get(name, ()):
            if obj["kind"] == "Pod":
                pods[obj["metadata"]["name"]] = obj
            else:
                owned[key_of(obj)] = obj
        for secret in await self._secrets(namespace, secret_names(name)):
            if _belongs(secret, name):
                owned[key_of(secret)] = secret
        return Observed(owned=owned, pods=pods, missing_kinds=lists.missing_kinds)

    async def _secrets(self, namespace: str, names: Iterable[str]) -> list[Object]:
        found = []
        for name in names:
            secret = await self._kube.get(SECRETS, namespace, name)
            if secret is not None:
                found.append({"apiVersion": "v1", "kind": "Secret", **secret})
        return found

    async def _wish(self, namespace: str, name: str) -> Lists:
        wishes = self._wishes.setdefault(namespace, {})
        if name not in wishes:
            wishes[name] = asyncio.get_running_loop().create_future()
        wish = wishes[name]
        if namespace not in self._readers:
            self._readers[namespace] = asyncio.create_task(self._read(namespace))
        return await asyncio.shield(wish)

    async def _read(self, namespace: str) -> None:
        """Serves the wishes of one namespace until there are none."""
        try:
            while wishes := self._wishes.get(namespace):
                batch = {name: wishes.pop(name) for name in list(wishes)[:SHARED_MAX]}
                try:
                    lists = await self._list_all(namespace, sorted(batch))
                except BaseException as error:
                    for wish in batch.values():
                        if not wish.done():
                            wish.set_exception(error)
                            wish.exception()  # an asker that went away must not make a warning
                    if not isinstance(error, Exception):
                        raise
                    continue
                for wish in batch.values():
                    if not wish.done():
                        wish.set_result(lists)
        finally:
            self._wishes.pop(namespace, None)
            self._readers.pop(namespace, None)

    async def _list_all(self, namespace: str, names: list[str]) -> Lists:
        labels = f"{CLUSTER_LABEL} in ({','.join(names)})"
        if len(names) == 1:
            labels = f"{CLUSTER_LABEL}={names[0]}"
        gate = asyncio.Semaphore(LISTS_AT_ONCE)

        async def list_kind(api: Api) -> list[Object]:
            async with gate:
                return await self._kube.list(api, namespace, labels=labels)

        async def list_optional(api: Api) -> list[Object]:
            if self._missing.get(api.kind, float("-inf")) > self._clock() - MISSING_S:
                return []
            try:
                found = await list_kind(api)
            except ApiError as error:
                if error.status not in (HTTPStatus.NOT_FOUND, HTTPStatus.FORBIDDEN):
                    raise
                self._missing[api.kind] = self._clock()
                return []
            self._missing.pop(api.kind, None)
            return found

        pages = await asyncio.gather(
            *(list_kind(api) for api in (*MANAGED.values(), PODS)),
            *(list_optional(api) for api in OPTIONAL.values()),
        )
        by_cluster: dict[str, list[Object]] = {}
        for page in pages:
            for obj in page:
                owner = obj["metadata"]["labels"][CLUSTER_LABEL]
                obj["metadata"].pop("managedFields", None)  # half of an object, read by nobody here
                by_cluster.setdefault(owner, []).append(obj)
        return Lists(by_cluster, frozenset(self._missing))
