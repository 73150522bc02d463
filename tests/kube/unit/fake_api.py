"""A Kubernetes API server in memory: what kmock 0.8 lacks and an operator depends on.

uid, resourceVersion, generation, label and field selectors, server-side apply with owners of fields
and conflicts, merge patches, the status subresource, preconditions, defaults that the server adds,
garbage collection by ownerReferences, and on wish a StatefulSet controller. It is a `Transport` by
itself (no sockets); test_http.py puts it behind kmock's HTTP server.

Faults: `fail(at, status)` answers the at-th call with an error, `kill_at` ends the "process" before
(odd) or after (even) a call. What must not live here: anything of the operator's own.
"""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl, unquote

from dss_operator.kube import Answer

Object = dict[str, Any]
Path = tuple[str, ...]
PLURALS = {
    "serviceaccounts": "ServiceAccount", "configmaps": "ConfigMap", "services": "Service",
    "poddisruptionbudgets": "PodDisruptionBudget", "networkpolicies": "NetworkPolicy",
    "statefulsets": "StatefulSet", "ingresses": "Ingress", "secrets": "Secret", "pods": "Pod",
    "dssclusters": "DSSCluster", "leases": "Lease", "events": "Event",
    "persistentvolumeclaims": "PersistentVolumeClaim",
}  # fmt: skip
ITEM_KEYS = ("name", "mountPath", "uid", "topologyKey")
READS = ("get", "list")


class Killed(BaseException):
    """The operator's process ended here."""


class Refusal(Exception):
    def __init__(self, status: int, reason: str, message: str, causes: Any = None) -> None:
        super().__init__(message)
        self.status = status
        self.body = {
            "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": status,
            "reason": reason, "message": message, "details": {"causes": causes or []},
        }  # fmt: skip


class Call:
    """One call as it came in."""

    def __init__(self, verb: str, plural: str, name: str, sub: str, query: dict[str, str]) -> None:
        self.verb, self.plural, self.name, self.sub, self.query = verb, plural, name, sub, query

    def __repr__(self) -> str:
        return f"{self.verb} {self.plural}/{self.name}{'/' + self.sub if self.sub else ''}"


