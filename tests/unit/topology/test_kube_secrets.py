"""Secrets of a cluster: kept, made, derived; never more than is wanted."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from itertools import count
from typing import Any

from dss.topology.crd import cluster_of_resource
from dss.topology.kube import ClusterRef, render_secrets, secret_names

REF = ClusterRef(name="demo", namespace="team", uid="u-1")


def source() -> Callable[[], str]:
    numbers = count()
    return lambda: f"made-{next(numbers):032}"


def secrets(
    spec: dict[str, Any] | None = None, existing: dict[str, dict[str, str]] | None = None
) -> dict[str, dict[str, str]]:
    cluster = cluster_of_resource({"metadata": {"name": "demo"}, "spec": spec or {}})
    found = {}
    for obj in render_secrets(cluster, REF, existing or {}, source()):
        assert obj["kind"] == "Secret"
        assert obj["type"] == "Opaque"
        assert obj["metadata"]["ownerReferences"][0]["uid"] == "u-1"
        found[obj["metadata"]["name"]] = {
            key: base64.b64decode(value).decode() for key, value in obj["data"].items()
        }
    return found


def test_first_time__all_made_and_all_different() -> None:
    found = secrets()
    assert tuple(found) == secret_names("demo")
    made = [
        value
        for name, values in found.items()
        for key, value in values.items()
        if name != "demo-auth" and key not in ("url", "admin-user")
    ]
    assert len(made) == len(set(made)) == 6
    assert found["demo-grafana"]["admin-user"] == "admin"


def test_second_time__every_value_is_kept() -> None:
    first = secrets()
    assert secrets(existing=first) == first


def test_one_key_lost__only_that_one_is_made_anew() -> None:
    first = secrets()
    damaged = {name: dict(values) for name, values in first.items()}
    del damaged["demo-tokens"]["client"]
    damaged["demo-redis"]["password"] = ""
    after = secrets(existing=damaged)
    assert after["demo-tokens"]["client"] != first["demo-tokens"]["client"]
    assert after["demo-tokens"]["admin"] == first["demo-tokens"]["admin"]
    assert after["demo-redis"]["password"] not in ("", first["demo-redis"]["password"])
    assert after["demo-cluster"] == first["demo-cluster"]


def test_unknown_keys__are_not_kept() -> None:
    existing = {"demo-cluster": {"cluster-secret": "s" * 32, "stray": "x"}}
    assert secrets(existing=existing)["demo-cluster"] == {"cluster-secret": "s" * 32}


def test_what_nodes_mount__holds_hashes_of_the_tokens_and_no_token() -> None:
    found = secrets()
    tokens, text = found["demo-tokens"], found["demo-auth"]["tokens.json"]
    assert json.loads(text) == [
        {"name": name, "sha256": hashlib.sha256(tokens[name].encode()).hexdigest(), "role": role}
        for name, role in (("admin", "admin"), ("client", "client"), ("operator", "admin"))
    ]
    assert not [value for value in tokens.values() if value in text]


def test_tampered_hashes__are_put_back() -> None:
    first = secrets()
    tampered = first | {"demo-auth": {"tokens.json": "[]"}}
    assert secrets(existing=tampered) == first


def test_redis_url__carries_the_password() -> None:
    redis = secrets(existing={"demo-redis": {"password": "pw-12345678", "url": "old"}})
    assert redis["demo-redis"] == {
        "password": "pw-12345678",
        "url": "redis://:pw-12345678@demo-redis.team.svc:6379/0",
    }


def test_what_is_switched_off__has_no_secret() -> None:
    spec = {
        "auth": {"enabled": False},
        "redis": {"enabled": False, "externalUrl": "redis://r"},
        "monitoring": {"grafana": {"enabled": False}},
    }
    assert tuple(secrets(spec)) == ("demo-cluster",)
