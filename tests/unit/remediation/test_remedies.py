"""What `dss doctor --fix` refuses to touch, and how a backoff is asked for."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from dss.cli import remedies
from dss.cli.http import Nodes, Problem
from dss.cli.remedies import Remedies
from dss.remediation import Action

STUB = """
import http.server, json, os, sys
class Stub(http.server.BaseHTTPRequestHandler):
    def answer(self, status, body):
        body = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def do_GET(self):
        self.answer(200, {"node_id": os.environ["NODE_ID"], "boot_id": os.environ["BOOT"]})
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        asked["token"] = self.headers.get("Authorization")
        if asked["token"] == "Bearer client":
            self.answer(403, {"code": "forbidden", "detail": "this takes an admin's"})
        elif asked["boot_id"] != os.environ["BOOT"]:
            self.answer(409, {"code": "boot_mismatch", "detail": "has been restarted since"})
        else:
            print(json.dumps(asked), flush=True)
            self.answer(200, asked)
    def log_message(self, *_):
        pass
server = http.server.HTTPServer(("127.0.0.1", 0), Stub)
print(server.server_port, flush=True)
server.serve_forever()
"""


class Stub:
    """A process that answers like lock-1, with the environment of a node."""

    def __init__(self, node_id: str = "lock-1", boot: str = "b1") -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", STUB],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "NODE_ID": node_id, "BOOT": boot},
        )
        assert self.process.stdout is not None
        self.stdout = self.process.stdout
        self.url = f"http://127.0.0.1:{int(self.stdout.readline())}"

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        self.stdout.close()


@pytest.fixture
def stub() -> Iterator[Callable[..., Stub]]:
    made: list[Stub] = []

    def make(*args: str) -> Stub:
        made.append(Stub(*args))
        return made[-1]

    yield make
    for each in made:
        each.stop()


@pytest.fixture(autouse=True)
def no_docker(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """No container is ever found here; the words that docker was given."""
    asked: list[tuple[str, ...]] = []

    def docker(*words: str) -> str:
        asked.append(words)
        return ""

    monkeypatch.setattr(remedies, "_docker", docker)
    monkeypatch.setattr("shutil.which", lambda name: f"/bin/{name}")
    return asked


def carry_out(kind: str, url: str, boot_id: str = "b1", token: str = "t") -> str:
    action = Action(kind=kind, group_id=1, member="lock-1", boot_id=boot_id)  # type: ignore[arg-type]
    return Remedies(Nodes([url], token=token), lambda text: None).carry_out(action, url)


def test_backoff__asks_the_diagnosed_process_with_the_token(stub: Callable[..., Stub]) -> None:
    node = stub()
    assert carry_out("backoff", node.url) == "done"
    assert json.loads(node.stdout.readline()) == {
        "group_id": 1, "boot_id": "b1", "token": "Bearer t",
    }  # fmt: skip


def test_backoff_of_another_process__refused_in_its_words(stub: Callable[..., Stub]) -> None:
    assert carry_out("backoff", stub().url, "b0") == "has been restarted since"


def test_token_that_does_not_allow_it__ends_the_command(stub: Callable[..., Stub]) -> None:
    with pytest.raises(Problem, match="this takes an admin's"):
        carry_out("backoff", stub().url, token="client")


def test_backoff_of_nobody__said(stub: Callable[..., Stub]) -> None:
    node = stub()
    node.stop()
    assert carry_out("backoff", node.url) == "lock-1 does not answer"


def test_restart_on_another_machine__refused() -> None:
    outcome = carry_out("restart", "http://192.0.2.1:8001")
    assert outcome == (
        "lock-1 at http://192.0.2.1:8001 is not on this machine: restart it there by hand"
    )


def test_restart_of_a_process_that_is_another_node__not_touched(
    stub: Callable[..., Stub], no_docker: list[tuple[str, ...]]
) -> None:
    node = stub("lock-2")
    outcome = carry_out("restart", node.url)
    assert outcome.startswith("neither a process nor a container of this user has")
    assert node.process.poll() is None
    [words] = no_docker
    assert words[0] == "ps"
    assert "label=com.docker.compose.service=lock-1" in words
    assert f"publish={node.url.rsplit(':', 1)[1]}" in words


def test_restart_of_a_process_restarted_since__not_touched(stub: Callable[..., Stub]) -> None:
    node = stub("lock-1", "b2")
    assert carry_out("restart", node.url) == "lock-1 has been restarted since it was diagnosed"
    assert node.process.poll() is None


def test_restart_of_a_hung_process__not_touched(stub: Callable[..., Stub]) -> None:
    node = stub()
    os.kill(node.process.pid, signal.SIGSTOP)
    outcome = carry_out("restart", node.url)
    assert outcome == "lock-1 does not answer: what runs there may be another process"
    os.kill(node.process.pid, signal.SIGCONT)
    assert node.process.poll() is None


def test_restart_of_the_node__ended_and_started_as_before(
    stub: Callable[..., Stub], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remedies, "_OTHER_SUPERVISOR_S", 0.3)
    monkeypatch.setattr(remedies, "_RETURN_S", 0.3)
    node = stub()
    started: list[remedies._Process] = []
    monkeypatch.setattr(remedies, "_start", started.append)
    outcome = carry_out("restart", node.url)
    assert outcome == "lock-1 was stopped and does not answer again: see its log"
    assert node.process.wait(1) == -signal.SIGTERM
    [process] = started
    assert process.pid == node.process.pid
    assert process.argv == [sys.executable, "-c", STUB]
    assert process.env["NODE_ID"] == "lock-1"
    assert not process.supervised


def test_restart_of_one_container__that_one(
    stub: Callable[..., Stub], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The port belongs to a process that is no node, as with docker's own proxy."""
    proxy = stub("proxy", "b1")
    done: list[tuple[str, ...]] = []

    def docker(*words: str) -> str:
        done.append(words)
        return "dss-lock-1-1\n" if words[0] == "ps" else ""

    monkeypatch.setattr(remedies, "_docker", docker)
    monkeypatch.setattr(remedies, "_RETURN_S", 0.1)
    carry_out("restart", proxy.url)
    assert done[-1] == ("restart", "dss-lock-1-1")
    assert proxy.process.poll() is None


def test_two_containers_on_one_port__none_is_touched(
    stub: Callable[..., Stub], monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[tuple[str, ...]] = []

    def docker(*words: str) -> str:
        done.append(words)
        return "a\nb\n"

    monkeypatch.setattr(remedies, "_docker", docker)
    outcome = carry_out("restart", stub("proxy").url)
    assert outcome.startswith("neither")
    assert [words[0] for words in done] == ["ps"]
