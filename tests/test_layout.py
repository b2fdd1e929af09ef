"""The rules of CONTRIBUTING.md that a program can check."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.builders import TOP

PROGRAM = {path.stem: path for path in [*TOP.glob("*.py"), *TOP.glob("audit/*.py")]}


def imports_of(path: Path) -> set[str]:
    """The modules of the program that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.name for alias in node.names} if node.module == "audit" else {node.module or ""}
    return {name.removeprefix("audit.") for name in names} & set(PROGRAM)


def test_imports_go_one_way() -> None:
    imports = {name: imports_of(path) for name, path in PROGRAM.items()}
    assert list(TopologicalSorter(imports).static_order())[-1] == "backup_audit"
    assert (imports["models"], imports["admin_db"]) == (set(), {"models"})
    assert (imports["messages"], imports["policy"], imports["history"]) == (set(), {"messages"}, {"policy"})


@pytest.mark.parametrize("name", PROGRAM)
def test_files_and_functions_stay_short(name: str) -> None:
    text = PROGRAM[name].read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 450
    functions = [
        node for node in ast.walk(ast.parse(text)) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    ]
    assert [node.name for node in functions if (node.end_lineno or 0) - node.lineno >= 40] == []
