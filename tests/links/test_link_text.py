"""The text of a link."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megafs import clock
from megafs.errors import BadUsage
from megafs.links import link_text
from megafs.links.link_text import NO_PAGE, ShareLink, is_link, parse

ID = "A" * 22
SECRET = bytes(range(32))

addresses = st.sampled_from(
    [
        "https://example.org/bucket/share/x/manifest?X-Amz-Signature=00&a=b",
        "http://127.0.0.1:8080/a%20b",
        "file:///srv/www/share/x/manifest",
    ]
)
pages = st.sampled_from(["https://files.example.org/", "http://localhost:1/p/", NO_PAGE])


@given(pages, st.binary(min_size=16, max_size=16), st.binary(min_size=32, max_size=32), addresses)
def test_a_link_reads_back(page: str, name: bytes, secret: bytes, address: str) -> None:
    link = ShareLink(page, link_text._encode(name), secret, address)
    assert parse(link.text) == link
    assert is_link(link.text)
    assert link.manifest_url == address


def test_no_id_looks_like_an_option() -> None:
    drawn = iter([b"\xf8" * 16, b"\xfb" * 16, bytes(16)])
    with clock.replaced(random_bytes=lambda n: next(drawn)):
        assert link_text.new_id() == "A" * 22


def test_without_an_address_the_manifest_lies_beside_the_page() -> None:
    link = ShareLink("https://files.example.org/g/", ID, SECRET)
    assert parse(link.text) == link
    assert link.manifest_url == f"https://files.example.org/g/share/{ID}/manifest"
    with pytest.raises(BadUsage):
        _ = ShareLink(NO_PAGE, ID, SECRET).manifest_url


GOOD = ShareLink("https://example.org/", ID, SECRET, "https://example.org/m").text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "https://example.org/",
        "https://example.org/#",
        "https://example.org/#2." + GOOD.partition("#1.")[2],
        GOOD[:60],
        GOOD[:-3],
        GOOD + ".x",
        GOOD.replace(ID, ID[:-1]),
        GOOD.replace("https://example.org/#", "javascript:x#"),
        GOOD.replace("https://example.org/#", "https://user:pw@example.org/#"),
        GOOD.replace("https://example.org/#", "https://[::1/#"),
        "megafs:#" + "1." * 9000,
        ShareLink(NO_PAGE, ID, SECRET, "ftp://example.org/m").text,
        ShareLink(NO_PAGE, ID, SECRET, "file://host/etc/shadow").text,
    ],
)
def test_what_is_no_link_is_one_line_without_the_secret(text: str) -> None:
    with pytest.raises(BadUsage) as caught:
        parse(text)
    said = str(caught.value)
    assert "\n" not in said and len(said) < 200
    secret = GOOD.split(".")[3]
    assert secret[:8] not in said


def test_the_secret_is_in_no_repr() -> None:
    link = parse(GOOD)
    assert SECRET.hex() not in repr(link) and "\\x01\\x02" not in repr(link)
