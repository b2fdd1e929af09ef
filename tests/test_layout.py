"""The rules of CONTRIBUTING.md that a program can check: who imports whom, who reads a clock, who prints."""

from __future__ import annotations

import ast
import re
from graphlib import TopologicalSorter

import pytest

from tests.builders import TOP

PROGRAM = {
    ".".join(path.relative_to(TOP).with_suffix("").parts): list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    for pattern in ("*.py", "audit/*.py", "audit/reports/*.py")
    for path in TOP.glob(pattern)
    if path.name not in ("__init__.py", "mydb_config.py")
}
"""The modules of the program: the nodes of each."""
IMPORTED = {
    name: {
        *(alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names),
        *(f"{node.module}.{alias.name}" for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names),
    }
    for name, nodes in PROGRAM.items()
}
"""Whatever a module imports, by full names."""
IMPORTS = {
    name: {known for known in PROGRAM for one in found if one == known or one.startswith(f"{known}.")}
    for name, found in IMPORTED.items()
}
"""The modules of the program that a module imports."""
CALLS = {
    name: {ast.unparse(node.func) for node in nodes if isinstance(node, ast.Call)} for name, nodes in PROGRAM.items()
}
"""What a module calls, such as `print` and `datetime.now`."""
PURE = {
    "audit.messages": set[str](),
    "audit.policy": {"audit.messages"},
    "audit.history": {"audit.errors", "audit.messages", "audit.policy"},
}
"""What a module that knows no clock, database or file may import of the program."""
NO_SIDE_EFFECTS = "__future__ bisect calendar collections dataclasses datetime enum functools itertools re typing"


def test_imports_go_one_way_and_no_report_imports_another() -> None:
    from_imports = [node for nodes in PROGRAM.values() for node in nodes if isinstance(node, ast.ImportFrom)]
    assert {node.level for node in from_imports} == {0}, "imports name the module whole"
    assert list(TopologicalSorter(IMPORTS).static_order())[-1] == "backup_audit"
    assert (IMPORTS["models"], IMPORTS["admin_db"]) == (set(), {"models"})
    assert {name for name in IMPORTS if "models" in IMPORTS[name]} == {"admin_db"}
    reports = {name for name in PROGRAM if name.startswith("audit.reports.")}
    formats = reports | {"audit.metrics"}
    assert {name for name in IMPORTS if IMPORTS[name] & formats} == {"backup_audit"}, "the main flow asks for them"
    assert not [name for name in formats if IMPORTS[name] & {"admin_db", "audit.database"}], "they get findings"


def test_what_a_message_says_and_what_time_it_is_are_asked_once() -> None:
    asked = {name for name in CALLS for call in CALLS[name] if re.search(r"\bjudge_message$|\bMoment\b", call)}
    assert asked == {"audit.log", "backup_audit"}


@pytest.mark.parametrize("name", PURE)
def test_rules_are_pure(name: str) -> None:
    assert IMPORTS[name] <= PURE[name]
    assert {found.split(".")[0] for found in IMPORTED[name]} - {"audit"} <= set(NO_SIDE_EFFECTS.split())


def test_sqlalchemy_stays_where_it_belongs() -> None:
    used = {name: {one for one in found if one.startswith("sqlalchemy")} for name, found in IMPORTED.items()}
    users = {name for name in used if used[name] - {"sqlalchemy.orm.Session"}}  # others pass a session on
    assert users == {"models", "admin_db", "audit.database", "audit.settings"}


def test_clocks_are_read_at_the_edge_and_only_the_terminal_prints() -> None:
    clocks = {"datetime.now", "datetime.utcnow", "datetime.today", "date.today", "time.time", "time.monotonic"}
    readers = {name for name in CALLS if CALLS[name] & clocks}
    assert readers == {"backup_audit", "admin_db", "audit.database", "audit.textfile"}
    assert {name for name in CALLS if "print" in CALLS[name]} == {"audit.terminal"}
