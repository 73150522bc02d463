"""manifests/: what `kubectl apply -k manifests` installs, and samples of DSSClusters.

What must not live here: the CRD's schema (crd.py), the verbs (kube/rbac.py), a cluster's objects.
"""

from __future__ import annotations

import json
from typing import Any, Final

import yaml

from dss import __version__
from dss.topology.crd import API_VERSION, KIND, default_spec, render_crd
from dss.topology.kube import pods, rbac
from dss.topology.kube.monitoring import OPERATOR_METRICS, OPERATOR_METRICS_PORT
from dss.topology.kube.policies import OPERATOR_LABELS
from dss.topology.render_compose import HEADER

NAMESPACE: Final = "dss-system"
NAME: Final = "dss-operator"
OPERATOR_IMAGE: Final = f"dss-operator:{__version__}"
OPERATOR_UID: Final = 10_001
HEALTH_PORT: Final = 8_081
_ROLES: Final = "rbac.authorization.k8s.io/v1"

Object = dict[str, Any]


def manifest_files() -> dict[str, str]:
    """Path in the repository -> text."""
    base = ["crd.yaml", "namespace.yaml", "rbac.yaml", "operator.yaml"]
    return {
        "manifests/crd.yaml": _file("", render_crd()),
        "manifests/namespace.yaml": _file("", _namespace()),
        "manifests/rbac.yaml": _file(_RBAC_NOTE, *_rbac()),
        "manifests/operator.yaml": _file(_OPERATOR_NOTE, _deployment(_EVERYWHERE), _service()),
        "manifests/kustomization.yaml": _file(
            _INSTALL_NOTE, _kustomization(resources=base, images=_images())
        ),
        "manifests/namespaced/operator.yaml": _file(_RBAC_NOTE, *_namespaced()),
        "manifests/namespaced/kustomization.yaml": _file(
            _NAMESPACED_NOTE,
            _kustomization(namespace=NAMESPACE, resources=["operator.yaml"], images=_images()),
        ),
        "manifests/samples/minimal.yaml": _file(_MINIMAL_NOTE, _sample("demo", {})),
        "manifests/samples/full.yaml": _file(_FULL_NOTE, _sample("demo", _full_spec())),
    }


_INSTALL_NOTE: Final = """\
# kubectl apply -k manifests            one operator for all namespaces, in dss-system
# kubectl apply -k manifests/namespaced  one for the clusters of a single namespace
"""
_NAMESPACED_NOTE: Final = """\
# The operator watches the namespace that it runs in and has no right outside of it. The one
# setting is `namespace` below. The namespace must exist, and so must the CRD, which belongs to the
# whole Kubernetes: an administrator applies it once, kubectl apply -f manifests/crd.yaml
"""
_RBAC_NOTE: Final = """\
# The least that the operator needs: nodes/dss/topology/kube/rbac.py says why for each line.
"""
_OPERATOR_NOTE: Final = """\
# WATCH_NAMESPACE: empty means all namespaces. manifests/namespaced sets it, with a Role.
"""
_MINIMAL_NOTE: Final = """\
# 3 lock, 3 queue, 2 cache nodes, Redis, Prometheus and Grafana:
#   kubectl apply -f manifests/samples/minimal.yaml
#   kubectl wait --for=condition=Ready dss/demo --timeout=5m
"""
_FULL_NOTE: Final = """\
# Every field, at its default but for the ingress: docs/kubernetes.md says what each one means.
"""


def _file(note: str, *documents: Object) -> str:
    # Through JSON: PyYAML writes an alias where one object stands twice.
    plain = [json.loads(json.dumps(document)) for document in documents]
    text: str = yaml.safe_dump_all(plain, sort_keys=False, width=98, allow_unicode=True)
    return HEADER + note + text


def _labels() -> dict[str, str]:
    return OPERATOR_LABELS | {"app.kubernetes.io/part-of": "dss"}


def _head(api_version: str, kind: str, name: str, **body: Any) -> Object:
    metadata: Object = {"name": name, "namespace": NAMESPACE, "labels": _labels()}
    if kind in ("Namespace", "ClusterRole", "ClusterRoleBinding"):
        del metadata["namespace"]
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata, **body}


def _namespace() -> Object:
    found = _head("v1", "Namespace", NAMESPACE)
    for what in ("enforce", "warn", "audit"):
        found["metadata"]["labels"][f"pod-security.kubernetes.io/{what}"] = "restricted"
    return found


