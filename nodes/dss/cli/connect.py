"""From the command line and the environment to `Nodes`: endpoints, token, Host header.

What must not live here: requests (http), arguments (main).
"""

from __future__ import annotations

import argparse
import os

from dss.cli.http import DEFAULT_ENDPOINTS, Nodes


def nodes(args: argparse.Namespace) -> Nodes:
    """The nodes to ask: --endpoints, else DSS_ENDPOINTS, else the local ports."""
    given = args.endpoints or os.environ.get("DSS_ENDPOINTS", "")
    endpoints = [part.strip() for part in given.split(",") if part.strip()]
    return Nodes(
        endpoints or DEFAULT_ENDPOINTS,
        token=os.environ.get("DSS_TOKEN", ""),
        host_header=os.environ.get("DSS_HOST_HEADER", ""),
    )
