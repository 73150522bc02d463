"""The entry point `dss`: the tree of subcommands, and how failures become exit codes.

What must not live here: what a subcommand does (one module for each group, imported when used).
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from dss.base.errors import (
    EXIT_CONFIG,
    EXIT_FAILED,
    EXIT_TRY_AGAIN,
    EXIT_UNREACHABLE,
    EXIT_USAGE,
    ConfigProblem,
    DssError,
    Invalid,
    NoQuorum,
    Overloaded,
    Unavailable,
)
from dss.base.limits import NODES_PER_ROLE_MAX, SESSION_TTL_MS_MAX, SESSION_TTL_MS_MIN

_INTERRUPTED = 130
_TRY_AGAIN_CODES = ("lock_timeout", "deadlock")


class _Parser(argparse.ArgumentParser):
    """Wrong usage is one line and exit code 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_USAGE, f"{self.prog}: {message}. Try: {self.prog} --help\n")


if TYPE_CHECKING:
    _Commands = argparse._SubParsersAction[_Parser]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the process's exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    command_line: list[str] = []
    if "--" in arguments:  # what follows is a command of the user's, not ours to parse
        cut = arguments.index("--")
        arguments, command_line = arguments[:cut], arguments[cut + 1 :]
    parser = build_parser()
    args, unknown = parser.parse_known_args(arguments)
    if unknown:
        parser.error(_not_understood(args, unknown, command_line))
    args.command_line = command_line
    module_name, _, function_name = args.run.partition(":")
    try:
        run = getattr(importlib.import_module(module_name), function_name)
        code = int(run(args))
        sys.stdout.flush()
    except DssError as error:
        return _failed(args, error.message, _exit_code(error), error.code)
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:  # `dss … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except Exception as error:
        from dss.cli.http import CliError

        if not isinstance(error, CliError):
            raise
        return _failed(args, str(error), error.exit_code, error.code)
    return code


def _not_understood(
    args: argparse.Namespace, unknown: Sequence[str], command_line: Sequence[str]
) -> str:
    words = " ".join(unknown)
    if args.run == "dss.cli.locks:run" and not command_line and not unknown[0].startswith("-"):
        return f"the command stands behind --: dss lock run {args.name} -- {words}"
    return f"unrecognized arguments: {words}"


def _exit_code(error: DssError) -> int:
    if isinstance(error, ConfigProblem):
        return EXIT_CONFIG
    if isinstance(error, Unavailable):
        return EXIT_UNREACHABLE
    if isinstance(error, Invalid):
        return EXIT_USAGE
    again = isinstance(error, (NoQuorum, Overloaded)) or error.code in _TRY_AGAIN_CODES
    return EXIT_TRY_AGAIN if again else EXIT_FAILED


def _failed(args: argparse.Namespace, message: str, exit_code: int, code: str) -> int:
    if getattr(args, "json", False):
        message = json.dumps({"code": code or "failed", "message": message}, ensure_ascii=False)
    print(message, file=sys.stderr)
    return exit_code


