"""The rules of CONTRIBUTING.md that a program can check: who imports whom, who reads a clock, who prints."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter

import pytest

from tests.builders import TOP

PROGRAM = {
    ".".join(path.relative_to(TOP).with_suffix("").parts): ast.parse(path.read_text(encoding="utf-8"))
    for pattern in ("*.py", "audit/*.py", "audit/reports/*.py")
    for path in TOP.glob(pattern)
    if path.name not in ("__init__.py", "mydb_config.py")
}
"""The modules of the program, by name."""
REPORTS = {name for name in PROGRAM if name.startswith("audit.reports.")}
PURE = {
    "audit.messages": set[str](),
    "audit.policy": {"audit.messages"},
    "audit.history": {"audit.errors", "audit.messages", "audit.policy"},
}
"""What a module that knows no clock, database or file may import of the program."""
NO_SIDE_EFFECTS = {
    *("__future__", "bisect", "calendar", "collections", "dataclasses", "datetime", "enum", "functools", "itertools"),
    *("re", "typing"),
}
SQL = {"models", "admin_db", "audit.database", "audit.settings"}
"""Who uses SQLAlchemy; others pass a session on."""


def imported(name: str) -> set[str]:
    """Whatever a module imports, by full names, those within functions included."""
    names = set()
    for node in ast.walk(PROGRAM[name]):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports name the module whole"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


IMPORTED = {name: imported(name) for name in PROGRAM}
IMPORTS = {
    name: {known for known in PROGRAM for one in found if one == known or one.startswith(f"{known}.")}
    for name, found in IMPORTED.items()
}
"""The modules of the program that a module imports."""


def calls(name: str) -> Iterator[str]:
    """What a module calls, such as `print` and `datetime.now`."""
    return (ast.unparse(node.func) for node in ast.walk(PROGRAM[name]) if isinstance(node, ast.Call))


def test_imports_go_one_way_and_no_report_imports_another() -> None:
    assert list(TopologicalSorter(IMPORTS).static_order())[-1] == "backup_audit"
    assert (IMPORTS["models"], IMPORTS["admin_db"]) == (set(), {"models"})
    assert {name for name in IMPORTS if "models" in IMPORTS[name]} == {"admin_db"}
    assert len(REPORTS) > 5
    assert {name for name in IMPORTS if IMPORTS[name] & REPORTS} == {"backup_audit"}, "the main flow asks for reports"


@pytest.mark.parametrize("name", PURE)
def test_rules_are_pure(name: str) -> None:
    assert IMPORTS[name] <= PURE[name]
    others = {found.split(".")[0] for found in IMPORTED[name]} - {"audit"}
    assert others <= NO_SIDE_EFFECTS <= sys.stdlib_module_names


def test_sqlalchemy_stays_where_it_belongs() -> None:
    used = {name: {one for one in found if one.startswith("sqlalchemy")} for name, found in IMPORTED.items()}
    assert {name for name in used if used[name] - {"sqlalchemy.orm.Session"}} == SQL


def test_a_clock_is_read_at_the_edge_alone() -> None:
    clocks = {"datetime.now", "datetime.utcnow", "datetime.today", "date.today", "time.time", "time.monotonic"}
    readers = {name for name in PROGRAM if clocks & set(calls(name))}
    assert readers == {"backup_audit", "admin_db", "audit.database", "audit.textfile"}


def test_only_the_terminal_prints() -> None:
    assert {name for name in PROGRAM if "print" in calls(name)} == {"audit.terminal"}
