"""Other managers' edits: forced back once, then reported and not fought over."""

from __future__ import annotations

from typing import Any

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


def test_conflict_after_ten_minutes__tried_once_more_and_healed() -> None:
    async def scenario() -> None:
        lab = Lab()
        await _fought(lab)
        await lab.tick(CONFLICT_S + 1)
        assert lab.api.get("services", "demo-lock")["spec"]["ports"][0]["port"] == 8000
        await lab.settle()
        assert lab.condition("Degraded") == ("False", "AsDeclared")

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
