"""`dss lock …`: one request each; `dss lock run` lives in `hold.py`.

What must not live here: keeping a session alive.
"""

from __future__ import annotations

import argparse
from typing import Any

from dss.base.limits import LIST_ITEMS_MAX
from dss.cli.connect import nodes
from dss.cli.hold import acquire_lock, end_session, open_session, run_holding
from dss.cli.http import CliError, query, segment
from dss.cli.output import Output, duration


def acquire(args: argparse.Namespace) -> int:
    """Take a lock. A session made for it ends again when the lock cannot be had."""
    client = nodes(args)
    session = args.session or open_session(client, args.ttl)
    try:
        granted = acquire_lock(client, args.name, session, args.shared, args.wait)
    except CliError:
        if not args.session:
            end_session(client, session)
        raise
    result = {"name": args.name, "session": session, **granted}
    Output(args.json).show(
        result,
        f'lock "{args.name}" is yours: token {granted["token"]}, session {session}, '
        f"for {args.ttl:g} s unless kept alive"
        if not args.session
        else f'lock "{args.name}" is yours: token {granted["token"]}, session {session}',
        f"give it back: dss lock release {args.name} --session {session} "
        f"--token {granted['token']}",
    )
    return 0


def release(args: argparse.Namespace) -> int:
    path = f"/v1/locks/{segment(args.name)}/release"
    body = {"session": args.session, "token": args.token}
    result = nodes(args).ask("lock", "POST", path, body).json()
    Output(args.json).show(result, f'lock "{args.name}" released')
    return 0


def run(args: argparse.Namespace) -> int:
    """Hold a lock while a command runs; the command's exit code."""
    if not args.command_line:
        raise CliError(
            "no command given: dss lock run NAME -- COMMAND…, for example: "
            "dss lock run demo -- sleep 5",
            exit_code=2,
        )
    return run_holding(
        nodes(args), args.name, args.command_line, args.ttl, args.wait, shared=args.shared
    )


def ls(args: argparse.Namespace) -> int:
    client, items, cursor = nodes(args), [], None
    while True:
        parameters = query(prefix=args.prefix or None, limit=LIST_ITEMS_MAX, cursor=cursor)
        page = client.ask("lock", "GET", f"/v1/locks{parameters}").json()
        items += page["items"]
        cursor = page.get("next")
        if not cursor:
            break
    rows = [
        (item["name"], item.get("mode"), _holders(item), _count(item.get("waiters")))
        for item in items
    ]
    header = ("lock", "mode", "held by (token)", "waiting")
    Output(args.json).table({"items": items}, header, rows, "no lock is held")
    return 0


def show(args: argparse.Namespace) -> int:
    lock = nodes(args).ask("lock", "GET", f"/v1/locks/{segment(args.name)}").json()
    rows = [
        (kind, _who(entry), entry.get("mode", lock.get("mode")), entry.get("token"),
         duration(entry.get("held_ms", entry.get("age_ms", entry.get("waited_ms")))))
        for kind, entries in (("holds", lock.get("holders")), ("waits", lock.get("waiters")))
        for entry in _list(entries)
    ]  # fmt: skip
    header = ("", "session", "mode", "token", "since")
    Output(args.json).table(lock, header, rows, f'lock "{args.name}" is free')
    return 0


def _list(value: Any) -> list[dict[str, Any]]:
    return value if isinstance(value, list) else []


def _count(value: Any) -> int:
    return len(value) if isinstance(value, list) else int(value or 0)


def _who(entry: dict[str, Any]) -> str:
    session, owner = str(entry.get("session", "?")), entry.get("owner")
    return f"{session}/{owner}" if owner and owner != session else session


def _holders(item: dict[str, Any]) -> str:
    return " ".join(f"{_who(h)} ({h.get('token', '?')})" for h in _list(item.get("holders")))