def _rbac() -> list[Object]:
    account = _head("v1", "ServiceAccount", NAME, automountServiceAccountToken=False)
    return [account, *_roles("ClusterRole", ("watched",)), *_roles("Role", ("own",))]


def _roles(kind: str, scopes: tuple[str, ...]) -> list[Object]:
    """A role with the rules of some scopes, and who has it."""
    role = _head(_ROLES, kind, NAME, rules=[r for scope in scopes for r in rbac.rules(scope)])
    binding = _head(
        _ROLES, f"{kind}Binding", NAME,
        roleRef={"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": NAME},
        subjects=[{"kind": "ServiceAccount", "name": NAME, "namespace": NAMESPACE}],
    )  # fmt: skip
    return [role, binding]


_EVERYWHERE: Final = {"value": ""}


NODE_LOST_S: Final = 30
"""Until the operator leaves a lost node: Kubernetes' 300 s are long for who heals others, and the
Lease keeps the old one from writing if it should still run."""


def _deployment(watch: Object) -> Object:
    def own(path: str) -> Object:
        return {"fieldRef": {"fieldPath": path}}

    health = pods.http_probe("/healthz", "health", period=10, failures=3)
    container: Object = {
        "name": "operator",
        "image": OPERATOR_IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "env": [
            {"name": "WATCH_NAMESPACE", **watch},
            {"name": "POD_NAMESPACE", "valueFrom": own("metadata.namespace")},
            # kopf needs an identity, and the user has no entry in /etc/passwd.
            {"name": "POD_ID", "valueFrom": own("metadata.name")},
            {"name": "LOG_FORMAT", "value": "json"},
        ],
        "ports": [
            {"name": "metrics", "containerPort": OPERATOR_METRICS_PORT, "protocol": "TCP"},
            {"name": "health", "containerPort": HEALTH_PORT, "protocol": "TCP"},
        ],
        "resources": {
            "requests": {"cpu": "50m", "memory": "128Mi"},
            "limits": {"memory": "512Mi"},
        },
        "startupProbe": pods.http_probe("/healthz", "health", period=2, failures=60),
        "livenessProbe": health,
        "readinessProbe": health,
        "securityContext": pods.container_security(),
        "volumeMounts": [pods.mount("tmp", "/tmp", read_only=False)],  # noqa: S108
    }
    pod: Object = {
        "serviceAccountName": NAME,
        "automountServiceAccountToken": True,
        "enableServiceLinks": False,
        "securityContext": pods.security_context(OPERATOR_UID, OPERATOR_UID),
        "terminationGracePeriodSeconds": 30,
        "tolerations": [
            {
                "key": f"node.kubernetes.io/{taint}",
                "operator": "Exists",
                "effect": "NoExecute",
                "tolerationSeconds": NODE_LOST_S,
            }
            for taint in ("not-ready", "unreachable")
        ],
        "containers": [container],
        "volumes": [{"name": "tmp", "emptyDir": {"sizeLimit": "64Mi"}}],
    }
    spec = {
        "replicas": 1,
        # A second one would only wait for the Lease of the first.
        "strategy": {"type": "Recreate"},
        "selector": {"matchLabels": dict(OPERATOR_LABELS)},
        "template": {"metadata": {"labels": _labels()}, "spec": pod},
    }
    return _head("apps/v1", "Deployment", NAME, spec=spec)


def _service() -> Object:
    spec = {
        "selector": dict(OPERATOR_LABELS),
        "ports": [{"name": "metrics", "port": OPERATOR_METRICS_PORT, "targetPort": "metrics"}],
    }
    return _head("v1", "Service", OPERATOR_METRICS, spec=spec)


def _images() -> list[Object]:
    """Where a registry of one's own is named, as `newName`."""
    name, _, tag = OPERATOR_IMAGE.partition(":")
    return [{"name": name, "newTag": tag}]


def _kustomization(**fields: Any) -> Object:
    return {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization", **fields}


def _namespaced() -> list[Object]:
    """The same without rights outside of the namespace that it runs in and watches."""
    account = _head("v1", "ServiceAccount", NAME, automountServiceAccountToken=False)
    roles = _roles("Role", ("watched", "own"))
    watch = {"valueFrom": {"fieldRef": {"fieldPath": "metadata.namespace"}}}
    return [account, *roles, _deployment(watch), _service()]


def _sample(name: str, spec: Object) -> Object:
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": name},
        "spec": spec,
    }


def _full_spec() -> Object:
    spec = default_spec()
    spec["ingress"] |= {"enabled": True, "host": "dss.local", "className": "contour"}
    return spec
