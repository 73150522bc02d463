"""Who has a port."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from dss.local.ports import Holder, first_taken, holder_of


def test_port_in_use__is_named_with_its_process() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        taken = first_taken("127.0.0.1", [port])
    assert taken is not None
    assert taken.port == port
    assert taken.holder.pid == os.getpid()
    assert str(taken.holder).endswith(f"(pid {os.getpid()})")


def test_free_ports__nothing_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert first_taken("127.0.0.1", [port]) is None


def test_port_on_every_address__is_found_too() -> None:
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as server:
        taken = first_taken("127.0.0.1", [server.getsockname()[1]])
    assert taken is not None
    assert taken.holder.pid == os.getpid()


def test_no_proc__holder_unknown(tmp_path: Path) -> None:
    assert holder_of(8001, proc=tmp_path) == Holder()
    assert str(Holder()) == "another process"
