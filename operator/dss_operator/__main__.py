"""`python -m dss_operator`: the operator as a process. Exit code 78 after a bad setting.

What must not live here: anything that `kopf run -m dss_operator.handlers` would lack.
"""

from __future__ import annotations

import importlib
import os
import sys

import kopf

from dss.base.errors import ConfigProblem
from dss_operator.settings import EXIT_CONFIG, load_settings


def main() -> int:
    try:
        settings = load_settings(os.environ)
    except ConfigProblem as problem:
        print(problem, file=sys.stderr)
        return EXIT_CONFIG
    kopf.configure(
        debug=settings.log_level == "DEBUG",
        quiet=settings.log_level in ("WARNING", "ERROR"),
        log_format=kopf.LogFormat.JSON if settings.log_format == "json" else kopf.LogFormat.FULL,
    )
    importlib.import_module("dss_operator.handlers")
    port = settings.health_port
    kopf.run(
        standalone=True,
        clusterwide=not settings.watch_namespace,
        namespaces=[settings.watch_namespace] if settings.watch_namespace else [],
        liveness_endpoint=f"http://0.0.0.0:{port}/healthz" if port else None,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
