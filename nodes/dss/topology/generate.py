"""`python -m dss.topology.generate [--check] [--root DIR]`: write, or check, every generated file.

Exit codes: 0 done or nothing stale; 1 something is stale (`--check`), each file on a line;
2 wrong usage.
What must not live here: what is in the files (render_*.py).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from dss.base.errors import EXIT_FAILED, EXIT_USAGE
from dss.topology.model import DSSCluster
from dss.topology.render_compose import render_compose
from dss.topology.render_env import render_configuration_page, render_env
from dss.topology.render_fields import render_fields_page
from dss.topology.render_grafana import render_dashboard
from dss.topology.render_limits import render_limits_page
from dss.topology.render_manifests import manifest_files
from dss.topology.render_prometheus import (
    render_alerts_page,
    render_dashboard_provider,
    render_datasource,
    render_prometheus,
    render_rules,
)


def generated_files(cluster: DSSCluster) -> dict[str, str]:
    """Path in the repository -> text, for every generated file."""
    return {
        ".env.example": render_env(cluster),
        "docker/docker-compose.yml": render_compose(cluster),
        "docker/prometheus/prometheus.yml": render_prometheus(cluster),
        "docker/prometheus/rules.yml": render_rules(cluster),
        "docker/grafana/provisioning/datasources/prometheus.yml": render_datasource(),
        "docker/grafana/provisioning/dashboards/dss.yml": render_dashboard_provider(),
        "docker/grafana/dashboards/dss.json": render_dashboard(),
        "docs/alerts.md": render_alerts_page(cluster),
        "docs/configuration.md": render_configuration_page(),
        "docs/dsscluster.md": render_fields_page(),
        "docs/limits.md": render_limits_page(),
    } | manifest_files()


def stale_files(root: Path, files: dict[str, str]) -> list[str]:
    """The paths whose file is missing or differs."""
    stale = []
    for path, text in files.items():
        file = root / path
        if not file.is_file() or file.read_bytes() != text.encode():
            stale.append(path)
    return stale


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m dss.topology.generate")
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if a file is stale")
    parser.add_argument("--root", type=Path, default=Path(), help="the repository (default: .)")
    options = parser.parse_args(argv)
    if not (options.root / "pyproject.toml").is_file():
        print(f"{options.root.absolute()}: expected the repository's root", file=sys.stderr)
        return EXIT_USAGE
    files = generated_files(DSSCluster())
    stale = stale_files(options.root, files)
    if options.check:
        for path in stale:
            print(f"{path}: stale. Run: make generate", file=sys.stderr)
        return EXIT_FAILED if stale else 0
    for path in stale:
        file = options.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(files[path], encoding="utf-8")
        print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
