"""Read what a link gives out, without a volume; nothing unverified comes out."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final
from urllib.parse import urljoin, urlsplit

import trio
from msgspec import Struct

from megafs.chunks import codec
from megafs.concurrency import offload, one_error_nursery
from megafs.crypto import aead
from megafs.crypto.volume_keys import digest
from megafs.errors import BadPassphrase, BadStore, Corrupt, Denied, MegafsError, Missing
from megafs.links import manifest as manifests
from megafs.links.fetch import Fetcher
from megafs.links.link_text import ShareLink
from megafs.links.manifest import LinkManifest, SharedBytes, SharedChunk, SharedFile
from megafs.stores.base import Buffer

#: Chunks closer together than this in an object are fetched in one get, of at most so many bytes.
_GAP: Final = 64 << 10
_RANGE: Final = 4 << 20
#: Gets under way at once, and so what is kept in memory: 4 * 4 MiB sealed, and as much opened.
_AHEAD: Final = 4

#: Takes the bytes at an offset of a file, in ascending order.
Sink = Callable[[int, Buffer], Awaitable[None]]


class _Piece(Struct, frozen=True):
    """What one get brings, or bytes that are here already."""

    start: int
    chunks: tuple[SharedChunk, ...] = ()
    inline: SharedBytes | None = None


class SharedFiles:
    """What a link gives out, opened."""

    def __init__(self, link: ShareLink, manifest: LinkManifest, fetcher: Fetcher) -> None:
        self.manifest = manifest
        self._fetcher = fetcher
        self._base = link.manifest_url
        self._volume = bytes.fromhex(manifest.volume)

    async def copy(self, file: SharedFile, sink: Sink, start: int = 0) -> None:
        """Give *sink* the file's bytes from *start* on, or from a little before.

        What lies between two calls, or behind the last, is zeros.  Raises Corrupt at the first
        bytes that are not what the link says, Missing or Denied if they are not there any more.
        """
        pieces = [piece for piece in _pieces(file) if _end(piece) > start]
        opened: dict[int, list[tuple[int, Buffer]] | MegafsError] = {}
        ready = [trio.Event() for _ in pieces]
        window = trio.Semaphore(_AHEAD)

        async def fetch(number: int) -> None:
            try:
                opened[number] = await self._open(pieces[number])
            except MegafsError as exc:  # what lies before it is still handed over
                opened[number] = exc
            ready[number].set()

        async def fetch_all(nursery: trio.Nursery) -> None:
            for number in range(len(pieces)):
                await window.acquire()
                nursery.start_soon(fetch, number)

        async with one_error_nursery() as nursery:
            nursery.start_soon(fetch_all, nursery)
            for number in range(len(pieces)):
                await ready[number].wait()
                found = opened.pop(number)
                if isinstance(found, MegafsError):
                    raise found
                for at, data in found:
                    await sink(at, data)
                window.release()

    async def _open(self, piece: _Piece) -> list[tuple[int, Buffer]]:
        if piece.inline is not None:
            await trio.lowlevel.checkpoint()
            return [(piece.start, piece.inline.data)]
        chunks = sorted(piece.chunks, key=lambda chunk: chunk.at)
        source = self.manifest.objects[chunks[0].object]
        url = urljoin(self._base, source.url)
        if urlsplit(url).scheme == "file" and urlsplit(self._base).scheme != "file":
            raise BadStore("the link is from the network and names a file of this machine")
        begin, end = chunks[0].at, max(chunk.at + chunk.sealed for chunk in chunks)
        try:
            data = await self._fetcher.get(url, begin, end - begin)
        except Missing:
            raise Missing("the file is not there any more: the link was revoked") from None
        except Denied:
            raise Denied(ENDED) from None
        pack = bytes.fromhex(source.id)
        view = memoryview(data)

        def open_all() -> list[tuple[int, Buffer]]:
            found: list[tuple[int, Buffer]] = []
            for chunk in sorted(chunks, key=lambda chunk: chunk.start):
                sealed = view[chunk.at - begin : chunk.at - begin + chunk.sealed]
                plain = _open_chunk(self._volume, source.epoch, pack, chunk, sealed)
                found.append((chunk.start, plain[chunk.skip : chunk.skip + chunk.length]))
            return found

        return await offload(open_all)


ENDED: Final = (
    "the server does not give the file out any more: the link has expired, or was revoked. Ask"
    " whoever sent it for a new one"
)


async def open_link(link: ShareLink, fetcher: Fetcher, password: str | None = None) -> SharedFiles:
    """Fetch and open the manifest.

    Raises BadPassphrase if a password is needed and *password* is None or another one; Missing or
    Denied if the link was revoked or has expired; Corrupt if it is damaged.
    """
    data = await fetch_manifest(link, fetcher)
    key = b""
    head = manifests.read_head(data)
    if head.needs_password:
        if password is None:
            raise BadPassphrase("the link needs a password")
        key = await offload(lambda: manifests.password_key(password, head.salt))
    manifest = await offload(lambda: manifests.open_manifest(data, link.id, link.secret, key))
    return SharedFiles(link, manifest, fetcher)


async def fetch_manifest(link: ShareLink, fetcher: Fetcher) -> bytes:
    """The sealed manifest of a link, as long as it is there."""
    try:
        data = await fetcher.get(link.manifest_url, 0, manifests.LARGEST + 1)
    except Missing:
        raise Missing("there is nothing at this link: it was revoked, or is not whole") from None
    except Denied:
        raise Denied(ENDED) from None
    if len(data) > manifests.LARGEST:
        raise Corrupt("the link's manifest is too large")
    return data


def _pieces(file: SharedFile) -> list[_Piece]:
    """A file's bytes in order, chunks that lie together in one object in one piece."""
    items: list[SharedChunk | SharedBytes] = [*file.chunks, *file.inline]
    items.sort(key=lambda item: item.start)
    found: list[_Piece] = []
    run: list[SharedChunk] = []

    def close() -> None:
        if run:
            found.append(_Piece(run[0].start, tuple(run)))
            run.clear()

    for item in items:
        if isinstance(item, SharedBytes):
            close()
            found.append(_Piece(item.start, inline=item))
            continue
        if run and not _fits(run, item):
            close()
        run.append(item)
    close()
    return found


