"""The thin client: paths, retries, pages, preconditions, kill points."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from fake_api import FakeApi
from operator_lab import Clock, run

from dss_operator.kube import (
    CLUSTERS,
    LEASES,
    PODS,
    RETRIES_MAX,
    SECRETS,
    Answer,
    Api,
    ApiError,
    Kube,
    NotHolder,
)

CONFIG_MAPS = Api("v1", "ConfigMap", "configmaps")


def _kube(api: FakeApi, **options: Any) -> Kube:
    return Kube(api, sleep=Clock().sleep, **options)


def _config(name: str, **labels: str) -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": "ns", "labels": labels}, "data": {}}


@pytest.mark.parametrize(
    ("api", "namespace", "name", "sub", "path"),
    [
        (SECRETS, "ns", "a", "", "/api/v1/namespaces/ns/secrets/a"),
        (CLUSTERS, "ns", "", "", "/apis/dss.io/v1alpha1/namespaces/ns/dssclusters"),
        (CLUSTERS, "", "", "", "/apis/dss.io/v1alpha1/dssclusters"),
        (PODS, "ns", "p", "eviction", "/api/v1/namespaces/ns/pods/p/eviction"),
        (LEASES, "n/s", "a", "", "/apis/coordination.k8s.io/v1/namespaces/n%2Fs/leases/a"),
    ],
)
def test_path__as_the_api_server_has_it(
    api: Api, namespace: str, name: str, sub: str, path: str
) -> None:
    assert api.path(namespace, name, sub) == path


def test_list_of_many__all_pages_read_and_kinds_filled_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dss_operator.kube.LIST_LIMIT", 3)

    async def scenario() -> None:
        api = FakeApi()
        for number in range(8):
            api.add("configmaps", _config(f"c{number}", team="a"))
        api.add("configmaps", _config("other", team="b"))
        found = await _kube(api).list(CONFIG_MAPS, "ns", labels="team=a")
        assert [obj["metadata"]["name"] for obj in found] == [f"c{n}" for n in range(8)]
        assert {obj["kind"] for obj in found} == {"ConfigMap"}
        assert len(api.calls) == 3

    run(scenario())


@pytest.mark.parametrize("fault", [429, 500, 503, "timeout"])
def test_transient_answer__tried_again(fault: int | str) -> None:
    async def scenario() -> None:
        api = FakeApi()
        api.add("configmaps", _config("a"))
        api.faults = {1: fault, 2: fault}
        assert await _kube(api).get(CONFIG_MAPS, "ns", "a") is not None
        assert len(api.calls) == 3

    run(scenario())


def test_transient_answer_for_ever__gives_up_with_its_reason() -> None:
    async def scenario() -> None:
        api = FakeApi()
        api.fault_by = lambda call: 503
        with pytest.raises(ApiError, match="503 Injected") as caught:
            await _kube(api).get(CONFIG_MAPS, "ns", "a")
        assert caught.value.transient
        assert len(api.calls) == RETRIES_MAX + 1

    run(scenario())


@pytest.mark.parametrize("fault", [400, 401, 403, 409, 422])
def test_final_answer__not_tried_again(fault: int) -> None:
    async def scenario() -> None:
        api = FakeApi()
        api.fault_by = lambda call: fault
        with pytest.raises(ApiError) as caught:
            await _kube(api).list(CONFIG_MAPS, "ns")
        assert caught.value.status == fault
        assert len(api.calls) == 1

    run(scenario())


def test_retry_after__is_respected_up_to_a_bound() -> None:
    class Busy:
        count = 0

        async def send(self, *args: Any) -> Answer:
            self.count += 1
            return Answer(429 if self.count < 3 else 200, {"Retry-After": "60"}, b"{}")

        async def close(self) -> None: ...

    async def scenario() -> None:
        waits: list[float] = []

        async def sleep(seconds: float) -> None:
            waits.append(seconds)

        await Kube(Busy(), sleep=sleep).get(CONFIG_MAPS, "ns", "a")
        assert waits == [5.0, 5.0]

    run(scenario())


def test_answer_that_is_no_json__an_error_with_its_text() -> None:
    class Proxy:
        async def send(self, *args: Any) -> Answer:
            return Answer(403, {}, b"<html>go away</html>")

        async def close(self) -> None: ...

    async def scenario() -> None:
        with pytest.raises(ApiError, match="go away"):
            await Kube(Proxy()).get(CONFIG_MAPS, "ns", "a")

    run(scenario())


def test_eviction__never_tried_twice() -> None:
    async def scenario() -> None:
        api = FakeApi()
        api.fault_by = lambda call: 500
        with pytest.raises(ApiError):
            await _kube(api).evict("ns", "p", "u")
        assert len(api.calls) == 1

    run(scenario())


def test_delete_with_another_uid__leaves_the_successor_alone() -> None:
    async def scenario() -> None:
        api = FakeApi()
        api.add("configmaps", _config("a"))
        kube = _kube(api)
        assert not await kube.delete(CONFIG_MAPS, "ns", "a", uid="another")
        assert api.has("configmaps", "a")
        uid = api.get("configmaps", "a")["metadata"]["uid"]
        assert await kube.delete(CONFIG_MAPS, "ns", "a", uid=uid)
        assert not await kube.delete(CONFIG_MAPS, "ns", "a", uid=uid)

    run(scenario())


def test_lease_not_held__writes_refused_reads_and_the_lease_not() -> None:
    async def scenario() -> None:
        api = FakeApi()
        kube = _kube(api, write_s=lambda: 0.0)
        body = _config("a")
        with pytest.raises(NotHolder):
            await kube.create(CONFIG_MAPS, "ns", body)
        assert api.calls == []
        assert await kube.get(CONFIG_MAPS, "ns", "a") is None
        await kube.create(LEASES, "ns", {"metadata": {"name": "l"}, "spec": {}})
        assert api.names("leases") == ["l"]

    run(scenario())


KILL = """
import asyncio, sys
sys.path[:0] = {path!r}
from fake_api import FakeApi
from dss_operator.kube import Kube, SECRETS
class Loud(FakeApi):
    async def send(self, *args):
        print("sent", flush=True)
        return await super().send(*args)
async def main():
    kube = Kube(Loud(), exit_at_call={at})
    for _ in range(3):
        await kube.get(SECRETS, "ns", "a")
asyncio.run(main())
"""


@pytest.mark.parametrize(("at", "sent", "code"), [(1, 0, 137), (2, 1, 137), (5, 2, 137), (0, 3, 0)])
def test_kill_point__process_ends_before_or_after_that_call(at: int, sent: int, code: int) -> None:
    script = KILL.format(path=sys.path, at=at)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.stdout.count("sent"), done.returncode) == (sent, code), done.stderr
