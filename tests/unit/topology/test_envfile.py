"""The `.env` parser: Compose's rules, with line numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from dss.topology.envfile import parse_env, read_env_file

VALUES = [
    ("A=1", "1"),
    ("A = 1 ", "1"),
    ("export A=1", "1"),
    ("A=", ""),
    ("A=a b # comment", "a b"),
    ("A=a#b", "a#b"),
    ("A= # comment", "# comment"),
    ("A='a # b' # c", "a # b"),
    ("A='$HOME \\n'", "$HOME \\n"),
    ("A='it\\'s'", "it's"),
    ('A="a\\nb\\"c"', 'a\nb"c'),
    ('A="x${B}y"', "xbeey"),
    ("A=${B}/$B", "bee/bee"),
    ("A=${NONE:-d}${NONE-e}${EMPTY:-f}${EMPTY-g}", "def"),
    ("A=${B:?x}${B:+alt}${EMPTY:+alt}${EMPTY+set}", "beealtset"),
    ("A: 1", "1"),
    ("A=$$B", "$B"),
    ('A="\\$B"', "$B"),
    ('A=[{"id": "lock-1", "port": 8000}]', '[{"id": "lock-1", "port": 8000}]'),
    ("A='[\n  1\n]'", "[\n  1\n]"),
    ("A=1\nA=2", "2"),
]


@pytest.mark.parametrize(("text", "value"), VALUES, ids=[text for text, _ in VALUES])
def test_setting__has_the_value_compose_gives_it(text: str, value: str) -> None:
    env = parse_env(f"B=bee\nEMPTY=\n{text}\n")
    assert env.faults == ()
    assert env.values["A"] == value


def test_lines__are_those_where_the_assignment_starts() -> None:
    env = parse_env("# one\r\n\r\nA='x\r\ny'\r\nB=2\r\n")
    assert env.lines == {"A": 3, "B": 5}
    assert env.values == {"A": "x\ny", "B": "2"}


FAULTS = [
    ("what is this", 1, 'expected NAME=value, found "what is this"'),
    ("\n=1", 2, 'expected NAME=value, found "="'),
    ("A='open\nB=1", 1, "A: the value has no closing '"),
    ("A=${B", 1, "A: expected ${NAME} after '${'; a dollar sign itself is $$"),
    ("A=${NONE:?give one}", 1, "A: NONE is not set: give one"),
    ('A="x" y', 1, 'A: expected nothing after the closing "'),
]


@pytest.mark.parametrize(("text", "line", "message"), FAULTS)
def test_unreadable_line__fault_with_its_number(text: str, line: int, message: str) -> None:
    [fault] = parse_env(text).faults
    assert (fault.line, fault.message) == (line, message)


def test_file__read_with_byte_order_mark_and_bounded(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    path.write_bytes(b"\xef\xbb\xbfA=1\n")
    assert read_env_file(path).values == {"A": "1"}
    path.write_bytes(b"#" * (1024 * 1024 + 1))
    with pytest.raises(ValueError, match=r"not an \.env file"):
        read_env_file(path)
