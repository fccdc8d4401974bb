"""The -o options of `mega:`, for docs and help; megafs/mega/options.py reads them."""

from __future__ import annotations

from megafs.stores.urls import StoreOption

MEGA_OPTIONS = (
    StoreOption("account", "me@example.org", "which login, where `megafs login` knows several"),
    StoreOption(
        "part",
        "incoming",
        "what is shown: `files` (the default), `incoming` (folders that others share with you) or"
        " `rubbish` (the bin)",
    ),
    StoreOption("api", "http://127.0.0.1:8080", "another API than MEGA's, on this machine: tests"),
)
