"""`dss cache …`. What must not live here: coherence; a line's state is what a node says it is."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from dss.cli.connect import nodes
from dss.cli.http import query, segment
from dss.cli.output import Output


def get(args: argparse.Namespace) -> int:
    """Print the value as it is; with --json its version too. A missing key is exit code 1."""
    answer = nodes(args).ask("cache", "GET", _path(args.key))
    if not args.json:
        Output(False).raw(answer.body)
        return 0
    text = answer.body.decode("utf-8", "replace")
    version = answer.headers.get("etag", "").strip('"')
    kind = answer.headers.get("content-type")
    Output(True).show({"key": args.key, "value": text, "version": version, "content_type": kind})
    return 0


def put(args: argparse.Namespace) -> int:
    raw = sys.stdin.buffer.read() if args.value == "-" else args.value.encode()
    ttl_ms = None if args.ttl is None else round(args.ttl * 1000)
    answer = nodes(args).ask(
        "cache",
        "PUT",
        _path(args.key) + query(ttl_ms=ttl_ms),
        raw=raw,
        headers={"Content-Type": "text/plain; charset=utf-8"},
    )
    version = answer.headers.get("etag", "").strip('"')
    result = {"key": args.key, "version": version}
    Output(args.json).show(result, f'"{args.key}" written, version {version}')
    return 0


def delete(args: argparse.Namespace) -> int:
    nodes(args).ask("cache", "DELETE", _path(args.key))
    Output(args.json).show({"key": args.key, "deleted": True}, f'"{args.key}" deleted')
    return 0


def line(args: argparse.Namespace) -> int:
    """The line as every reachable cache node sees it: that is what MESI is about."""
    client, path = nodes(args), _path(args.key) + "/line"
    found = client.ask_each("cache", path) or [client.ask("cache", "GET", path).json()]
    lines = sorted({view["node"]: view for view in found}.values(), key=_node)
    names = ("node", "state", "version", "home", "owner", "sharers", "phase", "epoch")
    rows = [[view.get(name) for name in names] for view in lines]
    Output(args.json).table({"key": args.key, "nodes": lines}, names, rows, "no cache node answers")
    return 0


def stats(args: argparse.Namespace) -> int:
    """Each reachable cache node's counters."""
    client, path = nodes(args), "/v1/cache:stats"
    found = client.ask_each("cache", path) or [client.ask("cache", "GET", path).json()]
    views = sorted({view["node"]: view for view in found}.values(), key=_node)
    counters = [name for name in views[0] if name != "node"]
    rows = [[name, *(view.get(name) for view in views)] for name in counters]
    header = ["", *(view["node"] for view in views)]
    Output(args.json).table({"nodes": views}, header, rows, "no counters yet")
    return 0


def _node(view: dict[str, Any]) -> str:
    return str(view["node"])


def _path(key: str) -> str:
    return f"/v1/cache/{segment(key)}"
