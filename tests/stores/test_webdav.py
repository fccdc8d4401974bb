"""The WebDAV driver's parts that need no server: places, answers and logins."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from megafs.errors import BadStore, Denied
from megafs.stores.drivers import DRIVERS, check_options, location_of
from megafs.stores.stack import open_driver
from megafs.stores.webdav import layout
from megafs.stores.webdav.answers import Member, read_multistatus
from megafs.stores.webdav.exclusive import Way, path_of
from megafs.stores.webdav.layout import Listed, understand
from megafs.stores.webdav.login import VARIABLE, Login
from megafs.stores.webdav.options import WebDavSettings, read_options

# Where objects lie

NAMES = st.one_of(
    st.from_regex(r"[A-Za-z0-9_-]{1,20}(/[A-Za-z0-9_-]{1,20}){0,4}", fullmatch=True),
    st.integers(0, 10**16 - 1).map(lambda n: f"commits/{n:016}"),
)


@given(NAMES, st.sampled_from([Way.MOVE_FILE, Way.MOVE_FOLDER]))
def test_a_place_is_understood_as_the_object_it_is_of(name: str, way: Way) -> None:
    parts = path_of(way, name).split("/")
    names, path = "", ""
    found: Listed | None = None
    for i, part in enumerate(parts):
        found = understand(names, path, part, i < len(parts) - 1)
        assert found is not None
        if found.kind in ("file", "in folder"):
            break
        assert layout.is_wanted(found, "", "")
        assert layout.is_wanted(found, name, "") and found.key <= name
        # Never passed over for being too early, whatever comes before the name.
        assert layout.is_wanted(found, "", name[:-1])
        names, path = found.name[: found.name.rfind("/") + 1], found.path
    assert found is not None and found.name == name


@given(NAMES, NAMES)
def test_no_two_objects_meet(one: str, other: str) -> None:
    ways = (Way.MOVE_FILE, Way.MOVE_FOLDER)
    if one != other:
        assert not {path_of(way, one) for way in ways} & {path_of(way, other) for way in ways}


@pytest.mark.parametrize(
    "member", ["tmp.d", "exclusive.txt", ".o", ".x", "a b.o", "1.s", "a.o.o", "..", "ä", "a.s"]
)
def test_what_is_not_ours_is_no_object(member: str) -> None:
    assert understand("", "", member, False) is None
    assert understand("", "", member, True) is None


# Answers

APACHE = b"""<?xml version="1.0" encoding="utf-8"?>
<D:multistatus xmlns:D="DAV:" xmlns:ns0="DAV:">
<D:response xmlns:lp1="DAV:"><D:href>/dav/a%20b/</D:href><D:propstat><D:prop>
<lp1:resourcetype><D:collection/></lp1:resourcetype>
<lp1:getlastmodified>Thu, 01 Jan 2026 00:00:00 GMT</lp1:getlastmodified></D:prop>
<D:status>HTTP/1.1 200 OK</D:status></D:propstat>
<D:propstat><D:prop><D:getcontentlength/></D:prop><D:status>HTTP/1.1 404 Not Listed</D:status>
</D:propstat></D:response>
<D:response><D:href>http://host/dav/a%20b/x.o</D:href><D:propstat><D:prop><lp1:resourcetype
 xmlns:lp1="DAV:"/><D:getcontentlength>12</D:getcontentlength></D:prop>
