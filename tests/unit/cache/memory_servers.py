"""A real Redis for tests: on a free port, in a temporary folder, durable as DSS wants it."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from free_ports import free_port


@contextmanager
def redis_server(folder: Path, *settings: str, port: int = 0) -> Iterator[int]:
    """Yields the port. Skips the test, saying so, when redis-server is not installed."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("redis-server is not installed (apt-get install redis-server)")
    if port == 0:
        port = free_port()
    wanted = settings or ("--appendonly", "yes", "--appendfsync", "always")
    process = subprocess.Popen(
        [program, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), *wanted],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.5):
                break
            time.sleep(0.02)
        yield port
    finally:
        process.terminate()
        process.wait(10)
