"""`megafs share`: links for people without megafs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from megafs.cli import arguments, link_password, output, run_job, volume_path
from megafs.cli.volume_path import VolumePath
from megafs.config import parse_duration
from megafs.jobs import link_messages
from megafs.jobs.link_messages import (
    LinkArgs,
    LinkList,
    RenewArgs,
    SetupArgs,
    ShareArgs,
    SharedLink,
)
from megafs.jobs.messages import Nothing
from megafs.links.link_text import NO_PAGE
from megafs.mount.option_values import as_page
from megafs.page import write_page
from megafs.stores.drivers import is_url

_MAKE = "make"


class ShareCommands(click.Group):
    """`megafs share PATH` is `megafs share make PATH`: the name of the command is left out."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("-h", "--help"):
            args = [_MAKE, *args]
        return super().parse_args(ctx, args)


@click.group(
    name="share",
    cls=ShareCommands,
    short_help="Links: give a file or folder to anybody.",
    subcommand_metavar="PATH | list | show | renew | revoke | setup | page",
)
def command() -> None:
    """Give somebody a file or folder by a link, which opens in a browser or with megafs get.

    \b
    megafs share PATH             print a link to what lies in a mount
    megafs share list PATH        the links of the volume
    megafs share revoke PATH|ID   let it lead nowhere

    The link carries the key: whoever has it can read what it leads to, and nobody else, not the
    store either.  Nothing is uploaded again.  A file called "list" is shared as ./list.
    """


@command.command(name=_MAKE, short_help="Print a link to PATH.")
@click.argument("where", metavar="PATH|URL")
@click.argument("path", metavar="[PATH]", required=False)
@click.option("--password", is_flag=True, help="Also ask for a password; it is not in the link.")
@link_password.file_option
@click.option("--expires", metavar="TIME", help="When the link ends: 12h, 7d.")
@click.option("--name", metavar="NAME", help="What it is called for the recipient.")
@click.option("--copy", is_flag=True, help="Seal the bytes anew; revoking removes them.")
@click.option("--follow", is_flag=True, help="Of a folder: show what is put into it later, too.")
@click.option(
    "--public", is_flag=True, help="Anybody may read the store's objects: nothing needs signing."
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Write it into a directory for any web server, not into the store.",
)
@click.option("--page", metavar="URL", help="The address of the page (megafs share page).")
@arguments.volume_options
@arguments.secret_options
@arguments.json_option
def make(
    where: str,
    path: str | None,
    password: bool,
    password_file: Path | None,
    expires: str | None,
    name: str | None,
    copy: bool,
    follow: bool,
    public: bool,
    out: Path | None,
    page: str | None,
    as_json: bool,
    **given: Any,
) -> int:
    """Print a link to PATH, a file or folder in a mount (for an unmounted volume: URL PATH).

    A file is shared as it is now: what is written later needs another link.  With a store that
    signs requests ahead (S3) a link lasts as long as the signature, 7 days at most, unless the
    store lets everybody read manifests (docs/sharing.md).
    """
    target = volume_path.of(where, path)
    args = ShareArgs(
        target.path,
        name=name or "",
        password=link_password.new(password, password_file),
        expires=parse_duration(expires) if expires else None,
        copy=copy,
        follow=follow,
        public=public,
        out=os.path.abspath(out) if out else "",
        page=as_page(page) if page else "",
    )
    result = run_job.run(target.where, link_messages.SHARE, args, **given)
    if as_json:
        run_job.show_json(result)
        return 0
    output.show(result.link)
    for line in _about(result):
        output.note(line)
    return 0


@command.command(name="list", short_help="List the links of a volume.")
@click.argument("where", metavar="[PATH|URL]", default=".")
@arguments.volume_options
@arguments.secret_options
@arguments.json_option
def listing(where: str, as_json: bool, **given: Any) -> int:
    """List the links of the volume that PATH lies in, oldest first."""
    at = volume_path.of(where, None).where
    result = run_job.run(at, link_messages.SHARE_LIST, Nothing(), read_only=True, **given)
    if as_json:
        run_job.show_json(result)
    elif result.links:
        output.show(*_table(result))
    else:
        output.note("there are no links")
    return 0


@command.command(name="show", short_help="Print a link again.")
@click.argument("where", metavar="PATH|ID")
@click.argument("which", metavar="[ID]", required=False)
@arguments.volume_options
@arguments.secret_options
@arguments.json_option
def show(where: str, which: str | None, as_json: bool, **given: Any) -> int:
    """Print the links to PATH, or the one with this ID, again."""
    target = _meant(where, which)
    result = run_job.run(
        target.where, link_messages.SHARE_SHOW, LinkArgs(target.path), read_only=True, **given
    )
    if as_json:
        run_job.show_json(result)
    else:
        output.show(*(item.link for item in result.links))
    return 0


