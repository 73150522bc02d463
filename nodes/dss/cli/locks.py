"""`dss lock …`: one request each; `dss lock run` lives in `hold.py`.

What must not live here: keeping a session alive.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager

from dss.base.errors import EXIT_USAGE
from dss.base.handles import HANDLE_CHARS, looks_like_handle
from dss.base.limits import LIST_ITEMS_MAX
from dss.cli.connect import nodes, sdk
from dss.cli.http import CliError, Problem, query, segment
from dss.cli.output import Output, duration
from dss.cli.patience import patience
from dss.cli.taking import Taking, end_session, open_session


def acquire(args: argparse.Namespace) -> int:
    """Take a lock. A session made for it ends again when the lock cannot be had."""
    client = nodes(args)
    session = args.session or open_session(client, args.ttl)
    try:
        ttl_s = None if args.session else args.ttl
        with patience(args), _whole_session(args):
            granted = Taking(client, args.name, session, args.shared, ttl_s).wait(args.wait)
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
    with _whole_session(args):
        result = nodes(args).ask("lock", "POST", path, body).json()
    Output(args.json).show(result, f'lock "{args.name}" released')
    return 0


@contextmanager
def _whole_session(args: argparse.Namespace) -> Iterator[None]:
    """A handle names no session: that one has not ended."""
    try:
        yield
    except Problem as problem:
        if problem.code != "session_expired" or not looks_like_handle(args.session or ""):
            raise
        raise CliError(
            f"--session {args.session} is a handle, the first {HANDLE_CHARS} characters of a "
            "session's id, and the whole id is needed: `dss lock acquire` printed it, and "
            f"`dss lock show {args.name}` shows it to an admin token",
            EXIT_USAGE,
            problem.code,
        ) from None


def run(args: argparse.Namespace) -> int:
    """Hold a lock while a command runs; the command's exit code."""
    if not args.command_line:
        raise CliError(
            "no command given: dss lock run NAME -- COMMAND…, for example: "
            "dss lock run demo -- sleep 5",
            exit_code=2,
        )
    from dss.cli.hold import run_holding

    with sdk(args) as client:
        with patience(args):
            handle = client.lock(args.name, ttl=args.ttl, wait=args.wait, shared=args.shared)
            held = handle.acquire()
        return run_holding(handle, held, args.command_line)


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
        (
            item["name"],
            item["mode"],
            f"{item['holder']} and {item['holders'] - 1} more"
            if item["holders"] > 1
            else item["holder"],
            item["token"],
            duration(item["held_ms"]),
            item["waiting"],
        )
        for item in items
    ]
    header = ("lock", "mode", "held by", "token", "for", "waiting")
    Output(args.json).table({"items": items}, header, rows, "no lock is held")
    return 0


def show(args: argparse.Namespace) -> int:
    lock = nodes(args).ask("lock", "GET", f"/v1/locks/{segment(args.name)}").json()
    rows = [
        ("holds", h["label"], h["session"], lock["mode"], h["token"], duration(h["held_ms"]))
        for h in lock["holders"]
    ]
    rows += [
        (f"waits, {w['position']}.", w["label"], w["session"], w["mode"], None,
         duration(w["waiting_ms"]))
        for w in lock["waiters"]
    ]  # fmt: skip
    header = ("", "who", "session", "mode", "token", "for")
    Output(args.json).table(lock, header, rows, f'lock "{args.name}" is free')
    hidden = lock["waiting"] - len(lock["waiters"])
    if hidden > 0 and not args.json:
        Output(False).show(None, f"and {hidden} more that wait")
    return 0


def explain(args: argparse.Namespace) -> int:
    """Why nobody gets a lock, in words."""
    found = nodes(args).ask("lock", "GET", f"/v1/locks/{segment(args.name)}/explain").json()
    first, *more = found["summary"]
    if not first.startswith("lock "):
        first = f'lock "{args.name}" is {first}'
    Output(args.json).show(found, first, *more)
    return 0


def history(args: argparse.Namespace) -> int:
    """Who held a lock when, newest first."""
    found = nodes(args).ask("lock", "GET", f"/v1/locks/{segment(args.name)}/history").json()
    rows = [
        (
            past["token"],
            past["holder"],
            past["mode"],
            f"{duration(past['granted_ago_ms'])} ago",
            duration(past["held_ms"]),
            past["ended"] or "held now",
        )
        for past in found["items"]
    ]
    header = ("token", "held by", "mode", "granted", "for", "ended")
    empty = f'nothing is remembered of lock "{args.name}"'
    Output(args.json).table(found, header, rows, empty)
    return 0


def break_(args: argparse.Namespace) -> int:
    """Take a lock from whoever holds it; an administrator's."""
    path = f"/v1/locks/{segment(args.name)}{query(reason=args.reason or None)}"
    found = nodes(args).ask("lock", "DELETE", path).json()
    lines = [
        f'lock "{args.name}" was taken from {past["holder"]}, who held it for '
        f"{duration(past['held_ms'])} with token {past['token']}"
        for past in found["broken"]
    ]
    Output(args.json).show(found, *(lines or [f'nobody held lock "{args.name}"']))
    return 0
