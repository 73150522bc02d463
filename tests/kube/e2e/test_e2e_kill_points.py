"""The operator killed at each of its API calls: whatever it left behind, the next run completes it.

Each point has a DSSCluster of its own, in a namespace of its own. An operator process beside the
cluster, with the rights of the real one, makes it and ends at call N: before it (odd points) or
after it (even). Then the installed operator takes all of them over, and each must come out as the
one that nobody disturbed. CI runs a recorded sample, `make e2e-kube-full` every point.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml
from asking import until
from e2e_dss import LABEL, NOWHERE, Cluster, small
from e2e_kubectl import ROOT, Kubectl, Object, say
from e2e_operator import DEPLOYMENT, SYSTEM, Operator
from test_e2e_reconcile import KINDS, essence

pytestmark = pytest.mark.kube

POINTS_MAX = 160
SAMPLE = (1, 8, 17, 30, 41, 56, 73, 90, 107, 122, 135, 150)
"""Reads and writes, before and after, of the first tick and of later ones."""
KILLED = 137
POINT_S = 40.0
NAMESPACE = "dss-e2e-kill"


def points() -> tuple[int, ...]:
    return tuple(range(1, POINTS_MAX + 1)) if os.environ.get("E2E_FULL") else SAMPLE


@pytest.fixture
def kubeconfig(kubectl: Kubectl, operator: Operator, tmp_path: Path) -> Path:
    """A KUBECONFIG with the operator's own token: its rights, no more."""
    token = kubectl("-n", SYSTEM, "create", "token", DEPLOYMENT, "--duration=1h").strip()
    config = yaml.safe_load(kubectl("config", "view", "--raw", "--minify", "--flatten"))
    config["users"][0]["user"] = {"token": token}
    file = tmp_path / "kubeconfig"
    file.write_text(yaml.safe_dump(config))
    return file


@pytest.fixture
def namespaces(kubectl: Kubectl, operator: Operator) -> Iterator[list[str]]:
    """One for each point, and one (the last) for the cluster that nobody disturbs."""
    names = [f"{NAMESPACE}-{point}" for point in (*points(), 0)]
    kubectl("delete", "namespace", "-l", "dss.io/test-kill", "--ignore-not-found", timeout_s=300)
    labels = {"dss.io/test": "e2e", "dss.io/test-kill": "true"}
    spaces = [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name,
               "labels": labels}} for name in names]  # fmt: skip
    kubectl.apply(*spaces)
    yield names
    operator.scale(1)
    kubectl("delete", "namespace", "-l", "dss.io/test-kill", "--wait=false")


def run_until_killed(kubectl: Kubectl, kubeconfig: Path, namespace: str, point: int) -> bool:
    """Make the cluster with an operator that ends at `point`; whether it came that far."""
    Cluster(kubectl, "k", namespace).apply(small(**NOWHERE))
    environment = {
        "PATH": os.environ["PATH"],
        "KUBECONFIG": str(kubeconfig),
        "WATCH_NAMESPACE": namespace,
        "POD_NAMESPACE": SYSTEM,
        "POD_ID": f"kill-{point}",
        "ALLOW_TEST_MODE": "1",
        "DSS_TEST_EXIT_AT_CALL": str(point),
        "METRICS_PORT": "0",
        "HEALTH_PORT": "0",
        "TICK_S": "2",
        "LOG_LEVEL": "WARNING",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "dss_operator"], env=environment, cwd=ROOT,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        _, said = process.communicate(timeout=POINT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return False
    assert process.returncode == KILLED, f"point {point}: exit {process.returncode}: {said[-2000:]}"
    return True


def outcome(cluster: Cluster) -> str:
    """What an observer can tell of a cluster, names and secrets aside, as text to compare."""
    found = {}
    for (kind, name), obj in cluster.owned(KINDS).items():
        about = essence(obj)
        del about["metadata"]["ownerReferences"]
        if kind == "Secret":
            about["data"] = sorted(obj["data"])
        found[f"{kind} {name}"] = about
    return json.dumps(found, sort_keys=True).replace(cluster.namespace, "NAMESPACE")


def secrets_fit(cluster: Cluster) -> bool:
    """The tokens that nodes accept are those that the operator and people have."""
    data: Object = {}
    for name in ("tokens", "auth", "redis"):
        data |= cluster.secret(name)
    accepted = {row["name"]: row["sha256"] for row in json.loads(data["tokens.json"])}
    wanted = {name: hashlib.sha256(data[name].encode()).hexdigest() for name in accepted}
    return len(accepted) == 3 and accepted == wanted and data["password"] in data["url"]


def complete(cluster: Cluster, wanted: str) -> str:
    """Empty when it is; else what is missing."""
    resource = cluster.resource()
    if (resource.get("status") or {}).get("observedGeneration") != 1:
        return "no status"
    if outcome(cluster) != wanted:
        return f"{len(cluster.owned(KINDS))} objects, and they differ"
    return "" if secrets_fit(cluster) else "the Secrets do not fit each other"


def test_operator_killed_at_each_api_call__the_next_run_completes_what_it_left(
    kubectl: Kubectl, operator: Operator, kubeconfig: Path, namespaces: list[str]
) -> None:
    operator.scale(0)
    *broken, undisturbed = namespaces
    began = time.monotonic()
    pairs = list(zip(broken, points(), strict=True))
    with ThreadPoolExecutor(2) as pool:
        reached = list(
            pool.map(lambda at: run_until_killed(kubectl, kubeconfig, at[0], at[1]), pairs)
        )
    left = [len(kubectl.items("-n", name, KINDS, "-l", f"{LABEL}=k")) for name in broken]
    say(
        f"killed at {sum(reached)} of {len(points())} points in {time.monotonic() - began:.0f} s; "
        f"objects left behind: {left if len(left) < 20 else f'{min(left)} to {max(left)}'}"
    )
    missed = [point for point, ok in zip(points(), reached, strict=True) if not ok]
    assert missed == [], "not reached"
    assert len(set(left)) >= 4, "the points lie at different places of the way"
    Cluster(kubectl, "k", undisturbed).apply(small(**NOWHERE))
    began = time.monotonic()
    operator.scale(1)
    reference = Cluster(kubectl, "k", undisturbed)
    until("the undisturbed one is made", lambda: secrets_there(reference), 120)
    wanted = until("it is stable", lambda: stable(reference), 120)
    for name in broken:
        cluster = Cluster(kubectl, "k", name)
        try:
            until(f"{name} is complete", lambda c=cluster: complete(c, wanted) == "", 120)  # type: ignore[misc]
        except AssertionError as error:
            differs = _difference(outcome(cluster), wanted)
            raise AssertionError(f"{error}: {complete(cluster, wanted)}: {differs}") from None
    say(f"all {len(broken)} complete {time.monotonic() - began:.0f} s after the next run began")


def secrets_there(cluster: Cluster) -> bool:
    return len(cluster.owned("secret,statefulset")) >= 8


def stable(cluster: Cluster) -> str:
    first = outcome(cluster)
    time.sleep(3)
    return first if outcome(cluster) == first else ""


def _difference(found: str, wanted: str) -> str:
    have, want = json.loads(found), json.loads(wanted)
    return str(
        {key: (have.get(key), want.get(key)) for key in have.keys() | want.keys()
         if have.get(key) != want.get(key)}
    )[:3000]  # fmt: skip
