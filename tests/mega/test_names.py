"""Names of any kind become names that Linux takes, each once in a folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megafs.mega.names import marked, needs_mark, plain_name
from megafs.mega.node_keys import FILE, FOLDER, ROOT, OpenedNode
from megafs.mega.node_table import NodeTable, handle_of, ino_of
from tests.services.mega import reference

KEY = bytes(32)
TOP = "AAAAAAAB"


def handle(number: int) -> str:
    return reference.b64(number.to_bytes(6, "big"))


def shown(name: object, at: int = 5) -> bytes:
    plain = plain_name(name)
    return marked(plain, handle(at)) if needs_mark(plain) else plain


@pytest.mark.parametrize(
    ("name", "is_shown"),
    [
        ("report.pdf", b"report.pdf"),
        ("a/b", "a\u2215b".encode()),
        ("a\0b", "a\u2400b".encode()),
        (".", "\uff0e".encode()),
        ("..", "\uff0e\uff0e".encode()),
        ("", b"unnamed (mega AAAAAAAF)"),
        (None, b"unnamed (mega AAAAAAAF)"),
        (7, b"unnamed (mega AAAAAAAF)"),
        ("\ud800", b"?"),
        ("x (mega AAAAAAAZ).txt", b"x (mega AAAAAAAZ) (mega AAAAAAAF).txt"),
    ],
)
def test_what_linux_cannot_have(name: object, is_shown: bytes) -> None:
    assert shown(name) == is_shown


@given(st.text(max_size=400))
def test_every_name_is_one_for_linux(name: str) -> None:
    made = shown(name)
    assert 0 < len(made) <= 255
    assert b"/" not in made and b"\0" not in made and made not in (b".", b"..")
    made.decode()


NAMES = st.sampled_from(
    ["a", "b", "a.txt", "a/b", "a\u2215b", "", "a (mega AAAAAAAC)", "a (mega AAAAAAAD)", "x" * 300]
)


@settings(deadline=None, max_examples=60)
@given(
    first=st.lists(st.tuples(NAMES, st.integers(0, 3)), max_size=8),
    changes=st.lists(
        st.tuples(st.sampled_from(["add", "rename", "remove"]), st.integers(2, 12), NAMES),
        max_size=8,
    ),
)
def test_no_two_of_a_folder_are_shown_alike(
    tmp_path_factory: pytest.TempPathFactory,
    first: list[tuple[str, int]],
    changes: list[tuple[str, int, str]],
) -> None:
    table = NodeTable(tmp_path_factory.mktemp("table"), os.urandom(32))
    try:
        loader = table.loader()
        loader.begin()
        top = OpenedNode(TOP, "", ROOT, 0, 0, None, b"")
        nodes = {
            number: OpenedNode(handle(number), TOP, FILE, 1, mtime, KEY, plain_name(name))
            for number, (name, mtime) in enumerate(first, 2)
        }
        loader.add([(top, None), *((node, None) for node in nodes.values())], set())
        loader.commit("sn")
        loader.close()
        for what, number, name in changes:
            if what == "remove":
                nodes.pop(number, None)
                table.remove(handle(number))
            elif what == "add" or number in nodes:
                node = OpenedNode(handle(number), TOP, FILE, 1, 0, KEY, plain_name(name))
                nodes[number] = node
                table.apply([(node, None)])
        rows = table.children(ino_of(TOP))
        assert {row.handle for row in rows} == {node.handle for node in nodes.values()}
        assert len({row.shown for row in rows}) == len(rows)
        for row in rows:
            assert table.lookup(ino_of(TOP), row.shown) == row
        for plain in {node.name for node in nodes.values() if not needs_mark(node.name)}:
            assert table.lookup(ino_of(TOP), plain) is not None  # one of them keeps the name
    finally:
        table.close()


@given(st.binary(min_size=6, max_size=6))
def test_a_node_has_the_number_of_its_handle(data: bytes) -> None:
    text = reference.b64(data)
    assert handle_of(ino_of(text)) == text
    assert ino_of(text) >= 1 << 48


def test_nothing_of_the_tree_is_plain_on_the_disk(tmp_path: Path) -> None:
    table = NodeTable(tmp_path, os.urandom(32))
    loader = table.loader()
    loader.begin()
    secret = b"a name that nobody else has"
    loader.add([(OpenedNode(handle(9), TOP, FOLDER, 0, 0, bytes(16), secret), None)], set())
    loader.commit("sn")
    loader.close()
    table.close()
    for file in tmp_path.iterdir():
        assert secret not in file.read_bytes() and b"SQLite format" not in file.read_bytes()
    assert NodeTable(tmp_path, os.urandom(32)).is_new  # another key: begun anew, no error
