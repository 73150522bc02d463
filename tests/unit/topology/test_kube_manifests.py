"""manifests/: complete, least rights, no test mode, restricted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from dss.topology.crd import cluster_of_resource, default_spec
from dss.topology.kube import MANAGED_KINDS, OPTIONAL_KINDS
from dss.topology.kube.rbac import GRANTS, rules
from dss.topology.model import validate
from dss.topology.render_manifests import manifest_files

FILES = manifest_files()


def documents(path: str) -> list[dict[str, Any]]:
    return [each for each in yaml.safe_load_all(FILES[path]) if each]


def by_kind(path: str) -> dict[str, dict[str, Any]]:
    found = {each["kind"]: each for each in documents(path)}
    assert len(found) == len(documents(path))
    return found


def test_kustomizations__list_files_that_are_there() -> None:
    for path in ("manifests/kustomization.yaml", "manifests/namespaced/kustomization.yaml"):
        (kustomization,) = documents(path)
        for name in kustomization["resources"]:
            assert str(Path(path).parent / name) in FILES


def test_operator__restricted_bounded_and_probed() -> None:
    pod = by_kind("manifests/operator.yaml")["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["resources"]["limits"]["memory"] == "512Mi"
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container[probe]["httpGet"] == {"path": "/healthz", "port": "health"}
    env = {each["name"]: each for each in container["env"]}
    assert env["WATCH_NAMESPACE"]["value"] == ""
    assert env["POD_ID"]["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.name"
    assert [each["mountPath"] for each in container["volumeMounts"]] == ["/tmp"]


def test_test_mode__is_in_no_manifest() -> None:
    for path, text in FILES.items():
        if not path.endswith("crd.yaml"):
            assert "TEST_MODE" not in text, path
            assert "test-mode" not in text, path


def test_namespaced__watches_its_own_namespace_with_a_role_alone() -> None:
    found = by_kind("manifests/namespaced/operator.yaml")
    assert set(found) == {"ServiceAccount", "Role", "RoleBinding", "Deployment", "Service"}
    env = found["Deployment"]["spec"]["template"]["spec"]["containers"][0]["env"]
    (watch,) = [each for each in env if each["name"] == "WATCH_NAMESPACE"]
    assert watch["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.namespace"
    assert found["Role"]["rules"] == rules("watched") + rules("own")


def test_namespace__enforces_the_restricted_standard() -> None:
    labels = by_kind("manifests/namespace.yaml")["Namespace"]["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


def test_rights__no_wildcard_no_list_of_secrets_nothing_on_volumes() -> None:
    for grant in GRANTS:
        assert "*" not in (grant.group, grant.resource, *grant.verbs)
        assert grant.why
        assert grant.resource not in ("persistentvolumeclaims", "namespaces", "nodes")
    (secrets,) = [grant for grant in GRANTS if grant.resource == "secrets"]
    assert set(secrets.verbs) == {"get", "create", "patch", "delete"}
    assert len({(grant.group, grant.resource) for grant in GRANTS}) == len(GRANTS)


def test_rights__every_managed_kind_can_be_listed_and_applied() -> None:
    granted = {(grant.group, grant.resource): set(grant.verbs) for grant in GRANTS}
    for version, _, plural in MANAGED_KINDS + OPTIONAL_KINDS:
        group = version.rpartition("/")[0]
        assert granted[group, plural] >= {"list", "create", "patch"}


def test_cluster_role__binds_the_operators_account() -> None:
    found = {each["kind"]: each for each in documents("manifests/rbac.yaml")}
    assert found["ClusterRole"]["rules"] == rules("watched")
    assert found["Role"]["rules"] == rules("own")
    assert found["ClusterRoleBinding"]["subjects"] == [
        {"kind": "ServiceAccount", "name": "dss-operator", "namespace": "dss-system"}
    ]


def test_samples__are_valid_and_the_full_one_has_every_field() -> None:
    for path in ("manifests/samples/minimal.yaml", "manifests/samples/full.yaml"):
        (sample,) = documents(path)
        assert validate(cluster_of_resource(sample)) == []
    (full,) = documents("manifests/samples/full.yaml")

    def keys(value: Any) -> Any:
        return {k: keys(v) for k, v in value.items()} if isinstance(value, dict) else None

    assert keys(full["spec"]) == keys(default_spec())
