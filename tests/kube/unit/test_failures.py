"""Every API call failing in every way, and the operator killed at every one of its calls."""

from __future__ import annotations

from typing import Any

import pytest
from fake_api import Killed
from operator_lab import Lab, run

SPEC: dict[str, Any] = {"ingress": {"enabled": True, "host": "dss.local"}}


async def _reference() -> tuple[dict[str, Any], int]:
    """The state that an undisturbed operator makes, and how many calls that takes."""
    lab = Lab(**SPEC)
    await lab.settle()
    return lab.state(), len(lab.api.calls)


async def _converge(lab: Lab, wanted: dict[str, Any]) -> None:
    await lab.settle(ticks=20)
    assert lab.state() == wanted
    assert lab.condition("Ready") == ("True", "Serving")
    lab.api.forget_calls()
    await lab.tick(60)
    assert lab.api.writes == []


FAULTS = [409, 429, 500, 503, "lost", "timeout"]


@pytest.mark.parametrize("fault", FAULTS)
def test_call_fails_once__converges_all_the_same(fault: int | str) -> None:
    """Every call in turn; of the six faults every call sees two."""

    async def scenario() -> None:
        wanted, calls = await _reference()
        assert calls >= 100
        for number in range(1 + FAULTS.index(fault) % 3, calls + 1, 3):
            lab = Lab(**SPEC)
            lab.api.faults[number] = fault
            await _converge(lab, wanted)

    run(scenario())


@pytest.mark.parametrize("status", [403, 422])
def test_refused_for_good_then_allowed__told_then_converges(status: int) -> None:
    async def scenario() -> None:
        wanted, _ = await _reference()
        lab = Lab(**SPEC)

        def refuse(call: Any) -> int | None:
            return status if (call.verb, call.plural) == ("patch", "ingresses") else None

        lab.api.fault_by = refuse
        for _ in range(5):
            lab.api.run_sets()
            await lab.tick()
            await lab.sample()
        assert lab.condition("Degraded") == ("True", "ApplyRefused")
        assert "Ingress demo" in lab.message("Degraded")
        assert lab.condition("Ready") == ("True", "Serving")  # the rest was made
        lab.api.fault_by = lambda call: None
        await _converge(lab, wanted)
        assert lab.condition("Degraded") == ("False", "AsDeclared")
        assert lab.api.reasons().count("ApplyRefused") == 1

    run(scenario())


def test_namespace_being_deleted__stops_quietly_after_one_try(
    caplog: pytest.LogCaptureFixture,
) -> None:
    ends = {
        "code": 403, "reason": "Forbidden", "message": "because it is being terminated",
        "details": {"causes": [{"reason": "NamespaceTerminating", "field": "metadata.namespace"}]},
    }  # fmt: skip

    async def scenario() -> None:
        lab = Lab()
        lab.api.fault_by = lambda call: ends if call.plural not in ("dssclusters",) and (
            call.verb in ("patch", "create")
        ) else None  # fmt: skip
        await lab.tick()
        assert len([call for call in lab.api.writes if call.plural != "dssclusters"]) == 1
        assert lab.condition("Progressing") == ("True", "Waiting")
        assert lab.condition("Degraded") == ("False", "RollingOut")
        assert "not recorded" not in caplog.text

    run(scenario())


def test_api_server_away_for_a_while__backs_off_then_recovers() -> None:
    async def scenario() -> None:
        lab = Lab(**SPEC)
        await lab.formed()
        lab.api.fault_by = lambda call: "away"
        waits = []
        for _ in range(8):
            await lab.tick()
            waits.append(lab.cluster.next_tick - lab.clock.now)
        assert waits[0] < 2
        assert 20 < waits[-1] <= 40
        lab.api.fault_by = lambda call: None
        lab.api.remove("services", "demo-lock")
        await lab.tick()
        assert lab.api.has("services", "demo-lock")
        assert lab.condition("Ready") == ("True", "Serving")

    run(scenario())


def test_killed_at_every_call_while_creating__the_next_process_converges() -> None:
    async def scenario() -> None:
        wanted, calls = await _reference()
        points = 2 * calls
        assert points >= 200
        for point in range(1, points + 1):
            lab = Lab(**SPEC)
            lab.api.kill_at = point
            with pytest.raises(Killed):
                await lab.settle()
            lab.api.kill_at = 0
            lab.process()
            await _converge(lab, wanted)

    run(scenario())


def test_killed_before_every_call_while_repairing__the_next_process_converges() -> None:
    async def damage(lab: Lab) -> None:
        await lab.formed()
        lab.api.remove("services", "demo-lock")
        lab.api.remove("secrets", "demo-auth")
        lab.api.edit("configmaps", "demo-peers", lambda obj: obj["data"].update(extra="x"))
        lab.api.edit("statefulsets", "demo-queue", lambda obj: obj["spec"].update(replicas=7))

    async def scenario() -> None:
        wanted, _ = await _reference()
        lab = Lab(**SPEC)
        await damage(lab)
        await lab.settle()
        calls = len(lab.api.calls)
        assert lab.state() == wanted
        for point in range(1, 2 * calls + 1, 2):
            lab = Lab(**SPEC)
            await damage(lab)
            lab.api.kill_at = point
            with pytest.raises(Killed):
                await lab.settle()
            lab.api.kill_at = 0
            lab.process()
            await _converge(lab, wanted)

    run(scenario())


def test_defect_in_a_tick__logged_counted_and_survived(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        lab = Lab()
        with monkeypatch.context() as patched:
            patched.setattr("dss_operator.cluster.plan", lambda *args: 1 / 0)
            assert await lab.tick()
        assert "a tick failed" in caplog.text
        count = lab.metrics.registry.get_sample_value
        assert count("dss_operator_reconciles_total", {"result": "defect"}) == 1
        await lab.settle()
        assert lab.condition("Ready") == ("True", "Serving")

    run(scenario())


def test_lease_lost_in_the_middle__no_write_leaves() -> None:
    async def scenario() -> None:
        lab = Lab()
        lab.kube.write_s = lambda: 0.0
        await lab.tick()
        assert lab.api.writes == []
        assert lab.api.names("services") == []
        lab.kube.write_s = lambda: 5.0
        await lab.settle()
        assert lab.condition("Ready") == ("True", "Serving")

    run(scenario())
