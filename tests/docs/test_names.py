"""The files, functions and decisions that the docs name exist."""

from __future__ import annotations

import ast
import re
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DECISIONS = ROOT / "docs" / "decisions"
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
ARCHITECTURE = ROOT / "docs" / "architecture.md"
#: Modules that a decision speaks of because it took them away.
REMOVED = {"mount/fuse_loop.py"}

#: A path that ends in .py, and perhaps a name in it: `room/module.py:Class.method`.
NAMED = re.compile(r"(?<![\w./])((?:\w+/)*\w+\.py)(?::([A-Za-z_]\w*(?:\.\w+)*))?")


def _found(path: str) -> Path | None:
    for top in ("", "megafs", "tests"):
        if (ROOT / top / path).is_file():
            return ROOT / top / path
    return None


@cache
def _defined(path: Path) -> frozenset[str]:
    """The names that a module defines; those of a class's members after the class and a dot."""
    names: set[str] = set()

    def add(body: list[ast.stmt], before: str) -> None:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                names.add(before + node.name)
            elif isinstance(node, ast.ClassDef):
                names.add(before + node.name)
                add(node.body, f"{before}{node.name}.")
            elif isinstance(node, ast.Assign):
                names.update(before + t.id for t in node.targets if isinstance(t, ast.Name))
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                names.add(before + node.target.id)

    add(ast.parse(path.read_text()).body, "")
    return frozenset(names)


def _wrong(page: Path) -> list[str]:
    wrong = []
    for match in NAMED.finditer(page.read_text()):
        path, name = match[1], match[2]
        if path in REMOVED or ("/" not in path and page != ARCHITECTURE):
            continue  # without a folder it may be anybody's: `setup.py`
        found = _found(path)
        if found is None:
            wrong.append(f"there is no {path}")
        elif name is not None and name not in _defined(found):
            wrong.append(f"{path} does not define {name}")
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_names_exists(page: Path) -> None:
    assert _wrong(page) == []


def test_a_name_that_is_gone_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("`fs/nowhere.py`, `tree/ops.py:Rename.gone`, `tree/ops.py:Rename.apply`")
    assert _wrong(page) == [
        "there is no fs/nowhere.py",
        "tree/ops.py does not define Rename.gone",
    ]


def test_the_map_names_every_room() -> None:
    text = ARCHITECTURE.read_text()
    rooms = [path.parent.name for path in (ROOT / "megafs").glob("*/__init__.py")]
    assert [room for room in rooms if f"| `{room}/` |" not in text] == []


def test_every_decision_has_a_number_of_its_own_and_stands_in_the_index() -> None:
    names = [path.name for path in DECISIONS.glob("[0-9]*.md")]
    assert names
    numbers = Counter(name[:4] for name in names)
    assert [number for number, count in numbers.items() if count > 1] == []
    index = (DECISIONS / "README.md").read_text()
    listed = re.findall(r"\]\((\d{4}-[\w-]+\.md)\)", index)
    assert sorted(listed) == sorted(names)
