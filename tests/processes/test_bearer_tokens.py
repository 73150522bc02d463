"""Tokens on real nodes: who gets in with the SDK, the command line and plain HTTP."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster_process import Cluster, dss, request, until

from dss.base.errors import Unauthenticated
from dss.client import connect

ADMIN, CLIENT, NEW = "admin-token-1", "client-token-1", "client-token-2"


def write_tokens(path: Path, **tokens: str) -> None:
    roles = {"ops": "admin"}
    text = json.dumps(
        [
            {
                "name": name,
                "sha256": hashlib.sha256(token.encode()).hexdigest(),
                "role": roles.get(name, "client"),
            }
            for name, token in tokens.items()
        ]
    )
    new = path.with_suffix(".new")
    new.write_text(text)
    new.rename(path)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("auth")
    tokens = folder / "tokens.json"
    write_tokens(tokens, ops=ADMIN, app=CLIENT)
    env = {"AUTH_TOKENS_FILE": str(tokens), "DSS_TOKEN": CLIENT}
    cluster = Cluster(folder / "data", (1, 1, 1), env)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def test_plain_http__401_without_403_with_a_clients_and_200_with_an_admins(
    guarded: Cluster,
) -> None:
    url = f"{guarded.url('lock-1')}/v1/raft/backoff"
    body = {"group_id": 1}
    assert request("POST", url, body).body["code"] == "unauthenticated"
    assert request("POST", url, body, headers=bearer(CLIENT)).body["code"] == "forbidden"
    leads = request("POST", url, body, headers=bearer(ADMIN))
    assert (leads.status, leads.body["code"]) == (409, "not_candidate")
    for role in ("lock", "queue", "cache"):
        base = guarded.url(f"{role}-1")
        assert request("GET", f"{base}/v1/cluster").status == 401
        assert request("GET", f"{base}/v1/cluster", headers=bearer(CLIENT)).status == 200
        for path in ("/healthz", "/readyz", "/metrics"):
            assert request("GET", base + path).status == 200


def test_sdk__locks_queues_and_cache_with_a_token_and_a_clear_error_without(
    guarded: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DSS_TOKEN", raising=False)

    async def use() -> None:
        async with connect(guarded.endpoints(), token=CLIENT) as client:
            async with client.lock("auth/a", wait=5) as held:
                assert held.token > 0
            await client.cache.put("auth/b", b"1")
            assert await client.cache.get("auth/b") == b"1"
        async with connect(guarded.endpoints()) as client:
            with pytest.raises(Unauthenticated, match="DSS_TOKEN"):
                async with client.lock("auth/a", wait=5):
                    raise AssertionError("held without a token")
            with pytest.raises(Unauthenticated, match="DSS_TOKEN"):
                await client.cache.get("auth/b")

    asyncio.run(use())


def test_command_line__takes_dss_token(guarded: Cluster) -> None:
    env = {"DSS_ENDPOINTS": guarded.endpoints()}
    good = dss("status", env=env | {"DSS_TOKEN": CLIENT})
    assert good.returncode == 0, good.stderr
    none = dss("status", env=env)
    assert none.returncode == 1
    assert "no token" in none.stderr
    assert len(none.stderr.splitlines()) == 1
    queue = dss("queue", "send", "auth-jobs", "1", env=env | {"DSS_TOKEN": CLIENT})
    assert queue.returncode == 0, queue.stderr


def test_new_tokens_file__old_tokens_end_and_new_ones_begin_within_seconds(
    guarded: Cluster,
) -> None:
    path = Path(guarded.env["AUTH_TOKENS_FILE"])
    url = f"{guarded.url('lock-1')}/v1/locks"
    assert request("GET", url, headers=bearer(CLIENT)).status == 200
    write_tokens(path, ops=ADMIN, app=NEW)
    try:
        until(lambda: request("GET", url, headers=bearer(NEW)).status == 200, "the new token", 6)
        assert request("GET", url, headers=bearer(CLIENT)).status == 401
        path.write_text("[{")
        until(lambda: "line 1, column 3" in guarded.report(), "the fault in the log", 6)
        assert request("GET", url, headers=bearer(NEW)).status == 200
        assert NEW not in guarded.report()
    finally:
        write_tokens(path, ops=ADMIN, app=CLIENT)
    until(lambda: request("GET", url, headers=bearer(CLIENT)).status == 200, "the old one", 6)
