"""`dss members replace`: what it refuses, and that it waits for the node to be heard of."""

from __future__ import annotations

import argparse
from typing import Any

import pytest

from dss.base.errors import EXIT_TRY_AGAIN
from dss.cli import members
from dss.cli.http import CliError

KNOWN = {"up": True, "lost_disk": False}
LOST = {"up": False, "lost_disk": True}
SILENT = {"up": False, "lost_disk": False}


class Answer:
    def __init__(self, body: dict[str, Any]) -> None:
        self.body = body

    def json(self) -> dict[str, Any]:
        return self.body


class FakeNodes:
    """Shows the two groups' rows of lock-2, view by view (the last one again and again)."""

    def __init__(self, *views: tuple[dict[str, bool], dict[str, bool]]) -> None:
        self.views = list(views)
        self.asked: list[str] = []

    def ask(self, role: str, method: str, path: str, body: Any = None, **_: Any) -> Answer:
        self.asked.append(method)
        if method != "GET":
            self.views = [(KNOWN, KNOWN)]
        rows = self.views.pop(0) if len(self.views) > 1 else self.views[0]
        blank = {
            "node_id": "lock-2",
            "role": "voter",
            "leader": False,
            "lag": 0,
            "last_contact_ms": 1,
            "incarnation": "f" * 32,
        }
        groups = [{"group_id": group, "members": [blank | row]} for group, row in enumerate(rows)]
        return Answer({"groups": groups})


def replace(monkeypatch: pytest.MonkeyPatch, fake: FakeNodes, wait: float = 5.0) -> int:
    monkeypatch.setattr(members, "nodes", lambda args: fake)
    monkeypatch.setattr(members.time, "sleep", lambda seconds: None)
    return members.replace(argparse.Namespace(node_id="lock-2", wait=wait, json=True))


def test_replace_just_after_the_start__waits_until_it_is_heard_of(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = FakeNodes((SILENT, SILENT), (LOST, SILENT), (LOST, LOST))
    assert replace(monkeypatch, fake) == 0
    assert fake.asked[:5] == ["GET", "GET", "GET", "DELETE", "POST"]
    assert "lock-2" in capsys.readouterr().out


def test_replace_a_node_that_stays_silent__try_again_and_nothing_is_changed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake = FakeNodes((LOST, SILENT))
    with pytest.raises(CliError, match="lock-2 does not answer the lock nodes") as refused:
        replace(monkeypatch, fake, wait=0.0)
    assert refused.value.exit_code == EXIT_TRY_AGAIN
    assert fake.asked == ["GET"]


def test_replace_a_healthy_node__nothing_to_replace(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeNodes((KNOWN, KNOWN))
    with pytest.raises(CliError, match="nothing to replace"):
        replace(monkeypatch, fake)
    assert fake.asked == ["GET"]


def test_replace_that_was_cut_short__is_finished(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = FakeNodes((KNOWN, LOST))
    assert replace(monkeypatch, fake) == 0
    assert "DELETE" in fake.asked
    assert "lock-2" in capsys.readouterr().out
