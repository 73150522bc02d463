"""The rules are pure, and light enough for the operator's image: no aiohttp, nothing of a node."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import dss.remediation

FOLDER = Path(dss.remediation.__file__).parent
ALLOWED = {
    "__future__", "collections", "collections.abc", "datetime", "dss.base.ids", "itertools",
    "msgspec", "re", "typing",
}  # fmt: skip


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.name)
def test_module__imports_nothing_that_asks_or_acts(path: Path) -> None:
    imported = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module or "")
        elif isinstance(node, ast.Attribute):
            assert node.attr not in ("now", "utcnow", "today"), "a clock"
    others = {name for name in imported if not name.startswith("dss.remediation")}
    assert others <= ALLOWED


def test_import__loads_nothing_heavy() -> None:
    program = (
        "import sys; before = set(sys.modules); import dss.remediation; "
        "print(' '.join(sorted({m.split('.')[0] for m in set(sys.modules) - before})))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert not loaded & {"aiohttp", "asyncio", "socket", "ssl", "redis", "yaml", "uvloop"}
