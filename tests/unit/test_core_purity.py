"""The cores are pure: no clock, no randomness, no I/O, no order that depends on hashing.

Reads the syntax trees of nodes/dss/core. `asyncio`, `time`, … may not be imported (a function
deep inside may not either); sets may be kept and asked, but never iterated; `hash()` differs
from process to process.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import dss.core

CORE = Path(dss.core.__file__).parent
BANNED_IMPORTS = (
    "asyncio",
    "datetime",
    "logging",
    "os",
    "random",
    "secrets",
    "socket",
    "threading",
    "time",
    "uuid",
)
SET_METHODS = ("union", "intersection", "difference", "symmetric_difference")
SET_TYPES = ("set", "frozenset", "Set", "MutableSet", "AbstractSet")
ORDER_TAKERS = ("list", "tuple", "iter", "enumerate", "map", "filter", "zip", "next", "reversed")


def name_of(node: ast.expr) -> str | None:
    """`x` for x, `.x` for anything.x: attributes are told apart from local names."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return "." + node.attr
    return None


class Purity(ast.NodeVisitor):
    """Collects (line, what) in `found`."""

    def __init__(self, tree: ast.Module) -> None:
        self.found: list[tuple[int, str]] = []
        self.set_names: set[str] = set()
        for node in ast.walk(tree):
            self.learn_set_names(node)
        self.visit(tree)

    def learn_set_names(self, node: ast.AST) -> None:
        if isinstance(node, ast.AnnAssign) and self.is_set_type(node.annotation):
            self.add(node.target)
        elif isinstance(node, ast.arg) and node.annotation and self.is_set_type(node.annotation):
            self.set_names.add(node.arg)
        elif isinstance(node, ast.Assign) and self.is_set(node.value):
            for target in node.targets:
                self.add(target)

    def add(self, target: ast.expr) -> None:
        name = name_of(target)
        if name is not None:
            self.set_names.add(name)
            if isinstance(target, ast.Name):
                self.set_names.add("." + name)  # a struct's or a class's field

    def is_set_type(self, annotation: ast.expr) -> bool:
        if isinstance(annotation, ast.BinOp):
            return self.is_set_type(annotation.left) or self.is_set_type(annotation.right)
        if isinstance(annotation, ast.Subscript):
            annotation = annotation.value
        if isinstance(annotation, ast.Attribute):
            return annotation.attr in SET_TYPES
        return isinstance(annotation, ast.Name) and annotation.id in SET_TYPES

    def is_set(self, node: ast.expr) -> bool:
        if isinstance(node, ast.Set | ast.SetComp):
            return True
        if isinstance(node, ast.Call):
            called = node.func
            if isinstance(called, ast.Name):
                return called.id in ("set", "frozenset")
            return isinstance(called, ast.Attribute) and (
                called.attr in SET_METHODS or (called.attr == "copy" and self.is_set(called.value))
            )
        if isinstance(node, ast.BinOp) and isinstance(
            node.op, ast.BitOr | ast.BitAnd | ast.Sub | ast.BitXor
        ):
            return self.is_set(node.left) or self.is_set(node.right)
        return name_of(node) in self.set_names

    def check_iterated(self, node: ast.expr) -> None:
        if self.is_set(node):
            self.found.append((node.lineno, "iterates over a set"))

    def check_module(self, node: ast.AST, module: str) -> None:
        if module.split(".")[0] in BANNED_IMPORTS:
            self.found.append((node.lineno, f"imports {module}"))  # type: ignore[attr-defined]

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self.check_module(node, alias.name)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        self.check_module(node, node.module or "")

    def visit_For(self, node: ast.For) -> None:
        self.check_iterated(node.iter)
        self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        self.check_iterated(node.iter)
        self.generic_visit(node)

    def visit_Starred(self, node: ast.Starred) -> None:
        self.check_iterated(node.value)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        called = node.func
        if isinstance(called, ast.Name):
            if called.id == "hash":
                self.found.append((node.lineno, "calls hash()"))
            elif called.id == "__import__":
                self.found.append((node.lineno, "calls __import__()"))
            elif called.id in ORDER_TAKERS:
                for argument in node.args:
                    self.check_iterated(argument)
        elif isinstance(called, ast.Attribute):
            if called.attr == "pop" and not node.args and self.is_set(called.value):
                self.found.append((node.lineno, "pops from a set"))
            elif called.attr in ("join", "extend"):
                for argument in node.args:
                    self.check_iterated(argument)
        self.generic_visit(node)


def faults(source: str) -> list[str]:
    return [what for _, what in Purity(ast.parse(source)).found]


@pytest.mark.parametrize("path", sorted(CORE.rglob("*.py")), ids=lambda p: str(p.relative_to(CORE)))
def test_core_module__is_pure(path: Path):
    found = Purity(ast.parse(path.read_text())).found
    assert not found, "\n".join(f"{path}:{line}: {what}" for line, what in found)


@pytest.mark.parametrize(
    "source",
    [
        "import time",
        "import os.path as p",
        "from random import Random",
        "def f():\n    import asyncio",
        "hash('x')",
        "for x in {1, 2}: pass",
        "for x in set(y): pass",
        "[x for x in {a for a in b}]",
        "names: set[str]\nfor x in names: pass",
        "class A:\n    names: set[str]\n    def f(self):\n        return list(self.names)",
        "def f(seen: frozenset[int] | None):\n    return [x for x in seen]",
        "s = set()\nfor x in s | other: pass",
        "self.s = set()\nself.s.pop()",
        "','.join({a})",
        "a = {1}\nb = [*a]",
        "for i, x in enumerate(a.union(b)): pass",
    ],
)
def test_impure_source__is_found(source: str):
    assert faults(source)


@pytest.mark.parametrize(
    "source",
    [
        "seen: set[int] = set()\nif x in seen: seen.add(y)\nlen(seen)",
        "for x in sorted({1, 2}): pass",
        "for x in {'a': 1}: pass",
        "from dss.core.raft import messages",
        "queue.pop()",
    ],
)
def test_pure_source__passes(source: str):
    assert not faults(source)
