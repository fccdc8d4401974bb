"""Let browsers open the links of a store, and prove that they can."""

from __future__ import annotations

import contextlib
from urllib.parse import urlsplit

import trio

from megafs.errors import BadUsage, Denied, StoreError, Unavailable
from megafs.jobs.link_messages import SetupArgs, SetupResult
from megafs.links import link_text
from megafs.links.fetch import Fetcher
from megafs.progress import OnProgress
from megafs.stores.abilities import PlainUrls, Presign, WebAccess
from megafs.volume.volume import Volume


async def set_up(volume: Volume, args: SetupArgs, on_progress: OnProgress) -> SetupResult:
    """Allow the page's origin, and perhaps everybody to read manifests; then try it."""
    access, signer = WebAccess.of(volume.store), Presign.of(volume.store)
    plain = PlainUrls.of(volume.store)
    if access is None or signer is None or plain is None:
        raise BadUsage(
            f"{volume.url.partition(':')[0]} stores answer no browsers: megafs share --out makes"
            " a folder that any web server can serve"
        )
    page = args.page or volume.settings.page
    if not page:
        raise BadUsage("say --page with the address of the page, or mount with -o page=")
    parts = urlsplit(page)
    origin = f"{parts.scheme}://{parts.netloc}"
    lines: list[str] = []
    try:
        if not await access.allow_origin(origin):
            lines.append(
                "the service takes no CORS rules over its API: allow GET and HEAD with the header"
                f" range from {origin} where it is administered"
            )
        if args.manifests and not await access.allow_public("share/"):
            lines.append("the service took no policy: links last 7 days at most")
    except Denied as exc:
        lines.append(f"these credentials may not change the bucket: {exc}")
    browsers, manifests = await _tried(volume, signer, plain, origin)
    if browsers:
        lines.append(f"browsers can open links from {origin}")
    else:
        lines.append(
            f"a browser at {origin} is refused: its CORS rules are missing or do not allow it"
        )
    lines.append(
        "everybody can read manifests: a mount renews the rest, and links last as long as you say"
        if manifests
        else "manifests are read with a signature: a link lasts 7 days at most"
    )
    done = browsers and (manifests or not args.manifests)
    return SetupResult(0 if done else 1, origin, browsers, manifests, lines)


async def _tried(
    volume: Volume, signer: Presign, plain: PlainUrls, origin: str
) -> tuple[bool, bool]:
    """Whether a browser is answered, and whether a manifest is read without a signature."""
    name = f"share/{link_text.new_id()}/probe"
    await volume.store.put_new(name, b"megafs: can a browser read this?\n")
    try:
        async with Fetcher() as fetcher:
            browsers = False
            with contextlib.suppress(Unavailable):
                browsers = await fetcher.allows(await signer.presign_get(name, 300), origin)
            try:
                await fetcher.get(plain.plain_url(name), 0, 1)
            except StoreError:
                return browsers, False
            return browsers, True
    finally:
        with trio.move_on_after(30, shield=True):
            await volume.store.delete(name)
