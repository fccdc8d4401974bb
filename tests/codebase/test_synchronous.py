"""tree/ and crypto/ are pure: nothing in them awaits, so nothing in them is cancelled halfway."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from tests.codebase.sources import modules, parsed

_ASYNC = (ast.AsyncFunctionDef, ast.AsyncFor, ast.AsyncWith, ast.Await)


def _awaits(tree: ast.AST) -> Iterator[int]:
    """The lines that make a module asynchronous."""
    for node in ast.walk(tree):
        if isinstance(node, _ASYNC) or (isinstance(node, ast.comprehension) and node.is_async):
            yield getattr(node, "lineno", 0)


def test_nothing_in_tree_and_crypto_is_asynchronous() -> None:
    found = [
        f"{name}:{line}"
        for name, path in modules("megafs/tree", "megafs/crypto")
        for line in _awaits(parsed(path))
    ]
    assert not found, f"asynchronous code in a synchronous room: {', '.join(found)}"


def test_the_check_sees_each_form() -> None:
    forms = (
        "async def f(): pass",
        "async def f():\n    async for x in y: pass",
        "async def f():\n    async with x: pass",
        "async def f():\n    return [x async for x in y]",
    )
    for form in forms:
        assert list(_awaits(ast.parse(form))), form
    assert not list(_awaits(ast.parse("def f(): return [x for x in y]")))
