"""`megafs mount` of an account's files at MEGA, or of a folder that a link leads to."""

from __future__ import annotations

import os
from collections.abc import Callable

from megafs import logs
from megafs.cli import mega_source, output
from megafs.errors import BadUsage
from megafs.mega.links import MegaLink
from megafs.mega.options import MegaOptions, read_options
from megafs.mega.places import MegaPlace, place_of_link, place_of_session
from megafs.mega.session import kept_session
from megafs.mount import daemon, mega_mount
from megafs.mount.daemon import MountFacts
from megafs.mount.mountpoint import canonical
from megafs.mount.options import MountOptions
from megafs.mount.prepare import prepare
from megafs.stores.drivers import location_of


def place_of(url: str, options: MountOptions) -> tuple[MegaPlace, MegaOptions]:
    """What *url* means, with the login that is kept or the key of the link."""
    store_options = options.settings.store_options
    chosen = read_options(store_options)
    if mega_source.is_account(url):
        session = kept_session(store_options)  # before the fork, so in no thread
        return place_of_session(session, chosen, location_of(url).path), chosen
    link = mega_source.read_link(url, options.secrets)
    check_folder(link)
    return place_of_link(link), chosen


def check_folder(link: MegaLink) -> None:
    """BadUsage for a link to a single file."""
    if not link.is_folder:
        raise BadUsage(f"{link.shown} is a file, and only folders are mounted: megafs get fetches")


def mount(
    url: str,
    path: str,
    options: MountOptions,
    *,
    foreground: bool,
    as_json: bool,
    debug: bool,
    quiet: bool,
) -> None:
    """Mount, and return when the directory is usable; with *foreground*, when it is unmounted."""
    at = canonical(path)
    directory = prepare(at, options)
    place, chosen = place_of(url, options)
    request = mega_mount.MegaMountRequest(place, at, directory, options, chosen)

    def show(facts: MountFacts) -> None:
        if as_json:
            output.show_json({"mountpoint": at, "url": place.shown, "pid": facts.pid})
        elif not quiet:
            output.note(f"{place.shown} is mounted at {at}, read-only; {mega_mount.UNVERIFIED}")

    if foreground:
        daemon.harden()
        logs.set_up(options.log or "stderr", debug=debug)
        mega_mount.run(request, _ShowReady(show))
        return
    at_terminal = options.log in (None, "syslog")

    def serve(on_ready: daemon.ReadyListener) -> None:
        daemon.harden()
        logs.set_up("terminal" if at_terminal else str(options.log), debug=debug)
        os.chdir("/")
        mega_mount.run(request, on_ready)

    def ready() -> None:
        if at_terminal:
            logs.set_up("syslog", debug=debug)
        if options.log != "stderr":
            daemon.detach_output()

    show(daemon.in_background(serve, ready))


class _ShowReady:
    """A `daemon.ReadyListener` for a mount in the foreground."""

    def __init__(self, show: Callable[[MountFacts], None]) -> None:
        self._show = show

    def ready(self, facts: MountFacts) -> None:
        self._show(facts)