def _fits(run: Sequence[SharedChunk], item: SharedChunk) -> bool:
    """Whether one get may bring *item* with those of *run*."""
    last = run[-1]
    gap = item.at - last.at - last.sealed
    same = last.at == item.at and last.sealed == item.sealed  # two pieces of one chunk
    return (
        item.object == last.object
        and (0 <= gap <= _GAP or same)
        and item.at + item.sealed - run[0].at <= _RANGE
    )


def _end(piece: _Piece) -> int:
    if piece.inline is not None:
        return piece.start + len(piece.inline.data)
    return max(chunk.start + chunk.length for chunk in piece.chunks)


def _open_chunk(
    volume: bytes, epoch: int, pack: bytes, chunk: SharedChunk, sealed: memoryview
) -> memoryview:
    """The data of a chunk, proved to be what whoever made the link sealed.

    The digest as well as the seal: everybody who has a link to the chunk has its key, and could
    seal another one (docs/threats.md, row 34).
    """
    if len(sealed) != chunk.sealed or digest(sealed) != chunk.digest:
        raise Corrupt(
            "the store answered with something else than what was shared: nothing of it was kept"
        )
    context = aead.context("chunk", volume, epoch, pack, chunk.offset)
    data = codec.decode(aead.open_sealed(chunk.key, context, sealed, "a shared chunk"))
    if len(data) != chunk.plain:
        raise Corrupt("a shared chunk holds another number of bytes than the link says")
    return memoryview(data)
