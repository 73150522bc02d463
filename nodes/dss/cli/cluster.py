"""`dss status`, `dss ring`, `dss partitions`: the cluster on one screen, what is wrong first.

What must not live here: judging what a node did not say.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from dss.base.errors import EXIT_FAILED
from dss.base.ids import FIRST_PARTITION_GROUP, LOCK_GROUP
from dss.base.levels import BASE_LEVEL
from dss.cli.connect import nodes
from dss.cli.http import CliError, Nodes, Problem
from dss.cli.live import LiveOutput
from dss.cli.output import Output


def status(args: argparse.Namespace) -> int:
    """All nodes; exit code 1 when something is wrong."""
    if args.watch:
        return _watch(args)
    summary = _look_at_all(nodes(args))
    _print(Output(args.json), summary)
    return EXIT_FAILED if summary["problems"] else 0


def _watch(args: argparse.Namespace) -> int:
    """Again and again until Ctrl-C: in place on a terminal, else one after another."""
    live = None if args.json or not sys.stdout.isatty() else LiveOutput()
    with live or contextlib.nullcontext():
        while True:
            try:
                summary = _look_at_all(nodes(args))
            except CliError as error:  # nobody answers now: that is what there is to see
                summary = {"problems": [str(error)], "leader": None, "term": None, "nodes": []}
            if args.json:
                print(json.dumps(summary, ensure_ascii=False), flush=True)
            elif live is not None:
                live.update(_lines(summary), _HEADER, _rows(summary))
            else:
                _print(Output(False), summary)
                print(flush=True)
            time.sleep(args.watch)


def _look_at_all(client: Nodes) -> dict[str, Any]:
    cluster = client.ask("any", "GET", "/v1/cluster").json()
    with ThreadPoolExecutor(max_workers=8) as pool:
        seen = dict(pool.map(lambda url: _look(client, url), _urls(client)))
    views = [_merge(node, seen.get(node["id"])) for node in cluster["nodes"]]
    wrong = [f"{view['id']}: {view['problem']}" for view in views if view["problem"]]
    leader = next((v for v in views if v["state"] == "leader"), None)
    if leader is None:
        wrong.insert(0, "no leader among the lock nodes that answer: locks are refused with 503")
    return {
        "cluster_id": cluster.get("cluster_id"),
        "leader": leader and leader["id"],
        "term": leader and leader["term"],
        "problems": wrong,
        "nodes": views,
    }


_HEADER = ("node", "role", "url", "state", "level")


def _lines(summary: dict[str, Any]) -> list[str]:
    """What is wrong, then who leads."""
    lines = list(summary["problems"])
    if summary["leader"] is not None:
        lines.append(f"leader {summary['leader']}, term {summary['term']}")
    return lines


def _rows(summary: dict[str, Any]) -> list[tuple[str, ...]]:
    return [
        (v["id"], v["role"], v["url"], v["problem"] or v["state"], _level(v))
        for v in summary["nodes"]
    ]


def _level(view: dict[str, Any]) -> str:
    """The feature level of its groups, and what it could go up to: `1 of 2`."""
    level, supports = view["feature_level"], view["supports_level"]
    if level is None:
        return ""
    return str(level) if supports in (None, level) else f"{level} of {supports}"


def _print(output: Output, summary: dict[str, Any]) -> None:
    if not output.as_json:
        for line in _lines(summary):
            output.show(None, line)
    output.table(summary, _HEADER, _rows(summary), "no nodes listed")


def _urls(client: Nodes) -> list[str]:
    """The endpoints and what the cluster lists: from outside only one kind may be reachable."""
    urls = client.endpoints + [node["url"] for node in client.cluster()]
    return list(dict.fromkeys(urls))


def _look(client: Nodes, url: str) -> tuple[str, dict[str, Any] | None]:
    """(node id, what it says about itself); ("", None) when nobody answers there."""
    try:
        answer = client.ask_one(url, "/v1/cluster")
        if answer is None:
            return "", None
        node_id = str(answer.json()["node_id"])
        found: dict[str, Any] = {"url": url, "groups": [], "problem": "", "supports": None}
        try:
            client.ask_one(url, "/readyz")
        except Problem as problem:
            found["problem"] = str(problem)
            return node_id, found
        answer = client.ask_one(url, "/v1/raft/status")
        if answer is not None:
            raft = answer.json()
            found["groups"] = raft["groups"]
            found["supports"] = raft.get("feature_level")  # a release without levels says none
    except (CliError, KeyError, TypeError):
        return "", None
    return node_id, found


def _merge(node: dict[str, Any], seen: dict[str, Any] | None) -> dict[str, Any]:
    """A node as listed, with what it said itself if it could be asked."""
    view = {"id": node["id"], "role": node["role"], "url": node["url"], "term": None}
    view |= {"feature_level": None, "supports_level": None}
    if seen is None:
        up = bool(node.get("up"))
        reason = f" ({node['reason']})" if node.get("reason") else ""
        problem = "" if up else f"does not answer{reason}"
        return {**view, "state": "linked" if up else "down", "problem": problem}
    view["url"] = seen["url"]
    groups = seen["groups"]
    view["supports_level"] = seen["supports"]
    if groups:
        view["feature_level"] = min(group.get("feature_level", BASE_LEVEL) for group in groups)
    state = "ready"
    if node["role"] == "lock":
        locks = next((g for g in groups if g["group_id"] == LOCK_GROUP), None)
        if locks is not None:
            state, view["term"] = str(locks["role"]), locks["term"]
    elif node["role"] == "queue":
        carried = [g for g in groups if g["group_id"] >= FIRST_PARTITION_GROUP]
        leads = sum(1 for g in carried if g["role"] == "leader")
        state = f"leads {leads} of {len(carried)} partitions"
    return {**view, "state": state, "problem": seen["problem"]}


def ring(args: argparse.Namespace) -> int:
    return _table_of(args, "/v1/ring", "the ring is not placed yet")


def partitions(args: argparse.Namespace) -> int:
    return _table_of(args, "/v1/partitions", "no partitions placed yet")


def _table_of(args: argparse.Namespace, path: str, empty: str) -> int:
    """A document with one list of entries: its other members first, then the list as a table."""
    document = nodes(args).ask("queue", "GET", path).json()
    output = Output(args.json)
    entries: list[dict[str, Any]] = []
    for name, value in document.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            entries = value
        elif not args.json and value is not None and not isinstance(value, (list, dict)):
            output.show(None, f"{name}: {value}")
    names = list(dict.fromkeys(key for entry in entries for key in entry))
    rows = [[entry.get(name) for name in names] for entry in entries]
    output.table(document, names, rows, empty)
    return 0
