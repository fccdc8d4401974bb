"""A public class has a name of its own, so that the name alone says which one is meant."""

from __future__ import annotations

import ast
from collections import defaultdict

from tests.codebase.sources import modules, parsed


def test_no_two_public_classes_have_the_same_name() -> None:
    homes: defaultdict[str, list[str]] = defaultdict(list)
    for name, path in modules("megafs"):
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes[node.name].append(f"{name}:{node.lineno}")
    twice = {name: where for name, where in homes.items() if len(where) > 1}
    assert not twice, f"one of each needs a name that says more: {twice}"
