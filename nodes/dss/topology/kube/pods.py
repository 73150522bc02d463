"""What every pod of a cluster has in common: security, placement, probes, volumes, StatefulSets.

All hold the restricted Pod Security standard. What must not live here: a particular service.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from dss.topology.kube.names import ClusterRef, Object, labels, manifest, resource_name, selector
from dss.topology.kube.quantity import canonical
from dss.topology.model import DSSCluster
from dss.topology.spec import ResourcesSpec

RESTARTED_AT: Final = "dss.io/restartedAt"
CONFIG_CHECKSUM: Final = "dss.io/config-checksum"
SECRET_MODE: Final = 0o440
"""Readable for the pod's own group alone."""


class Workload(msgspec.Struct, frozen=True, kw_only=True):
    """One StatefulSet: what differs between the services.

    Attributes:
        service: the Service that gives the pods their names.
        storage_size: of the volume `data`; empty: it dies with the pod.
        config: text whose change needs a restart of the pods.
    """

    component: str
    replicas: int
    service: str
    uid: int
    gid: int
    container: Object
    volumes: list[Object]
    storage_size: str
    data_path: str
    grace_seconds: int
    config: str = ""


def security_context(uid: int, gid: int) -> Object:
    return {
        "runAsNonRoot": True,
        "runAsUser": uid,
        "runAsGroup": gid,
        "fsGroup": gid,
        # A volume with many files is not walked again at every start.
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def container_security() -> Object:
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def resources(given: ResourcesSpec, requests: Object, limits: Object) -> Object:
    """The given ones; a part that is empty has the defaults.

    No default limit on CPU: being throttled delays heartbeats and so starts elections.
    """
    parts = {"requests": given.requests or requests, "limits": given.limits or limits}
    return {
        part: {name: canonical(amount) for name, amount in amounts.items()}
        for part, amounts in parts.items()
    }


def http_probe(path: str, port: str, *, period: int, failures: int, timeout: int = 4) -> Object:
    return {
        "httpGet": {"path": path, "port": port},
        "periodSeconds": period,
        "timeoutSeconds": timeout,
        "failureThreshold": failures,
    }


def exec_probe(command: list[str], *, period: int, failures: int, timeout: int = 4) -> Object:
    return {
        "exec": {"command": command},
        "periodSeconds": period,
        "timeoutSeconds": timeout,
        "failureThreshold": failures,
    }


def secret_volume(name: str, secret: str, key: str) -> Object:
    """One key of a Secret as a directory: a change reaches the file without a restart."""
    return {
        "name": name,
        "secret": {
            "secretName": secret,
            "defaultMode": SECRET_MODE,
            "items": [{"key": key, "path": key}],
        },
    }


def config_volume(name: str, config_map: str, keys: tuple[str, ...] = ()) -> Object:
    source: Object = {"name": config_map, "defaultMode": 0o444}
    if keys:
        source["items"] = [{"key": key, "path": key} for key in keys]
    return {"name": name, "configMap": source}


def mount(name: str, path: str, *, read_only: bool = True) -> Object:
    return {"name": name, "mountPath": path} | ({"readOnly": True} if read_only else {})


def stateful_set(cluster: DSSCluster, ref: ClusterRef, workload: Workload) -> Object:
    """The StatefulSet of one service. Ordinals start at 1, so that pod names match node ids."""
    spec: Object = {
        "serviceName": workload.service,
        "replicas": workload.replicas,
        "ordinals": {"start": 1},
        # Members need each other to get ready: none may wait for the one before it.
        "podManagementPolicy": "Parallel",
        "updateStrategy": {"type": "RollingUpdate"},
        "selector": {"matchLabels": selector(ref, workload.component)},
        "template": {
            "metadata": {
                "labels": cluster.pod.labels | labels(ref, workload.component),
                "annotations": _annotations(cluster, ref, workload),
            },
            "spec": _pod_spec(cluster, ref, workload),
        },
    }
    if workload.storage_size:
        spec["persistentVolumeClaimRetentionPolicy"] = {
            "whenDeleted": cluster.reclaim,
            "whenScaled": "Retain",
        }
        spec["volumeClaimTemplates"] = [_claim(cluster, ref, workload)]
    name = resource_name(ref, workload.component)
    return manifest(ref, "apps/v1", "StatefulSet", name, workload.component, spec=spec)


def _annotations(cluster: DSSCluster, ref: ClusterRef, workload: Workload) -> dict[str, str]:
    own = {"kubectl.kubernetes.io/default-container": workload.component}
    if ref.restarted_at:
        own[RESTARTED_AT] = ref.restarted_at
    if workload.config:
        own[CONFIG_CHECKSUM] = workload.config
    return cluster.pod.annotations | own


def _pod_spec(cluster: DSSCluster, ref: ClusterRef, workload: Workload) -> Object:
    container = {
        "name": workload.component,
        "imagePullPolicy": cluster.pod.image_pull_policy,
        "securityContext": container_security(),
        **workload.container,
    }
    container["volumeMounts"] = [
        mount("data", workload.data_path, read_only=False),
        mount("tmp", "/tmp", read_only=False),  # noqa: S108 - a path in the container
        *workload.container["volumeMounts"],
    ]
    volumes = [{"name": "tmp", "emptyDir": {"sizeLimit": "64Mi"}}, *workload.volumes]
    if not workload.storage_size:
        volumes.append({"name": "data", "emptyDir": {"sizeLimit": "1Gi"}})
    spec: Object = {
        "serviceAccountName": resource_name(ref, "nodes"),
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": security_context(workload.uid, workload.gid),
        "terminationGracePeriodSeconds": workload.grace_seconds,
        "containers": [container],
        "volumes": volumes,
    }
    if workload.replicas > 1:
        spec["topologySpreadConstraints"] = [
            {
                "maxSkew": 1,
                "topologyKey": key,
                # Members on one machine are better than none.
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": selector(ref, workload.component)},
            }
            for key in ("kubernetes.io/hostname", "topology.kubernetes.io/zone")
        ]
    return spec | _placement(cluster)


def _placement(cluster: DSSCluster) -> Object:
    """What `spec.pod` says; nothing for what is empty, as the API server has it."""
    pod = cluster.pod
    tolerations = [
        {key: value for key, value in msgspec.to_builtins(each).items() if value not in ("", None)}
        for each in pod.tolerations
    ]
    fields: dict[str, Any] = {
        "imagePullSecrets": [{"name": each.name} for each in pod.image_pull_secrets],
        "nodeSelector": dict(pod.node_selector),
        "tolerations": tolerations,
        "affinity": pod.affinity,
        "priorityClassName": pod.priority_class_name,
    }
    return {key: value for key, value in fields.items() if value}


def _claim(cluster: DSSCluster, ref: ClusterRef, workload: Workload) -> Object:
    spec: Object = {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": canonical(workload.storage_size)}},
    }
    if cluster.pod.storage_class_name:
        spec["storageClassName"] = cluster.pod.storage_class_name
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "data", "labels": labels(ref, workload.component)},
        "spec": spec,
    }
