"""Links to what is public: every form, and nothing of a key in an error."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megafs.errors import BadPassphrase, BadUsage
from megafs.mega.links import MegaLink, PasswordLink, parse_link
from megafs.stores.mega.urls import is_link
from tests.services.mega import reference

FILE_KEY = bytes(range(32))
FOLDER_KEY = bytes(range(16))
HANDLE = "AbCd_-12"
INSIDE = "ZyXw_-34"
WITHIN = MegaLink(True, HANDLE, FOLDER_KEY, INSIDE)
K32, K16 = reference.b64(FILE_KEY), reference.b64(FOLDER_KEY)


@pytest.mark.parametrize(
    ("text", "link"),
    [
        (f"https://mega.nz/file/{HANDLE}#{K32}", MegaLink(False, HANDLE, FILE_KEY)),
        (f" mega.nz/file/{HANDLE}#{K32}\n", MegaLink(False, HANDLE, FILE_KEY)),
        (f"https://mega.co.nz/#!{HANDLE}!{K32}", MegaLink(False, HANDLE, FILE_KEY)),
        (f"https://mega.nz/folder/{HANDLE}#{K16}", MegaLink(True, HANDLE, FOLDER_KEY)),
        (f"https://mega.nz/#F!{HANDLE}!{K16}", MegaLink(True, HANDLE, FOLDER_KEY)),
        (f"https://mega.nz/#F!{HANDLE}!{K16}!{INSIDE}", WITHIN),
        (f"https://mega.nz/#F!{HANDLE}!{K16}?{INSIDE}", WITHIN),
        (
            f"https://mega.nz/folder/{HANDLE}#{K16}/file/{INSIDE}",
            WITHIN,
        ),
        (
            f"https://mega.app/folder/{HANDLE}#{K16}/folder/{INSIDE}",
            WITHIN,
        ),
    ],
)  # fmt: skip
def test_forms(text: str, link: MegaLink) -> None:
    assert parse_link(text) == link
    assert K16 not in link.shown and K16 not in repr(link)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("https://example.org/file/x", "begin with https://mega.nz/"),
        (f"https://mega.nz/file/{HANDLE}", "lacks its key"),
        (f"https://mega.nz/folder/{HANDLE}", "lacks its key"),
        (f"https://mega.nz/#!{HANDLE}", "lacks its key"),
        (f"https://mega.nz/file/{HANDLE}#{K32[:-4]}", "cut short"),
        (f"https://mega.nz/file/{HANDLE}#{K16}", "cut short"),
        (f"https://mega.nz/folder/{HANDLE}#{K32}", "cut short"),
        ("https://mega.nz/pro", "not a link to a file or folder"),
        ("https://mega.nz/#P!AAAA", "cut short"),
        ("https://mega.nz/#P!Agcc", "not known here"),
    ],
)
def test_what_is_no_link(text: str, says: str) -> None:
    with pytest.raises(BadUsage, match=says) as caught:
        parse_link(text)
    assert K32[:20] not in str(caught.value) and K16[:16] not in str(caught.value)


@pytest.mark.parametrize("algorithm", [1, 2])
@pytest.mark.parametrize(("kind", "key"), [(0, FOLDER_KEY), (1, FILE_KEY)])
def test_a_link_with_a_password(algorithm: int, kind: int, key: bytes) -> None:
    text = reference.password_link(kind, HANDLE, key, "pa\u00dfword", algorithm=algorithm)
    link = parse_link(text)
    assert isinstance(link, PasswordLink)
    assert link.opened("pa\u00dfword") == MegaLink(kind == 0, HANDLE, key)
    with pytest.raises(BadPassphrase):
        link.opened("password")
    changed = parse_link(text[:60] + ("A" if text[60] != "A" else "B") + text[61:])
    assert isinstance(changed, PasswordLink)
    with pytest.raises(BadPassphrase):
        changed.opened("pa\u00dfword")


@given(st.text(max_size=80))
def test_any_text_is_a_link_or_refused(text: str) -> None:
    for whole in (text, f"https://mega.nz/{text}", f"https://mega.nz/#P!{text}"):
        try:
            parse_link(whole)
        except BadUsage:
            pass
    assert not is_link("mega:/Folder") and is_link("https://mega.nz/anything")
