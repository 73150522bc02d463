"""kopf: two watches whose events wake the clusters' tasks, and nothing else.

No daemon, no timer, no create/update handler: those bring finalizers and annotations. Run with
`python -m dss_operator`, or `kopf run -m dss_operator.handlers`. What must not live here: any work.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Iterator, Mapping
from typing import Any, Final

import kopf

from dss_operator.kube import connect
from dss_operator.runtime import Runtime
from dss_operator.settings import load_settings
from dss_operator.state import CLUSTER_LABEL, GROUP, PLURAL, VERSION

WATCH_S: Final = 300
"""A watch is renewed after this time: a connection that died silently is noticed."""
RETRY_S_MAX: Final = 10.0


class Patience:
    """1, 2, 4, … seconds between attempts, for ever: an API server that is away for an hour must
    not end the operator."""

    def __iter__(self) -> Iterator[float]:
        wait_s = 1.0
        while True:
            yield wait_s
            wait_s = min(wait_s * 2, RETRY_S_MAX)


class _Process:
    runtime: Runtime | None = None


@kopf.on.startup()
async def start(settings: kopf.OperatorSettings, **_: Any) -> None:
    # A line for each event, and one for each probe.
    for noisy in ("kopf.objects", "aiohttp.access"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    settings.posting.enabled = False  # kopf's own Events
    settings.scanning.disabled = True  # no watch of CRDs and namespaces: no such rights
    settings.watching.server_timeout = WATCH_S
    settings.watching.client_timeout = WATCH_S + 60
    settings.networking.error_backoffs = Patience()
    own = load_settings(os.environ)
    runtime = Runtime(own, await connect())
    await runtime.served()
    runtime.start()
    _Process.runtime = runtime


@kopf.on.cleanup()
async def stop(**_: Any) -> None:
    if _Process.runtime is not None:
        await _Process.runtime.close()
        _Process.runtime = None


@kopf.on.login()
def login(**kwargs: Any) -> kopf.ConnectionInfo | None:
    """By the pod's token or $KUBECONFIG; not by the `kubernetes` package, whose synchronous half
    would double the process's memory."""
    found = kopf.login_with_service_account(**kwargs)
    if found is None:
        return kopf.login_with_kubeconfig(**kwargs)
    return dataclasses.replace(found, server=api_address(os.environ) or found.server)


def api_address(environ: Mapping[str, str]) -> str:
    """The API server as every pod is told it; "" outside of one.

    kopf's own choice is a name, and the cluster's DNS may be what was lost: on the day on which a
    node dies with the only DNS pod on it, the operator must still be at work.
    """
    host = environ.get("KUBERNETES_SERVICE_HOST", "")
    port = environ.get("KUBERNETES_SERVICE_PORT_HTTPS") or environ.get("KUBERNETES_SERVICE_PORT")
    if not host or not port:
        return ""
    return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"


@kopf.on.event(GROUP, VERSION, PLURAL)  # type: ignore[arg-type]
async def cluster_changed(
    event: dict[str, Any], meta: dict[str, Any], namespace: str | None, name: str | None, **_: Any
) -> None:
    if _Process.runtime is None or namespace is None or name is None:
        return
    meaning = (
        event["type"] == "DELETED", meta.get("uid"), meta.get("generation"),
        dict(meta.get("annotations") or {}), meta.get("deletionTimestamp"),
    )  # fmt: skip
    _Process.runtime.changed(namespace, name, meaning)


@kopf.on.event("apps", "v1", "statefulsets", labels={CLUSTER_LABEL: kopf.PRESENT})  # type: ignore[arg-type]
async def set_changed(labels: dict[str, str], namespace: str | None, **_: Any) -> None:
    """A StatefulSet tells of its pods, too: readiness, deletion, rollout."""
    if _Process.runtime is not None and namespace is not None:
        _Process.runtime.wake(namespace, labels[CLUSTER_LABEL], known_only=True)