<D:status>HTTP/1.1 200 OK</D:status></D:propstat></D:response></D:multistatus>"""


def test_an_answer_is_read() -> None:
    assert read_multistatus(APACHE) == [
        Member("/dav/a b/", True, None, 1767225600.0),
        Member("/dav/a b/x.o", False, 12, 0.0),
    ]


def test_what_the_server_did_not_find_counts_for_nothing() -> None:
    body = APACHE.replace(b"<D:getcontentlength/>", b"<D:getcontentlength>7</D:getcontentlength>")
    assert read_multistatus(body)[0].size is None


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html><body>welcome</body></html>",
        APACHE[:-20],
        APACHE.replace(b"<D:multistatus", b"<!DOCTYPE a [<!ENTITY b 'c'>]><D:multistatus", 1),
        APACHE.replace(b"</D:multistatus>", b"<a>" * 100 + b"</a>" * 100 + b"</D:multistatus>"),
        APACHE.replace(b"/dav/a%20b/x.o", b"x" * 5000),
        APACHE.replace(b"<D:href>/dav/a%20b/</D:href>", b""),
        APACHE.replace(b"utf-8", b"utf-99"),
        APACHE + b"\0",
    ],
)
def test_what_is_no_answer_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError):
        read_multistatus(body)


@given(st.binary(max_size=300), st.integers(0, len(APACHE)), st.integers(0, 40))
def test_any_damage_ends_in_one_kind_of_error(noise: bytes, at: int, cut: int) -> None:
    for body in (noise, APACHE[:at] + noise + APACHE[at + cut :]):
        try:
            members = read_multistatus(body)
        except ValueError:
            continue
        assert all(member.size is None or member.size >= 0 for member in members)


def test_a_large_folder_takes_little_memory_for_each_member() -> None:
    import tracemalloc

    one = APACHE[APACHE.rindex(b"<D:response>") : APACHE.rindex(b"</D:multistatus>")]
    body = APACHE.replace(one, b"".join(one.replace(b"x.o", b"%d.o" % i) for i in range(5_000)))
    tracemalloc.start()
    members = read_multistatus(body)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(members) == 5_001
    assert peak < 5_000 * 600


# Logging in

DIGEST = (
    'Digest realm="r, \\"x\\"", nonce="n1", algorithm=SHA-256, qop="auth", opaque="o",'
    ' Digest realm="r", nonce="n1", algorithm=MD5, qop="auth,auth-int", Basic realm="b"'
)


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)


@pytest.fixture
def password(tmp_path: Path) -> Path:
    path = tmp_path / "password"
    path.write_text("secret\nmore\n")
    path.chmod(0o600)
    return path


def login(
    path: Path | None, *, host: str = "cloud.example", secure: bool = True, auth: str = "auto"
) -> Login:
    settings = WebDavSettings(user="alice", password_file=path, auth=auth)
    return Login(settings, host, secure=secure)


def test_nothing_is_sent_before_it_is_asked_for(password: Path) -> None:
    assert login(password).header("GET", "/") is None


async def test_the_strongest_that_the_server_offers_is_used(password: Path) -> None:
    who = login(password)
    assert await who.refused(DIGEST, None)
    header = who.header("PUT", "/a/b")
    assert header is not None and "secret" not in header
    assert "algorithm=SHA-256" in header and "nc=00000001" in header

    def digest(text: str) -> str:
        return hashlib.sha256(text.encode()).hexdigest()

    def field(name: str) -> str:
        found = re.search(f'{name}="([^"]*)"', header)
        assert found
        return found[1]

    user, action = digest('alice:r, "x":secret'), digest("PUT:/a/b")
    proof = digest(f"{user}:n1:00000001:{field('cnonce')}:auth:{action}")
    assert field("response") == proof
    assert "nc=00000002" in (who.header("GET", "/") or "")
    assert await who.refused(DIGEST.replace("n1", "n2"), header)  # the nonce has ended
    assert 'nonce="n2"' in (who.header("GET", "/") or "")
    assert not await who.refused(
        DIGEST.replace("n1", "n2"), who.header("GET", "/")
    )  # it is refused


async def test_a_password_does_not_go_over_the_network_in_the_clear(password: Path) -> None:
    who = login(password, secure=False)
    assert not await who.refused('Basic realm="x"', None)
    assert "webdav+https://" in who.advice()
    assert await login(password, secure=False, host="127.0.0.1").refused('Basic realm="x"', None)
    assert login(password, secure=False, auth="basic").header("GET", "/")


async def test_a_password_that_was_changed_is_read_again(password: Path) -> None:
    who = login(password)
    assert await who.refused("Basic realm=x", None)
    old = who.header("GET", "/")
    assert not await who.refused("Basic realm=x", old)
    password.write_text("another")
    assert await who.refused("Basic realm=x", old)
    assert who.header("GET", "/") not in (None, old)


def test_a_token(password: Path) -> None:
    who = Login(WebDavSettings(password_file=password, auth="bearer"), "h", secure=True)
    assert who.header("GET", "/") == "Bearer secret"
    assert "secret" not in repr(who.secret)


def test_a_netrc_file(tmp_path: Path) -> None:
    path = tmp_path / "netrc"
    path.write_text("machine cloud.example login bob password hunter2\n")
    path.chmod(0o600)
    who = Login(WebDavSettings(netrc=path), "cloud.example", secure=True)
    assert who.secret is not None and who.secret.user == "bob"
    with pytest.raises(Denied, match="no password for other"):
        Login(WebDavSettings(netrc=path), "other", secure=True)
    path.write_text("machine cloud.example hunter2\n")
    with pytest.raises(BadStore) as raised:
        Login(WebDavSettings(netrc=path), "cloud.example", secure=True)
    assert "hunter2" not in str(raised.value)


def test_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "from there")
    who = login(None)
    assert who.secret is not None and who.secret.password == "from there"


def test_what_is_wrong_with_a_password_is_said(password: Path, tmp_path: Path) -> None:
    with pytest.raises(Denied, match="no password for cloud"):
        login(None)
    with pytest.raises(BadStore, match="No such file"):
        login(tmp_path / "none")
    password.write_text("\n")
    with pytest.raises(Denied, match="first line holds no password"):
        login(password)
    password.chmod(0o644)
    with pytest.raises(BadStore, match="can be read by others: chmod 600"):
        login(password)


@given(st.text(max_size=200))
def test_any_challenge_is_survived(asked: str) -> None:
    who = Login(WebDavSettings(), "h", secure=True)
    assert not trio.run(who.refused, asked, None)
    assert who.advice()


# URLs and options


def test_a_url_names_a_server_and_a_folder() -> None:
    assert location_of("webdav+https://h.example/a%20b").name == "https://h.example"
    assert location_of("webdav+http://[::1]:81/x").name == "http://[::1]:81"
    assert open_driver("webdav+https://h.example/a b/").url == "webdav+https://h.example/a b"
    for url, hint in (
        ("webdav+https:///a", "names no server"),
        ("webdav+https://me:hunter2@h/a", "credentials do not belong"),
        ("webdav+https://h:99999/", "not a URL"),
        ("webdav+https://h/a/../b", "may not hold"),
        ("https://h/a", "webdav+https://HOST/PATH"),
    ):
        with pytest.raises(BadStore, match=re.escape(hint)) as raised:
            open_driver(url)
        assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ({"auth": "ntlm"}, "auth= takes auto, basic, digest, bearer"),
        ({"user": "me:hunter2"}, "without a colon"),
        ({"client_key": "/k"}, "needs client_cert="),
        ({"read_timeout": "0"}, "read_timeout= takes seconds"),
    ],
)
def test_options_that_cannot_be_right(options: dict[str, str], hint: str) -> None:
    with pytest.raises(BadStore, match=re.escape(hint)) as raised:
        read_options(options)
    assert "hunter2" not in str(raised.value)


def test_every_option_is_described_documented_and_read() -> None:
    driver = DRIVERS["webdav+https"]
    docs = (Path(__file__).parents[2] / "docs" / "mount-options.md").read_text()
    for option in driver.described:
        assert f"| `{option.name}={option.example}` | {option.text} |" in docs
    fields = set(WebDavSettings.__struct_fields__) - {"timeouts"}
    assert driver.options == fields | {"connect_timeout", "read_timeout"}
    check_options(driver, dict.fromkeys(driver.options, ""))
