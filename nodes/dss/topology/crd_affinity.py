"""The schema of a pod's affinity, so that the API server refuses what it would silently drop later.

Without defaults: what a person leaves out must stay out. Source: the core/v1 API, `Affinity`.
What must not live here: which affinity a cluster has by default (none; kube/pods.py spreads pods).
"""

from __future__ import annotations

from typing import Any, Final

Schema = dict[str, Any]

TERMS_MAX: Final = 16
"""Of each list: more rules on where a pod may go than anybody can foresee the effect of."""


def _object(*required: str, **properties: Schema) -> Schema:
    found: Schema = {"type": "object", "properties": properties}
    return found | ({"required": list(required)} if required else {})


def _list(items: Schema) -> Schema:
    bounds = {"maxItems": TERMS_MAX, "x-kubernetes-list-type": "atomic"}
    return {"type": "array", "items": items} | bounds


def _text(length_max: int = 316, **more: Any) -> Schema:
    return {"type": "string", "maxLength": length_max} | more


def _requirement(*operators: str) -> Schema:
    return _object(
        "key",
        "operator",
        key=_text(),
        operator=_text(16, enum=list(operators)),
        values=_list(_text(253)),
    )


def affinity_schema() -> Schema:
    """The fields `nodeAffinity`, `podAffinity` and `podAntiAffinity`, as a pod has them."""
    weight = {"type": "integer", "format": "int32", "minimum": 1, "maximum": 100}
    on_nodes = _requirement("In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt")
    node_term = _object(matchExpressions=_list(on_nodes), matchFields=_list(on_nodes))
    on_pods = _requirement("In", "NotIn", "Exists", "DoesNotExist")
    labels = {"type": "object", "maxProperties": 32, "additionalProperties": _text(63)}
    selector = _object(matchLabels=labels, matchExpressions=_list(on_pods))
    pod_term = _object(
        "topologyKey",
        topologyKey=_text(),
        labelSelector=selector,
        namespaceSelector=selector,
        namespaces=_list(_text(63)),
        matchLabelKeys=_list(_text()),
        mismatchLabelKeys=_list(_text()),
    )
    required, preferred = (
        f"{what}DuringSchedulingIgnoredDuringExecution" for what in ("required", "preferred")
    )
    of_node = _object(
        **{
            required: _object("nodeSelectorTerms", nodeSelectorTerms=_list(node_term)),
            preferred: _list(_object("weight", "preference", weight=weight, preference=node_term)),
        }
    )
    of_pod = _object(
        **{
            required: _list(pod_term),
            preferred: _list(
                _object("weight", "podAffinityTerm", weight=weight, podAffinityTerm=pod_term)
            ),
        }
    )
    return _object(nodeAffinity=of_node, podAffinity=of_pod, podAntiAffinity=of_pod)
