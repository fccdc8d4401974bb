"""The options of WebDAV URLs, for help, docs and the table of drivers; options.py reads them."""

from __future__ import annotations

from megafs.stores.urls import StoreOption

WEBDAV_OPTIONS: tuple[StoreOption, ...] = (
    StoreOption("user", "alice", "Who logs in; without it nobody, or whom `netrc` names."),
    StoreOption(
        "password_file",
        "/etc/megafs/cloud.password",
        "A file whose first line is the password or token, which others may not read. Without it"
        " MEGAFS_WEBDAV_PASSWORD, then `netrc`. Read again when the server refuses it.",
    ),
    StoreOption(
        "netrc",
        "/home/alice/.netrc",
        "A file in the form of ~/.netrc with the server's user and password.",
    ),
    StoreOption(
        "auth",
        "digest",
        "`basic`, `digest` or `bearer`; `auto` (default): what the server asks for, but basic over"
        " http:// only if the server is this machine.",
    ),
    StoreOption("ca", "/etc/ssl/example.pem", "Certificates to trust instead of the system's."),
    StoreOption(
        "client_cert",
        "/etc/megafs/client.pem",
        "A certificate by which the server knows this client, in PEM.",
    ),
    StoreOption("client_key", "/etc/megafs/client.key", "Its key, if it is not in the same file."),
    StoreOption("connect_timeout", "10", "Seconds for a connection."),
    StoreOption("read_timeout", "30", "Seconds for the next bytes of an answer."),
)
