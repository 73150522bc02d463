"""The Kubernetes objects of a cluster: heads, pods, Services, policies, what settings change."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from dss.base.errors import ConfigProblem
from dss.topology.config import load_node_config
from dss.topology.crd import cluster_of_resource
from dss.topology.kube import MANAGED_KINDS, OPTIONAL_KINDS, ClusterRef, render_objects
from dss.topology.model import ROLES, DSSCluster, LockSpec
from dss.topology.variables import BY_NAME

REF = ClusterRef(name="demo", namespace="team", uid="u-1", operator_namespace="dss-system")
ALL = {
    "ingress": {"enabled": True, "host": "dss.local"},
    "monitoring": {"serviceMonitor": True},
}

Object = dict[str, Any]


def cluster(spec: Object | None = None, name: str = "demo") -> DSSCluster:
    return cluster_of_resource({"metadata": {"name": name}, "spec": spec or {}})


def rendered(spec: Object | None = None, ref: ClusterRef = REF) -> dict[tuple[str, str], Object]:
    objects = render_objects(cluster(spec), ref)
    found = {(obj["kind"], obj["metadata"]["name"]): obj for obj in objects}
    assert len(found) == len(objects)
    return found


def pod_of(objects: dict[tuple[str, str], Object], component: str) -> Object:
    pod: Object = objects["StatefulSet", f"demo-{component}"]["spec"]["template"]["spec"]
    return pod


def env_of(objects: dict[tuple[str, str], Object], role: str) -> dict[str, str]:
    env = pod_of(objects, role)["containers"][0]["env"]
    return {each["name"]: each["value"] for each in env if "value" in each}


def stateful_sets(spec: Object | None = None) -> list[Object]:
    return [obj for (kind, _), obj in rendered(spec).items() if kind == "StatefulSet"]


def test_every_object__has_its_labels_its_owner_and_a_managed_kind() -> None:
    kinds = {(version, kind) for version, kind, _ in MANAGED_KINDS + OPTIONAL_KINDS}
    seen = set()
    for obj in rendered(ALL).values():
        seen.add((obj["apiVersion"], obj["kind"]))
        meta = obj["metadata"]
        assert meta["namespace"] == "team"
        labels = meta["labels"]
        assert labels["app.kubernetes.io/name"] == "dss"
        assert labels["app.kubernetes.io/instance"] == labels["dss.io/cluster"] == "demo"
        assert labels["app.kubernetes.io/managed-by"] == "dss-operator"
        assert labels["app.kubernetes.io/component"]
        assert meta["ownerReferences"] == [
            {
                "apiVersion": "dss.io/v1alpha1",
                "kind": "DSSCluster",
                "name": "demo",
                "uid": "u-1",
                "controller": True,
                "blockOwnerDeletion": False,
            }
        ]
    assert seen == kinds


def test_objects__are_json_and_the_same_in_another_process() -> None:
    program = (
        "import json; from dss.topology.kube import *; from dss.topology.crd import *;"
        "c = cluster_of_resource({'metadata': {'name': 'demo'}, 'spec': {}});"
        "print(json.dumps(render_objects(c, ClusterRef(name='demo', namespace='team', uid='u-1',"
        "operator_namespace='dss-system'))))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, check=True, text=True,
        env={"PYTHONHASHSEED": "11"},
    )  # fmt: skip
    assert json.loads(answer.stdout) == list(rendered().values())


def test_bad_model__renders_nothing() -> None:
    bad = msgspec.structs.replace(cluster(), lock=LockSpec(replicas=2))
    with pytest.raises(ConfigProblem, match=r"lock\.replicas: expected an odd number"):
        render_objects(bad, REF)


def test_every_selector__finds_exactly_its_own_pods() -> None:
    objects = rendered(ALL)
    pods = {
        name: obj["spec"]["template"]["metadata"]["labels"]
        for (kind, name), obj in objects.items()
        if kind == "StatefulSet"
    }
    assert len(pods) == 6

    def found(selector: Object) -> set[str]:
        return {name for name, labels in pods.items() if selector.items() <= labels.items()}

    for (kind, name), obj in objects.items():
        if kind == "Service":
            assert found(obj["spec"]["selector"]) == {name.removesuffix("-nodes")}
        if kind in ("PodDisruptionBudget", "StatefulSet"):
            assert found(obj["spec"]["selector"]["matchLabels"]) == {name}
    for obj in objects.values():
        if obj["kind"] == "StatefulSet":
            assert objects["Service", obj["spec"]["serviceName"]]


@pytest.mark.parametrize("workload", stateful_sets(), ids=lambda obj: obj["metadata"]["name"])
def test_every_pod__restricted_bounded_and_without_a_token(workload: Object) -> None:
    spec = workload["spec"]
    pod = spec["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["fsGroup"] == pod["securityContext"]["runAsGroup"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    (container,) = pod["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["resources"]["requests"]
    assert container["resources"]["limits"]["memory"]
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container[probe]["periodSeconds"] > 0
    mounts = {each["mountPath"]: each for each in container["volumeMounts"]}
    assert "/tmp" in mounts
    volumes = {volume["name"] for volume in pod["volumes"]}
    volumes |= {claim["metadata"]["name"] for claim in spec.get("volumeClaimTemplates", [])}
    assert {each["name"] for each in container["volumeMounts"]} == volumes
    writable = [each["name"] for each in container["volumeMounts"] if not each.get("readOnly")]
    assert writable == ["data", "tmp"]
    assert spec["podManagementPolicy"] == "Parallel"
    assert spec["updateStrategy"] == {"type": "RollingUpdate"}
    assert spec["ordinals"] == {"start": 1}


def _as_the_kubelet(objects: dict[tuple[str, str], Object], role: str, root: Path) -> list[Object]:
    """The environment of each pod of a role, its files below `root`."""
    peers = objects["ConfigMap", "demo-peers"]["data"]
    files = {f"/etc/dss/peers/{name}": text for name, text in peers.items()}
    files["/etc/dss/cluster/cluster-secret"] = "s" * 32
    files["/etc/dss/memory/url"] = "redis://:secret-pw@demo-redis.team.svc:6379/0"
    files["/etc/dss/auth/tokens.json"] = json.dumps(
        [{"name": "admin", "sha256": "0" * 64, "role": "admin"}]
    )
    for path, text in files.items():
        file = root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    found = []
    for ordinal in range(1, objects["StatefulSet", f"demo-{role}"]["spec"]["replicas"] + 1):
        env = {
            name: value.replace("$(POD_INDEX)", str(ordinal))
            for name, value in env_of(objects, role).items()
        }
        for name, value in env.items():
            if name.endswith("_FILE"):
                env[name] = str(root / value.lstrip("/"))
        found.append(env)
    return found


@pytest.mark.parametrize("role", ROLES)
def test_every_node__loads_its_environment_as_the_member_it_is(role: str, tmp_path: Path) -> None:
    objects = rendered()
    environments = _as_the_kubelet(objects, role, tmp_path)
    for ordinal, environ in enumerate(environments, 1):
        config = load_node_config(environ)
        assert config.node_id == f"{role}-{ordinal}"
        assert config.me.host == f"demo-{role}-{ordinal}.demo-{role}-nodes.team.svc"
        assert (config.me.port, config.me.peer_port) == (8_000, 9_000)
        assert config.cluster_id == "team/demo"
        assert (config.heartbeat_ms, config.election_min_ms, config.election_max_ms) == (
            100, 1_000, 2_000,
        )  # fmt: skip
        assert config.cache_capacity_mib == 256


def test_no_secret__stands_in_an_environment() -> None:
    for workload in stateful_sets():
        for container in workload["spec"]["template"]["spec"]["containers"]:
            for each in container.get("env", []):
                assert "secretKeyRef" not in json.dumps(each)
                variable = BY_NAME.get(each["name"])
                assert variable is None or not variable.secret, each["name"]


def test_test_mode__goes_to_the_lock_nodes_alone() -> None:
    ref = ClusterRef(name="demo", namespace="team", uid="u", test_mode="split-vote")
    objects = rendered(ref=ref)
    assert env_of(objects, "lock")["TEST_MODE"] == "split-vote"
    assert env_of(objects, "lock")["ALLOW_TEST_MODE"] == "1"
    for role in ("queue", "cache"):
        assert "TEST_MODE" not in env_of(objects, role)
    assert "TEST_MODE" not in json.dumps(list(rendered().values()))


def test_restarted_at__changes_every_pod_and_nothing_else() -> None:
    before = rendered()
    ref = ClusterRef(
        name="demo", namespace="team", uid="u-1", operator_namespace="dss-system",
        restarted_at="2026-01-01T00:00:00Z",
    )  # fmt: skip
    changed = {key for key, obj in rendered(ref=ref).items() if obj != before[key]}
    assert changed == {key for key in before if key[0] == "StatefulSet"}


def test_replica_counts__roll_no_pod() -> None:
    before = rendered()
    after = rendered({"queue": {"replicas": 5}, "cache": {"replicas": 3}})
    for key in before:
        if key[0] == "StatefulSet" and key[1] != "demo-prometheus":
            templates = [each[key]["spec"]["template"] for each in (before, after)]
            assert templates[0] == templates[1], key
    peers = json.loads(after["ConfigMap", "demo-peers"]["data"]["QUEUE_NODES"])
    assert [peer["id"] for peer in peers] == [f"queue-{i}" for i in range(1, 6)]


def test_election_timeout__rolls_the_nodes() -> None:
    spec = {"lock": {"electionTimeoutMs": {"min": 1_500, "max": 2_500}}}
    assert env_of(rendered(spec), "lock")["ELECTION_MAX_MS"] == "2500"
    assert env_of(rendered(spec), "queue")["ELECTION_MIN_MS"] == "1500"


@pytest.mark.parametrize(("reclaim", "policy"), [("Retain", "Retain"), ("Delete", "Delete")])
def test_reclaim__says_what_becomes_of_the_volumes(reclaim: str, policy: str) -> None:
    for workload in stateful_sets({"reclaim": reclaim}):
        spec = workload["spec"]
        if "volumeClaimTemplates" in spec:
            assert spec["persistentVolumeClaimRetentionPolicy"] == {
                "whenDeleted": policy,
                "whenScaled": "Retain",
            }
    with_volumes = {
        workload["metadata"]["name"]: workload["spec"]["volumeClaimTemplates"][0]["spec"][
            "resources"
        ]["requests"]["storage"]
        for workload in stateful_sets()
        if "volumeClaimTemplates" in workload["spec"]
    }
    assert with_volumes == {
        "demo-lock": "1Gi", "demo-queue": "2Gi", "demo-cache": "256Mi", "demo-redis": "1Gi",
        "demo-prometheus": "2Gi",
    }  # fmt: skip


def test_a_redis_of_ones_own__none_is_made() -> None:
    plain = rendered({"redis": {"enabled": False, "externalUrl": "redis://r.example:6379/1"}})
    assert not [key for key in plain if key[1] == "demo-redis"]
    assert env_of(plain, "cache")["MEMORY_URL"] == "redis://r.example:6379/1"
    assert "memory" not in [v["name"] for v in pod_of(plain, "cache")["volumes"]]
    spec = {"redis": {"enabled": False, "secretRef": {"name": "mine", "key": "uri"}}}
    secret = rendered(spec)
    assert env_of(secret, "cache")["MEMORY_URL_FILE"] == "/etc/dss/memory/uri"
    volume = next(v for v in pod_of(secret, "cache")["volumes"] if v["name"] == "memory")
    assert volume["secret"]["secretName"] == "mine"
    assert volume["secret"]["items"] == [{"key": "uri", "path": "uri"}]


def test_without_auth_and_monitoring__nothing_of_them_is_left() -> None:
    off = {"enabled": False}
    objects = rendered({"auth": off, "monitoring": {"prometheus": off, "grafana": off}})
    assert "AUTH_TOKENS_FILE" not in env_of(objects, "lock")
    assert "auth" not in [volume["name"] for volume in pod_of(objects, "lock")["volumes"]]
    assert {name for _, name in objects if "prometheus" in name or "grafana" in name} == set()
    assert not [key for key in rendered() if key[0] in ("Ingress", "ServiceMonitor")]


def test_what_spec_pod_says__is_in_every_pod() -> None:
    given = {
        "imagePullPolicy": "Always",
        "imagePullSecrets": [{"name": "registry"}],
        "nodeSelector": {"disk": "fast"},
        "tolerations": [{"key": "k", "operator": "Exists", "effect": "NoSchedule"}],
        "affinity": {"nodeAffinity": {}},
        "priorityClassName": "high",
        "storageClassName": "fast",
        "labels": {"team": "a"},
        "annotations": {"example.com/x": "y"},
    }
    for workload in stateful_sets({"pod": given}):
        template = workload["spec"]["template"]
        pod = template["spec"]
        assert pod["containers"][0]["imagePullPolicy"] == "Always"
        for field in ("imagePullSecrets", "nodeSelector", "tolerations", "affinity"):
            assert pod[field] == given[field]
        assert pod["priorityClassName"] == "high"
        assert template["metadata"]["labels"]["team"] == "a"
        assert template["metadata"]["annotations"]["example.com/x"] == "y"
        for claim in workload["spec"].get("volumeClaimTemplates", []):
            assert claim["spec"]["storageClassName"] == "fast"
    bare = pod_of(rendered(), "lock")
    assert not {"imagePullSecrets", "nodeSelector", "tolerations", "affinity"} & set(bare)


def test_resources__given_ones_win_and_the_cache_grows_with_its_capacity() -> None:
    limits = {"memory": "2Gi", "cpu": "2"}
    objects = rendered({"lock": {"resources": {"limits": limits}}, "cache": {"capacityMiB": 1024}})
    assert pod_of(objects, "lock")["containers"][0]["resources"] == {
        "requests": {"cpu": "50m", "memory": "128Mi"},
        "limits": limits,
    }
    cache = pod_of(objects, "cache")["containers"][0]["resources"]
    assert cache["limits"] == {"memory": "1792Mi"}


def test_policies__peers_only_from_nodes_redis_only_from_caches() -> None:
    objects = rendered()
    rules = objects["NetworkPolicy", "demo-nodes"]["spec"]["ingress"]
    by_port: dict[int, list[Object]] = {}
    for rule in rules:
        by_port.setdefault(rule["ports"][0]["port"], []).append(rule)
    assert set(by_port) == {8_000, 9_000}
    (peers,) = by_port[9_000]
    (source,) = peers["from"]
    assert source["podSelector"] == objects["NetworkPolicy", "demo-nodes"]["spec"]["podSelector"]
    assert set(source) == {"podSelector"}
    operators = [each for rule in by_port[8_000] for each in rule["from"] if "podSelector" in each]
    assert operators == [
        {
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "dss-system"}},
            "podSelector": {"matchLabels": {"app.kubernetes.io/name": "dss-operator"}},
        }
    ]
    redis = objects["NetworkPolicy", "demo-redis"]["spec"]
    assert redis["policyTypes"] == ["Ingress", "Egress"]
    assert "egress" not in redis
    (rule,) = redis["ingress"]
    (source,) = rule["from"]
    assert source["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "cache"


def test_policies__with_an_ingress_http_is_open_to_machines() -> None:
    rules = rendered(ALL)["NetworkPolicy", "demo-nodes"]["spec"]["ingress"]
    assert {"ports": [{"protocol": "TCP", "port": 8_000}]} in rules


def test_services__headless_publishes_who_is_not_ready_clients_get_who_is() -> None:
    objects = rendered()
    for role in ROLES:
        headless = objects["Service", f"demo-{role}-nodes"]["spec"]
        assert headless["clusterIP"] == "None"
        assert headless["publishNotReadyAddresses"] is True
        clients = objects["Service", f"demo-{role}"]["spec"]
        assert clients["type"] == "ClusterIP"
        assert "publishNotReadyAddresses" not in clients
        assert [port["port"] for port in clients["ports"]] == [8_000]


def test_spread__over_machines_and_zones_but_never_pending() -> None:
    for role in ROLES:
        spread = pod_of(rendered(), role)["topologySpreadConstraints"]
        assert [each["topologyKey"] for each in spread] == [
            "kubernetes.io/hostname", "topology.kubernetes.io/zone",
        ]  # fmt: skip
        assert {each["whenUnsatisfiable"] for each in spread} == {"ScheduleAnyway"}
    assert "topologySpreadConstraints" not in pod_of(rendered(), "redis")


def prometheus_config(ref: ClusterRef) -> tuple[Object, list[str]]:
    data = rendered(ref=ref)["ConfigMap", "demo-prometheus"]["data"]
    rules = yaml.safe_load(data["rules.yml"])["groups"][0]["rules"]
    return yaml.safe_load(data["prometheus.yml"]), [rule["alert"] for rule in rules]


def test_prometheus__finds_nodes_by_the_names_of_their_pods() -> None:
    config, _ = prometheus_config(REF)
    jobs = {job["job_name"]: job for job in config["scrape_configs"]}
    for role in ROLES:
        (found,) = jobs[f"dss-{role}"]["dns_sd_configs"]
        assert found["names"] == [f"_http._tcp.demo-{role}-nodes.team.svc"]
        assert found["type"] == "SRV"
        (relabel,) = jobs[f"dss-{role}"]["relabel_configs"]
        target = f"demo-{role}-2.demo-{role}-nodes.team.svc.cluster.local:8000"
        match = re.fullmatch(relabel["regex"], target)
        assert match
        assert match[1] == f"{role}-2"


def test_prometheus__asks_the_operator_about_this_cluster_alone() -> None:
    config, alerts = prometheus_config(REF)
    (job,) = [job for job in config["scrape_configs"] if job["job_name"] == "operator"]
    assert job["static_configs"] == [{"targets": ["dss-operator-metrics.dss-system.svc:8080"]}]
    (keep,) = job["metric_relabel_configs"]
    assert keep["action"] == "keep"
    assert re.fullmatch(keep["regex"], "dss_operator_election_stuck;team;demo")
    assert not re.fullmatch(keep["regex"], "dss_operator_election_stuck;team;other")
    assert {"DssElectionStuck", "DssRemediationGaveUp"} < set(alerts)
    bare, fewer = prometheus_config(ClusterRef(name="demo", namespace="team", uid="u"))
    assert [job["job_name"] for job in bare["scrape_configs"]] == [f"dss-{role}" for role in ROLES]
    assert set(alerts) - set(fewer) == {"DssElectionStuck", "DssRemediationGaveUp"}


def test_prometheus__restarts_for_new_files_and_only_then() -> None:
    before = rendered()["StatefulSet", "demo-prometheus"]
    assert before == rendered({"auth": {"enabled": False}})["StatefulSet", "demo-prometheus"]
    after = rendered({"lock": {"replicas": 5}})["StatefulSet", "demo-prometheus"]
    checksums = [
        obj["spec"]["template"]["metadata"]["annotations"]["dss.io/config-checksum"]
        for obj in (before, after)
    ]
    assert checksums[0] != checksums[1]
