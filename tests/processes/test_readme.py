"""The commands of README.md, as a reader would paste them, against a real cluster."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from cluster_process import Cluster, environment

README = Path(__file__).parents[2] / "README.md"


def commands(heading: str) -> str:
    """The first code block under a heading."""
    text = README.read_text()
    section = text[text.index(f"## {heading}") :]
    found = re.search(r"```\n(.*?)```", section, re.DOTALL)
    assert found is not None
    return found.group(1)


@pytest.mark.parametrize(
    ("heading", "expected"),
    [
        ("Locks", [r'"token":\d+', r'"state":"held"', r"\{\}$"]),
        ("Queues", [r'"id":"\d+-\d+"', r'"body":\{"order": 42\}', r'"ok":true']),
        ("Cache", [r'"version":\d+', r"42", r'"state":"S"']),
    ],
)
def test_readme_commands__do_what_they_say(
    heading: str, expected: list[str], cluster: Cluster
) -> None:
    def moved(port: re.Match[str]) -> str:
        return f"127.0.0.1:{int(port.group(1)) - 8_000 + cluster.base_port}"

    script = re.sub(r"127\.0\.0\.1:(8\d\d\d)", moved, commands(heading))
    # The one value that a reader copies by hand.
    script = script.replace('"RECEIPT"', '"\'"$R"\'"')
    script = re.sub(
        r"^(curl .*/receive .*)$",
        r"""GOT=$(\1); echo "$GOT"; R=$(echo "$GOT" | sed 's/.*"receipt":"\\([^"]*\\)".*/\\1/')""",
        script,
        flags=re.MULTILINE,
    )
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        capture_output=True, text=True, timeout=60, env=environment(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    position = 0
    for pattern in expected:
        found = re.search(pattern, done.stdout[position:], re.MULTILINE)
        assert found is not None, f"{pattern} not in {done.stdout[position:]}"
        position += found.end()
