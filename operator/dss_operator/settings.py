"""The operator's settings: environment variables, each with unit, default and reason.

A bad value ends the process before it talks to anything: one line for each, exit code 78.
What must not live here: what a cluster looks like (its resource says that).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from dss.base.errors import ConfigProblem

EXIT_CONFIG: Final = 78


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What the process was told at its start."""

    watch_namespace: str = ""
    """Only DSSClusters of this namespace; empty: of all. One variable switches the whole scope,
    for the RBAC of a namespaced install holds nowhere else."""

    pod_namespace: str = "dss-system"
    """Where the operator itself runs: its Lease lives there, and the clusters' NetworkPolicies
    admit this namespace. From the downward API; the default is the manifests' namespace."""

    pod_id: str = ""
    """Who holds the Lease. From the downward API, so that a restarted container of the same pod
    takes its own Lease up again at once; default: host name and process id."""

    allow_test_mode: bool = False
    """Whether the annotation dss.io/test-mode and DSS_TEST_* variables work. Off: a cluster that
    people use must not be put into a split vote by an annotation."""

    tick_s: float = 30.0
    """Seconds between two looks at a cluster that nothing woke. Drift in kinds that are not
    watched is put back within this time; 30 s of 15 reads each is little for the API server."""

    sample_s: float = 5.0
    """Seconds between two questions to the nodes, at most: a sixth of the remediation window where
    that is shorter, so that a window holds more than the three samples which the design wants."""

    lease_s: float = 15.0
    """Seconds after which a silent holder's Lease may be taken. Three renewals fit in, so one lost
    renewal moves nothing; a dead node's operator is replaced in this time."""

    metrics_port: int = 8_080
    """Port of /metrics; 0: none. The usual port of controllers."""

    health_port: int = 8_081
    """Port of /healthz (kopf's liveness endpoint); 0: none."""

    parallel: int = 8
    """Ticks at once. Bounds memory: one tick of one cluster holds about 40 objects."""

    log_level: str = "INFO"
    log_format: str = "text"
    """`text` or `json`."""

    exit_at_call: int = 0
    """Only with ALLOW_TEST_MODE: the process exits before (odd 2n-1) or after (even 2n) its n-th
    API call, with 137 like a killed one. 0: never."""


def _text(value: str) -> str:
    return value.strip()


def _flag(value: str) -> bool:
    if value not in ("0", "1"):
        raise ValueError("expected 0 or 1")
    return value == "1"


def _number(low: float, high: float) -> Callable[[str], float]:
    def parse(value: str) -> float:
        try:
            number = float(value)
        except ValueError:
            number = float("nan")
        if not low <= number <= high:
            raise ValueError(f"expected a number from {low:g} to {high:g}")
        return number

    return parse


def _integer(low: int, high: int) -> Callable[[str], int]:
    def parse(value: str) -> int:
        if not value.isascii() or not value.isdigit() or not low <= int(value) <= high:
            raise ValueError(f"expected an integer from {low} to {high}")
        return int(value)

    return parse


def _one_of(*words: str) -> Callable[[str], str]:
    def parse(value: str) -> str:
        if value not in words:
            raise ValueError(f"expected one of {', '.join(words)}")
        return value

    return parse


VARIABLES: Final[Mapping[str, tuple[str, Callable[[str], Any]]]] = {
    "WATCH_NAMESPACE": ("watch_namespace", _text),
    "POD_NAMESPACE": ("pod_namespace", _text),
    "POD_ID": ("pod_id", _text),
    "ALLOW_TEST_MODE": ("allow_test_mode", _flag),
    "TICK_S": ("tick_s", _number(1, 3_600)),
    "SAMPLE_S": ("sample_s", _number(0.5, 60)),
    "LEASE_S": ("lease_s", _number(3, 300)),
    "METRICS_PORT": ("metrics_port", _integer(0, 65_535)),
    "HEALTH_PORT": ("health_port", _integer(0, 65_535)),
    "PARALLEL": ("parallel", _integer(1, 100)),
    "LOG_LEVEL": ("log_level", _one_of("DEBUG", "INFO", "WARNING", "ERROR")),
    "LOG_FORMAT": ("log_format", _one_of("text", "json")),
    "DSS_TEST_EXIT_AT_CALL": ("exit_at_call", _integer(0, 1_000_000)),
}


def load_settings(environ: Mapping[str, str]) -> Settings:
    """The settings of an environment; an empty variable counts as not set.

    Raises:
        ConfigProblem: one line for each bad variable.
    """
    values: dict[str, Any] = {}
    faults = []
    for name, (field, parse) in VARIABLES.items():
        text = environ.get(name, "").strip()
        if not text:
            continue
        try:
            values[field] = parse(text)
        except ValueError as fault:
            faults.append(f"{name}: {fault}, found {text!r}.")
    if values.get("exit_at_call") and not values.get("allow_test_mode"):
        faults.append("DSS_TEST_EXIT_AT_CALL: refused without ALLOW_TEST_MODE=1.")
    if faults:
        raise ConfigProblem("\n".join(faults))
    values.setdefault("pod_id", f"{socket.gethostname()}-{os.getpid()}")
    return Settings(**values)
