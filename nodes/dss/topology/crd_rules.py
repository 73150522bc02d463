"""Rules between fields, and what cannot change later, in CEL: the API server itself refuses.

Each message says what was expected and why, or what to do instead.
What must not live here: ranges of single fields (spec.py), the same rules in Python (model.py).
"""

from __future__ import annotations

from typing import Final

from dss.topology.crd_schema import Rules, Schema

VOLUME_BYTES_MIN: Final = "128Mi"
"""A node preallocates log segments of 16 MiB and keeps two snapshots beside them."""
NAME_PATTERN: Final = "^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$"
_KEY: Final = "^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$"
_RESOURCE: Final = (
    "k in ['cpu', 'memory', 'ephemeral-storage'] || k.startsWith('hugepages-') || k.contains('/')"
)


def _rule(rule: str, message: str, field: str = "") -> Schema:
    found = {"rule": rule, "message": message}
    return found | ({"fieldPath": f".{field}"} if field else {})


def _fixed(path: str, why: str, field: str = "") -> Schema:
    """A transition rule: `field` (or the value itself) stays as it was made."""
    new, old = (f"self.{field}", f"oldSelf.{field}") if field else ("self", "oldSelf")
    message = f"spec.{path} cannot change: {why}; put the old value back"
    found: Schema = {"rule": f"{new} == {old}", "message": message}
    found["reason"] = "FieldValueForbidden"
    return found | ({"fieldPath": f".{field}"} if field else {})


def _size(path: str) -> list[Schema]:
    return [
        _rule(
            f"!self.matches('^[1-9][0-9]*(Mi|Gi|Ti)$') || "
            f"!quantity(self).isLessThan(quantity('{VOLUME_BYTES_MIN}'))",
            f"spec.{path}: expected at least {VOLUME_BYTES_MIN}",
        ),
        _fixed(path, "volumes cannot be resized yet"),
    ]


def _resources(path: str) -> list[Schema]:
    amount = "quantity(string(self.{}[k]))"
    return [
        _rule(
            "self.requests.all(k, !(k in self.limits) || "
            f"{amount.format('requests')}.compareTo({amount.format('limits')}) <= 0)",
            f"spec.{path}: expected every request to be at most its limit",
        ),
        _rule(
            f"self.requests.all(k, {_RESOURCE}) && self.limits.all(k, {_RESOURCE})",
            f"spec.{path}: expected cpu, memory, ephemeral-storage, hugepages-… or a name with a "
            "domain like example.com/gpu",
        ),
    ]


ROOT_RULES: Final = [
    _rule(
        f"self.metadata.name.matches('{NAME_PATTERN}')",
        "metadata.name: expected at most 40 characters, a-z, 0-9 and '-', beginning with a letter: "
        "Services and pods are named after it",
    )
]

