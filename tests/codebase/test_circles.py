"""No module imports itself by way of others: a circle is one module in several files."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.codebase.sources import modules, parsed


def _module(name: str) -> str:
    return name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def _imports(path: Path, known: set[str]) -> set[str]:
    """The modules of *known* that a module imports, anywhere in it, also only for its types."""
    found: set[str] = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in known else node.module)
    return found & known


def _graph() -> dict[str, set[str]]:
    paths = {_module(name): path for name, path in modules("megafs")}
    return {name: _imports(path, set(paths)) for name, path in paths.items()}


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = _graph()
    assert sum(map(len, graph.values())) > len(graph), "the imports were not found"
    TopologicalSorter(graph).prepare()  # CycleError names the circle


def test_a_circle_is_found() -> None:
    graph = _graph()
    graph["megafs.errors"].add("megafs.cli.main")
    with pytest.raises(CycleError):
        TopologicalSorter(graph).prepare()
