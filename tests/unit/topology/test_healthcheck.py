"""The containers' health check against a real socket."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "docker/healthcheck.py"


def check(port: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", "-S", str(SCRIPT), str(port)]
    return subprocess.run(command, capture_output=True, text=True, timeout=20)


@pytest.mark.parametrize(
    ("answer", "code", "said"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n{}", 0, ""),
        (b"HTTP/1.1 503 Service Unavailable\r\nA: b\r\n\r\nno quorum", 1, "/readyz: no quorum\n"),
        (b"HTTP/1.1 2000 OK\r\n\r\n", 1, "/readyz: \n"),
        (b"", 1, "/readyz: \n"),
        (b"\xff", 1, "/readyz: \ufffd\n"),
    ],
)
def test_answer__decides_health_and_says_why(answer: bytes, code: int, said: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                assert connection.recv(4096).startswith(b"GET /readyz HTTP/1.0\r\n")
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        result = check(server.getsockname()[1])
        thread.join()
    assert (result.returncode, result.stderr) == (code, said)


def test_nobody_listens__unhealthy_with_the_reason() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    result = check(port)
    assert result.returncode == 1
    assert "refused" in result.stderr
