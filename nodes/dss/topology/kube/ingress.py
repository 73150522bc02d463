"""The Ingress: one host, the client routes of all three services, and the controllers' presets.

`/v1/locks` as a prefix does not match `/v1/locks:stream`, so every `:` route has a path of its own.
What must not live here: admin routes of single nodes (/v1/raft/…): they stay inside.
"""

from __future__ import annotations

from typing import Final

from dss.topology.kube.names import ClusterRef, Object, manifest
from dss.topology.model import HTTP_PORT, DSSCluster

PREFIXES: Final = {
    "/v1/sessions": "lock",
    "/v1/locks": "lock",
    "/v1/queues": "queue",
    "/v1/cache": "cache",
}
"""Path -> role."""
COLON_ROUTES: Final = {
    "/v1/locks:acquire": "lock",
    "/v1/locks:events": "lock",
    "/v1/locks:stream": "lock",
    "/v1/queues:stream": "queue",
    "/v1/cache:stream": "cache",
    "/v1/cache:get": "cache",
    "/v1/cache:incr": "cache",
    "/v1/cache:set": "cache",
    "/v1/cache:stats": "cache",
}
"""The `:` routes of dss.api, which this layer may not import; a test compares the two."""
STREAMS: Final = tuple(path for path in COLON_ROUTES if path.endswith(":stream"))

# A long poll waits 30 s and a stream for hours; the controllers' defaults cut both at 15 or 60 s.
_PRESETS: Final[dict[str, dict[str, str]]] = {
    "contour": {
        "projectcontour.io/response-timeout": "infinity",
        "projectcontour.io/websocket-routes": ",".join(STREAMS),
    },
    "nginx": {
        "nginx.ingress.kubernetes.io/proxy-read-timeout": "3600",
        "nginx.ingress.kubernetes.io/proxy-send-timeout": "3600",
        "nginx.ingress.kubernetes.io/proxy-body-size": "2m",
        "nginx.ingress.kubernetes.io/proxy-buffering": "off",
        # A write whose outcome is unknown is not sent again to another node.
        "nginx.ingress.kubernetes.io/proxy-next-upstream": "off",
    },
    # Traefik passes WebSockets and sets no response time-out on routes.
    "traefik": {},
    "none": {},
}


def ingress(cluster: DSSCluster, ref: ClusterRef) -> Object:
    given = cluster.ingress
    # ingress-nginx refuses a ':' in Exact paths (strict-validate-path-type).
    colon_type = "ImplementationSpecific" if given.controller == "nginx" else "Exact"
    paths = [_path(ref, path, colon_type, role) for path, role in COLON_ROUTES.items()]
    paths += [_path(ref, path, "Prefix", role) for path, role in PREFIXES.items()]
    spec: Object = {"rules": [{"host": given.host, "http": {"paths": paths}}]}
    if given.class_name:
        spec["ingressClassName"] = given.class_name
    if given.tls.secret_name:
        spec["tls"] = [{"hosts": [given.host], "secretName": given.tls.secret_name}]
    found = manifest(ref, "networking.k8s.io/v1", "Ingress", ref.name, "cluster", spec=spec)
    annotations = _PRESETS[given.controller] | given.annotations
    if annotations:
        found["metadata"]["annotations"] = annotations
    return found


def _path(ref: ClusterRef, path: str, path_type: str, role: str) -> Object:
    service = {"name": f"{ref.name}-{role}", "port": {"number": HTTP_PORT}}
    return {"path": path, "pathType": path_type, "backend": {"service": service}}
