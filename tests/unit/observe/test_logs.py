"""observe/logs.py: one line per event, in both formats, without secrets."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from dss.observe.logs import configure, event, unexpected


@pytest.fixture
def out() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    yield io.StringIO()
    root.handlers[:] = before
    root.setLevel(level)
    logging.getLogger("dss").setLevel(logging.NOTSET)


def test_text_event__is_one_readable_line(out: io.StringIO) -> None:
    configure("info", "text", node_id="lock-1", stream=out)
    log = logging.getLogger("dss.raft")
    event(log, "role_changed", group=1, role="leader", reason="won 2\nof 3", leader=None)
    (line,) = out.getvalue().splitlines()
    assert line.endswith(
        ' info lock-1 raft role_changed group=1 role=leader reason="won 2\\nof 3" leader=None'
    )


def test_json_event__is_one_object(out: io.StringIO) -> None:
    configure("info", "json", node_id="lock-1", stream=out)
    event(logging.getLogger("dss.raft"), "role_changed", term=3, level=logging.WARNING, odd={1})
    (line,) = out.getvalue().splitlines()
    record = json.loads(line)
    assert record["event"] == "role_changed"
    assert (record["level"], record["node"], record["term"]) == ("warning", "lock-1", 3)


@pytest.mark.parametrize("fmt", ["text", "json"])
def test_secrets__never_reach_a_line(out: io.StringIO, fmt: str) -> None:
    configure("info", fmt, stream=out)
    log = logging.getLogger("dss.node")
    event(
        log, "configured", cluster_secret="s3cr3t", auth_token="s3cr3t", token=831,
        memory_url="redis://user:s3cr3t@redis:6379/0", nested={"password": "s3cr3t"},
    )  # fmt: skip
    log.info("dialing redis://:s3cr3t@redis:6379")
    try:
        raise ValueError("redis://:s3cr3t@redis")
    except ValueError as error:
        unexpected(log, "here", error)
        log.exception("there")
    text = out.getvalue()
    assert "s3cr3t" not in text
    assert "831" in text
    assert len(text.splitlines()) == 4


def test_level__hides_what_is_below_it(out: io.StringIO) -> None:
    configure("warning", "text", stream=out)
    event(logging.getLogger("dss.raft"), "quiet")
    event(logging.getLogger("dss.raft"), "loud", level=logging.ERROR)
    assert "quiet" not in out.getvalue()
    assert "loud" in out.getvalue()
