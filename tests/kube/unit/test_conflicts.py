"""Other managers' edits: forced back once, then reported and not fought over."""

from __future__ import annotations

from typing import Any

import pytest
from operator_lab import Lab, run

from dss_operator.apply import CONFLICT_S


def _set_port(obj: dict[str, Any]) -> None:
    obj["spec"]["ports"][0]["port"] = 9


async def _fought(lab: Lab) -> None:
    """A controller that takes the field back each time."""
    await lab.formed()
    lab.api.edit("services", "demo-lock", _set_port, manager="their-controller")
    await lab.tick()
    assert lab.api.get("services", "demo-lock")["spec"]["ports"][0]["port"] == 8000
    lab.api.edit("services", "demo-lock", _set_port, manager="their-controller")
    await lab.tick()


def test_field_taken_again_at_once__reported_and_left_alone() -> None:
    async def scenario() -> None:
        lab = Lab()
        await _fought(lab)
        assert lab.api.get("services", "demo-lock")["spec"]["ports"][0]["port"] == 9
        assert lab.condition("Degraded") == ("True", "FieldConflict")
        assert "their-controller holds spec.ports" in lab.message("Degraded")
        assert lab.api.reasons().count("FieldConflict") == 1

    run(scenario())


def test_held_conflict__further_looks_change_nothing_and_tell_nothing() -> None:
    async def scenario() -> None:
        lab = Lab()
        await _fought(lab)
        await lab.sample()
        lab.api.forget_calls()
        version = lab.api.version
        for _ in range(10):
            await lab.tick(30)
            await lab.sample()
        assert {(repr(call), call.query["force"]) for call in lab.api.writes} == {
            ("patch services/demo-lock", "false")
        }
        assert lab.api.version == version
        assert lab.api.reasons().count("FieldConflict") == 1
        assert lab.condition("Degraded") == ("True", "FieldConflict")

    run(scenario())


def test_conflict_held_for_hours__never_forced_again() -> None:
    async def scenario() -> None:
        lab = Lab()
        await _fought(lab)
        lab.api.forget_calls()
        for _ in range(30):
            await lab.tick(CONFLICT_S / 2)
        assert lab.api.get("services", "demo-lock")["spec"]["ports"][0]["port"] == 9
        assert {call.query["force"] for call in lab.api.writes if not call.sub} == {"false"}
        assert lab.condition("Degraded") == ("True", "FieldConflict")

    run(scenario())


ADDED = [
    ("configmaps", "demo-peers", lambda obj: obj["data"].update(extra="x"), "data.extra"),
    ("statefulsets", "demo-lock", lambda obj: obj["spec"]["template"]["spec"]["containers"].append(
        {"name": "sidecar", "image": "x"}), "spec.template.spec.containers"),
]  # fmt: skip


@pytest.mark.parametrize(("plural", "name", "add", "field"), ADDED, ids=["data", "container"])
def test_addition_made_again_and_again__taken_away_once_then_reported(
    plural: str, name: str, add: Any, field: str
) -> None:
    """A webhook or controller that adds each time: on a template each round would be a rollout."""

    async def scenario() -> None:
        lab = Lab()
        await lab.formed()
        for number in range(10):
            if number < 2:
                lab.api.edit(plural, name, add, manager="injector")
            await lab.tick()
        patches = [call for call in lab.api.writes if call.plural == plural]
        assert len(patches) == 2  # an apply and a merge patch, once
        assert lab.condition("Degraded") == ("True", "FieldConflict")
        assert f"another manager holds {field}" in lab.message("Degraded")
        assert lab.cluster.next_tick - lab.clock.now > 2

    run(scenario())


def test_webhook_rewrites_what_is_applied__reported_and_not_repeated_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario() -> None:
        lab = Lab()
        await lab.formed()
        store = lab.api._store

        def rewriting(key: Any, obj: Any, *rest: Any, **named: Any) -> Any:
            if key[0] == "services" and key[2] == "demo-lock":
                obj["spec"]["ports"][0]["port"] = 9
            return store(key, obj, *rest, **named)

        monkeypatch.setattr(lab.api, "_store", rewriting)
        lab.api.edit("services", "demo-lock", lambda obj: None)
        lab.api.owners["services", "ns", "demo-lock"].pop("kubectl-edit", None)
        lab.api.forget_calls()
        for _ in range(5):
            await lab.tick(30)
        assert len([call for call in lab.api.writes if call.plural == "services"]) <= 5
        assert lab.condition("Degraded") == ("True", "ApplyRefused")
        assert "changes spec.ports[0].port" in lab.message("Degraded")
        assert lab.cluster.next_tick - lab.clock.now > 2
        assert "Repaired" not in lab.api.reasons()

    run(scenario())


def test_other_manager_gives_up__condition_clears() -> None:
    async def scenario() -> None:
        lab = Lab()
        await _fought(lab)

        def back(obj: dict[str, Any]) -> None:
            obj["spec"]["ports"][0]["port"] = 8000

        lab.api.edit("services", "demo-lock", back, manager="their-controller")
        await lab.tick()
        assert lab.condition("Degraded") == ("False", "AsDeclared")

    run(scenario())


def test_field_let_go_within_the_ten_minutes__taken_up_in_the_next_look() -> None:
    async def scenario() -> None:
        lab = Lab()
        await _fought(lab)
        lab.api.owners["services", "ns", "demo-lock"]["their-controller"].clear()
        await lab.tick()
        assert lab.api.get("services", "demo-lock")["spec"]["ports"][0]["port"] == 8000
        assert lab.condition("Degraded") == ("False", "AsDeclared")

    run(scenario())


def test_two_people_edit_one_after_the_other__both_put_back() -> None:
    async def scenario() -> None:
        lab = Lab()
        await lab.formed()
        for manager in ("kubectl-edit", "kubectl-patch"):
            lab.api.edit("services", "demo-lock", _set_port, manager=manager)
            await lab.tick()
            assert lab.api.get("services", "demo-lock")["spec"]["ports"][0]["port"] == 8000
        assert lab.condition("Degraded") == ("False", "AsDeclared")

    run(scenario())


def test_foreign_annotation_and_label__left_alone() -> None:
    async def scenario() -> None:
        lab = Lab()
        await lab.formed()

        def note(obj: dict[str, Any]) -> None:
            obj["metadata"].setdefault("annotations", {})["team"] = "a"
            obj["metadata"]["labels"]["team"] = "a"

        lab.api.edit("services", "demo-lock", note)
        await lab.tick()
        assert lab.api.writes == []
        assert lab.api.get("services", "demo-lock")["metadata"]["labels"]["team"] == "a"

    run(scenario())
