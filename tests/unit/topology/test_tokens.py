"""The list of tokens: strict, every fault with its place, no token in any message."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

import pytest
from test_config import good

from dss.base.errors import ConfigProblem
from dss.topology.config import check, load_node_config, parse_watched
from dss.topology.nodes import TokenSpec
from dss.topology.tokens import parse_tokens

DIGEST = sha256(b"correct horse").hexdigest()


def entry(**changes: object) -> dict[str, object]:
    return {"name": "ops", "sha256": DIGEST, "role": "admin"} | changes


def test_good_list__all_tokens_in_order() -> None:
    other = sha256(b"other").hexdigest()
    text = json.dumps([entry(), entry(name="app", sha256=other, role="client")])
    tokens, faults = parse_tokens(text)
    assert not faults
    assert tokens == (TokenSpec("ops", DIGEST, "admin"), TokenSpec("app", other, "client"))


BAD = [
    ("{}", 1, 1, "expected a JSON array of tokens, starting with '[', found an object"),
    ("[]", 1, 1, "the list is empty, so nobody could enter: expected at least one token"),
    (json.dumps([entry(role="root")]), 1, None, '"role" must be admin or client'),
    (json.dumps([entry(name="")]), 1, None, '"name" must be 1 to 64 characters'),
    (json.dumps([entry(sha256=7)]), 1, None, '"sha256" must be a string'),
    (json.dumps([entry(sha256=DIGEST.upper())]), 1, None, '"sha256" must be the 64 hex digits'),
    (json.dumps([{"name": "a", "sha256": DIGEST}]), 1, 2, 'the object lacks "role"'),
    (json.dumps([entry(token="x")]), 1, None, 'unknown field "token": expected name, sha256, role'),
    (json.dumps([entry(), entry(sha256="0" * 64)]), 1, None, 'the name "ops" stands twice'),
    (json.dumps([entry(), entry(name="b")]), 1, None, '"ops" and "b" have the same token'),
    ('[\n  {"name": "a" "role": 1}]', 2, 16, "expected ',' or '}' after the value of \"name\""),
    ('[\n {"name": hunter2}]', 2, 11, 'expected a value for "name", found something else'),
]


@pytest.mark.parametrize(("text", "line", "column", "message"), BAD, ids=range(len(BAD)))
def test_bad_list__one_fault_with_its_place(
    text: str, line: int, column: int | None, message: str
) -> None:
    _, [fault] = parse_tokens(text)
    assert fault.message.startswith(message)
    assert fault.line == line
    assert column is None or fault.column == column


def test_token_in_the_wrong_place__never_shown() -> None:
    secret = "hunter2hunter2hunter2"
    for text in (
        json.dumps([entry(sha256=secret)]),
        json.dumps([entry(role=secret)]),
        json.dumps([entry(name=secret + "!")]),
        f'[{{"sha256": {secret}}}]',
        f"[{secret}]",
        secret,
    ):
        [problem] = check(good(AUTH_TOKENS=text))
        assert problem.variable == "AUTH_TOKENS"
        assert secret not in str(problem)


def test_from_a_file__taken_with_its_path_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    path.write_text(json.dumps([entry()]))
    config = load_node_config(good(AUTH_TOKENS_FILE=str(path)))
    assert config.auth_tokens == (TokenSpec("ops", DIGEST, "admin"),)
    assert config.auth_tokens_file == str(path)
    assert parse_watched("AUTH_TOKENS", str(path), path.read_text()) == config.auth_tokens
    with pytest.raises(ConfigProblem, match=f"line 2, column 1: .*file {path}"):
        parse_watched("AUTH_TOKENS", str(path), "[\n")
    with pytest.raises(ConfigProblem, match="is empty"):
        parse_watched("AUTH_TOKENS", str(path), " \n")


def test_without_tokens__nobody_is_asked() -> None:
    config = load_node_config(good())
    assert (config.auth_tokens, config.auth_tokens_file, config.cluster_secret_file) == (
        ((), "", "")
    )