class FakeApi:
    """The server. `objects` maps (plural, namespace, name) to live objects."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str, str], Object] = {}
        self.owners: dict[tuple[str, str, str], dict[str, set[Path]]] = {}
        self.calls: list[Call] = []
        self.timeouts: list[float] = []
        self.faults: dict[int, int | str | Object] = {}
        self.fault_by: Callable[[Call], int | str | Object | None] = lambda call: None
        self.kill_at = 0
        self.version = 0
        self.evictions: list[tuple[str, str]] = []
        self.eviction_status = 201
        self.rights: set[tuple[str, str]] | None = None
        """(verb, resource) that the caller has; None: all."""
        self.used: set[tuple[str, str]] = set()
        self.log: list[tuple[int, str, str, Object]] = []
        """(version, ADDED | MODIFIED | DELETED, plural, object): what a watch tells."""
        self._uids = 0

    # --- what tests ask ---

    @property
    def writes(self) -> list[Call]:
        return [
            call for call in self.calls
            if call.verb not in READS and call.plural not in ("leases", "events")
        ]  # fmt: skip

    @property
    def events(self) -> list[Object]:
        return [obj for (plural, _, _), obj in self.objects.items() if plural == "events"]

    def reasons(self) -> list[str]:
        return [event["reason"] for event in self.events]

    def get(self, plural: str, name: str, namespace: str = "ns") -> Object:
        return self.objects[plural, namespace, name]

    def has(self, plural: str, name: str, namespace: str = "ns") -> bool:
        return (plural, namespace, name) in self.objects

    def names(self, plural: str) -> list[str]:
        return sorted(name for kind, _, name in self.objects if kind == plural)

    def forget_calls(self) -> None:
        self.calls.clear()
        self.faults.clear()

    # --- what tests do ---

    def add(self, plural: str, obj: Object, manager: str = "kubectl-client-side-apply") -> Object:
        meta = obj["metadata"]
        key = (plural, meta["namespace"], meta["name"])
        return self._store(key, copy.deepcopy(obj), manager, None)

    def edit(
        self, plural: str, name: str, change: Callable[[Object], None],
        manager: str = "kubectl-edit", namespace: str = "ns",
    ) -> None:  # fmt: skip
        """As another manager's update."""
        key = (plural, namespace, name)
        obj = copy.deepcopy(self.objects[key])
        change(obj)
        self._store(key, obj, manager, self.objects[key])

    def remove(self, plural: str, name: str, namespace: str = "ns") -> None:
        """As kubectl delete; what it owned goes too."""
        gone = self.objects.pop((plural, namespace, name))
        self.version += 1
        self.log.append((self.version, "DELETED", plural, gone))
        self.owners.pop((plural, namespace, name), None)
        self.collect(gone["metadata"]["uid"])

    def collect(self, uid: str) -> None:
        """Garbage collection of one owner's objects."""
        for key, obj in list(self.objects.items()):
            owners = obj["metadata"].get("ownerReferences") or []
            if key in self.objects and any(owner["uid"] == uid for owner in owners):
                self.remove(key[0], key[2], key[1])

    def run_sets(self, ready: Callable[[str], bool] = lambda pod: True) -> None:
        """The StatefulSet controller and the kubelets: all pods there, ready ones by `ready`."""
        for (plural, namespace, name), live in list(self.objects.items()):
            if plural != "statefulsets":
                continue
            spec, good = live["spec"], 0
            for ordinal in range(1, spec["replicas"] + 1):
                pod = f"{name}-{ordinal}"
                is_ready = ready(pod)
                good += is_ready
                if ("pods", namespace, pod) not in self.objects:
                    self.add("pods", self._pod(live, pod, namespace), "kube-controller-manager")
                self._set_pod(namespace, pod, is_ready)
            live["status"] = {
                "observedGeneration": live["metadata"]["generation"], "replicas": spec["replicas"],
                "readyReplicas": good, "updatedReplicas": spec["replicas"],
                "currentRevision": "one", "updateRevision": "one",
            }  # fmt: skip

    def _pod(self, live: Object, name: str, namespace: str) -> Object:
        template = copy.deepcopy(live["spec"]["template"])
        template["spec"].setdefault("volumes", [])
        if live["spec"].get("volumeClaimTemplates"):
            claim = {"name": "data", "persistentVolumeClaim": {"claimName": f"data-{name}"}}
            template["spec"]["volumes"].append(claim)
        owner = {
            "apiVersion": "apps/v1", "kind": "StatefulSet", "name": live["metadata"]["name"],
            "uid": live["metadata"]["uid"], "controller": True,
        }  # fmt: skip
        meta = {
            "name": name, "namespace": namespace, "labels": template["metadata"]["labels"],
            "ownerReferences": [owner],
        }  # fmt: skip
        return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": template["spec"]}

    def _set_pod(self, namespace: str, name: str, ready: bool) -> None:
        pod = self.objects["pods", namespace, name]
        pod["status"] = {
            "podIP": f"pod:{name}",
            "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
        }

    # --- Transport ---

    async def close(self) -> None:
        pass

    async def send(
        self, method: str, path: str, headers: dict[str, str], body: Object | None,
        timeout_s: float = 15,
    ) -> Answer:  # fmt: skip
        self.timeouts.append(timeout_s)
        await asyncio.sleep(0)
        call = self._parse(method, path)
        self.calls.append(call)
        number = len(self.calls)
        if self.kill_at == 2 * number - 1:
            raise Killed(f"before {call}")
        fault = self.faults.get(number) or self.fault_by(call)
        if fault == "lost":  # carried out, but the answer never arrives
            self._answer(call, headers, body)
        if isinstance(fault, str):
            raise TimeoutError(fault)
        if isinstance(fault, dict):
            return Answer(fault["code"], {}, json.dumps(fault).encode())
        if fault:
            status = {"code": fault, "reason": "Injected", "message": "injected"}
            return Answer(fault, {}, json.dumps(status).encode())
        answer = self._answer(call, headers, body)
        if self.kill_at == 2 * number:
            raise Killed(f"after {call}")
        return answer

    def _parse(self, method: str, path: str) -> Call:
        path, _, query = path.partition("?")
        parts = [unquote(part) for part in path.strip("/").split("/")]
        rest = parts[parts.index("namespaces") + 1 :] if "namespaces" in parts else ["", parts[-1]]
        namespace, plural, *named = rest
        name = named[0] if named else ""
        sub = named[1] if len(named) > 1 else ""
        words = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
        verb = words.get(method) or ("get" if name else "list")
        call = Call(verb, plural, name, sub, dict(parse_qsl(query)))
        call.query["namespace"] = namespace
        return call

    def _answer(self, call: Call, headers: dict[str, str], body: Object | None) -> Answer:
        try:
            self._authorise(call, headers)
            created, result = self._serve(call, headers, copy.deepcopy(body or {}))
        except Refusal as refusal:
            return Answer(refusal.status, {}, json.dumps(refusal.body).encode())
        return Answer(201 if created else 200, {}, json.dumps(result).encode())

    def _authorise(self, call: Call, headers: dict[str, str]) -> None:
        """As RBAC: a server-side apply that makes an object needs `create` besides `patch`."""
        resource = f"{call.plural}/{call.sub}" if call.sub else call.plural
        verbs = [call.verb]
        key = (call.plural, call.query["namespace"], call.name)
        if call.verb == "patch" and key not in self.objects and "apply-patch" in str(headers):
            verbs.append("create")
        for verb in verbs:
            self.used.add((verb, resource))
            if self.rights is not None and (verb, resource) not in self.rights:
                raise Refusal(403, "Forbidden", f"cannot {verb} {resource}")

    def _serve(self, call: Call, headers: dict[str, str], body: Object) -> tuple[bool, Object]:
        namespace = call.query["namespace"]
        key = (call.plural, namespace, call.name)
        if call.plural not in PLURALS:
            raise Refusal(404, "NotFound", "the server could not find the requested resource")
        if call.verb == "list":
            return False, self._list(call)
        if call.verb == "create":
            return True, self._create(call, body)
        live = self.objects.get(key)
        if call.verb == "patch" and headers["Content-Type"].startswith("application/apply-patch"):
            return live is None, self._apply(call, key, body)
        if live is None:
            raise Refusal(404, "NotFound", f'{call.plural} "{call.name}" not found')
        if call.verb == "get":
            return False, live
        if call.verb == "delete":
            return False, self._delete(key, body)
        self._check_version(live, body)
        manager = call.query.get("fieldManager", "unknown")
        if call.verb == "update":
            return False, self._store(key, body, manager, live)
        return False, self._store(key, _merge_patch(copy.deepcopy(live), body), manager, live)

    def _list(self, call: Call) -> Object:
        items = [
            obj for (plural, namespace, _), obj in sorted(self.objects.items())
            if plural == call.plural and namespace == call.query["namespace"]
            and _selected(obj, call.query.get("labelSelector", ""))
            and call.query.get("fieldSelector", "") in ("", _by_name(obj))
        ]  # fmt: skip
        limit, start = int(call.query.get("limit", "500")), int(call.query.get("continue") or 0)
        meta = {"resourceVersion": str(self.version)}
        if start + limit < len(items):
            meta["continue"] = str(start + limit)
        # A list's items carry no kind of their own.
        shown = [
            {key: value for key, value in obj.items() if key not in ("apiVersion", "kind")}
            for obj in items[start : start + limit]
        ]
        return {"kind": "List", "metadata": meta, "items": shown}

    def _create(self, call: Call, body: Object) -> Object:
        namespace = call.query["namespace"]
        if call.sub == "eviction":
            return self._evict(namespace, call.name, body)
        key = (call.plural, namespace, body["metadata"]["name"])
        if key in self.objects:
            raise Refusal(409, "AlreadyExists", f"{key} exists")
        return self._store(key, body, call.query.get("fieldManager", "unknown"), None)

    def _evict(self, namespace: str, name: str, body: Object) -> Object:
        pod = self.objects.get(("pods", namespace, name))
        if pod is None:
            raise Refusal(404, "NotFound", f"no pod {name}")
        if self.eviction_status == 429:
            raise Refusal(429, "TooManyRequests", "Cannot evict pod: the disruption budget")
        uid = body["deleteOptions"]["preconditions"]["uid"]
        if pod["metadata"]["uid"] != uid:
            raise Refusal(409, "Conflict", "the UID in the precondition does not match")
        self.evictions.append((name, uid))
        self.remove("pods", name, namespace)
        return {"kind": "Status", "status": "Success"}

    def _delete(self, key: tuple[str, str, str], body: Object) -> Object:
        live = self.objects[key]
        uid = (body.get("preconditions") or {}).get("uid")
        if uid and live["metadata"]["uid"] != uid:
            raise Refusal(409, "Conflict", "the UID in the precondition does not match")
        if body.get("propagationPolicy") == "Orphan":
            self.objects.pop(key)
            self.owners.pop(key, None)
        else:
            self.remove(key[0], key[2], key[1])
        return {"kind": "Status", "status": "Success"}

    def _check_version(self, live: Object, body: Object) -> None:
        version = (body.get("metadata") or {}).get("resourceVersion")
        if version and version != live["metadata"]["resourceVersion"]:
            raise Refusal(409, "Conflict", "the object has been modified")

    # --- server-side apply ---

    def _apply(self, call: Call, key: tuple[str, str, str], body: Object) -> Object:
        manager, force = call.query["fieldManager"], call.query.get("force") == "true"
        live = self.objects.get(key)
        uid = body["metadata"].get("uid")
        if call.sub == "status":
            if live is None:
                raise Refusal(404, "NotFound", "no such object")
            if uid and uid != live["metadata"]["uid"]:
                raise Refusal(409, "Conflict", "Precondition failed: UID")
            self._check_version(live, body)
            if live.get("status") != body["status"]:
                live["status"] = body["status"]
                self._bump(live)
            return live
        if live is None:
            return self._store(key, body, f"{manager}!apply", None, applied=body)
        leaves = _leaves(body)
        owners = self.owners.setdefault(key, {})
        mine = f"{manager}!apply"
        live_leaves = _leaves(live)
        conflicts = [
            (other, path)
            for path, value in leaves.items()
            for other, paths in owners.items()
            if other != mine and path in paths and live_leaves.get(path) != value
        ]
        if conflicts and not force:
            causes = [
                {
                    "reason": "FieldManagerConflict", "field": "." + ".".join(path),
                    "message": f'conflict with "{other.partition("!")[0]}" using v1',
                }
                for other, path in conflicts
            ]  # fmt: skip
            raise Refusal(409, "Conflict", f"Apply failed with {len(causes)} conflicts", causes)
        new = copy.deepcopy(live)
        for path in owners.get(mine, set()) - leaves.keys():
            if not any(path in paths for other, paths in owners.items() if other != mine):
                _drop(new, path)
        new = _merge(new, body)
        for other, path in conflicts:
            owners[other].discard(path)
        return self._store(key, new, mine, live, applied=body)

    # --- storage ---

    def _store(
        self, key: tuple[str, str, str], obj: Object, manager: str, live: Object | None,
        applied: Object | None = None,
    ) -> Object:  # fmt: skip
        plural, namespace, name = key
        obj.setdefault("metadata", {})
        obj.pop("managedFields", None)
        obj["kind"] = PLURALS[plural]
        _add_defaults(obj)
        meta = obj["metadata"]
        if live is None:
            self._uids += 1
            meta |= {
                "uid": meta.get("uid") or f"uid-{self._uids}", "namespace": namespace,
                "name": name, "generation": 1, "creationTimestamp": "2026-01-01T00:00:00Z",
            }  # fmt: skip
        else:
            _refuse_settled(live, obj)
            meta |= {
                field: live["metadata"][field]
                for field in ("uid", "generation", "resourceVersion", "creationTimestamp")
            }
            if plural != "leases" and "status" in live:
                obj["status"] = live["status"]
        owners = self.owners.setdefault(key, {})
        if applied is not None:
            owners[manager] = set(_leaves(applied))
        else:
            before = _leaves(live or {})
            changed = {path for path, value in _leaves(obj).items() if before.get(path) != value}
            for paths in owners.values():
                paths -= changed
            owners.setdefault(manager, set()).update(changed)
        if live is not None and obj == live:
            return live
        if live is not None and obj.get("spec") != live.get("spec"):
            meta["generation"] += 1
        self._bump(obj)
        self.objects[key] = obj
        word = "ADDED" if live is None else "MODIFIED"
        self.log.append((self.version, word, plural, copy.deepcopy(obj)))
        return obj

    def _bump(self, obj: Object) -> None:
        self.version += 1
        obj["metadata"]["resourceVersion"] = str(self.version)


