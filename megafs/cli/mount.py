"""`megafs mount`: mount a volume, in the background unless told otherwise."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from msgspec.structs import asdict

from megafs import garbage
from megafs.cli import arguments, mega_source, output
from megafs.mount.options import MountOptions, escape

if TYPE_CHECKING:
    from megafs.mount.daemon import MountFacts


@click.command(name="mount", short_help="Mount a volume on a directory.")
@click.argument("url")
@click.argument("mountpoint")
@arguments.volume_options
@arguments.secret_options
@click.option("--foreground", is_flag=True, help="Stay, and log to stderr.")
@click.option(
    "--guard",
    is_flag=True,
    help="Keep programs from writing into the bare directory while nothing is mounted there;"
    " the same as -o guard.",
)
@click.option(
    "--accept-state",
    is_flag=True,
    help="Mount although the store shows less, or another history, than this machine has seen;"
    " the same as -o accept_state.",
)
@click.option(
    "--expect-head",
    metavar="HEAD",
    help="Refuse to mount unless the newest commit is this one: hex, or the four words of `megafs"
    " status`; the same as -o expect_head=HEAD.",
)
@arguments.json_option
@click.pass_obj
def command(
    obj: dict[str, Any],
    /,
    url: str,
    mountpoint: str,
    options: tuple[str, ...],
    state_dir: Path | None,
    cache_dir: Path | None,
    foreground: bool,
    guard: bool,
    accept_state: bool,
    expect_head: str | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Mount the volume at URL on the directory MOUNTPOINT.

    Returns when the directory is usable.  A signal (or Ctrl-C with --foreground) brings everything
    to the store and unmounts; a second one ends at once, and what is left goes to the store with
    the next mount.
    """
    if guard:
        options += ("guard",)
    if accept_state:
        options += ("accept_state",)
    if expect_head is not None:
        options += (f"expect_head={escape(expect_head)}",)
    chosen = arguments.mount_options(
        mega_source.options_url(url), options, state_dir=state_dir, cache_dir=cache_dir, **given
    )
    mount(
        url,
        mountpoint,
        chosen,
        foreground=foreground,
        as_json=as_json,
        debug=bool(obj.get("debug")),
    )


def mount(
    url: str,
    path: str,
    options: MountOptions,
    *,
    foreground: bool,
    as_json: bool = False,
    debug: bool = False,
    quiet: bool = False,
) -> None:
    """Mount, and return when the directory is usable; with *foreground*, when it is unmounted."""
    for text in options.warnings:
        output.warn(text)
    if mega_source.is_of_mega(url):
        from megafs.cli import mount_mega

        mount_mega.mount(
            url, path, options, foreground=foreground, as_json=as_json, debug=debug, quiet=quiet
        )
        return
    if os.geteuid() != 0:
        for name in ("suid", "dev"):
            if name in options.kernel:
                output.warn(f"option {name} is for root: ignored")

    with garbage.paused():
        from megafs import logs
        from megafs.cli import passphrase
        from megafs.mount.mountpoint import canonical
        from megafs.mount.prepare import prepare
        from megafs.volume import kdf_process

    if options.log not in (None, "stderr", "syslog"):
        logs.check_file(options.log)
    at = canonical(path)
    directory = prepare(at, options)
    credential = passphrase.credential(options.secrets, prompt=f"Passphrase for {url}")
    early = kdf_process.begin(url, credential, options.settings.state_dir)

    _import_all(url)
    from megafs.mount import daemon, lifecycle

    request = lifecycle.MountRequest(url, at, directory, options, credential, early)
    debug = debug or options.debug

    def show(facts: MountFacts) -> None:
        if as_json:
            output.show_json({"mountpoint": at, "url": url, **asdict(facts)})
        elif not quiet:
            _show_facts(at, facts)

    if foreground:
        daemon.harden()
        logs.set_up(options.log or "stderr", debug=debug)
        lifecycle.run(request, _ShowAtTerminal(show))
        return

    at_terminal = options.log in (None, "syslog")

    def serve(on_ready: daemon.ReadyListener) -> None:
        daemon.harden()
        # Until the directory is usable, what there is to say may be said here.
        logs.set_up("terminal" if at_terminal else str(options.log), debug=debug)
        os.chdir("/")
        lifecycle.run(request, on_ready)

    def ready() -> None:
        if at_terminal:
            logs.set_up("syslog", debug=debug)
        if options.log != "stderr":
            daemon.detach_output()

    keep = set() if early is None else {early.fileno()}
    show(daemon.in_background(serve, ready, keep))


def _import_all(url: str) -> None:
    """Import all that a mount is made of: while the key is derived, and before the fork."""
    with garbage.paused():
        importlib.import_module("megafs.mount.lifecycle")
        importlib.import_module("megafs.stores.stack").preload(url)


class _ShowAtTerminal:
    """A `daemon.ReadyListener` for a mount in the foreground, whose stdout may be a log."""

    def __init__(self, show: Callable[[MountFacts], None]) -> None:
        self._show = show

    def ready(self, facts: MountFacts) -> None:
        if sys.stdout.isatty():
            self._show(facts)


def _show_facts(at: str, facts: MountFacts) -> None:
    """Say how fresh the volume is: a store that hides the newest commits shows here."""
    output.note(
        f"mounted at {at}: commit {facts.sequence} ({facts.head_words}),"
        f" {output.ago(facts.head_time)} by {facts.head_host}"
    )
    if facts.offline:
        output.warn("the store did not answer: working with what this machine has")
    if facts.staged_bytes or facts.pending_operations:
        output.note(
            f"{output.size(facts.staged_bytes)} and {facts.pending_operations} operations"
            " from last time are on their way to the store"
        )
