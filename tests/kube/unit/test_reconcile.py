"""The task of one cluster over the fake API: creation, quiet ticks, drift, pruning, deletion."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from operator_lab import Lab, run

Object = dict[str, Any]


def test_new_cluster__all_objects_made_and_ready() -> None:
    async def scenario() -> None:
        lab = Lab()
        await lab.tick()
        assert lab.condition("Ready") == ("False", "Forming")
        assert lab.condition("Progressing") == ("True", "RollingOut")
        assert lab.condition("MonitoringReady") == ("False", "Forming")
        await lab.settle()
        assert lab.condition("Ready") == ("True", "Serving")
        assert lab.condition("Progressing") == ("False", "Settled")
        assert lab.condition("Degraded") == ("False", "AsDeclared")
        assert lab.condition("ElectionStuck") == ("False", "HasLeader")
        assert lab.condition("MonitoringReady") == ("True", "Serving")
        assert lab.api.names("statefulsets") == [
            "demo-cache", "demo-lock", "demo-prometheus", "demo-queue", "demo-redis",
        ]  # fmt: skip
        assert lab.status["leader"] == "lock-1"
        assert lab.status["lock"]["ready"] == "3/3"

    run(scenario())


def test_second_look_at_an_unchanged_cluster__writes_nothing() -> None:
    async def scenario() -> None:
        lab = Lab()
        await lab.formed()
        version = lab.api.version
        for _ in range(5):
            await lab.tick(30)
            await lab.sample()
        assert lab.api.writes == []
        assert lab.api.version == version

    run(scenario())


def test_restarted_operator_over_an_unchanged_cluster__writes_nothing() -> None:
    async def scenario() -> None:
        lab = Lab()
        await lab.formed()
        lab.process()
        for _ in range(3):
            await lab.tick(30)
            await lab.sample()
        assert lab.api.writes == []
        assert not any("Unreachable" in reason for reason in lab.api.reasons())

    run(scenario())


def test_each_owned_object_deleted__comes_back_in_one_look() -> None:
    async def scenario() -> None:
        lab = Lab(ingress={"enabled": True, "host": "dss.local"})
        await lab.formed()
        before = lab.state()
        for plural, name in before:
            lab.api.remove(plural, name)
            await lab.tick()
            lab.api.run_sets()
            assert lab.api.has(plural, name), (plural, name)
            await lab.settle()
        assert lab.state() == before

    run(scenario())


def _label(obj: Object) -> None:
    obj["metadata"]["labels"]["app.kubernetes.io/component"] = "nonsense"


def _first_port(obj: Object) -> None:
    obj["spec"]["ports"][0]["port"] = 1


def _environment(obj: Object) -> None:
    env = obj["spec"]["template"]["spec"]["containers"][0]["env"]
    next(each for each in env if "value" in each)["value"] = "nonsense"


def _more_environment(obj: Object) -> None:
    container = obj["spec"]["template"]["spec"]["containers"][0]
    container["env"].append({"name": "EXTRA", "value": "1"})


def _host_network(obj: Object) -> None:
    obj["spec"]["template"]["spec"]["hostNetwork"] = True


def _init_container(obj: Object) -> None:
    obj["spec"]["template"]["spec"]["initContainers"] = [{"name": "x", "image": "x"}]


def _command(obj: Object) -> None:
    obj["spec"]["template"]["spec"]["containers"][0]["command"] = ["sleep", "1"]


def _replicas(obj: Object) -> None:
    obj["spec"]["replicas"] = 5


def _image(obj: Object) -> None:
    obj["spec"]["template"]["spec"]["containers"][0]["image"] = "other:1"


def _data(obj: Object) -> None:
    obj["data"][next(iter(obj["data"]))] = base64.b64encode(b"nonsense").decode()


def _more_data(obj: Object) -> None:
    obj["data"]["extra"] = base64.b64encode(b"x").decode()


def _budget(obj: Object) -> None:
    obj["spec"]["maxUnavailable"] = 3


def _selector(obj: Object) -> None:
    obj["spec"]["selector"]["extra"] = "label"


def _no_owner(obj: Object) -> None:
    obj["metadata"]["ownerReferences"] = []


def _no_label(obj: Object) -> None:
    del obj["metadata"]["labels"]["dss.io/cluster"]


DRIFT = [
    ("services", "demo-lock", _label),
    ("services", "demo-lock", _first_port),
    ("services", "demo-lock", _selector),
    ("services", "demo-lock", _no_owner),
    ("services", "demo-lock", _no_label),
    ("statefulsets", "demo-lock", _environment),
    ("statefulsets", "demo-lock", _more_environment),
    ("statefulsets", "demo-lock", _host_network),
    ("statefulsets", "demo-lock", _init_container),
    ("statefulsets", "demo-lock", _command),
    ("statefulsets", "demo-queue", _replicas),
    ("statefulsets", "demo-cache", _image),
    ("configmaps", "demo-peers", _data),
    ("configmaps", "demo-peers", _more_data),
    ("secrets", "demo-cluster", _data),
    ("secrets", "demo-cluster", _more_data),
    ("secrets", "demo-tokens", _no_label),
    ("poddisruptionbudgets", "demo-lock", _budget),
    ("networkpolicies", "demo-nodes", _label),
    ("serviceaccounts", "demo-nodes", _label),
]


@pytest.mark.parametrize(
    ("plural", "name", "change"), DRIFT, ids=[f"{p}-{n}-{c.__name__[1:]}" for p, n, c in DRIFT]
)
def test_object_edited__put_back_in_one_look(plural: str, name: str, change: Any) -> None:
    async def scenario() -> None:
        lab = Lab()
        await lab.formed()
        before = {k: v for k, v in lab.api.get(plural, name).items() if k != "metadata"}
        labels = dict(lab.api.get(plural, name)["metadata"]["labels"])
        lab.api.edit(plural, name, change)
        await lab.tick()
        live = lab.api.get(plural, name)
        assert {k: v for k, v in live.items() if k != "metadata"} == before
        assert live["metadata"]["labels"] == labels
        assert live["metadata"]["ownerReferences"][0]["name"] == "demo"
        assert lab.condition("Degraded")[1] != "FieldConflict"
        await lab.settle()
        lab.api.forget_calls()
        await lab.tick()
        assert lab.api.writes == []

    run(scenario())


def test_part_switched_off__its_objects_are_pruned() -> None:
    async def scenario() -> None:
        lab = Lab()
        await lab.formed()
        off = {"prometheus": {"enabled": False}, "grafana": {"enabled": False}}
        lab.api.edit("dssclusters", "demo", lambda obj: obj["spec"].update(monitoring=off))
        await lab.settle()
        assert "demo-prometheus" not in lab.api.names("statefulsets")
        assert "demo-prometheus" not in lab.api.names("services")
        assert "demo-prometheus" not in lab.api.names("configmaps")
        assert lab.condition("MonitoringReady") == ("True", "Disabled")
        assert "Pruned" in lab.api.reasons()

    run(scenario())


def test_secret_no_longer_wanted__pruned() -> None:
    async def scenario() -> None:
        lab = Lab()
        await lab.formed()
        assert lab.api.has("secrets", "demo-tokens")
        off = {"enabled": False}
        lab.api.edit("dssclusters", "demo", lambda obj: obj["spec"].update(auth=off))
        await lab.settle()
        assert not lab.api.has("secrets", "demo-tokens")

    run(scenario())


def test_resource_deleted__task_ends_and_nothing_comes_back() -> None:
    async def scenario() -> None:
        lab = Lab()
        await lab.formed()
        lab.api.remove("dssclusters", "demo")
        assert not await lab.tick()
        assert lab.state() == {}

    run(scenario())


def test_resource_being_deleted__nothing_is_made_again() -> None:
    async def scenario() -> None:
        lab = Lab()
        await lab.formed()

        def end(obj: Object) -> None:
            obj["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"

        lab.api.edit("dssclusters", "demo", end)
        lab.api.remove("services", "demo-lock")
        assert await lab.tick()
        assert lab.api.writes == []

    run(scenario())


def test_resource_made_again_while_old_objects_go__waits_then_makes_new_ones() -> None:
    async def scenario() -> None:
        lab = Lab()
        await lab.formed()
        old = lab.resource["metadata"]["uid"]
        del lab.api.objects["dssclusters", "ns", "demo"]  # garbage collection has not run yet
        lab.make()
        await lab.tick()
        assert lab.condition("Progressing") == ("True", "Waiting")
        assert lab.api.get("services", "demo-lock")["metadata"]["ownerReferences"][0]["uid"] == old
        lab.api.collect(old)
        await lab.settle()
        new = lab.resource["metadata"]["uid"]
        assert lab.api.get("services", "demo-lock")["metadata"]["ownerReferences"][0]["uid"] == new
        assert lab.condition("Ready") == ("True", "Serving")

    run(scenario())


def test_foreign_object_of_a_wanted_name__left_alone_and_told() -> None:
    async def scenario() -> None:
        lab = Lab()
        theirs = {"metadata": {"name": "demo-peers", "namespace": "ns"}, "data": {"mine": "1"}}
        lab.api.add("configmaps", theirs)
        await lab.tick()
        await lab.tick()
        assert lab.api.get("configmaps", "demo-peers")["data"] == {"mine": "1"}
        assert lab.condition("Degraded") == ("True", "ApplyRefused")
        assert "demo-peers" in lab.message("Degraded")

    run(scenario())


def test_paused__only_the_status_is_written() -> None:
    async def scenario() -> None:
        lab = Lab()
        await lab.formed()
        lab.api.edit("dssclusters", "demo", lambda obj: obj["spec"].update(paused=True))
        lab.api.remove("services", "demo-lock")
        await lab.tick()
        assert [repr(call) for call in lab.api.writes] == ["patch dssclusters/demo/status"]
        assert lab.condition("Progressing") == ("False", "Paused")
        lab.api.edit("dssclusters", "demo", lambda obj: obj["spec"].update(paused=False))
        await lab.settle()
        assert lab.api.has("services", "demo-lock")

    run(scenario())


def test_impossible_spec__changes_nothing_and_says_why() -> None:
    async def scenario() -> None:
        lab = Lab()
        await lab.formed()
        before = lab.state()
        lab.api.edit("dssclusters", "demo", lambda obj: obj["spec"].update(lock={"replicas": 2}))
        await lab.tick()
        assert lab.state() == before
        assert lab.condition("Progressing") == ("False", "InvalidSpec")
        assert "lock.replicas" in lab.message("Progressing")
        assert lab.condition("Ready") == ("True", "Serving")
        assert lab.status["observedGeneration"] == lab.resource["metadata"]["generation"]

    run(scenario())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"lock": {"replicas": 5}}, "spec.lock.replicas: changing 3 to 5"),
        ({"cache": {"replicas": 4}}, "spec.cache.replicas: changing 2 to 4"),
        ({"image": "dss-node:9"}, "put dss-node:0.1.0 back"),
        ({"redis": {"image": "redis:9"}}, "image of demo-redis"),
        ({"queue": {"storage": {"size": "8Gi"}}}, "volume claims of demo-queue"),
    ],
)
def test_unsupported_change__touches_nothing_and_says_what_to_put_back(
    change: dict[str, Any], named: str
) -> None:
    async def scenario() -> None:
        lab = Lab()
        await lab.formed()
        before = lab.state()
        lab.api.edit("dssclusters", "demo", lambda obj: obj["spec"].update(change))
        await lab.tick()
        assert lab.state() == before
        assert lab.condition("Progressing") == ("False", "NotSupported")
        assert named in lab.message("Progressing")
        assert lab.condition("Ready") == ("True", "Serving")
        lab.process()  # a restarted operator sees it the same way
        await lab.tick()
        assert lab.state() == before
        assert lab.condition("Progressing") == ("False", "NotSupported")

    run(scenario())


@pytest.mark.parametrize("restarted", [False, True])
def test_set_deleted_while_a_change_is_refused__comes_back_as_it_was_founded(
    restarted: bool,
) -> None:
    async def scenario() -> None:
        lab = Lab()
        await lab.formed()
        before = lab.state()
        change = {"image": "dss-node:9", "lock": {"replicas": 5}}
        lab.api.edit("dssclusters", "demo", lambda obj: obj["spec"].update(change))
        await lab.tick()
        lab.api.remove("statefulsets", "demo-lock")
        if restarted:
            lab.process()
        await lab.settle()
        assert lab.state() == before
        assert lab.condition("Progressing") == ("False", "NotSupported")

    run(scenario())


def test_note_of_the_founding_spoilt__written_again_from_what_runs() -> None:
    async def scenario() -> None:
        lab = Lab()
        await lab.formed()
        good = lab.api.get("configmaps", "demo-peers")["metadata"]["annotations"]["dss.io/founded"]

        def spoil(obj: Object) -> None:
            obj["metadata"]["annotations"]["dss.io/founded"] = "{nonsense"

        lab.api.edit("configmaps", "demo-peers", spoil)
        await lab.tick()
        live = lab.api.get("configmaps", "demo-peers")
        assert live["metadata"]["annotations"]["dss.io/founded"] == good

    run(scenario())


def test_secret_deleted__comes_back_with_the_same_values() -> None:
    async def scenario() -> None:
        lab = Lab()
        await lab.formed()
        before = lab.api.get("secrets", "demo-tokens")["data"]
        lab.api.remove("secrets", "demo-tokens")
        await lab.tick()
        assert lab.api.get("secrets", "demo-tokens")["data"] == before
        assert "SecretReplaced" not in lab.api.reasons()

    run(scenario())


@pytest.mark.parametrize("change", [_no_label, _no_owner])
def test_secret_lost_its_label_or_owner_while_no_operator_ran__keeps_its_values(
    change: Any,
) -> None:
    async def scenario() -> None:
        lab = Lab()
        await lab.formed()
        before = lab.api.get("secrets", "demo-tokens")["data"]
        lab.api.edit("secrets", "demo-tokens", change)
        lab.process()
        await lab.settle()
        live = lab.api.get("secrets", "demo-tokens")
        assert live["data"] == before
        assert live["metadata"]["labels"]["dss.io/cluster"] == "demo"
        assert live["metadata"]["ownerReferences"][0]["name"] == "demo"
        assert "SecretReplaced" not in lab.api.reasons()

    run(scenario())


def test_tokens_lost_while_no_operator_ran__warned_of() -> None:
    async def scenario() -> None:
        lab = Lab()
        await lab.formed()
        lab.api.remove("secrets", "demo-tokens")
        lab.process()
        await lab.settle()
        warned = [e["message"] for e in lab.api.events if e["reason"] == "SecretReplaced"]
        assert len(warned) == 1
        assert "demo-tokens" in warned[0]

    run(scenario())


def test_authentication_switched_on_later__its_secrets_are_new_and_not_lost() -> None:
    async def scenario() -> None:
        lab = Lab(auth={"enabled": False})
        await lab.formed()
        on = {"enabled": True}
        lab.api.edit("dssclusters", "demo", lambda obj: obj["spec"].update(auth=on))
        await lab.settle()
        assert lab.api.has("secrets", "demo-tokens")
        assert "SecretReplaced" not in lab.api.reasons()

    run(scenario())


def test_secret_lost_while_no_operator_ran__new_values_and_a_warning() -> None:
    async def scenario() -> None:
        lab = Lab()
        await lab.formed()
        before = lab.api.get("secrets", "demo-cluster")["data"]
        lab.api.remove("secrets", "demo-cluster")
        lab.process()
        await lab.tick()
        assert lab.api.get("secrets", "demo-cluster")["data"] != before
        assert "SecretReplaced" in lab.api.reasons()

    run(scenario())


def test_setting_taken_back__leaves_by_apply_alone_and_is_told_as_an_update() -> None:
    """What the operator had declared itself needs no merge patch to go."""

    async def scenario() -> None:
        lab = Lab(pod={"nodeSelector": {"disk": "fast"}})
        await lab.formed()
        lab.api.edit("dssclusters", "demo", lambda obj: obj["spec"].pop("pod"))
        await lab.tick()
        sent = [call for call in lab.api.calls if repr(call) == "patch statefulsets/demo-lock"]
        assert [call.query.get("force") for call in sent] == ["false"]
        pod = lab.api.get("statefulsets", "demo-lock")["spec"]["template"]["spec"]
        assert not pod.get("nodeSelector")
        assert "Updated" in lab.api.reasons()
        assert "Repaired" not in lab.api.reasons()

    run(scenario())


def test_annotation_restarted_at__rolls_the_pods() -> None:
    async def scenario() -> None:
        lab = Lab()
        await lab.formed()
        generation = lab.api.get("statefulsets", "demo-lock")["metadata"]["generation"]
        note = {"dss.io/restartedAt": "2026-11-25T10:00:00Z"}
        lab.api.edit("dssclusters", "demo", lambda obj: obj["metadata"].update(annotations=note))
        await lab.tick()
        live = lab.api.get("statefulsets", "demo-lock")
        assert live["metadata"]["generation"] == generation + 1
        assert "2026-11-25T10:00:00Z" in str(live["spec"]["template"]["metadata"]["annotations"])

    run(scenario())
