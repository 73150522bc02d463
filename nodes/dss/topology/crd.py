"""The DSSCluster resource: its definition, and from its `spec` to the model.

What must not live here: the fields (spec.py), rules between them (crd_rules.py), what is made of
them (kube/).
"""

from __future__ import annotations

import copy
from typing import Any, Final

import msgspec

from dss.base.errors import ConfigProblem
from dss.topology.crd_affinity import affinity_schema
from dss.topology.crd_rules import ROOT_RULES, RULES
from dss.topology.crd_schema import schema_of
from dss.topology.crd_status import printer_columns, status_schema
from dss.topology.model import KUBE_DEFAULTS, DSSCluster, ensure_valid

GROUP: Final = "dss.io"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"
KIND: Final = "DSSCluster"
PLURAL: Final = "dssclusters"


def default_spec() -> dict[str, Any]:
    """`spec` with every field at its default."""
    spec: dict[str, Any] = msgspec.to_builtins(KUBE_DEFAULTS)
    del spec["name"]
    return spec


def render_crd() -> dict[str, Any]:
    """The CustomResourceDefinition."""
    given = {"pod.affinity": affinity_schema()}
    spec = schema_of(KUBE_DEFAULTS, RULES, given, leave_out=frozenset({"name"}))
    spec["description"] = "What the cluster should be. Every field has a default."
    spec["default"] = default_spec()
    schema = {
        "type": "object",
        "description": "A cluster of lock, queue and cache nodes.",
        "x-kubernetes-validations": ROOT_RULES,
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": spec,
            "status": status_schema(),
        },
    }
    version = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": schema},
        "subresources": {"status": {}},
        "additionalPrinterColumns": printer_columns(),
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{PLURAL}.{GROUP}",
            "labels": {"app.kubernetes.io/name": "dss-operator"},
        },
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": KIND,
                "listKind": f"{KIND}List",
                "plural": PLURAL,
                "singular": "dsscluster",
                "shortNames": ["dss"],
            },
            "versions": [version],
        },
    }


def cluster_of_resource(obj: dict[str, Any]) -> DSSCluster:
    """The cluster that a DSSCluster object asks for; what it leaves out has the CRD's defaults.

    Raises:
        ConfigProblem: naming each field that the API server should not have let through.
    """
    given = obj.get("spec") or {}
    if "name" in given:
        raise ConfigProblem("spec: unknown field `name`: the cluster's name is metadata.name.")
    spec = _merged(default_spec(), given)
    try:
        cluster = msgspec.convert(spec | {"name": obj["metadata"]["name"]}, DSSCluster)
    except msgspec.ValidationError as error:
        raise ConfigProblem(f"spec: {str(error).replace('$.', 'spec.')}.") from None
    return ensure_valid(cluster)


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    result = copy.copy(base)
    for key, value in over.items():
        below = result.get(key)
        if isinstance(value, dict) and isinstance(below, dict):
            result[key] = _merged(below, value)
        elif value is not None:
            result[key] = value
    return result
