"""`kubectl apply` of a DSSCluster: everything that it stands for is there, and serves."""

from __future__ import annotations

import json

import pytest
import yaml
from asking import http, until
from conftest import NAMESPACE
from e2e_dss import HTTP_PORT, ROLES, Cluster
from e2e_kubectl import ROOT, Kubectl, forwarded, pod_ready
from e2e_operator import NODE_IMAGE

pytestmark = pytest.mark.kube

EXPECTED = {
    "StatefulSet": {"demo-lock", "demo-queue", "demo-cache", "demo-redis", "demo-prometheus"},
    "Service": {"demo-lock", "demo-lock-nodes", "demo-queue", "demo-queue-nodes", "demo-cache",
                "demo-cache-nodes", "demo-redis", "demo-prometheus"},
    "ConfigMap": {"demo-peers", "demo-prometheus"},
    "Secret": {"demo-cluster", "demo-tokens", "demo-auth", "demo-redis"},
    "ServiceAccount": {"demo-nodes"},
    "PodDisruptionBudget": {"demo-lock", "demo-queue", "demo-cache"},
    "Ingress": {"demo"},
}  # fmt: skip
KINDS = (
    "statefulset,service,configmap,secret,serviceaccount,poddisruptionbudget,ingress,networkpolicy"
)


def test_demo__every_object_is_there_labelled_and_owned(demo: Cluster) -> None:
    owned = demo.owned(KINDS)
    for kind, names in EXPECTED.items():
        assert {name for found, name in owned if found == kind} >= names, kind
    assert any(kind == "NetworkPolicy" for kind, _ in owned)
    uid = demo.resource()["metadata"]["uid"]
    for key, obj in owned.items():
        labels, owners = obj["metadata"]["labels"], obj["metadata"].get("ownerReferences", [])
        assert labels["app.kubernetes.io/managed-by"] == "dss-operator", key
        assert [(o["uid"], o.get("controller")) for o in owners] == [(uid, True)], key


def test_demo__pods_are_ready_restricted_and_of_the_image_that_compose_runs(demo: Cluster) -> None:
    pods = demo.pods()
    wanted = [f"demo-lock-{n}" for n in (1, 2, 3)] + [f"demo-queue-{n}" for n in (1, 2, 3)]
    assert {*wanted, "demo-cache-1", "demo-cache-2"} <= set(pods)
    assert all(pod_ready(pod) for pod in pods.values())
    said = demo.kubectl.run(
        "label", "--dry-run=server", "--overwrite", "namespace", NAMESPACE,
        "pod-security.kubernetes.io/enforce=restricted",
    )  # fmt: skip
    assert "Warning" not in said.stderr, said.stderr
    compose = yaml.safe_load((ROOT / "docker/docker-compose.yml").read_text())["services"]
    for name in wanted:
        [container] = pods[name]["spec"]["containers"]
        assert container["image"] == NODE_IMAGE
        if NODE_IMAGE == "dss-node:0.1.0":
            assert container["image"] == compose["lock-1"]["image"]
    for name, pod in pods.items():
        assert pod["spec"].get("automountServiceAccountToken") is False, name


def test_demo__secrets_reach_pods_as_files_alone(demo: Cluster) -> None:
    values = {value for secret in EXPECTED["Secret"]
              for value in demo.secret(secret.removeprefix("demo-")).values()}  # fmt: skip
    text = json.dumps([*demo.owned("statefulset,configmap").values(), *demo.pods().values()])
    assert len(values) >= 6
    leaked = [value[:4] for value in values if value in text]
    assert not leaked, f"secrets that begin with {leaked} are readable without rights on Secrets"


def test_demo__peer_lists_name_every_node(demo: Cluster) -> None:
    data = demo.kubectl.get("-n", NAMESPACE, "configmap", "demo-peers")["data"]
    for key, role, count in (("RAFT_PEERS", "lock", 3), ("QUEUE_NODES", "queue", 3),
                             ("CACHE_PEERS", "cache", 2)):  # fmt: skip
        peers = json.loads(data[key])
        assert [peer["id"] for peer in peers] == [f"{role}-{n}" for n in range(1, count + 1)]
        for peer in peers:
            assert peer["host"].startswith(f"demo-{peer['id']}.demo-{role}-nodes.{NAMESPACE}.svc")
            assert (peer["port"], peer["peer_port"]) == (8000, 9000)


