"""The options of gdrive: URLs, for help, docs and the table of drivers; options.py reads them."""

from __future__ import annotations

from megafs.stores.urls import StoreOption

GDRIVE_OPTIONS: tuple[StoreOption, ...] = (
    StoreOption(
        "client_id",
        "123-abc.apps.googleusercontent.com",
        "The client id that `megafs login` uses: your own, docs/stores/gdrive.md says how.",
    ),
    StoreOption(
        "client_secret_file",
        "/home/alice/drive.secret",
        "A file whose first line is the client's secret (Google gives desktop programs one).",
    ),
    StoreOption(
        "endpoint",
        "http://127.0.0.1:8080",
        "Another service with the same API, on this machine only: for tests.",
    ),
    StoreOption("connect_timeout", "10", "Seconds for a connection."),
    StoreOption("read_timeout", "30", "Seconds for the next bytes of an answer."),
)