def build_parser() -> argparse.ArgumentParser:
    """All subcommands. Each leaf sets `run` to `module:function`."""
    parser = _Parser(prog="dss", description="Distributed locks, queues and a coherent cache.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_up(commands)
    _add_node(commands)
    status = _leaf(commands, "status", "all nodes on one screen: roles, leader, what is wrong")
    status.add_argument("--watch", type=_interval, nargs="?", const=2.0, metavar="SECONDS",
                        help="look again every so often (default 2) until Ctrl-C; with --json a "
                        "document a line")  # fmt: skip
    _add_doctor(commands)
    _add_members(commands)
    _add_config(commands)
    _add_lock(commands)
    _add_queue(commands)
    _add_cache(commands)
    _leaf(commands, "ring", "the queue nodes' hash ring")
    _leaf(commands, "partitions", "the partition table: who should carry what")
    return parser


def _leaf(commands: _Commands, name: str, summary: str, run: str = "") -> argparse.ArgumentParser:
    """A subcommand that asks nodes: with --endpoints and --json."""
    leaf = commands.add_parser(name, help=summary, description=summary)
    leaf.add_argument(
        "--endpoints",
        metavar="URL,…",
        help="nodes or an ingress to ask (default: $DSS_ENDPOINTS, else the local ports 8001…)",
    )
    leaf.add_argument("--json", action="store_true", help="print JSON")
    leaf.set_defaults(run=run or f"dss.cli.cluster:{name}")
    return leaf


def _group(commands: _Commands, name: str, summary: str) -> _Commands:
    group = commands.add_parser(name, help=summary, description=summary)
    return group.add_subparsers(metavar="COMMAND", required=True)


def _add_up(commands: _Commands) -> None:
    up = commands.add_parser("up", help="run a whole cluster on this machine until Ctrl-C")
    for role, default in (("lock", 3), ("queue", 3), ("cache", 2)):
        up.add_argument(
            f"--{role}", type=_count, default=default, metavar="N",
            help=f"number of {role} nodes, 1 to {NODES_PER_ROLE_MAX} (default {default})",
        )  # fmt: skip
    up.add_argument(
        "--base-port", type=_base_port, default=8_000, metavar="PORT",
        help="lock-1 listens on PORT + 1, queue-1 on + 11, cache-1 on + 21; peers 1000 above "
        "(default 8000)",
    )  # fmt: skip
    up.add_argument("--data-dir", type=Path, default=Path(".dss"), help="default .dss")
    up.add_argument("--log-dir", type=Path, help="default DATA_DIR/logs")
    up.set_defaults(run="dss.cli.processes:up")


def _add_node(commands: _Commands) -> None:
    node = commands.add_parser(
        "node",
        help="run one node, configured by the environment",
        description="Run one node. Every setting is an environment variable: see .env.example.",
    )
    node.set_defaults(run="dss.cli.processes:node")


def _add_doctor(commands: _Commands) -> None:
    doctor = _leaf(commands, "doctor", "is an election stuck? --fix helps it out",
                   "dss.cli.doctor:doctor")  # fmt: skip
    doctor.add_argument("--fix", action="store_true",
                        help="ask a competing candidate to back off, else restart it")  # fmt: skip
    doctor.add_argument("--watch", action="store_true", help="go on until Ctrl-C")
    doctor.add_argument("--window", type=_window, default=20.0, metavar="SECONDS",
                        help="how long to watch before an election counts as stuck: at least ten "
                        "times ELECTION_MAX_MS (default 20)")  # fmt: skip


def _add_members(commands: _Commands) -> None:
    members = _group(commands, "members", "who belongs to the lock nodes' Raft groups")
    _leaf(members, "ls", "members, voters or learners, as the leaders see them",
          "dss.cli.members:ls")  # fmt: skip
    for name, summary in (
        ("add", "add an empty lock node: a learner first, a voter when it has caught up"),
        ("remove", "take a lock node out; a leader hands over first"),
        ("replace", "let a lock node in again whose disk was lost: remove, then add"),
    ):
        leaf = _leaf(members, name, summary, f"dss.cli.members:{name}")
        leaf.add_argument("node_id", metavar="NODE")
        if name != "remove":
            leaf.add_argument("--wait", type=_seconds, default=60.0, metavar="SECONDS",
                              help="for how long to wait until it votes (default 60)")  # fmt: skip


def _add_config(commands: _Commands) -> None:
    config = _group(commands, "config", "look at the configuration")
    check = config.add_parser(
        "check",
        help="say every problem of the configuration at once",
        description="Check one node's environment, or with --env-file a compose .env file.",
    )
    check.add_argument("--env-file", type=Path, metavar="FILE", help="a compose .env file")
    check.add_argument("--json", action="store_true", help="print JSON")
    check.set_defaults(run="dss.cli.processes:config_check")


def _add_lock(commands: _Commands) -> None:
    lock = _group(commands, "lock", "take, give back and look at locks")
    acquire = _leaf(lock, "acquire", "take a lock; it lasts as long as its session",
                    "dss.cli.locks:acquire")  # fmt: skip
    run = _leaf(lock, "run", "hold a lock while a command runs: dss lock run NAME -- COMMAND…",
                "dss.cli.locks:run")  # fmt: skip
    for leaf, ttl in ((acquire, 60.0), (run, 10.0)):
        leaf.add_argument("name", metavar="NAME")
        leaf.add_argument("--shared", action="store_true", help="beside other shared holders")
        leaf.add_argument("--ttl", type=_ttl, default=ttl, metavar="SECONDS",
                          help=f"the session's time to live (default {ttl:g})")  # fmt: skip
        leaf.add_argument("--wait", type=_seconds, default=0.0, metavar="SECONDS",
                          help="how long to wait for the lock (default 0)")  # fmt: skip
    acquire.add_argument("--session", help="take it for this session (default: a new one)")
    release = _leaf(lock, "release", "give a lock back", "dss.cli.locks:release")
    release.add_argument("name", metavar="NAME")
    release.add_argument("--session", required=True)
    release.add_argument("--token", type=int, required=True)
    ls = _leaf(lock, "ls", "the locks that are held", "dss.cli.locks:ls")
    ls.add_argument("prefix", nargs="?", default="", metavar="PREFIX")
    broken = _leaf(lock, "break", "take a lock from whoever holds it (administrators; audited)",
                   "dss.cli.locks:break_")  # fmt: skip
    broken.add_argument("--reason", help="for the lock's history")
    for leaf in (
        broken,
        _leaf(lock, "show", "one lock: holders and waiters", "dss.cli.locks:show"),
        _leaf(lock, "explain", "who blocks whom, in words", "dss.cli.locks:explain"),
        _leaf(lock, "history", "who held it when, with which token", "dss.cli.locks:history"),
    ):
        leaf.add_argument("name", metavar="NAME")


def _add_queue(commands: _Commands) -> None:
    queue = _group(commands, "queue", "make queues, send and receive messages")
    create = _leaf(queue, "create", "make a queue, or change its settings",
                   "dss.cli.queues:create")  # fmt: skip
    send = _leaf(queue, "send", "send messages (makes the queue if it is new)",
                 "dss.cli.queues:send")  # fmt: skip
    receive = _leaf(queue, "receive", "receive messages, each leased until acknowledged",
                    "dss.cli.queues:receive")  # fmt: skip
    ack = _leaf(queue, "ack", "acknowledge by receipt: the messages are done",
                "dss.cli.queues:ack")  # fmt: skip
    stats = _leaf(queue, "stats", "depth and deliveries; of all queues without NAME",
                  "dss.cli.queues:stats")  # fmt: skip
    for leaf in (create, send, receive, ack):
        leaf.add_argument("queue", metavar="QUEUE")
    stats.add_argument("queue", metavar="QUEUE", nargs="?")
    create.add_argument("--visibility", type=_seconds, metavar="SECONDS",
                        help="how long a received message is leased")  # fmt: skip
    create.add_argument("--max-deliveries", type=int, metavar="N")
    send.add_argument("body", metavar="BODY", nargs="+",
                      help="JSON, else taken as text; - reads lines of standard input")  # fmt: skip
    send.add_argument("--key", help="messages of one key keep their order")
    send.add_argument("--delay", type=_seconds, metavar="SECONDS", help="deliver later")
    receive.add_argument("--max", type=int, default=1, metavar="N", help="default 1")
    receive.add_argument("--wait", type=_seconds, default=0.0, metavar="SECONDS",
                         help="how long to wait for a message (default 0)")  # fmt: skip
    receive.add_argument("--visibility", type=_seconds, metavar="SECONDS",
                         help="how long the message is leased (default: the queue's)")  # fmt: skip
    receive.add_argument("--ack", action="store_true", help="acknowledge at once after printing")
    ack.add_argument("receipt", nargs="+", metavar="RECEIPT")


def _add_cache(commands: _Commands) -> None:
    cache = _group(commands, "cache", "read and write cached values")
    for name, summary in (
        ("get", "print a value as it is"),
        ("put", "write a value"),
        ("delete", "remove a value"),
        ("line", "a key's coherence state: MESI, home, owner, sharers"),
    ):
        leaf = _leaf(cache, name, summary, f"dss.cli.cache:{name}")
        leaf.add_argument("key", metavar="KEY")
        if name == "put":
            leaf.add_argument("value", metavar="VALUE", help="- reads standard input")
            leaf.add_argument("--ttl", type=_seconds, metavar="SECONDS", help="default: for ever")
    _leaf(cache, "stats", "hits, misses and states of each cache node", "dss.cli.cache:stats")


def _count(text: str) -> int:
    return _whole(text, 1, NODES_PER_ROLE_MAX)


def _base_port(text: str) -> int:
    # The highest peer port is base + 1000 + 29.
    return _whole(text, 1, 65_535 - 1_029)


def _whole(text: str, low: int, high: int) -> int:
    if not text.isascii() or not text.isdigit() or not low <= int(text) <= high:
        raise argparse.ArgumentTypeError(
            f"expected a whole number from {low} to {high}, got {text}"
        )
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 365 * 86_400:
        raise argparse.ArgumentTypeError(f"expected seconds, such as 0.5 or 30, got {text}")
    return value


def _ttl(text: str) -> float:
    value = _seconds(text)
    low, high = SESSION_TTL_MS_MIN / 1_000, SESSION_TTL_MS_MAX / 1_000
    if not low <= value <= high:
        raise argparse.ArgumentTypeError(f"expected {low:g} to {high:g} seconds, got {text}")
    return value


def _interval(text: str) -> float:
    value = _seconds(text)
    if value < 0.1:
        raise argparse.ArgumentTypeError(f"expected at least 0.1 seconds, got {text}")
    return value


def _window(text: str) -> float:
    value = _seconds(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1 second, got {text}")
    return value


if __name__ == "__main__":
    sys.exit(main())
