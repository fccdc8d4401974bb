"""Which of our errors an answer of Dropbox is.

409 holds a union of the route: {"error": {".tag": "path", "path": {".tag": "not_found"}}}.  What is
read of it are the tags, from the outside in.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec

from megafs.errors import (
    BadStore,
    Denied,
    Exists,
    Full,
    Missing,
    StoreError,
    TooLarge,
    Unavailable,
)
from megafs.stores.http.retry_after import retry_after
from megafs.stores.http.session import Response

#: Of a token: worth asking for another one.
REFUSED_TOKEN = frozenset({"expired_access_token", "invalid_access_token"})

_FULL = frozenset(
    {
        "insufficient_space",
        "insufficient_quota",
        "team_folder_insufficient_space",
        "member_folder_insufficient_space",
        "upload_traffic_limit_reached",
    }
)
_DENIED = frozenset(
    {
        "no_write_permission",
        "access_restricted",
        "operation_suppressed",
        "restricted_content",
        "team_folder",
        "locked",
    }
)
# The request is as good as never sent, or its session is gone: begin again.
_AGAIN = frozenset(
    {"content_hash_mismatch", "lookup_failed", "not_closed", "internal_error", "too_many_files"}
)
_WORD = re.compile(r"[a-z_]{1,60}\Z")
_DEEP = 8
_SCOPE = re.compile(r"required scope '([a-z_.]{1,60})'")


class ElsewhereInSession(Unavailable):
    """The upload session has more bytes than we think, or is closed: a request of ours that got no
    answer was carried out."""


class CursorReset(Unavailable):
    """The cursor of a listing counts no longer: list anew."""


def read_json(body: bytes) -> Any:
    """Return what JSON *body* is; None if it is none."""
    try:
        return msgspec.json.decode(body)
    except (msgspec.MsgspecError, RecursionError):
        return None


def tags_of(error: Any) -> list[str]:
    """The tags of a union, from the outside in."""
    tags: list[str] = []
    for _ in range(_DEEP):
        if not isinstance(error, dict):
            break
        word = error.get(".tag")
        if isinstance(word, str) and _WORD.match(word):
            tags.append(word)
            error = error.get(word) or error.get("reason")
        else:
            error = error.get("reason")
    return tags


def error_for(reply: Response, what: str, *, advice: str, write: bool) -> StoreError:
    """Return the error that *reply* is.

    what: the operation, for the text.  advice: what helps against a refused login.
    write: whether the request may have changed something.
    """
    status = reply.status
    body = read_json(reply.body)
    error = body.get("error") if isinstance(body, dict) else None
    tags = tags_of(error)
    said = f"{what}: Dropbox answers {status}" + (f" {'/'.join(tags)}" if tags else "")
    if status == 409 and tags:
        return union_error(tags, said)
    if status == 429:
        return Unavailable(said, retry_after=retry_after(reply), busy=True)
    if status == 401:
        if "missing_scope" in tags:
            scope = error.get("required_scope") if isinstance(error, dict) else None
            return _no_scope(said, scope)
        return Denied(f"{said}; {advice}")
    if status == 400:
        match = _SCOPE.search(reply.body[:4096].decode("ascii", "replace"))
        return _no_scope(said, match[1]) if match else StoreError(said)
    if status == 403:
        return Denied(f"{said}; may this account, and the app that was logged in with, do that?")
    if status == 404:
        return BadStore(f"{said}; is this Dropbox?")
    if status == 413:
        return TooLarge(f"{said}; a proxy on the way takes no request that large")
    if status >= 500 or status in (408, 409) or 200 <= status < 400:
        return Unavailable(
            said, retry_after=retry_after(reply), maybe_done=write, busy=status == 503
        )
    return StoreError(said)


def union_error(tags: Sequence[str], said: str) -> StoreError:
    """Return the error that a union with these tags is."""
    found = frozenset(tags)
    if "conflict" in found:
        return Exists(said)
    if found & _FULL:
        limit = "its upload limit of this month is" if "upload_traffic" in said else "its space is"
        return Full(f"{said}; {limit} used up")
    if "too_many_write_operations" in found:
        return Unavailable(said, busy=True)
    if "reset" in found:
        return CursorReset(said)
    if "lookup_failed" not in found and found & {"incorrect_offset", "closed"}:
        return ElsewhereInSession(said)
    if found & _AGAIN:
        return Unavailable(said)
    if found & {"not_found", "not_file"}:
        return Missing(said)
    if "payload_too_large" in found or "too_large" in found:
        return TooLarge(said)
    if found & _DENIED:
        return Denied(f"{said}; may this account write there?")
    if found & {"disallowed_name", "malformed_path", "not_folder"}:
        return BadStore(f"{said}; choose another folder")
    return StoreError(said)


def _no_scope(said: str, scope: object) -> Denied:
    known = scope if isinstance(scope, str) and _SCOPE.match(f"required scope '{scope}'") else "?"
    return Denied(
        f"{said}; the app lacks the permission {known}: tick it in the app console"
        " (dropbox.com/developers/apps) and log in again"
    )
