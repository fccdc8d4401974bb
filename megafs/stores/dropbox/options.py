"""What the options of a `dropbox:` URL (option_table.py) come to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from msgspec import Struct

from megafs.errors import BadStore
from megafs.stores.dropbox.option_table import local_api
from megafs.stores.http.session import Timeouts

#: Requests a second.  Dropbox publishes no limit; users of rclone are told to stay below 12.
REQUESTS = 12.0
_MOST = 10_000.0


class DropboxSettings(Struct, frozen=True):
    """The options as values.

    api: a server of tests, "" for Dropbox.  requests: a second.
    listings: the directory that keeps what was listed, for the next mount; None for nowhere.
    """

    api: str = ""
    requests: float = REQUESTS
    timeouts: Timeouts = Timeouts()
    listings: Path | None = None


def read_options(options: Mapping[str, str]) -> DropboxSettings:
    """Return what *options* come to, or say what is wrong with them (BadStore)."""
    text = options.get("requests", "")
    try:
        requests = float(text or REQUESTS)
    except ValueError:
        requests = 0.0
    if not 0.1 <= requests <= _MOST:
        raise BadStore(f"requests= takes a number a second, 0.1 to 10000, not {text!r}")
    return DropboxSettings(api=local_api(options), requests=requests, timeouts=Timeouts.of(options))