@command.command(name="renew", short_help="Let a link last longer.")
@click.argument("where", metavar="PATH|ID")
@click.argument("which", metavar="[ID]", required=False)
@click.option("--expires", metavar="TIME", help="When the link ends from now: 12h, 7d.")
@arguments.volume_options
@arguments.secret_options
@arguments.json_option
def renew(where: str, which: str | None, expires: str | None, as_json: bool, **given: Any) -> int:
    """Sign anew what a link needs, before its signatures end; a mount does so by itself.

    Where the link holds a signature itself, this prints another link.
    """
    target = _meant(where, which)
    args = RenewArgs(target.path, parse_duration(expires) if expires else None)
    result = run_job.run(target.where, link_messages.SHARE_RENEW, args, **given)
    if as_json:
        run_job.show_json(result)
        return 0
    for item in result.links:
        output.show(item.link)
        for line in _about(item):
            output.note(line)
    return 0


@command.command(name="revoke", short_help="Let a link lead nowhere.")
@click.argument("where", metavar="PATH|ID")
@click.argument("which", metavar="[ID]", required=False)
@arguments.volume_options
@arguments.secret_options
@arguments.json_option
def revoke(where: str, which: str | None, as_json: bool, **given: Any) -> int:
    """Let the links to PATH, or the one with this ID, lead nowhere.

    Whoever has opened it before may have kept what they saw, and the keys to it: docs/sharing.md.
    """
    target = _meant(where, which)
    result = run_job.run(target.where, link_messages.SHARE_REVOKE, LinkArgs(target.path), **given)
    if as_json:
        run_job.show_json(result)
    else:
        output.show(result.text)
    return 0


@command.command(name="setup", short_help="Let browsers open the links of this store.")
@click.argument("where", metavar="[PATH|URL]", default=".")
@click.option("--page", metavar="URL", help="The address of the page (megafs share page).")
@click.option(
    "--public-manifests",
    "manifests",
    is_flag=True,
    help="Let everybody read what lies below share/: links may last longer than 7 days.",
)
@arguments.volume_options
@arguments.secret_options
@arguments.json_option
def setup(where: str, page: str | None, manifests: bool, as_json: bool, **given: Any) -> int:
    """Let the store answer browsers that come from the page (CORS), and try whether it does.

    Rules that the bucket has already are kept.  What lies below share/ is sealed, under names that
    nobody can guess; with --public-manifests a mount renews the signatures of links by itself.
    """
    at = volume_path.of(where, None).where
    args = SetupArgs(page=as_page(page) if page else "", manifests=manifests)
    result = run_job.run(at, link_messages.SHARE_SETUP, args, **given)
    if as_json:
        run_job.show_json(result)
    else:
        output.show(*result.lines)
    return result.exit_code


@command.command(name="page", short_help="Write the page that links open.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    required=True,
    help="Where it is written to; made if it is not there.",
)
def page(out: Path) -> int:
    """Write the page into a directory that a web server serves, over https or on this machine.

    It is static files, and none of them knows a key.  Do not serve it from the store: a store that
    serves another page in its place gets the keys of whoever opens a link.
    """
    written = write_page(out)
    output.show(f"{len(written)} files are in {out}; mount with -o page=ADDRESS, or say --page")
    return 0


def _meant(where: str, which: str | None) -> VolumePath:
    """The volume and the link that the arguments name: PATH, ID, or either after a URL or mount."""
    if which is not None:
        at = volume_path.of(where, None).where
        return VolumePath(at, which)
    if not is_url(where) and not os.path.lexists(where) and "/" not in where:
        return VolumePath(volume_path.of(".", None).where, where)
    return volume_path.of(where, None)


def _about(link: SharedLink) -> list[str]:
    lines = []
    what = f"{link.files} files, " if link.folder else ""
    until = f"until {output.moment(link.expires)}" if link.expires else "until it is revoked"
    lines.append(f"{link.name}: {what}{output.size(link.size)}, {until}")
    if link.password:
        lines.append("give the password by another way than the link")
    if link.left_out:
        lines.append(f"{link.left_out} entries are left out: links, devices and the like")
    if link.how == "folder" and link.link.startswith(NO_PAGE):
        lines.append("serve the directory with any web server, and say --page with its address")
    elif link.link.startswith(NO_PAGE):
        lines.append("for megafs get; for browsers say --page with the address of a page")
    return lines


def _table(result: LinkList) -> list[str]:
    lines = [
        [
            item.id[:8],
            output.moment(item.created),
            output.moment(item.expires) if item.expires else "never",
            item.state,
            ", ".join(
                word
                for word, is_so in (
                    (item.how, True),
                    ("password", item.password),
                    ("copy", item.copy),
                    ("follows", item.follow),
                )
                if is_so
            ),
            item.path + ("/" if item.folder else ""),
        ]
        for item in result.links
    ]
    return output.table(["id", "made", "ends", "", "how", "what"], lines)