RULES: Final[Rules] = {
    "": [
        _rule(
            "self.remediation.windowSeconds * 1000 >= 10 * self.lock.electionTimeoutMs.max",
            "spec.remediation.windowSeconds: expected ten times lock.electionTimeoutMs.max or "
            "more, so that a slow election is not taken for a stuck one",
            "remediation.windowSeconds",
        ),
    ],
    "lock": [
        _rule(
            "self.replicas % 2 == 1",
            "spec.lock.replicas: expected an odd number: an even one tolerates no more failures "
            "than one node less",
            "replicas",
        ),
        _rule(
            "self.electionTimeoutMs.min > 2 * self.heartbeatMs",
            "spec.lock.electionTimeoutMs.min: expected more than twice heartbeatMs: one late "
            "heartbeat must not start an election",
            "electionTimeoutMs.min",
        ),
        _rule(
            "2 * self.electionTimeoutMs.max >= 3 * self.electionTimeoutMs.min",
            "spec.lock.electionTimeoutMs.max: expected at least 1.5 times min: too small a span "
            "splits votes",
            "electionTimeoutMs.max",
        ),
    ],
    "queue": [
        _rule(
            "self.replicationFactor <= self.replicas",
            "spec.queue.replicationFactor: expected at most queue.replicas: each copy needs a node "
            "of its own",
            "replicationFactor",
        ),
        _fixed(
            "queue.replicationFactor", "copies of partitions are not moved yet", "replicationFactor"
        ),
        _fixed("queue.partitions", "messages would land in other partitions", "partitions"),
    ],
    "cache": [
        _rule(
            "!('memory' in self.resources.limits) || "
            "quantity(string(self.resources.limits['memory']))"
            ".asApproximateFloat() > double(self.capacityMiB) * 1048576.0",
            "spec.cache.resources.limits: expected more memory than capacityMiB: a full cache "
            "would be killed",
        )
    ],
    "redis": [
        _rule(
            "(self.enabled ? 1 : 0) + (self.externalUrl != '' ? 1 : 0) + "
            "(self.secretRef.name != '' ? 1 : 0) == 1",
            "spec.redis: expected exactly one of enabled: true, externalUrl and secretRef.name: "
            "a cache has one main memory (set enabled: false to use your own)",
        ),
        _fixed("redis.enabled", "the cached data would be left behind", "enabled"),
    ],
    "redis.externalUrl": [
        _rule(
            "self == '' || self.matches('^redis://[^@/?#]+(/[0-9]{1,5})?$')",
            "spec.redis.externalUrl: expected redis://host[:port][/db] without a password: put a "
            "URL with one into a Secret and name it in secretRef",
        )
    ],
    "monitoring": [
        _rule(
            "!self.grafana.enabled || self.prometheus.enabled",
            "spec.monitoring.grafana.enabled: expected false without prometheus.enabled: it shows "
            "what Prometheus has",
            "grafana.enabled",
        )
    ],
    "ingress": [
        _rule(
            "!self.enabled || self.host != ''",
            "spec.ingress.host: expected a host name when ingress.enabled is true",
            "host",
        )
    ],
    "ingress.annotations": [
        _rule(
            f"self.all(k, k.matches('{_KEY}'))",
            "spec.ingress.annotations: expected names like example.com/name",
        )
    ],
    "tls": [
        _rule(
            "!self.enabled",
            "spec.tls.enabled: expected false: this version has no certificates yet; nodes prove "
            "the cluster's secret to each other",
            "enabled",
        )
    ],
    "pod.storageClassName": [_fixed("pod.storageClassName", "volumes are bound to their class")],
    "pod.nodeSelector": [
        _rule(
            f"self.all(k, k.matches('{_KEY}'))",
            "spec.pod.nodeSelector: expected names of labels like kubernetes.io/arch",
        )
    ],
    "pod.tolerations[]": [
        _rule(
            "self.key != '' || self.operator == 'Exists'",
            "spec.pod.tolerations: expected operator: Exists where there is no key",
        ),
        _rule(
            "self.operator == 'Equal' || self.value == ''",
            "spec.pod.tolerations: expected no value with operator: Exists",
        ),
        _rule(
            "!has(self.tolerationSeconds) || self.effect == 'NoExecute'",
            "spec.pod.tolerations: expected effect: NoExecute with tolerationSeconds",
        ),
    ],
    "pod.labels": [
        _rule(
            f"self.all(k, k.matches('{_KEY}'))",
            "spec.pod.labels: expected names like team or example.com/team",
        ),
        _rule(
            "self.all(k, !k.startsWith('app.kubernetes.io/') && !k.startsWith('dss.io/'))",
            "spec.pod.labels: labels of app.kubernetes.io/ and dss.io/ are the operator's own: "
            "choose another name",
        ),
    ],
    "pod.annotations": [
        _rule(
            f"self.all(k, k.matches('{_KEY}'))",
            "spec.pod.annotations: expected names like example.com/name",
        ),
        _rule(
            "self.all(k, !k.startsWith('dss.io/'))",
            "spec.pod.annotations: annotations of dss.io/ are the operator's own: choose another "
            "name",
        ),
    ],
    **{
        f"{part}.storage.size": _size(f"{part}.storage.size")
        for part in ("lock", "queue", "cache", "redis", "monitoring.prometheus")
    },
    **{
        f"{part}.resources": _resources(f"{part}.resources")
        for part in (
            "lock", "queue", "cache", "redis", "monitoring.prometheus", "monitoring.grafana"
        )
    },
}  # fmt: skip