def test_demo__each_member_has_a_volume_and_lock_nodes_lie_apart(
    demo: Cluster, kubectl: Kubectl
) -> None:
    volumes = kubectl.items("-n", NAMESPACE, "pvc")
    bound = {v["metadata"]["name"] for v in volumes if v["status"]["phase"] == "Bound"}
    assert {f"data-demo-{role}-{n}" for role in ROLES for n in (1, 2)} <= bound
    nodes = [node for node in kubectl.items("nodes") if not node["spec"].get("taints")]
    if len(nodes) >= 3:
        places = [pod["spec"]["nodeName"] for pod in demo.pods("lock").values()]
        assert len(set(places)) == 3, f"one node's loss takes two lock nodes: {places}"


def test_demo__locks_queues_and_cache_work_with_the_client_token(demo: Cluster) -> None:
    api = demo.forwards
    session = api("POST", "/v1/sessions", {"ttl_ms": 30_000}).json["session"]
    body = {"session": session, "mode": "exclusive"}
    held = api("POST", "/v1/locks/e2e-apply/acquire", body)
    assert held.status == 200, held.body
    body = {"session": session, "token": held.json["token"]}
    assert api("POST", "/v1/locks/e2e-apply/release", body).status == 200
    assert api("PUT", "/v1/queues/e2e-apply", {}, role="queue").status // 100 == 2
    path = "/v1/queues/e2e-apply"
    sent = api("POST", f"{path}/messages", {"body": {"n": 1}}, role="queue")
    assert sent.status == 201, sent.body
    got = api("POST", f"{path}/receive", {"wait_ms": 5_000}, role="queue").json["messages"]
    assert [message["body"] for message in got] == [{"n": 1}]
    first, second = demo.pods("cache")
    assert api("PUT", "/v1/cache/e2e-apply", b"42", pod=first).status // 100 == 2
    assert api("GET", "/v1/cache/e2e-apply", pod=second).body == b"42"


def test_demo__no_token_is_401_and_a_clients_on_an_admin_route_403(demo: Cluster) -> None:
    pod = next(iter(demo.pods("lock")))
    refused = demo.forwards("GET", "/v1/locks", pod=pod, token="")
    assert (refused.status, refused.json["code"]) == (401, "unauthenticated")
    backoff = {"group_id": 1}
    forbidden = demo.forwards("POST", "/v1/raft/backoff", backoff, pod=pod)
    assert (forbidden.status, forbidden.json["code"]) == (403, "forbidden")
    for path in ("/healthz", "/readyz", "/metrics"):
        assert demo.forwards("GET", path, pod=pod, token="").status == 200, path


def test_demo__prometheus_scrapes_all_eight_nodes(demo: Cluster, kubectl: Kubectl) -> None:
    with forwarded(kubectl, NAMESPACE, "service/demo-prometheus", 9090) as url:

        def up() -> bool:
            found = http("GET", f"{url}/api/v1/targets").json["data"]["activeTargets"]
            good = [t for t in found if t["labels"]["job"].startswith("dss-")]
            return len(good) == 8 and all(target["health"] == "up" for target in good)

        until("8 targets up", up)
        groups = http("GET", f"{url}/api/v1/rules").json["data"]["groups"]
        assert [group["name"] for group in groups] == ["dss"]
        firing = http("GET", f"{url}/api/v1/alerts").json["data"]["alerts"]
        assert [a["labels"]["alertname"] for a in firing if a["state"] == "firing"] == []


def test_demo__services_answer_for_their_role(demo: Cluster, kubectl: Kubectl) -> None:
    for role in ROLES:
        with forwarded(kubectl, NAMESPACE, f"service/demo-{role}", HTTP_PORT) as url:
            cluster = http("GET", f"{url}/v1/cluster", token=demo.token("client"))
            assert cluster.status == 200, cluster.body
            assert len(cluster.json["nodes"]) == 8
