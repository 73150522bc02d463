"""`dss queue …`. What must not live here: partitions, leases; the nodes know about those."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from dss.base.errors import EXIT_FAILED
from dss.base.limits import BATCH_ITEMS_MAX, WAIT_MS_MAX
from dss.cli.connect import nodes
from dss.cli.http import CliError, Nodes, Problem, segment
from dss.cli.output import Output


def create(args: argparse.Namespace) -> int:
    settings = {
        "visibility_ms": _ms(args.visibility),
        "max_deliveries": args.max_deliveries,
    }
    result = _create(nodes(args), args.queue, settings)
    Output(args.json).show(result, f'queue "{args.queue}" is there')
    return 0


def send(args: argparse.Namespace) -> int:
    """Send every BODY in order; the queue is made when it does not exist."""
    client, path = nodes(args), f"/v1/queues/{segment(args.queue)}/messages"
    sent: list[Any] = []
    for body in _bodies(args.body):
        message = _given(body=body, key=args.key, delay_ms=_ms(args.delay))
        try:
            answer = client.ask("queue", "POST", path, message)
        except Problem as problem:
            if problem.status != 404:
                raise
            _create(client, args.queue, {})
            answer = client.ask("queue", "POST", path, message)
        sent.append(answer.json())
    Output(args.json).show(
        sent[0] if len(sent) == 1 else {"results": sent},
        *(f"sent {message['id']}" for message in sent),
    )
    return 0


def receive(args: argparse.Namespace) -> int:
    """Print what came; nothing within --wait is exit code 0 with no message."""
    client = nodes(args)
    wait_ms = min(WAIT_MS_MAX, round(args.wait * 1000))
    request = _given(
        max=min(args.max, BATCH_ITEMS_MAX), wait_ms=wait_ms, visibility_ms=_ms(args.visibility)
    )
    path = f"/v1/queues/{segment(args.queue)}"
    reply = client.ask("queue", "POST", f"{path}/receive", request, wait_ms=wait_ms).json()
    messages = reply["messages"]
    rows = [(m["id"], m.get("deliveries"), _body(m), m["receipt"]) for m in messages]
    header = ("id", "deliveries", "body", "receipt")
    Output(args.json).table(reply, header, rows, f'queue "{args.queue}": no message')
    if args.ack and messages:
        return _ack(client, args.queue, [m["receipt"] for m in messages], Output(False), True)
    return 0


def ack(args: argparse.Namespace) -> int:
    return _ack(nodes(args), args.queue, args.receipt, Output(args.json), False)


def stats(args: argparse.Namespace) -> int:
    client = nodes(args)
    if args.queue:
        result = client.ask("queue", "GET", f"/v1/queues/{segment(args.queue)}/stats").json()
        rows = [(name, value) for name, value in result.items() if name != "name"]
        Output(args.json).table(result, ("", args.queue), rows, "nothing known")
        return 0
    listed = client.ask("queue", "GET", "/v1/queues").json()
    items = listed["items"]
    names = list(dict.fromkeys(name for item in items for name in item))
    rows = [[item.get(name) for name in names] for item in items]  # type: ignore[misc]
    Output(args.json).table(listed, names, rows, "no queues yet: dss queue create NAME")
    return 0


def _create(client: Nodes, queue: str, settings: dict[str, Any]) -> Any:
    return client.ask("queue", "PUT", f"/v1/queues/{segment(queue)}", _given(**settings)).json()


def _ack(client: Nodes, queue: str, receipts: list[str], output: Output, quiet: bool) -> int:
    path = f"/v1/queues/{segment(queue)}/ack"
    reply = client.ask("queue", "POST", path, {"receipts": receipts}).json()
    results = reply.get("results", [])
    bad = [result for result in results if not result.get("ok", True)]
    if not quiet:
        output.show(reply, f"acknowledged {len(receipts) - len(bad)} of {len(receipts)}")
    if bad:
        raise CliError(str(bad[0].get("message", "not acknowledged")), EXIT_FAILED)
    return 0


def _bodies(arguments: list[str]) -> list[Any]:
    texts = sys.stdin.read().splitlines() if arguments == ["-"] else arguments
    return [_parsed(text) for text in texts]


def _parsed(text: str) -> Any:
    """JSON when it is JSON, else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _body(message: dict[str, Any]) -> str:
    if "body" not in message:
        return f"base64:{message.get('body_base64', '')}"
    body = message["body"]
    return body if isinstance(body, str) else json.dumps(body, ensure_ascii=False)


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _ms(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1000)
