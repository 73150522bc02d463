"""What a person installs and types: requirements.txt, the Makefile, the Locust scenarios."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def test_requirements__match_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    listed = [line for line in lines if line and not line.startswith("#")]
    expected = [*project["dependencies"], *project["optional-dependencies"]["load"], "-e ."]
    assert listed == expected


def test_licence__is_apache_2() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text


@pytest.mark.parametrize("command", ["up", "test", "lint", "generate", "sim", "bench", "clean"])
def test_make_targets__exist(command: str) -> None:
    done = subprocess.run(["make", "-n", command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_python_too_old__one_clear_line(tmp_path: Path) -> None:
    old = tmp_path / "python3"
    old.write_text(
        '#!/bin/sh\nif [ "$1" = --version ]; then echo Python 3.9.2; exit 0; fi\nexit 1\n'
    )
    old.chmod(0o755)
    makefile = str(ROOT / "Makefile")
    for name in ("pyproject.toml", "requirements.txt"):
        (tmp_path / name).write_text("")
    # A PATH with nothing newer on it: make, sh and coreutils live in /usr/bin, /bin.
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("sh", "date", "echo", "make"):
        (tools / tool).symlink_to(
            next(p / tool for p in map(Path, ("/bin", "/usr/bin")) if (p / tool).exists())
        )
    done = subprocess.run(
        [str(tools / "make"), "-f", makefile, "up", f"PYTHON={old}"],
        cwd=tmp_path, capture_output=True, text=True, env={"PATH": str(tools)},
    )  # fmt: skip
    assert done.returncode != 0
    expected = "DSS needs Python 3.11 or newer; found: Python 3.9.2. Install one, then: "
    assert done.stderr.splitlines()[0].startswith(expected)


def test_locust_host__published_ports_or_one_base_url() -> None:
    """In a process of its own: importing locust patches sockets for good."""
    cases: list[tuple[str, str, dict[str, str], list[str]]] = [
        ("http://localhost", "lock", {}, [f"http://127.0.0.1:{p}" for p in (8001, 8002, 8003)]),
        ("http://127.0.0.1", "cache", {}, ["http://127.0.0.1:8021", "http://127.0.0.1:8022"]),
        (
            "http://localhost",
            "queue",
            {"DSS_BASE_PORT": "18000", "DSS_QUEUE_NODES": "1"},
            ["http://127.0.0.1:18011"],
        ),
        ("https://dss.example/", "lock", {}, ["https://dss.example"]),
        ("http://localhost:8080", "cache", {}, ["http://localhost:8080"]),
    ]
    code = (
        "import json, sys; from load_test_scenarios import base_urls; "
        "print(json.dumps([base_urls(*case) for case in json.loads(sys.argv[1])]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps([case[:3] for case in cases])],
        cwd=ROOT / "loadtest", capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout.splitlines()[-1]) == [case[3] for case in cases]
