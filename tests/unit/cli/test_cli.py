"""The `dss` command against a stand-in node: paths, bodies, exit codes, what is printed."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from dss.cli.http import Nodes
from dss.cli.live import LiveOutput
from dss.cli.main import main
from dss.cli.output import duration, style_of

Reply = tuple[int, Any]


class Node(ThreadingHTTPServer):
    """Answers from a table of (method, path pattern) -> (status, body) and remembers requests."""

    def __init__(self, replies: dict[str, Reply | Callable[[Any], Reply]]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.replies = replies
        self.requests: list[tuple[str, Any]] = []
        self.daemon_threads = True
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Node

    def _answer(self) -> None:
        size = int(self.headers.get("Content-Length") or 0)
        raw = self.rfile.read(size)
        is_json = self.headers.get("Content-Type") == "application/json"
        body = json.loads(raw) if raw and is_json else raw or None
        line = f"{self.command} {self.path}"
        self.server.requests.append((line, body))
        for pattern, reply in self.server.replies.items():
            if re.fullmatch(pattern, line):
                status, result = reply(body) if callable(reply) else reply
                break
        else:
            status, result = 421, {"code": "wrong_role", "detail": "not mine"}
        data = result if isinstance(result, bytes) else json.dumps(result).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", '"7"')
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PUT = do_DELETE = _answer

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def serve() -> Iterator[Callable[..., Node]]:
    nodes: list[Node] = []

    def start(replies: dict[str, Any]) -> Node:
        nodes.append(Node(replies))
        return nodes[-1]

    yield start
    for node in nodes:
        node.shutdown()
        node.server_close()


LOCKS: dict[str, Any] = {
    "POST /v1/sessions": (201, {"session": "s1", "ttl_ms": 1000}),
    "POST /v1/sessions/s1/keepalive": (200, {"session": "s1", "ttl_ms": 1000}),
    "DELETE /v1/sessions/s1": (204, b""),
    "POST /v1/locks/a%2Fb/acquire": (
        200,
        {"token": 7, "mode": "exclusive", "expires_in_ms": 1000},
    ),
}


def dss(node: Node, *arguments: str) -> int:
    words = list(arguments)
    cut = words.index("--") if "--" in words else len(words)
    return main([*words[:cut], "--endpoints", node.url, *words[cut:]])


def test_node_that_hangs__is_given_up_soon_and_asked_last_from_then_on(
    serve: Callable[..., Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dss.cli.http._READ_ONLY_S", 0.2)
    node = serve({"GET .*": (200, {"nodes": []})})
    with socket.create_server(("127.0.0.1", 0)) as hangs:
        hangs.settimeout(1)
        client = Nodes([f"http://127.0.0.1:{hangs.getsockname()[1]}", node.url])
        began = time.monotonic()
        for role, path in (("any", "/v1/cluster"), ("lock", "/v1/locks"), ("cache", "/v1/cache")):
            assert client.ask(role, "GET", path).endpoint == node.url
        assert time.monotonic() - began < 2
        hangs.accept()[0].close()
        hangs.settimeout(0.05)
        with pytest.raises(TimeoutError):
            hangs.accept()


def test_run_without_dashes__says_where_the_command_stands(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["lock", "run", "demo", "echo", "hi"])
    assert ended.value.code == 2
    assert "dss lock run demo -- echo hi" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["lock", "run", "demo", "--waits", "5", "--", "echo", "hi"])
    assert "unrecognized arguments: --waits 5" in capsys.readouterr().err


def test_acquire__makes_a_session_and_encodes_the_name(
    serve: Callable[..., Node], capsys: pytest.CaptureFixture[str]
) -> None:
    node = serve(LOCKS)
    assert dss(node, "lock", "acquire", "a/b", "--json", "--wait", "2", "--ttl", "1") == 0
    assert json.loads(capsys.readouterr().out) == {
        "name": "a/b", "session": "s1", "token": 7, "mode": "exclusive", "expires_in_ms": 1000,
    }  # fmt: skip
    (_, opened), (_, acquired) = node.requests
    assert opened["ttl_ms"] == 1000
    assert opened["name"].endswith(f":{os.getpid()}")
    assert acquired["session"] == "s1"
    assert 1900 <= acquired["wait_ms"] <= 2000


def test_lock_show__holders_then_waiters(
    serve: Callable[..., Node], capsys: pytest.CaptureFixture[str]
) -> None:
    lock = {
        "name": "a", "state": "held", "mode": "exclusive", "token": 7, "waiting": 3,
        "holders": [
            {"session": "s1", "owner": "", "label": "w-1", "token": 7, "held_ms": 12_000}
        ],
        "waiters": [
            {"session": "s2", "owner": "", "label": "w-2", "mode": "shared", "position": 1,
             "waiting_ms": 300, "gives_up_in_ms": 1}
        ],
    }  # fmt: skip
    node = serve({"GET /v1/locks/a": (200, lock)})
    assert dss(node, "lock", "show", "a") == 0
    _, holds, waits, more = capsys.readouterr().out.splitlines()
    assert holds.split() == ["holds", "w-1", "s1", "exclusive", "7", "12", "s"]
    assert waits.split() == ["waits,", "1.", "w-2", "s2", "shared", "-", "300", "ms"]
    assert more == "and 2 more that wait"


def test_lock_ls__reads_every_page(
    serve: Callable[..., Node], capsys: pytest.CaptureFixture[str]
) -> None:
    item = {"name": "a", "mode": "exclusive", "token": 7, "holder": "w-1", "holders": 2,
            "held_ms": 500, "waiting": 1}  # fmt: skip
    node = serve(
        {
            r"GET /v1/locks\?limit=1000": (200, {"items": [item], "next": "a"}),
            r"GET /v1/locks\?limit=1000&cursor=a": (200, {"items": [item], "next": None}),
        }
    )
    assert dss(node, "lock", "ls") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert "w-1 and 1 more" in lines[1]


def test_lock_busy__exit_75_and_the_session_is_ended(
    serve: Callable[..., Node], capsys: pytest.CaptureFixture[str]
) -> None:
    busy = (409, {"code": "lock_timeout", "detail": 'lock "a/b": not granted within 0 s'})
    node = serve({**LOCKS, "POST /v1/locks/a%2Fb/acquire": busy})
    assert dss(node, "lock", "acquire", "a/b") == 75
    assert capsys.readouterr().err == 'lock "a/b": not granted within 0 s\n'
    assert node.requests[-1][0] == "DELETE /v1/sessions/s1"


@pytest.mark.parametrize("session", ["0123abcd", "0123abcd…"])
@pytest.mark.parametrize("verb", ["release", "acquire"])
def test_handle_for_a_session__is_said_to_be_one_and_not_to_have_ended(
    serve: Callable[..., Node], capsys: pytest.CaptureFixture[str], session: str, verb: str
) -> None:
    ended = {"code": "session_expired", "detail": "session 0123abcd… has ended"}
    node = serve({f"POST /v1/locks/a/{verb}": (409, ended)})
    token = ["--token", "7"] if verb == "release" else []
    assert dss(node, "lock", verb, "a", "--session", session, *token) == 2
    said = capsys.readouterr().err
    assert f"--session {session} is a handle, the first 8 characters" in said
    assert "ended" not in said
    assert dss(node, "lock", verb, "a", "--session", "0123abcd" * 4, *token) == 1
    assert "has ended" in capsys.readouterr().err


def test_other_roles_node__the_next_endpoint_is_asked(
    serve: Callable[..., Node], capsys: pytest.CaptureFixture[str]
) -> None:
    other, right = serve({}), serve({"GET /v1/ring": (200, {"epoch": 3, "nodes": []})})
    both = f"http://127.0.0.1:1,{other.url},{right.url}"
    assert main(["ring", "--endpoints", both, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["epoch"] == 3


def test_only_a_lock_node_known__the_cluster_list_names_the_queue_node(
    serve: Callable[..., Node], capsys: pytest.CaptureFixture[str]
) -> None:
    queue = serve({"GET /v1/queues/jobs/stats": (200, {"ready": 4})})
    listed = {"nodes": [{"id": "queue-1", "role": "queue", "url": queue.url}]}
    lock = serve({"GET /v1/cluster": (200, listed)})
    assert dss(lock, "queue", "stats", "jobs", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"ready": 4}


def test_nobody_there__exit_69_with_the_next_step(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lock", "ls", "--endpoints", "http://127.0.0.1:1"]) == 69
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "connection refused" in error
    assert "dss up" in error


def test_no_quorum__exit_75(serve: Callable[..., Node], capsys: pytest.CaptureFixture[str]) -> None:
    answer = (503, {"code": "no_quorum", "detail": "no leader", "retry_after_ms": 300})
    assert dss(serve({"GET /v1/locks.*": answer}), "lock", "ls", "--json") == 75
    assert json.loads(capsys.readouterr().err) == {"code": "no_quorum", "message": "no leader"}


@pytest.mark.parametrize(
    "arguments",
    [
        ["lock"],
        ["lock", "acquire"],
        ["up", "--lock", "0"],
        ["up", "--base-port", "99999"],
        ["lock", "run", "x", "--ttl", "soon"],
        ["lock", "run", "x"],
        ["ring", "--endpoints", "localhost:8001"],
    ],
)
def test_wrong_usage__exit_2_and_one_line(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code: object = main(arguments)
    except SystemExit as exit_:
        code = exit_.code
    assert code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_run__token_in_the_environment_and_the_commands_exit_code(
    serve: Callable[..., Node], capfd: pytest.CaptureFixture[str]
) -> None:
    node = serve(LOCKS)
    code = dss(node, "lock", "run", "a/b", "--", "sh", "-c", "echo $DSS_LOCK_TOKEN; exit 5")
    assert code == 5
    assert capfd.readouterr().out == "7\n"
    assert node.requests[-1][0] == "DELETE /v1/sessions/s1"


def test_run__keeps_the_session_alive(serve: Callable[..., Node]) -> None:
    node = serve(LOCKS)
    assert dss(node, "lock", "run", "a/b", "--ttl", "0.3", "--", "sleep", "0.7") == 0
    renewals = [line for line, _ in node.requests if line.endswith("/keepalive")]
    assert len(renewals) >= 3


def test_session_ends_under_run__command_stopped_exit_75(
    serve: Callable[..., Node], capsys: pytest.CaptureFixture[str]
) -> None:
    gone = (404, {"code": "not_found", "detail": "session s1 has ended"})
    node = serve({**LOCKS, "POST /v1/sessions/s1/keepalive": gone})
    began = time.monotonic()
    assert dss(node, "lock", "run", "a/b", "--ttl", "0.3", "--", "sleep", "30") == 75
    assert time.monotonic() - began < 5
    assert (
        'lock "a/b" was lost (session s1 has ended): sleep was stopped' in capsys.readouterr().err
    )


def test_no_quorum_under_run__command_stopped_when_the_ttl_is_over(
    serve: Callable[..., Node], capsys: pytest.CaptureFixture[str]
) -> None:
    lost = (503, {"code": "no_quorum", "detail": "no leader"})
    node = serve({**LOCKS, "POST /v1/sessions/s1/keepalive": lost})
    assert dss(node, "lock", "run", "a/b", "--ttl", "0.5", "--", "sleep", "30") == 75
    assert "no lock node has confirmed its session in time" in capsys.readouterr().err


def test_command_missing__exit_127_and_the_lock_is_given_back(
    serve: Callable[..., Node], capsys: pytest.CaptureFixture[str]
) -> None:
    node = serve(LOCKS)
    assert dss(node, "lock", "run", "a/b", "--", "/no/such/command") == 127
    assert "command not found" in capsys.readouterr().err
    assert node.requests[-1][0] == "DELETE /v1/sessions/s1"


def test_send_to_a_new_queue__makes_it_first(
    serve: Callable[..., Node], capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[bool] = []

    def create(_: Any) -> Reply:
        made.append(True)
        return 201, {"name": "jobs"}

    def send(_: Any) -> Reply:
        return (201, {"id": "0-1"}) if made else (404, {"code": "not_found", "detail": "no"})

    node = serve({"PUT /v1/queues/jobs": create, "POST /v1/queues/jobs/messages": send})
    assert dss(node, "queue", "send", "jobs", '{"id": 1}', "plain text", "--key", "k") == 0
    assert capsys.readouterr().out == "sent 0-1\nsent 0-1\n"
    assert node.requests[-2][1] == {"body": {"id": 1}, "key": "k"}
    assert node.requests[-1][1] == {"body": "plain text", "key": "k"}


def test_receive_and_ack__by_receipt(
    serve: Callable[..., Node], capsys: pytest.CaptureFixture[str]
) -> None:
    message = {"id": "0-1", "receipt": "r1", "body": {"id": 1}, "deliveries": 1, "token": 5}
    node = serve(
        {
            "POST /v1/queues/jobs/receive": (200, {"messages": [message]}),
            "POST /v1/queues/jobs/ack": (200, {"results": [{"ok": True}]}),
        }
    )
    assert dss(node, "queue", "receive", "jobs", "--max", "5", "--ack") == 0
    header, row = capsys.readouterr().out.splitlines()
    assert header.split() == ["id", "deliveries", "body", "receipt"]
    assert row.split() == ["0-1", "1", '{"id":', "1}", "r1"]
    assert node.requests[-1][1] == {"receipts": ["r1"]}


def test_stale_receipt__exit_1_with_the_nodes_words(
    serve: Callable[..., Node], capsys: pytest.CaptureFixture[str]
) -> None:
    stale = {"results": [{"ok": False, "code": "stale_receipt", "message": "receipt r1 is stale"}]}
    node = serve({"POST /v1/queues/jobs/ack": (200, stale)})
    assert dss(node, "queue", "ack", "jobs", "r1") == 1
    assert "receipt r1 is stale" in capsys.readouterr().err


def test_cache_put_and_get__raw_bytes_and_version(
    serve: Callable[..., Node], capfd: pytest.CaptureFixture[str]
) -> None:
    node = serve({r"PUT /v1/cache/k\?ttl_ms=1500": (200, {}), "GET /v1/cache/k": (200, b"42")})
    assert dss(node, "cache", "put", "k", "42", "--ttl", "1.5") == 0
    assert node.requests[0][1] == b"42"
    assert dss(node, "cache", "get", "k") == 0
    assert capfd.readouterr().out == '"k" written, version 7\n42'


def test_cache_line__as_every_node_sees_it(
    serve: Callable[..., Node], capsys: pytest.CaptureFixture[str]
) -> None:
    def view(node: str, state: str) -> Reply:
        return 200, {"node": node, "state": state, "version": 2, "home": "cache-1",
                     "owner": None, "sharers": ["cache-1", "cache-2"], "epoch": 1}  # fmt: skip

    other = serve({"GET /v1/cache/k/line": view("cache-1", "S")})
    replies: dict[str, Any] = {"GET /v1/cache/k/line": view("cache-2", "I")}
    asked = serve(replies)
    nodes = [{"id": n, "role": "cache", "url": u} for n, u in
             (("cache-1", other.url), ("cache-2", asked.url))]  # fmt: skip
    replies["GET /v1/cluster"] = (200, {"nodes": nodes})
    assert dss(asked, "cache", "line", "k") == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[1][:4] == ["cache-1", "S", "2", "cache-1"]
    assert rows[2][:4] == ["cache-2", "I", "2", "cache-1"]


def test_not_found__exit_1(serve: Callable[..., Node], capsys: pytest.CaptureFixture[str]) -> None:
    node = serve({"GET /v1/cache/k": (404, {"code": "not_found", "detail": 'no key "k"'})})
    assert dss(node, "cache", "get", "k") == 1
    assert capsys.readouterr().err == 'no key "k"\n'


def test_status__says_what_is_wrong_first(
    serve: Callable[..., Node], capsys: pytest.CaptureFixture[str]
) -> None:
    replies: dict[str, Any] = {
        "GET /readyz": (200, {"ready": True}),
        "GET /v1/raft/status": (
            200,
            {"node_id": "lock-1", "groups": [{"group_id": 1, "role": "leader", "term": 4}]},
        ),
    }
    node = serve(replies)
    down = {"id": "lock-2", "role": "lock", "url": "http://127.0.0.1:1", "up": False,
            "reason": "connection refused"}  # fmt: skip
    me = {"id": "lock-1", "role": "lock", "url": node.url, "up": True}
    replies["GET /v1/cluster"] = (200, {"node_id": "lock-1", "nodes": [me, down]})
    assert dss(node, "status") == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "lock-2: does not answer (connection refused)"
    assert lines[1] == "leader lock-1, term 4"
    assert lines[3].split() == ["lock-1", "lock", node.url, "leader", "1"]


def test_status_watch__a_document_a_line_until_interrupted(
    serve: Callable[..., Node],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    node = serve({"GET /v1/cluster": (200, {"node_id": "x", "nodes": []})})
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr("dss.cli.cluster.time.sleep", pause)
    assert dss(node, "status", "--watch", "0.5", "--json") == 130
    documents = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(documents) == 2
    assert "no leader" in documents[0]["problems"][0]
    assert pauses == [0.5, 0.5]


def test_live_output__draws_lines_and_table(capsys: pytest.CaptureFixture[str]) -> None:
    with LiveOutput() as live:
        live.update(["leader lock-1, term 4"], ("node", "state"), [("lock-1", "leader")])
    shown = capsys.readouterr().out
    assert "leader lock-1, term 4" in shown
    assert re.search(r"lock-1 +leader", shown)


def test_lock_explain_history_break__what_the_nodes_say(
    serve: Callable[..., Node], capsys: pytest.CaptureFixture[str]
) -> None:
    held = {"token": 7, "mode": "exclusive", "holder": "w-1", "granted_ago_ms": 5_000,
            "held_ms": 5_000, "ended_ago_ms": None, "ended": None}  # fmt: skip
    node = serve({
        "GET /v1/locks/a%2Fb/explain": (200, {"name": "a/b", "summary": ["one", "two"]}),
        "GET /v1/locks/a%2Fb/history": (200, {"name": "a/b", "items": [held]}),
        r"DELETE /v1/locks/a%2Fb\?reason=stuck": (
            200, {"broken": [{"holder": "w-1", "token": 7, "held_ms": 5_000}]}
        ),
        "DELETE /v1/locks/free": (200, {"broken": []}),
    })  # fmt: skip
    assert dss(node, "lock", "explain", "a/b") == 0
    assert capsys.readouterr().out == 'lock "a/b" is one\ntwo\n'
    assert dss(node, "lock", "history", "a/b") == 0
    assert re.split("  +", capsys.readouterr().out.splitlines()[1]) == [
        "7", "w-1", "exclusive", "5 s ago", "5 s", "held now",
    ]  # fmt: skip
    assert dss(node, "lock", "break", "a/b", "--reason", "stuck") == 0
    assert capsys.readouterr().out == (
        'lock "a/b" was taken from w-1, who held it for 5 s with token 7\n'
    )
    assert dss(node, "lock", "break", "free") == 0
    assert capsys.readouterr().out == 'nobody held lock "free"\n'
    for verb in ("explain", "history"):
        assert dss(node, "lock", verb, "a/b", "--json") == 0
        assert json.loads(capsys.readouterr().out)["name"] == "a/b"


def ask_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wait is asked for in pieces of 0.3 s."""
    monkeypatch.setattr("dss.cli.taking.WAIT_MS_MAX", 300)
    monkeypatch.setattr("dss.cli.taking._ASK_AGAIN_S", 0.1)


