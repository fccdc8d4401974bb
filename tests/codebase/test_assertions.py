"""No test asserts nothing: one that only calls something passes whatever that does.

A test asserts with `assert` (of more than a constant), with pytest's raises, warns or fail, or by
a helper that does: a function of the same module, one imported from another module of tests/, or a
method of a class of tests/ that the test is given as a fixture, as its annotation says.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.codebase.sources import ROOT, modules, parsed

Function = ast.FunctionDef | ast.AsyncFunctionDef

_PYTEST = {"raises", "warns", "fail"}


@dataclass
class Module:
    """functions: by name, methods as "Class.name".  imported: name here -> (module, name there)."""

    functions: dict[str, Function] = field(default_factory=dict)
    imported: dict[str, tuple[str, str]] = field(default_factory=dict)
    bases: dict[str, list[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, tree: ast.Module) -> Module:
        made = cls()
        for node in tree.body:
            if isinstance(node, Function):
                made.functions[node.name] = node
            elif isinstance(node, ast.ClassDef):
                made.bases[node.name] = [b.id for b in node.bases if isinstance(b, ast.Name)]
                for inner in node.body:
                    if isinstance(inner, Function):
                        made.functions[f"{node.name}.{inner.name}"] = inner
        for part in ast.walk(tree):
            if isinstance(part, ast.ImportFrom) and part.module is not None:
                for alias in part.names:
                    made.imported[alias.asname or alias.name] = (part.module, alias.name)
        return made

    def tests(self) -> Iterator[tuple[str, Function]]:
        for name, function in self.functions.items():
            if function.name.startswith("test_"):
                yield name, function


class Suite:
    """Every module of tests/, by its dotted name."""

    def __init__(self, found: dict[str, Module]) -> None:
        self.modules = found

    @classmethod
    def read(cls) -> Suite:
        names = {
            ".".join(path.relative_to(ROOT).with_suffix("").parts): parsed(path)
            for _, path in modules("tests")
        }
        return cls({name: Module.of(tree) for name, tree in names.items()})

    def asserting_nothing(self) -> list[str]:
        return [
            f"{module}: {name}"
            for module, made in self.modules.items()
            for name, function in made.tests()
            if not self._asserts(module, name, set())
        ]

    def _asserts(self, module: str, name: str, seen: set[tuple[str, str]]) -> bool:
        """Whether the function asserts, itself or by what it calls; seen: those asked already."""
        if (module, name) in seen or module not in self.modules:
            return False
        seen.add((module, name))
        made = self.modules[module]
        function = made.functions.get(name)
        if function is None:
            if name in made.imported:
                return self._asserts(*made.imported[name], seen)
            owner, _, method = name.rpartition(".")
            if owner in made.imported:
                there, as_named = made.imported[owner]
                return self._asserts(there, f"{as_named}.{method}", seen)
            bases = made.bases.get(owner, ())
            return any(self._asserts(module, f"{base}.{method}", seen) for base in bases)
        return any(
            _asserts_here(node) or self._called(module, function, name, node, seen)
            for node in ast.walk(function)
        )

    def _called(
        self, module: str, function: Function, name: str, node: ast.AST, seen: set[tuple[str, str]]
    ) -> bool:
        """Whether *node* calls a helper that asserts."""
        if not isinstance(node, ast.Call):
            return False
        match node.func:
            case ast.Name(id=called):
                return self._asserts(module, called, seen)
            case ast.Attribute(value=ast.Name(id="self"), attr=method) if "." in name:
                return self._asserts(module, f"{name.partition('.')[0]}.{method}", seen)
            case ast.Attribute(value=ast.Name(id=given), attr=method):
                kinds = {
                    arg.arg: arg.annotation.id
                    for arg in (*function.args.args, *function.args.kwonlyargs)
                    if isinstance(arg.annotation, ast.Name)
                }
                return given in kinds and self._asserts(module, f"{kinds[given]}.{method}", seen)
        return False


def _asserts_here(node: ast.AST) -> bool:
    match node:
        case ast.Assert(test=ast.Constant()):
            return False
        case ast.Assert():
            return True
        case ast.Call(func=ast.Attribute(value=ast.Name(id="pytest"), attr=called)):
            return called in _PYTEST
        case ast.Raise(exc=ast.Call(func=ast.Name(id="AssertionError"))):
            return True
    return False


def test_every_test_asserts_something() -> None:
    found = Suite.read()
    assert sum(1 for module in found.modules.values() for _ in module.tests()) > 1000
    nothing = found.asserting_nothing()
    assert not nothing, "tests that assert nothing:\n" + "\n".join(nothing)


def _judged(**sources: str) -> list[str]:
    found = {name.replace("__", "."): Module.of(ast.parse(text)) for name, text in sources.items()}
    return Suite(found).asserting_nothing()


def test_the_check_finds_tests_that_assert_nothing() -> None:
    assert _judged(tests__a="def test_x():\n  run()") == ["tests.a: test_x"]
    assert _judged(tests__a="def test_x():\n  assert True") == ["tests.a: test_x"]
    assert _judged(tests__a="class TestA:\n  async def test_x(self): await go()") == [
        "tests.a: TestA.test_x"
    ]
    # A helper that asserts nothing, also one that calls itself.
    assert _judged(tests__a="def run(): run()\ndef test_x(): run()") == ["tests.a: test_x"]


def test_the_check_follows_helpers() -> None:
    here = "def run(): assert x\n"
    for text in (
        "def test_x(): assert x",
        "def test_x():\n  with pytest.raises(OSError): pass",
        here + "def test_x(): run()",
        here + "def more(): run()\ndef test_x(): more()",
        "from tests.b import look\ndef test_x(): look()",
        "from tests.b import Disk\ndef test_x(disk: Disk): disk.same()",
        "class A:\n  def f(self): assert x\nclass TestB(A):\n  def test_x(self): self.f()",
    ):
        helper = "def look(): assert x\nclass Disk:\n  def same(self): assert x"
        assert _judged(tests__a=text, tests__b=helper) == [], text