def _selected(obj: Object, selector: str) -> bool:
    labels = obj["metadata"].get("labels") or {}
    if not selector:
        return True
    if " in (" in selector:
        key, _, values = selector.partition(" in (")
        return labels.get(key) in values.rstrip(")").split(",")
    key, _, value = selector.partition("=")
    return labels.get(key) == value


def _by_name(obj: Object) -> str:
    return f"metadata.name={obj['metadata']['name']}"


def _merge_patch(target: Object, patch: Object) -> Object:
    for key, value in patch.items():
        if value is None:
            target.pop(key, None)
        elif isinstance(value, dict):
            target[key] = _merge_patch(target.get(key) or {}, value)
        else:
            target[key] = value
    return target


def _keyed(items: list[Any]) -> str | None:
    if not items or not all(isinstance(item, dict) for item in items):
        return None
    return next((key for key in ITEM_KEYS if all(key in item for item in items)), None)


def _leaves(obj: Object, path: Path = ()) -> dict[Path, Any]:
    """path -> value of everything that a manager may own."""
    found: dict[Path, Any] = {}
    for name, value in obj.items():
        here = (*path, name)
        if path == () and name in ("apiVersion", "kind", "status"):
            continue
        if path == ("metadata",) and name not in ("labels", "annotations", "ownerReferences"):
            continue
        key = _keyed(value) if isinstance(value, list) else None
        if isinstance(value, dict) and value:
            found |= _leaves(value, here)
        elif key is not None:
            for item in value:
                found |= _leaves(item, (*here, f"[{item[key]}]"))
        else:
            found[here] = value
    return found