def test_long_acquire__asks_again_in_time_and_keeps_one_grant(
    serve: Callable[..., Node], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The node answers 200 twice: it was granted between the two questions."""
    ask_often(monkeypatch)
    asked: list[Any] = []
    granted: list[Any] = []
    twice = threading.Event()

    def acquire(body: Any) -> Reply:
        asked.append(body)
        if len(asked) < 3:
            time.sleep(0.25)
            return 409, {"code": "superseded", "detail": "a newer request"}
        granted.append(body)
        if len(granted) == 2:
            twice.set()
        twice.wait(5)
        return LOCKS["POST /v1/locks/a%2Fb/acquire"]

    released = "POST /v1/locks/a%2Fb/release"
    node = serve({**LOCKS, "POST /v1/locks/a%2Fb/acquire": acquire, released: (200, {})})
    assert dss(node, "lock", "acquire", "a/b", "--json", "--wait", "9", "--ttl", "60") == 0
    assert json.loads(capsys.readouterr().out)["token"] == 7
    assert len(granted) >= 2
    assert {body["session"] for body in asked} == {"s1"}
    extra = [body for line, body in node.requests if line == released]
    assert extra == [{"session": "s1", "token": 7}] * (len(granted) - 1)


def test_long_acquire__the_refusal_that_counts_is_said(
    serve: Callable[..., Node], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ask_often(monkeypatch)
    asked: list[Any] = []

    def acquire(body: Any) -> Reply:
        asked.append(body)
        time.sleep(0.25)
        last = body["wait_ms"] < 300
        return 409, {"code": "lock_timeout" if last else "superseded", "detail": f"{last}"}

    node = serve({**LOCKS, "POST /v1/locks/a%2Fb/acquire": acquire})
    assert dss(node, "lock", "acquire", "a/b", "--wait", "0.5", "--ttl", "60") == 75
    assert "True" in capsys.readouterr().err
    assert node.requests[-1][0] == "DELETE /v1/sessions/s1"


def test_colours__for_what_a_reader_looks_for() -> None:
    cells = ("leader", "leads 9 of 32 partitions", "waits, 1.", "does not answer", "follower")
    assert [style_of(cell) for cell in cells] == ["green", "green", "yellow", "red", ""]


def test_config_check__every_problem_and_exit_78(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in list(os.environ):
        monkeypatch.delenv(name)
    monkeypatch.setenv("RAFT_PEERS", "[{")
    assert main(["config", "check"]) == 78
    error = capsys.readouterr().err
    assert "RAFT_PEERS line 1, column" in error
    assert "NODE_ID is not set" in error


def test_env_file_missing__one_line_exit_78(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "check", "--env-file", "/no/such/.env"]) == 78
    assert capsys.readouterr().err.count("\n") == 1


def test_dss_node__loads_neither_tables_nor_the_http_client() -> None:
    """What every node process would pay for, eight times."""
    code = (
        "import sys; sys.argv = ['dss', 'node']; import dss.cli.main, dss.cli.processes; "
        "print([m for m in ('rich', 'urllib.request', 'locust') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_duration__in_words_for_people() -> None:
    shown = [duration(ms) for ms in (None, 350, 2500, 12_000, 240_000, 7_200_000)]
    assert shown == ["-", "350 ms", "2.5 s", "12 s", "4 min", "2 h"]
