"""From the command line and the environment to `Nodes`: endpoints, token, Host header.

What must not live here: requests (http), arguments (main).
"""

from __future__ import annotations

import argparse
import os
import socket
from typing import TYPE_CHECKING

from dss.cli.http import DEFAULT_ENDPOINTS, Nodes

if TYPE_CHECKING:
    from dss.client.sync import Client


def nodes(args: argparse.Namespace) -> Nodes:
    """The nodes to ask: --endpoints, else DSS_ENDPOINTS, else the local ports."""
    return Nodes(
        _endpoints(args) or DEFAULT_ENDPOINTS,
        token=os.environ.get("DSS_TOKEN", ""),
        host_header=os.environ.get("DSS_HOST_HEADER", ""),
    )


def sdk(args: argparse.Namespace) -> Client:
    """The same with the SDK, for what keeps a session; others see it as `host:pid`."""
    from dss.client.sync import connect

    host = os.environ.get("DSS_HOST_HEADER", "")
    return connect(
        _endpoints(args) or None,
        name=session_label(),
        headers={"Host": host} if host else None,
    )


def session_label() -> str:
    """What others see of this command's session."""
    return f"{socket.gethostname()[:64]}:{os.getpid()}"


def _endpoints(args: argparse.Namespace) -> list[str]:
    given = args.endpoints or os.environ.get("DSS_ENDPOINTS", "")
    return [part.strip() for part in given.split(",") if part.strip()]
