"""The table of resources that cannot work: (part of the spec, part of the API server's message).

What must not live here: calls (test_crd_refused.py).
"""

from __future__ import annotations

from typing import Any

PARTS = ("lock", "queue", "cache", "redis", "monitoring.prometheus", "monitoring.grafana")


def nested(part: str, resources: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = {"resources": resources}
    for name in reversed(part.split(".")):
        spec = {name: spec}
    return spec


INVALID: list[tuple[dict[str, Any], str]] = [
    ({"lock": {"replicas": 0}}, "spec.lock.replicas in body should be greater than or equal to 1"),
    ({"lock": {"replicas": 4}}, "spec.lock.replicas: expected an odd number"),
    ({"lock": {"replicas": 11}}, "spec.lock.replicas in body should be less than or equal to 9"),
    ({"lock": {"replicas": "3"}}, 'spec.lock.replicas in body must be of type integer: "string"'),
    ({"lock": {"heartbeatMs": 5}}, "heartbeatMs in body should be greater than or equal to 10"),
    ({"lock": {"heartbeatMs": 500}}, "electionTimeoutMs.min: expected more than twice heartbeatMs"),
    ({"lock": {"electionTimeoutMs": {"min": 200}}},
     "spec.lock.electionTimeoutMs.min: expected more than twice heartbeatMs"),
    ({"lock": {"electionTimeoutMs": {"max": 1_400}}},
     "spec.lock.electionTimeoutMs.max: expected at least 1.5 times min"),
    ({"lock": {"electionTimeoutMs": {"min": 10}}},
     "electionTimeoutMs.min in body should be greater than or equal to 50"),
    ({"lock": {"electionTimeoutMs": {"max": 500_000}}},
     "electionTimeoutMs.max in body should be less than or equal to 120000"),
    ({"lock": {"electionTimeoutMs": {"max": 4_000}}},
     "spec.remediation.windowSeconds: expected ten times lock.electionTimeoutMs.max"),
    ({"queue": {"replicas": 2}}, "spec.queue.replicationFactor: expected at most queue.replicas"),
    ({"queue": {"replicationFactor": 2}}, 'spec.queue.replicationFactor: Unsupported value: 2'),
    ({"queue": {"partitions": 0}}, "partitions in body should be greater than or equal to 1"),
    ({"queue": {"partitions": 257}}, "partitions in body should be less than or equal to 256"),
    ({"cache": {"replicas": 10}}, "spec.cache.replicas in body should be less than or equal to 9"),
    ({"cache": {"capacityMiB": 0}}, "capacityMiB in body should be greater than or equal to 1"),
    ({"cache": {"leaseMs": 50}}, "leaseMs in body should be greater than or equal to 100"),
    ({"cache": {"policy": "lru"}}, 'spec.cache.policy: Unsupported value: "lru"'),
    ({"cache": {"write": "back"}}, 'spec.cache.write: Unsupported value: "back": supported values: '
     '"through"'),
    ({"lock": {"storage": {"size": "10"}}}, "spec.lock.storage.size: expected a whole number with"),
    ({"queue": {"storage": {"size": "1.5Gi"}}}, "spec.queue.storage.size: expected a whole number"),
    ({"cache": {"storage": {"size": "64Mi"}}}, "spec.cache.storage.size: expected at least 128Mi"),
    ({"redis": {"storage": {"size": "-1Gi"}}}, "spec.redis.storage.size: expected a whole number"),
    ({"lock": {"storage": {"size": "127Mi"}}}, "spec.lock.storage.size: expected at least 128Mi"),
    ({"queue": {"storage": {"size": "1Mi"}}}, "spec.queue.storage.size: expected at least 128Mi"),
    ({"redis": {"storage": {"size": "1Mi"}}}, "spec.redis.storage.size: expected at least 128Mi"),
    ({"cache": {"storage": {"size": "2G"}}}, "spec.cache.storage.size: expected a whole number"),
    ({"monitoring": {"prometheus": {"storage": {"size": ""}}}},
     "spec.monitoring.prometheus.storage.size: expected a whole number"),
    ({"monitoring": {"prometheus": {"storage": {"size": "1Mi"}}}},
     "spec.monitoring.prometheus.storage.size: expected at least 128Mi"),
    ({"lock": {"resources": {"requests": {"memory": "1Gi"}, "limits": {"memory": "512Mi"}}}},
     "spec.lock.resources: expected every request to be at most its limit"),
    ({"queue": {"resources": {"requests": {"cpu": 2}, "limits": {"cpu": "1500m"}}}},
     "spec.queue.resources: expected every request to be at most its limit"),
    ({"cache": {"resources": {"limits": {"memory": "lots"}}}}, "spec.cache.resources.limits"),
    ({"cache": {"resources": {"limits": {"memory": "256Mi"}}}},
     "spec.cache.resources.limits: expected more memory than capacityMiB"),
    *(
        (spec, f"spec.{part}.resources: expected every request to be at most its limit")
        for part in PARTS
        for spec in [nested(part, {"requests": {"cpu": "2"}, "limits": {"cpu": "500m"}})]
    ),
    *(
        (nested(part, {"limits": {"cpus": 2}}), f"spec.{part}.resources: expected cpu, memory")
        for part in PARTS
    ),
    ({"redis": {"externalUrl": "redis://r.example:6379"}}, "spec.redis: expected exactly one of"),
    ({"redis": {"enabled": False}}, "spec.redis: expected exactly one of enabled: true"),
    ({"redis": {"secretRef": {"name": "mine"}}}, "spec.redis: expected exactly one of"),
    ({"redis": {"enabled": False, "externalUrl": "redis://:pw@r.example:6379"}},
     "without a password: put a URL with one into a Secret"),
    ({"redis": {"enabled": False, "externalUrl": "http://r.example"}},
     "spec.redis.externalUrl: expected redis://host[:port][/db]"),
    ({"redis": {"enabled": False, "secretRef": {"name": "mine", "key": "a b"}}},
     "spec.redis.secretRef.key: expected a Secret's key"),
    ({"redis": {"enabled": False, "secretRef": {"name": "Mine"}}},
     "spec.redis.secretRef.name: expected lower-case letters"),
    ({"redis": {"image": "redis 7"}}, "spec.redis.image: expected an image like"),
    ({"monitoring": {"prometheus": {"image": "a:b:c"}}},
     "spec.monitoring.prometheus.image: expected an image like"),
    ({"monitoring": {"grafana": {"image": "x@sha256:12"}}},
     "spec.monitoring.grafana.image: expected an image like"),
    ({"monitoring": {"prometheus": {"enabled": False}}},
     "spec.monitoring.grafana.enabled: expected false without prometheus.enabled"),
    ({"ingress": {"enabled": True}}, "spec.ingress.host: expected a host name"),
    ({"ingress": {"host": "dss..local"}}, "spec.ingress.host: expected lower-case letters"),
    ({"ingress": {"className": "a_b"}}, "spec.ingress.className: expected lower-case letters"),
    ({"ingress": {"host": "DSS.local"}}, "spec.ingress.host: expected lower-case letters"),
    ({"ingress": {"controller": "haproxy"}}, 'spec.ingress.controller: Unsupported value: '
     '"haproxy": supported values: "contour", "nginx", "none", "traefik"'),
    ({"ingress": {"annotations": {"a b": "c"}}}, "spec.ingress.annotations: expected names like"),
    ({"ingress": {"tls": {"secretName": "-x"}}}, "spec.ingress.tls.secretName: expected lower"),
    ({"auth": {"enabled": "yes"}}, "spec.auth.enabled in body must be of type boolean"),
    ({"tls": {"enabled": True}}, "spec.tls.enabled: expected false: this version has no cert"),
    ({"remediation": {"mode": "Maybe"}}, 'spec.remediation.mode: Unsupported value: "Maybe"'),
    ({"remediation": {"windowSeconds": 5}}, "windowSeconds in body should be greater than or"),
    ({"remediation": {"windowSeconds": 19}},
     "spec.remediation.windowSeconds: expected ten times lock.electionTimeoutMs.max"),
    ({"remediation": {"cooldownSeconds": 1}}, "cooldownSeconds in body should be greater than"),
    ({"remediation": {"maxPerHour": 7}}, "maxPerHour in body should be less than or equal to 6"),
    ({"pod": {"imagePullPolicy": "Sometimes"}}, 'imagePullPolicy: Unsupported value: "Sometimes"'),
    ({"pod": {"imagePullSecrets": [{}]}}, "spec.pod.imagePullSecrets[0].name: Required value"),
    ({"pod": {"imagePullSecrets": [{"name": "A"}]}}, "spec.pod.imagePullSecrets.name: expected"),
    ({"pod": {"priorityClassName": "High"}}, "spec.pod.priorityClassName: expected lower-case"),
    ({"pod": {"nodeSelector": {"disk": "very fast"}}}, "spec.pod.nodeSelector: expected at most"),
    ({"pod": {"nodeSelector": {"a b": "c"}}}, "spec.pod.nodeSelector: expected names of labels"),
    ({"pod": {"tolerations": [{"effect": "Never"}]}}, 'effect: Unsupported value: "Never"'),
    ({"pod": {"tolerations": [{}]}}, "spec.pod.tolerations: expected operator: Exists where there"),
    ({"pod": {"tolerations": [{"operator": "Exists", "key": "a", "value": "b"}]}},
     "spec.pod.tolerations: expected no value with operator: Exists"),
    ({"pod": {"tolerations": [{"key": "a", "value": "b", "tolerationSeconds": 9}]}},
     "spec.pod.tolerations: expected effect: NoExecute with tolerationSeconds"),
    ({"pod": {"labels": {"app.kubernetes.io/name": "x"}}},
     "spec.pod.labels: labels of app.kubernetes.io/ and dss.io/ are the operator's own"),
    ({"pod": {"tolerations": [{"key": "a b", "operator": "Exists"}]}},
     "spec.pod.tolerations.key: expected a taint's key"),
    ({"pod": {"tolerations": [{"key": "a", "value": "b c"}]}},
     "spec.pod.tolerations.value: expected at most 63 letters"),
    ({"pod": {"labels": {"a b": "c"}}}, "spec.pod.labels: expected names like team"),
    ({"pod": {"annotations": {"x" * 64: "c"}}}, "spec.pod.annotations: expected names like"),
    ({"pod": {"labels": {"team": "-"}}}, "spec.pod.labels: expected at most 63 letters"),
    ({"pod": {"annotations": {"dss.io/restartedAt": "x"}}},
     "spec.pod.annotations: annotations of dss.io/ are the operator's own"),
    ({"pod": {"storageClassName": "Fast"}}, "spec.pod.storageClassName: expected lower-case"),
    ({"pod": {"affinity": "near"}}, "spec.pod.affinity in body must be of type object"),
    ({"pod": {"affinity": {"nope": 1}}}, 'unknown field "spec.pod.affinity.nope"'),
    ({"pod": {"affinity": {"podAntiAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": [{"labelSelector": {}}]}}}},
     "topologyKey: Required value"),
    ({"pod": {"affinity": {"nodeAffinity": {
        "preferredDuringSchedulingIgnoredDuringExecution": [
            {"weight": 0, "preference": {"matchExpressions": []}}]}}}},
     "weight in body should be greater than or equal to 1"),
    ({"image": ""}, "spec.image in body should be at least 1 chars long"),
    ({"image": "dss node"}, "spec.image: expected an image like"),
    ({"paused": "no"}, "spec.paused in body must be of type boolean"),
    ({"reclaim": "Keep"}, 'reclaim: Unsupported value: "Keep": supported values: "Delete", '
     '"Retain"'),
    ({"colour": "red"}, 'unknown field "spec.colour"'),
    ({"lock": {"nodes": 3}}, 'unknown field "spec.lock.nodes"'),
    ({"name": "demo"}, 'unknown field "spec.name"'),
]  # fmt: skip

FIXED: list[tuple[dict[str, Any], str]] = [
    ({"queue": {"partitions": 64}}, "spec.queue.partitions cannot change: messages would land"),
    ({"queue": {"replicationFactor": 1}}, "spec.queue.replicationFactor cannot change"),
    ({"redis": {"enabled": False, "externalUrl": "redis://r"}}, "spec.redis.enabled cannot change"),
    ({"pod": {"storageClassName": "fast"}}, "spec.pod.storageClassName cannot change"),
    ({"lock": {"storage": {"size": "4Gi"}}}, "spec.lock.storage.size cannot change"),
    ({"queue": {"storage": {"size": "1Gi"}}}, "spec.queue.storage.size cannot change"),
    ({"cache": {"storage": {"size": "1Gi"}}}, "spec.cache.storage.size cannot change"),
    ({"redis": {"storage": {"size": "2Gi"}}}, "spec.redis.storage.size cannot change"),
    ({"monitoring": {"prometheus": {"storage": {"size": "4Gi"}}}},
     "spec.monitoring.prometheus.storage.size cannot change"),
]  # fmt: skip

NAMES = ["x" * 41, "1st", "my.cluster", "a-"]
