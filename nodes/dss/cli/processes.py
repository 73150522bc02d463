"""`dss up`, `dss node`, `dss config check`: what starts processes or is done before they start.

What must not live here: the supervisor (local), the node (node.py), the checks (topology).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from dss.base.errors import EXIT_CONFIG, ConfigProblem


def node(args: argparse.Namespace) -> int:
    """One node, all from the environment, until SIGTERM."""
    from dss.node import run

    return run(os.environ)


def up(args: argparse.Namespace) -> int:
    """A whole cluster on this machine, until Ctrl-C."""
    from dss.local.up import UpOptions
    from dss.local.up import up as run_cluster

    options = UpOptions(
        lock=args.lock,
        queue=args.queue,
        cache=args.cache,
        base_port=args.base_port,
        data_dir=args.data_dir,
        log_dir=args.log_dir,
        program=_called_as(),
    )
    return run_cluster(options, os.environ, sys.stdout)


def _called_as() -> str:
    """What the user can type to run this program: `.venv/bin/dss`, `dss`, or the full path."""
    path = Path(sys.argv[0])
    if path.name != "dss":
        return "dss"
    if os.fspath(path.parent) in os.environ.get("PATH", "").split(os.pathsep):
        return "dss"
    try:
        return str(path.absolute().relative_to(Path.cwd()))
    except ValueError:
        return str(path.absolute())


def config_check(args: argparse.Namespace) -> int:
    """Every problem of a configuration, one line each; exit code 78 when there is any."""
    from dss.topology.config import check, check_env_file, report

    if args.env_file is None:
        problems = check(os.environ)
        what = "the environment"
    else:
        from dss.topology.envfile import read_env_file

        try:
            problems = check_env_file(read_env_file(args.env_file, os.environ))
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise ConfigProblem(
                f"{args.env_file}: {reason}. Make one with: cp .env.example .env"
            ) from None
        what = str(args.env_file)
    if args.json:
        import msgspec

        print(json.dumps({"problems": msgspec.to_builtins(problems)}, ensure_ascii=False, indent=2))
    elif problems:
        print(report(problems), file=sys.stderr)
    else:
        print(f"{what}: no problems found")
    return EXIT_CONFIG if problems else 0
