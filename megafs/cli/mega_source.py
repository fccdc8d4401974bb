"""What `mount`, `get` and `import` are given of MEGA: `mega:/path`, or a link."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from megafs.errors import BadUsage
from megafs.stores.mega.urls import is_account, is_link

if TYPE_CHECKING:
    from megafs.mega.links import MegaLink
    from megafs.mount.options import Secrets

#: A link on standard input, first line.
FROM_STDIN = "-"
_LONGEST = 4096


def is_of_mega(text: str) -> bool:
    """Whether *text* is a link, `-` for one on standard input, or the URL of an account."""
    return text == FROM_STDIN or is_link(text) or is_account(text)


def options_url(text: str) -> str:
    """The URL whose options go with *text*: a link has those of `mega:`, and is a secret."""
    return "mega:" if is_of_mega(text) and not is_account(text) else text


def shown_url(text: str) -> str:
    """How the mount of *text* is shown: a link without its key; other URLs as they are."""
    if not is_link(text):
        return text
    from megafs.mega.links import MegaLink, parse_link

    link = parse_link(text)
    return link.shown if isinstance(link, MegaLink) else text


def read_link(text: str, secrets: Secrets) -> MegaLink:
    """The link that *text* is, or that stands on standard input; its password is asked for.

    Its key is taken out of what `ps` shows of this process.
    """
    # Only here: mount imports this module for every URL.
    from megafs.cli import passphrase
    from megafs.hardening import hide_argument
    from megafs.mega.links import PasswordLink, parse_link

    if text == FROM_STDIN:
        text = sys.stdin.readline(_LONGEST)
        if not text.strip():
            raise BadUsage("no link came on standard input")
    else:
        for mark in ("#P!", "#F!", "#!", "#"):
            if mark in text:
                hide_argument(text.partition(mark)[2])
                break
    link = parse_link(text)
    if isinstance(link, PasswordLink):
        given = passphrase.credential(secrets, prompt="Password of the link").passphrase
        return link.opened(given or "")
    return link


__all__ = ["is_account", "is_of_mega", "options_url", "read_link", "shown_url"]