def _merge(live: Any, applied: Any) -> Any:
    if isinstance(live, dict) and isinstance(applied, dict):
        return live | {
            key: _merge(live[key], value) if key in live else value
            for key, value in applied.items()
        }
    if isinstance(live, list) and isinstance(applied, list):
        key = _keyed(live + applied)
        if key is not None:
            there = {item[key]: item for item in live}
            merged = [_merge(there.pop(item[key], {}), item) for item in applied]
            return merged + list(there.values())
    return applied


def _drop(obj: Any, path: Path) -> None:
    for depth, part in enumerate(path):
        last = depth == len(path) - 1
        if isinstance(obj, list):
            key = _keyed(obj)
            found = [item for item in obj if key and f"[{item[key]}]" == part]
            if not found:
                return
            obj = found[0]
        elif last:
            obj.pop(part, None)
        else:
            obj = obj.get(part)
            if obj is None:
                return


def _add_defaults(obj: Object) -> None:
    """Some of what a real API server fills in: enough that a naive comparison would see drift."""
    spec = obj.get("spec") or {}
    if obj["kind"] == "StatefulSet":
        spec.setdefault("revisionHistoryLimit", 10)
        spec.setdefault("replicas", 1)
        pod = spec["template"]["spec"]
        pod.setdefault("restartPolicy", "Always")
        pod.setdefault("dnsPolicy", "ClusterFirst")
        for container in pod.get("containers", []):
            container.setdefault("terminationMessagePath", "/dev/termination-log")
            for port in container.get("ports", []):
                port.setdefault("protocol", "TCP")
        for claim in spec.get("volumeClaimTemplates") or []:
            claim.setdefault("status", {"phase": "Pending"})
            claim["spec"].setdefault("volumeMode", "Filesystem")
    elif obj["kind"] == "Service":
        spec.setdefault("clusterIP", "10.0.0.1")
        spec.setdefault("sessionAffinity", "None")
        for port in spec.get("ports", []):
            port.setdefault("protocol", "TCP")


def _refuse_settled(live: Object, obj: Object) -> None:
    """Fields that the API server never changes."""
    fields = {
        "StatefulSet": ("serviceName", "podManagementPolicy", "selector", "volumeClaimTemplates"),
        "Service": ("clusterIP",),
    }
    for field in fields.get(obj["kind"], ()):
        if live["spec"].get(field) != obj["spec"].get(field):
            raise Refusal(422, "Invalid", f"spec.{field}: field is immutable")
    if live.get("immutable") and live.get("data") != obj.get("data"):
        raise Refusal(422, "Invalid", "data: field is immutable")
