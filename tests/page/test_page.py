"""The page in a real Chromium: what is saved is what was shared, and failures have sentences."""

from __future__ import annotations

import io
import os
import shutil
import struct
import wave
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from msgspec.structs import replace

from megafs.concurrency import in_place
from megafs.crypto import aead
from megafs.jobs import registry
from megafs.links import link_text, manifest
from megafs.progress import ignore
from megafs.volume.volume import Volume
from tests.fs.opened import ROOT, opened, put_file
from tests.page.browser import FolderServer, serving_folder

pytest.importorskip("playwright")
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
STATIC = Path(__file__).parent.parent.parent / "megafs" / "page" / "static"

expect.set_options(timeout=30_000)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here"),
]

BIG = os.urandom(3_000_000) + bytes(500_000) + b"end"
TEXT = "Grüße aus dem Archiv\n" * 5000
ODD = "Ö d d 'näme' \u65e5\u672c (1)%41 &?#.txt"


def png(width: int, height: int) -> bytes:
    """A picture of one colour."""

    def piece(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    rows = zlib.compress((b"\0" + b"\x40\x90\x70" * width) * height)
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + piece(b"IHDR", head) + piece(b"IDAT", rows) + piece(b"IEND", b"")


def sound(seconds: int) -> bytes:
    made = io.BytesIO()
    with wave.open(made, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(os.urandom(32000 * seconds))
    return made.getvalue()


class Links:
    """Links by what they lead to, and the server that gives out page and contents."""

    def __init__(self, server: FolderServer, folder: Path) -> None:
        self.server = server
        self.folder = folder
        self.of: dict[str, str] = {}
        self.sound = sound(60)

    async def make(self, place: Path) -> None:
        async with opened(place, params=_params()) as volume:
            fs = volume.fs
            await put_file(fs, 1, b"big.bin", BIG)
            await put_file(fs, 1, ODD.encode(), TEXT.encode())
            await put_file(fs, 1, b"picture.png", png(40, 30))
            await put_file(fs, 1, b"sound.wav", self.sound)
            await put_file(fs, 1, b"tiny.txt", b"hi")
            top = (await fs.mkdir(1, b"folder", 0o755, ROOT)).ino
            inner = (await fs.mkdir(top, b"inner", 0o755, ROOT)).ino
            await put_file(fs, top, b"one.txt", TEXT.encode())
            await put_file(fs, inner, b"two.bin", BIG)
            await put_file(fs, inner, b"empty", b"")
            many = (await fs.mkdir(1, b"many", 0o755, ROOT)).ino
            for n in range(1000):
                await put_file(fs, many, f"file {n:04}".encode(), b"%d" % n)
            for name in ("big.bin", ODD, "picture.png", "sound.wav", "tiny.txt", "folder", "many"):
                await self._share(volume, name)
            await self._share(volume, "tiny.txt", "locked", password="Schlüssel")

    async def _share(self, volume: Volume, name: str, key: str = "", **more: Any) -> None:
        args = {"path": f"/{name}", "out": str(self.folder), "page": self.server.url, **more}
        made = await registry.run(volume, "share", args, ignore)
        self.of[key or name] = made["link"]

    def manifest_of(self, name: str) -> Path:
        return self.folder / "share" / link_text.parse(self.of[name]).id / "manifest"


def _params() -> Any:
    from megafs.config import KIB, MIB, Parameters

    return Parameters(chunk_size=256 * KIB, pack_size=4 * MIB, inline_limit=64, quota=None)


@pytest.fixture(scope="module")
def links(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Links]:
    place = tmp_path_factory.mktemp("page")
    folder = place / "www"
    shutil.copytree(STATIC, folder)
    with serving_folder(folder) as server:
        made = Links(server, folder)
        with in_place():
            trio.run(made.make, place / "machine")
        yield made


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as running:
        started = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def context(browser: Browser, links: Links) -> Iterator[BrowserContext]:
    links.server.trouble = None
    links.server.cut = None
    made = browser.new_context(accept_downloads=True)
    made.set_default_timeout(30_000)
    yield made
    made.close()


@pytest.fixture
def page(context: BrowserContext) -> Page:
    return context.new_page()


def saved(page: Page, button: str = "Download") -> tuple[str, bytes]:
    with page.expect_download() as download:
        page.get_by_role("button", name=button, exact=True).first.click()
    return download.value.suggested_filename, Path(download.value.path()).read_bytes()


def until(page: Page, condition: str) -> None:
    """Wait for a condition: Playwright's own way evaluates text, and the policy forbids that."""
    for _ in range(600):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"it never came to be that {condition}")


def status(page: Page, text: str) -> None:
    line = page.get_by_role("status")
    expect(line).to_contain_text(text)
    assert text in line.inner_text()


def test_a_file_is_saved_byte_by_byte(page: Page, links: Links) -> None:
    links.server.seen.clear()
    page.goto(links.of["big.bin"])
    expect(page.get_by_role("heading", level=1)).to_have_text("big.bin")
    assert saved(page) == ("big.bin", BIG)
    status(page, "every byte of it was verified")
    assert "#" not in page.url, "the key stays in the address"
    link = links.of["big.bin"]
    secret = link.partition("#1.")[2].split(".")[1]
    for path, headers in links.server.seen:
        assert secret not in path and secret not in repr(headers)
        assert not any("#" in value for name, value in headers.items() if name == "Referer")


def test_an_odd_name_is_kept(page: Page, links: Links) -> None:
    page.goto(links.of[ODD])
    expect(page.get_by_role("heading", level=1)).to_have_text(ODD)
    name, data = saved(page)
    assert data == TEXT.encode()
    assert name.startswith("Ö d d") and "\u65e5\u672c (1)" in name and name.endswith(".txt")


def test_a_password_is_asked_for_again(page: Page, links: Links) -> None:
    page.goto(links.of["locked"])
    field = page.get_by_label("Password")
    expect(field).to_be_focused()
    field.fill("wrong")
    page.keyboard.press("Enter")
    status(page, "not the password")
    expect(field).to_be_focused()
    field.fill("Schlüssel")
    page.keyboard.press("Enter")
    assert saved(page) == ("tiny.txt", b"hi")


def test_a_folder_as_one_zip_and_one_by_one(page: Page, links: Links) -> None:
    page.goto(links.of["folder"])
    name, data = saved(page, "Download all as one zip")
    assert name == "folder.zip"
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        found = {info.filename: archive.read(info) for info in archive.infolist()}
    assert found == {
        "folder/one.txt": TEXT.encode(),
        "folder/inner/": b"",
        "folder/inner/two.bin": BIG,
        "folder/inner/empty": b"",
    }
    assert saved(page, "Download two.bin") == ("two.bin", BIG)
    assert saved(page, "Download empty") == ("empty", b"")
    # Once more: what was given away the first time is still there.
    assert saved(page, "Download two.bin") == ("two.bin", BIG)


def test_a_long_folder_is_shown_in_parts(page: Page, links: Links) -> None:
    page.goto(links.of["many"])
    expect(page.get_by_role("listitem")).to_have_count(300)
    page.get_by_role("button", name="Show more").click()
    expect(page.get_by_role("listitem")).to_have_count(600)
    assert saved(page, "Download file 0599") == ("file 0599", b"599")


def test_a_picture_a_text_and_a_sound_are_shown(page: Page, links: Links) -> None:
    page.goto(links.of["picture.png"])
    page.get_by_role("button", name="Show").click()
    picture = page.locator("img")
    expect(picture).to_be_visible()
    until(page, "document.querySelector('img')?.naturalWidth === 40")
    page.get_by_role("button", name="Close").click()
    expect(picture).to_have_count(0)
    page.goto(links.of[ODD])
    page.get_by_role("button", name="Show").click()
    expect(page.locator("pre")).to_contain_text("Grüße aus dem Archiv")
    page.goto(links.of["sound.wav"])
    page.get_by_role("button", name="Show").click()
    until(page, "document.querySelector('audio')?.duration > 59")


def test_a_sound_is_wound_forward_without_the_bytes_between(page: Page, links: Links) -> None:
    page.goto(links.of["sound.wav"])
    page.get_by_role("button", name="Show").click()
    until(page, "document.querySelector('audio')?.readyState >= 1")
    page.evaluate("document.querySelector('audio').currentTime = 55")
    until(page, "document.querySelector('audio').readyState >= 2")
    assert page.evaluate("document.querySelector('audio').currentTime") >= 54


def test_a_broken_connection_is_gone_on_with(page: Page, links: Links) -> None:
    page.goto(links.of["big.bin"])
    expect(page.get_by_role("heading", level=1)).to_have_text("big.bin")
    links.server.cut = 1_200_000
    assert saved(page) == ("big.bin", BIG)
    assert links.server.cut is None, "nothing was cut"


@pytest.mark.parametrize(
    ("answer", "text"),
    [(404, "revoked"), (403, "expired"), (410, "revoked"), (418, "does not ask")],
)
def test_what_the_server_refuses_is_said(page: Page, links: Links, answer: int, text: str) -> None:
    links.server.trouble = lambda path: answer if path.endswith("/manifest") else 0
    page.goto(links.of["tiny.txt"])
    status(page, text)
    expect(page.get_by_role("heading", level=1)).to_have_text("It did not work")


def test_a_file_that_goes_meanwhile_is_not_half_saved(page: Page, links: Links) -> None:
    page.goto(links.of["big.bin"])
    expect(page.get_by_role("heading", level=1)).to_have_text("big.bin")
    links.server.trouble = lambda path: 403 if "share/" in path else 0
    with page.expect_download() as download:
        page.get_by_role("button", name="Download").click()
    assert download.value.failure()
    status(page, "expired")


@pytest.mark.parametrize("cut", [1, 30, 60])
def test_a_link_that_is_not_whole(page: Page, links: Links, cut: int) -> None:
    page.goto(links.of["tiny.txt"][:-cut])
    status(page, "not whole")


def test_without_a_link(page: Page, links: Links) -> None:
    page.goto(links.server.url)
    status(page, "no link in the address")


def _damaged(links: Links, name: str, change: Any) -> str:
    """A link beside *name*'s, to a copy in which *change* has gone over the manifest's bytes."""
    link = link_text.parse(links.of[name])
    path = links.manifest_of(name)
    bad = path.with_name(f"bad-{os.urandom(4).hex()}")
    bad.write_bytes(change(path.read_bytes(), link))
    url = f"{links.server.url}share/{link.id}/{bad.name}"
    return replace(link, address=url).text


@pytest.mark.parametrize("kind", ["flipped", "cut", "empty", "noise", "other", "zeros"])
def test_a_damaged_manifest_is_said(page: Page, links: Links, kind: str) -> None:
    def change(data: bytes, link: Any) -> bytes:
        return {
            "flipped": data[:-5] + bytes((data[-5] ^ 1,)) + data[-4:],
            "cut": data[:-1],
            "empty": b"",
            "noise": os.urandom(len(data)),
            "other": links.manifest_of("picture.png").read_bytes(),
            "zeros": bytes(len(data)),
        }[kind]

    page.goto(_damaged(links, "tiny.txt", change))
    expect(page.get_by_role("heading", level=1)).to_have_text("It did not work")
    assert page.locator("#status").inner_text() in (
        "The store answered with something else than what was shared. Nothing was saved.",
        "The link needs a newer page than this one. Ask whoever sent it, or reload.",
    )


@pytest.mark.parametrize("kind", ["flipped", "forged", "swapped", "replayed"])
def test_a_chunk_that_is_not_the_one_shared_is_not_saved(
    page: Page, links: Links, kind: str
) -> None:
    link = link_text.parse(links.of["big.bin"])
    path = links.manifest_of("big.bin")
    shared = manifest.open_manifest(path.read_bytes(), link.id, link.secret, b"")
    (file,) = shared.files
    chunk, other = file.chunks[3], file.chunks[4]
    source = shared.objects[chunk.object]
    place = path.parent / source.url
    before = place.read_bytes()
    body = bytearray(before)
    old = bytes(body[chunk.at : chunk.at + chunk.sealed])
    context = aead.context(
        "chunk",
        bytes.fromhex(shared.volume),
        source.epoch,
        bytes.fromhex(source.id),
        chunk.offset,
    )
    new = {
        "flipped": old[:100] + bytes((old[100] ^ 1,)) + old[101:],
        "forged": aead.seal(chunk.key, context, aead.open_sealed(chunk.key, context, old)),
        "swapped": bytes(body[other.at : other.at + other.sealed]),
        "replayed": bytes(len(old)),
    }[kind]
    body[chunk.at : chunk.at + chunk.sealed] = new[: len(old)].ljust(len(old), b"\0")
    place.write_bytes(body)
    try:
        page.goto(links.of["big.bin"])
        with page.expect_download() as download:
            page.get_by_role("button", name="Download").click()
        assert download.value.failure()
        status(page, "something else than what was shared")
    finally:
        place.write_bytes(before)


def test_without_a_service_worker_it_is_kept_in_memory(browser: Browser, links: Links) -> None:
    context = browser.new_context(accept_downloads=True, service_workers="block")
    try:
        context.add_init_script("delete window.showSaveFilePicker")
        page = context.new_page()
        page.goto(links.of["big.bin"])
        assert saved(page) == ("big.bin", BIG)
        page.goto(links.of["picture.png"])
        page.get_by_role("button", name="Show").click()
        until(page, "document.querySelector('img')?.naturalWidth === 40")
    finally:
        context.close()


def test_too_large_for_memory_is_said(browser: Browser, links: Links) -> None:
    def change(data: bytes, link: Any) -> bytes:
        shared = manifest.open_manifest(data, link.id, link.secret, b"")
        file = replace(shared.files[0], size=10 << 30)
        return manifest.seal(replace(shared, files=(file,)), link.id, link.secret, b"", data[2:18])

    context = browser.new_context(service_workers="block")
    try:
        context.add_init_script("delete window.showSaveFilePicker")
        page = context.new_page()
        page.goto(_damaged(links, "big.bin", change))
        expect(page.get_by_text("up to 500 MB only")).to_be_visible()
        page.get_by_role("button", name="Download").click()
        status(page, "too large for this window")
    finally:
        context.close()


@pytest.mark.parametrize(
    ("locale", "word"),
    [("de-AT", "Herunterladen"), ("fr-FR", "Télécharger"), ("pt-BR", "Download")],
)
def test_it_speaks_the_readers_language(
    browser: Browser, links: Links, locale: str, word: str
) -> None:
    context = browser.new_context(locale=locale)
    try:
        page = context.new_page()
        page.goto(links.of["tiny.txt"])
        expect(page.get_by_role("button", name=word, exact=True)).to_be_visible()
        page.get_by_role("combobox").select_option("de")
        expect(page.get_by_role("button", name="Herunterladen", exact=True)).to_be_visible()
        assert page.evaluate("document.documentElement.lang") == "de"
    finally:
        context.close()


def test_the_keyboard_is_enough(page: Page, links: Links) -> None:
    page.goto(links.of["tiny.txt"])
    button = page.get_by_role("button", name="Download")
    expect(button).to_be_visible()
    for _ in range(10):
        page.keyboard.press("Tab")
        if button.evaluate("it => it === document.activeElement"):
            break
    with page.expect_download() as download:
        page.keyboard.press("Enter")
    assert Path(download.value.path()).read_bytes() == b"hi"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone(browser: Browser, links: Links, scheme: Any) -> None:
    context = browser.new_context(
        viewport={"width": 340, "height": 640}, color_scheme=scheme, device_scale_factor=2
    )
    try:
        page = context.new_page()
        for name in ("folder", ODD, "locked"):
            page.goto(links.of[name])
            expect(page.get_by_role("button").first).to_be_visible()
            wide = page.evaluate("document.documentElement.scrollWidth")
            assert wide <= 340, f"{name} is {wide} wide"
        if where := os.environ.get("MEGAFS_SCREENSHOTS"):
            page.goto(links.of["folder"])
            page.get_by_role("button", name="Show one.txt").wait_for()
            page.screenshot(path=f"{where}/phone-{scheme}.png")
    finally:
        context.close()


def test_nothing_is_asked_of_anybody_else(page: Page, links: Links) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(links.of["picture.png"])
    page.get_by_role("button", name="Show").click()
    until(page, "document.querySelector('img')?.naturalWidth === 40")
    assert asked and all(url.startswith((links.server.url, "blob:")) for url in asked)
