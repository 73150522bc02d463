"""Many clusters in one process: shared LISTs, calls per look, spread ticks, the task's loop."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
from fake_api import FakeApi
from operator_lab import Clock, FakeNodes, Lab, run

from dss_operator.cluster import SPACING_S
from dss_operator.events import REPEAT_S, Event, Recorder
from dss_operator.kube import Kube
from dss_operator.observe import SHARED_MAX, Observer, parse_resource
from dss_operator.runtime import Runtime
from dss_operator.settings import Settings

LISTED_KINDS = 9
"""Kinds that one look lists: seven managed ones, pods, and ServiceMonitors until the first 404."""


def _add(api: FakeApi, name: str, namespace: str = "ns") -> None:
    meta = {"name": name, "namespace": namespace}
    off = {"grafana": {"enabled": False}}
    resource = {"apiVersion": "dss.io/v1alpha1", "metadata": meta, "spec": {"monitoring": off}}
    api.add("dssclusters", resource)


def _lists(api: FakeApi) -> int:
    return sum(call.verb == "list" for call in api.calls)


def test_clusters_that_look_together__share_their_lists_and_keep_apart() -> None:
    async def scenario() -> None:
        api = FakeApi()
        observer = Observer(Kube(api), Clock())
        names = [f"c{number}" for number in range(20)]
        for name in names:
            labels = {"dss.io/cluster": name}
            meta = {"name": f"{name}-x", "namespace": "ns", "labels": labels}
            api.add("services", {"metadata": meta, "spec": {}})
        found = await asyncio.gather(*(observer.observe("ns", name) for name in names))
        for name, observed in zip(names, found, strict=True):
            assert list(observed.owned) == [("Service", f"{name}-x")]
        # The first one is on its way when the others ask; those share the next round.
        assert _lists(api) <= 2 * LISTED_KINDS

    run(scenario())


def test_read_asked_for_during_a_read__sees_what_changed_before_it_was_asked_for() -> None:
    async def scenario() -> None:
        api = FakeApi()
        observer = Observer(Kube(api), Clock())
        first = asyncio.create_task(observer.observe("ns", "a"))
        await _until(lambda: api.calls)
        meta = {"name": "new", "namespace": "ns", "labels": {"dss.io/cluster": "a"}}
        for plural in ("serviceaccounts", "configmaps", "services", "ingresses"):
            api.add(plural, {"metadata": dict(meta), "spec": {}})
        second = await observer.observe("ns", "a")
        await first
        assert len(second.owned) == 4

    run(scenario())


def test_more_clusters_than_one_list_holds__all_answered() -> None:
    async def scenario() -> None:
        api = FakeApi()
        observer = Observer(Kube(api), Clock())
        names = [f"c{number}" for number in range(2 * SHARED_MAX + 1)]
        await asyncio.gather(*(observer.observe("ns", name) for name in names))
        selectors = {call.query["labelSelector"] for call in api.calls if call.verb == "list"}
        assert max(selector.count(",") for selector in selectors) < SHARED_MAX

    run(scenario())


def test_list_fails__every_asker_hears_of_it_and_the_next_read_works() -> None:
    async def scenario() -> None:
        api = FakeApi()
        observer = Observer(Kube(api, sleep=Clock().sleep), Clock())
        api.fault_by = lambda call: 403 if call.plural == "pods" else None
        asked = [observer.observe("ns", name) for name in ("a", "b")]
        found = await asyncio.gather(*asked, return_exceptions=True)
        assert [type(each).__name__ for each in found] == ["ApiError", "ApiError"]
        api.fault_by = lambda call: None
        assert (await observer.observe("ns", "a")).owned == {}

    run(scenario())


def test_look_at_an_unchanged_cluster__sixteen_reads_and_no_write() -> None:
    async def scenario() -> None:
        lab = Lab()
        await lab.formed()
        await lab.tick(30)
        verbs = Counter(call.verb for call in lab.api.calls)
        assert verbs == {"list": LISTED_KINDS - 1, "get": 1 + 5}

    run(scenario())


def test_new_cluster__calls_until_it_serves_are_bounded() -> None:
    async def scenario() -> None:
        lab = Lab()
        await lab.settle()
        assert len(lab.api.calls) <= 150

    run(scenario())


class _Played(FakeNodes):
    async def close(self) -> None: ...


async def _until(check: Any, seconds: float = 30) -> None:
    for turn in range(round(seconds / 0.02)):
        if check():
            return
        await asyncio.sleep(0.02 if turn > 10 else 0)
    raise AssertionError("it did not happen in time")


def test_twenty_clusters_at_once__all_made_and_all_tasks_end_with_their_resources(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dss_operator.cluster.DEBOUNCE_S", 0.01)

    async def scenario() -> None:
        api = FakeApi()
        settings = Settings(pod_id="me", metrics_port=0, health_port=0, tick_s=5)
        runtime = Runtime(settings, api, _Played())
        runtime.start()
        names = [f"c{number}" for number in range(20)]
        for name in names:
            _add(api, name)
            runtime.wake("ns", name)
        await _until(lambda: len(api.names("statefulsets")) == 5 * len(names))
        for name in names:
            api.remove("dssclusters", name)
            runtime.wake("ns", name)
        await _until(lambda: not runtime._clusters)
        assert api.names("statefulsets") == []
        await runtime.close()

    run(scenario())


def test_set_that_changes_all_the_time__looks_keep_their_distance(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dss_operator.cluster.SPACING_S", 0.5)
    monkeypatch.setattr("dss_operator.cluster.DEBOUNCE_S", 0.01)

    async def scenario() -> None:
        api = FakeApi()
        runtime = Runtime(Settings(pod_id="me", metrics_port=0), api, _Played())
        runtime.start()
        _add(api, "demo")
        runtime.wake("ns", "demo")
        await _until(lambda: len(api.names("statefulsets")) == 5)
        looks = sum(repr(call) == "get dssclusters/demo" for call in api.calls)
        for _ in range(75):
            runtime.wake("ns", "demo", known_only=True)
            await asyncio.sleep(0.02)
        more = sum(repr(call) == "get dssclusters/demo" for call in api.calls) - looks
        assert 1 <= more <= 5
        await runtime.close()

    run(scenario())


def test_same_meaning_again__wakes_a_living_task_not_but_begins_one_that_ended() -> None:
    async def scenario() -> None:
        api = FakeApi()
        runtime = Runtime(Settings(pod_id="me", metrics_port=0), api, _Played())
        runtime.changed("ns", "demo", 1)
        cluster = runtime._clusters["ns", "demo"]
        cluster._wake.clear()
        runtime.changed("ns", "demo", 1)
        assert not cluster._wake.is_set()
        runtime.changed("ns", "demo", 2)
        assert cluster._wake.is_set()
        runtime.start()  # there is no such resource: its task ends
        await _until(lambda: not runtime._clusters)
        _add(api, "demo")
        runtime.changed("ns", "demo", 2)
        await _until(lambda: len(api.names("statefulsets")) == 5)
        await runtime.close()

    run(scenario())


def test_event_of_an_unknown_clusters_object__starts_no_task() -> None:
    async def scenario() -> None:
        runtime = Runtime(Settings(pod_id="me", metrics_port=0), FakeApi(), _Played())
        runtime.wake("ns", "ghost", known_only=True)
        assert runtime._clusters == {}
        await runtime.close()

    run(scenario())


def test_resource_made_again_while_its_task_ends__the_task_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dss_operator.cluster.SPACING_S", 0)  # the lab's clock stands still

    async def scenario() -> None:
        lab = Lab()
        lab.cluster._deps.leadership._held_until = float("inf")
        lab.api.remove("dssclusters", "demo")
        sent = lab.api.send

        async def send(*args: Any) -> Any:
            answer = await sent(*args)
            if answer.status == 404 and "dssclusters/demo" in args[1] and not lab.api.has(
                "dssclusters", "demo"
            ):  # fmt: skip
                lab.make()
                lab.cluster.wake()
            return answer

        lab.api.send = send  # type: ignore[method-assign]
        task = asyncio.create_task(lab.cluster.run())
        await _until(lambda: len(lab.api.names("statefulsets")) == 5)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    run(scenario())


def test_ticks__clusters_of_one_namespace_together_and_namespaces_apart() -> None:
    async def scenario() -> None:
        at = {}
        for namespace in ("a", "b", "c", "d"):
            lab = Lab()
            lab.cluster.namespace = namespace
            moments = []
            for second in range(0, 25, 5):
                lab.clock.now = 3_000.0 + second
                moment = lab.cluster._look_after()
                assert 0 < moment - lab.clock.now <= 31
                if moment - lab.clock.now > SPACING_S:  # else put off: it has just looked
                    moments.append(moment)
            assert len({round(moment % 30, 3) for moment in moments}) == 1
            at[namespace] = round(moments[0] % 30, 3)
        assert len(set(at.values())) == 4

    run(scenario())


def test_same_event_again__told_once_until_the_time_is_over() -> None:
    async def scenario() -> None:
        api, clock = FakeApi(), Clock()
        _add(api, "demo")
        resource = parse_resource(api.get("dssclusters", "demo"))
        recorder = Recorder(Kube(api), "me", clock)
        event, other = Event("Normal", "A", "x"), Event("Normal", "A", "y")
        for _ in range(5):
            await recorder.tell(resource, [event, other])
        assert len(api.events) == 2
        clock.now += REPEAT_S + 1
        await recorder.tell(resource, [event])
        assert len(api.events) == 3

    run(scenario())


def test_event_refused_by_the_api_server__logged_and_survived(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scenario() -> None:
        api = FakeApi()
        _add(api, "demo")
        resource = parse_resource(api.get("dssclusters", "demo"))
        api.fault_by = lambda call: 403
        await Recorder(Kube(api), "me", Clock()).tell(resource, [Event("Normal", "A", "x" * 5_000)])
        assert "not recorded" in caplog.text
        api.fault_by = lambda call: None
        await Recorder(Kube(api), "me", Clock()).tell(resource, [Event("Normal", "A", "x" * 5_000)])
        assert len(api.events[0]["message"]) == 1_000

    run(scenario())
