"""plan(desired, observed) as a table, and what a StatefulSet was founded with."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from dss.topology.model import KUBE_DEFAULTS
from dss_operator.founding import FOUNDED_IMAGES, FOUNDED_REPLICAS, supported
from dss_operator.plan import (
    DECLARED,
    decoded_secret,
    encoded_secret,
    plan,
    settle,
)
from dss_operator.state import Object, Observed, key_of

UID = "me"


def _obj(kind: str = "Service", name: str = "a", uid: str = UID, **body: Any) -> Object:
    owner = {"apiVersion": "dss.io/v1alpha1", "kind": "DSSCluster", "name": "demo", "uid": uid}
    meta = {"name": name, "namespace": "ns", "ownerReferences": [owner | {"controller": True}]}
    return {"apiVersion": "v1", "kind": kind, "metadata": meta, **body}


def _live(obj: Object, **meta: Any) -> Object:
    live = copy.deepcopy(obj)
    live["metadata"] |= {"uid": f"uid-{obj['metadata']['name']}", "resourceVersion": "7"} | meta
    return live


def _observed(*objects: Object, missing: frozenset[str] = frozenset()) -> Observed:
    owned = {key_of(obj): obj for obj in objects}
    return Observed(owned=owned, pods={}, missing_kinds=missing)


def _set(image: str = "i:1", replicas: int = 3, **notes: str) -> Object:
    template = {"spec": {"containers": [{"name": "c", "image": image}]}}
    obj = _obj("StatefulSet", "demo-lock", spec={"replicas": replicas, "template": template})
    if notes:
        obj["metadata"]["annotations"] = notes
    return obj


SERVICE = _obj(spec={"ports": [{"name": "p", "port": 1}], "clusterIP": "None"})
CONFIG = _obj("ConfigMap", data={"k": "v"})
SET = _obj("StatefulSet", spec={"serviceName": "s", "replicas": 3})


def _changed(obj: Object, **spec: Any) -> Object:
    live = _live(obj)
    live["spec"] |= spec
    return live


CASES: list[tuple[str, list[Object], Observed, list[tuple[str, str, str]]]] = [
    ("nothing wanted, nothing there", [], _observed(), []),
    ("missing", [SERVICE], _observed(), [("create", "Service", "a")]),
    ("there", [SERVICE], _observed(_live(SERVICE)), []),
    ("drift", [SERVICE], _observed(_changed(SERVICE, ports=[])), [("apply", "Service", "a")]),
    ("extra key", [CONFIG], _observed(_live(CONFIG) | {"data": {"k": "v", "x": "y"}}),
     [("strip", "ConfigMap", "a")]),
    ("drift and extra key: drift first", [CONFIG],
     _observed(_live(CONFIG) | {"data": {"k": "w", "x": "y"}}), [("apply", "ConfigMap", "a")]),
    ("extra port", [SERVICE],
     _observed(_changed(SERVICE, ports=[{"name": "p", "port": 1}, {"name": "q", "port": 2}])),
     [("strip", "Service", "a")]),
    ("unwanted", [], _observed(_live(SERVICE)), [("prune", "Service", "a")]),
    ("unwanted and going", [], _observed(_live(SERVICE, deletionTimestamp="t")), []),
    ("unwanted but another's", [], _observed(_live(_obj(uid="other"))), []),
    ("unwanted and nobody's", [], _observed(_live(SERVICE, ownerReferences=[])), []),
    ("wanted but the last cluster's", [SERVICE],
     _observed(_live(_obj(uid="old", spec=SERVICE["spec"]))), [("wait", "Service", "a")]),
    ("wanted and nobody's: adopted", [SERVICE], _observed(_live(SERVICE, ownerReferences=[])),
     [("apply", "Service", "a")]),
    ("wanted and going", [SERVICE], _observed(_live(SERVICE, deletionTimestamp="t")),
     [("wait", "Service", "a")]),
    ("kind not served", [_obj("ServiceMonitor")], _observed(missing=frozenset({"ServiceMonitor"})),
     []),
    ("settled field of a StatefulSet", [SET], _observed(_changed(SET, serviceName="t")),
     [("recreate", "StatefulSet", "a")]),
    ("free field of a StatefulSet", [SET], _observed(_changed(SET, replicas=1)),
     [("apply", "StatefulSet", "a")]),
    ("settled field of a Service", [SERVICE], _observed(_changed(SERVICE, clusterIP="10.0.0.9")),
     [("recreate", "Service", "a")]),
    ("made immutable and spoilt", [CONFIG],
     _observed(_live(CONFIG) | {"data": {"k": "w"}, "immutable": True}),
     [("recreate", "ConfigMap", "a")]),
    ("made immutable, data as declared", [CONFIG], _observed(_live(CONFIG) | {"immutable": True}),
     []),
    ("order: wanted first, prunes last", [_obj(name="b"), _obj(name="c")],
     _observed(_live(_obj(name="a")), _live(_obj(name="b"))),
     [("create", "Service", "c"), ("prune", "Service", "a")]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("wanted", "observed", "actions"), [case[1:] for case in CASES], ids=[c[0] for c in CASES]
)
def test_wanted_and_observed__exactly_these_actions(
    wanted: list[Object], observed: Observed, actions: list[tuple[str, str, str]]
) -> None:
    before = copy.deepcopy((wanted, observed.owned))
    found = plan(wanted, observed, UID)
    assert [(a.verb, a.kind, a.name) for a in found] == actions
    assert (wanted, observed.owned) == before  # pure
    for action in found:
        if action.verb in ("prune", "recreate"):
            assert action.uid == f"uid-{action.name}"
        if action.verb in ("create", "apply", "strip"):
            assert action.obj in wanted


def test_new_set__marked_with_what_it_is_founded_with() -> None:
    wanted = settle([_set()], _observed())
    notes = wanted.objects[0]["metadata"]["annotations"]
    assert notes.pop(DECLARED)
    assert notes == {FOUNDED_IMAGES: "c=i:1", FOUNDED_REPLICAS: "3"}
    assert wanted.unsupported == ()


def test_field_declared_no_longer__seen_by_the_digest() -> None:
    before = settle([_obj(spec={"a": 1, "b": 2})], _observed()).objects[0]
    after = settle([_obj(spec={"a": 1})], _observed(_live(before)))
    found = plan(after.objects, _observed(_live(before)), UID)
    assert [(a.verb, a.why) for a in found] == [("apply", "fields that are declared no longer")]
    same = settle([_obj(spec={"b": 2, "a": 1})], _observed())
    assert plan(same.objects, _observed(_live(before)), UID) == []


def test_other_image_asked_for__founding_image_kept_and_said() -> None:
    live = _live(_set(**{FOUNDED_IMAGES: "c=i:1", FOUNDED_REPLICAS: "3"}))
    wanted = settle([_set(image="i:2")], _observed(live))
    assert wanted.objects[0]["spec"]["template"]["spec"]["containers"][0]["image"] == "i:1"
    assert "put i:1 back" in wanted.unsupported[0]


def test_live_image_edited__founding_image_wanted_and_nothing_said() -> None:
    live = _live(_set(image="bad", **{FOUNDED_IMAGES: "c=i:1", FOUNDED_REPLICAS: "3"}))
    wanted = settle([_set()], _observed(live))
    assert wanted.unsupported == ()
    assert [a.verb for a in plan(wanted.objects, _observed(live), UID)] == ["apply"]


def test_mark_lost__what_runs_counts() -> None:
    wanted = settle([_set(image="i:2")], _observed(_live(_set(image="i:1"))))
    assert wanted.objects[0]["spec"]["template"]["spec"]["containers"][0]["image"] == "i:1"


@pytest.mark.parametrize(
    ("live_replicas", "noted", "kept"), [(3, "5", 5), (3, "", 3), (3, "nonsense", 3)]
)
def test_replica_count__the_founding_one_is_kept(live_replicas: int, noted: str, kept: int) -> None:
    live = _live(_set(replicas=live_replicas, **({FOUNDED_REPLICAS: noted} if noted else {})))
    spec, refused = supported(KUBE_DEFAULTS, _observed(live), "demo")
    assert spec.lock.replicas == kept
    assert bool(refused) == (kept != KUBE_DEFAULTS.lock.replicas)


def test_secret__text_becomes_data_and_back() -> None:
    secret = encoded_secret({"kind": "Secret", "stringData": {"a": "1"}, "data": {"b": "Mg=="}})
    assert secret == {"kind": "Secret", "data": {"a": "MQ==", "b": "Mg=="}}
    assert decoded_secret(secret | {"data": secret["data"] | {"c": "not base64!"}}) == {
        "a": "1",
        "b": "2",
    }
