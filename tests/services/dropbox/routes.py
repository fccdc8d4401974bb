"""The calls of API v2 that a store needs, on an `Account`."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable
from typing import NamedTuple

from tests.services.dropbox.account import (
    BLOCK,
    MOST_IN_BATCH,
    PAYLOAD,
    Account,
    ApiError,
    BadInput,
    Json,
    Session,
    content_hash,
    tag,
)


class Route(NamedTuple):
    """style: "rpc", "upload" or "download".  fields: the arguments that it knows."""

    style: str
    scope: str
    fields: frozenset[str]
    required: frozenset[str]
    call: Callable[[Account, Json, bytes], Json | None]


ROUTES: dict[str, Route] = {}


def _route(
    name: str, style: str, scope: str, required: str = "", optional: str = ""
) -> Callable[[Callable[[Account, Json, bytes], Json | None]], None]:
    def register(call: Callable[[Account, Json, bytes], Json | None]) -> None:
        needed = frozenset(required.split())
        fields = needed | frozenset(optional.split())
        ROUTES[name] = Route(style, scope, fields, needed, call)

    return register


_COMMIT = "mode autorename client_modified mute property_groups strict_conflict"
WRITE, READ, META = "files.content.write", "files.content.read", "files.metadata.read"


def _check_payload(arg: Json, data: bytes) -> None:
    if len(data) > PAYLOAD:
        raise ApiError(tag("payload_too_large"))
    wanted = arg.get("content_hash")
    if wanted is not None and content_hash(data) != wanted:
        raise ApiError(tag("content_hash_mismatch"))


@_route("files/upload", "upload", WRITE, "path", f"{_COMMIT} content_hash")
def _upload(account: Account, arg: Json, data: bytes) -> Json:
    _check_payload(arg, data)
    account.key(arg["path"])
    with account.writing():
        try:
            made = account.commit(arg, data)
        except ApiError as exc:
            # The bytes are kept in a session, from which another try can be made.
            session = secrets.token_urlsafe(12)
            account.sessions[session] = Session(bytearray(data), True)
            raise ApiError(
                {".tag": "path", "reason": exc.error, "upload_session_id": session}
            ) from exc
    made.pop(".tag")
    return made


# Upload sessions


@_route("files/upload_session/start", "upload", WRITE, "", "close session_type content_hash")
def _start(account: Account, arg: Json, data: bytes) -> Json:
    _check_payload(arg, data)
    kind = arg.get("session_type") or "sequential"
    concurrent = (kind if isinstance(kind, str) else kind[".tag"]) == "concurrent"
    if concurrent and data:
        raise ApiError(tag("concurrent_session_data_not_allowed"))
    if concurrent and arg.get("close"):
        raise ApiError(tag("concurrent_session_close_not_allowed"))
    with account.changed:
        name = secrets.token_urlsafe(12)
        account.sessions[name] = Session(
            bytearray(data), bool(arg.get("close")), {} if concurrent else None
        )
    return {"session_id": name}


@_route("files/upload_session/start_batch", "rpc", WRITE, "num_sessions", "session_type")
def _start_batch(account: Account, arg: Json, data: bytes) -> Json:
    number = arg["num_sessions"]
    if not isinstance(number, int) or not 1 <= number <= MOST_IN_BATCH:
        raise BadInput("num_sessions: not within 1 and 1000")
    more = {"session_type": arg.get("session_type")}
    starts = [_start_one(account, more) for _ in range(number)]
    return {"session_ids": starts}


def _start_one(account: Account, arg: Json) -> str:
    made = ROUTES["files/upload_session/start"].call(account, arg, b"")
    assert made is not None
    return str(made["session_id"])


@_route("files/upload_session/append_v2", "upload", WRITE, "cursor", "close content_hash")
def _append(account: Account, arg: Json, data: bytes) -> None:
    _check_payload(arg, data)
    with account.changed:
        session = _session(account, arg["cursor"])
        at = arg["cursor"]["offset"]
        if session.closed:
            raise ApiError(tag("closed"))
        if session.pieces is not None:
            if at % BLOCK:
                raise ApiError(tag("concurrent_session_invalid_offset"))
            if len(data) % BLOCK and not arg.get("close"):
                raise ApiError(tag("concurrent_session_invalid_data_size"))
            session.pieces[at] = data
        elif at != len(session.data):
            raise ApiError(tag("incorrect_offset", correct_offset=len(session.data)))
        else:
            session.data += data
        session.closed = bool(arg.get("close"))


@_route("files/upload_session/finish", "upload", WRITE, "cursor commit", "content_hash")
def _finish(account: Account, arg: Json, data: bytes) -> Json:
    _check_payload(arg, data)
    with account.writing():
        made = _finish_one(account, arg, data, must_be_closed=False)
    made.pop(".tag")
    return made


@_route("files/upload_session/finish_batch_v2", "rpc", WRITE, "entries")
def _finish_batch(account: Account, arg: Json, data: bytes) -> Json:
    entries = arg["entries"]
    if not 1 <= len(entries) <= MOST_IN_BATCH:
        raise BadInput("entries: not within 1 and 1000")
    results = []
    with account.writing():  # once for all of them
        for entry in entries:
            try:
                made = _finish_one(account, entry, b"", must_be_closed=True)
                results.append({**made, ".tag": "success"})
            except ApiError as exc:
                results.append({".tag": "failure", "failure": exc.error})
    return {"entries": results}


def _finish_one(account: Account, arg: Json, data: bytes, *, must_be_closed: bool) -> Json:
    if set(arg) - {"cursor", "commit", "content_hash"}:
        raise BadInput(f"entries: unknown field {sorted(arg)}")
    if set(arg["commit"]) - {"path", *_COMMIT.split()} or "path" not in arg["commit"]:
        raise BadInput(f"commit: unknown field {sorted(arg['commit'])}")
    try:
        session = _session(account, arg["cursor"])
        if session.pieces is not None:
            session.data = bytearray()
            for at, piece in sorted(session.pieces.items()):
                if at != len(session.data):
                    raise ApiError(tag("concurrent_session_missing_data"))
                session.data += piece
        elif arg["cursor"]["offset"] != len(session.data):
            raise ApiError(tag("incorrect_offset", correct_offset=len(session.data)))
        if must_be_closed and not session.closed:
            raise ApiError(tag("not_closed"))
    except ApiError as exc:
        raise ApiError({".tag": "lookup_failed", "lookup_failed": exc.error}) from exc
    session.data += data
    try:
        made = account.commit(arg["commit"], bytes(session.data))
    except ApiError as exc:
        raise ApiError({".tag": "path", "path": exc.error}) from exc
    del account.sessions[arg["cursor"]["session_id"]]
    return made


def _session(account: Account, cursor: Json) -> Session:
    found = account.sessions.get(cursor["session_id"])
    if found is None:
        raise ApiError(tag("not_found"))
    return found


# Reading

_INCLUDES = (
    "include_media_info include_deleted include_has_explicit_shared_members include_property_groups"
)


@_route("files/download", "download", READ, "path", "rev")
def _download(account: Account, arg: Json, data: bytes) -> Json:
    with account.changed:
        key = account.key(arg["path"])
        if key not in account.nodes:
            raise ApiError(tag("path", "not_found"))
        if account.nodes[key].data is None:
            raise ApiError(tag("path", "not_file"))
        return account.metadata(key, tagged=False)


@_route("files/get_metadata", "rpc", META, "path", _INCLUDES)
def _get_metadata(account: Account, arg: Json, data: bytes) -> Json:
    if arg["path"] in ("", "/"):
        raise BadInput("path: The root folder is unsupported.")
    with account.changed:
        key = account.key(arg["path"])
        if key not in account.nodes:
            raise ApiError(tag("path", "not_found"))
        return account.metadata(key)


_LISTING = (
    f"recursive {_INCLUDES} include_mounted_folders limit shared_link"
    " include_non_downloadable_files include_restorable_info"
)


def _begin(account: Account, arg: Json) -> str:
    if arg["path"] == "/":
        raise BadInput('path: Specify the root folder as an empty string rather than as "/".')
    limit = arg.get("limit") or 500
    if not 1 <= limit <= 2000:
        raise BadInput("limit: not within 1 and 2000")
    return account.list_folder(
        arg["path"], bool(arg.get("recursive")), bool(arg.get("include_deleted")), limit
    )


@_route("files/list_folder", "rpc", META, "path", _LISTING)
def _list_folder(account: Account, arg: Json, data: bytes) -> Json:
    with account.changed:
        return account.page(_begin(account, arg))


@_route("files/list_folder/continue", "rpc", META, "cursor")
def _list_on(account: Account, arg: Json, data: bytes) -> Json:
    with account.changed:
        return account.page(arg["cursor"])


@_route("files/list_folder/get_latest_cursor", "rpc", META, "path", _LISTING)
def _latest(account: Account, arg: Json, data: bytes) -> Json:
    with account.changed:
        return {"cursor": account.latest(_begin(account, arg))}


# Changing

_MOVED = "allow_shared_folder autorename allow_ownership_transfer"


@_route("files/delete_v2", "rpc", WRITE, "path", "parent_rev")
def _delete(account: Account, arg: Json, data: bytes) -> Json:
    with account.writing():
        return {"metadata": account.remove(arg["path"], arg.get("parent_rev"))}


@_route("files/delete_batch", "rpc", WRITE, "entries")
def _delete_batch(account: Account, arg: Json, data: bytes) -> Json:
    entries = arg["entries"]
    if not isinstance(entries, list) or len(entries) > MOST_IN_BATCH:
        raise BadInput("entries: too many")
    job = secrets.token_urlsafe(12)

    def work() -> None:
        results = []
        with account.writing():
            for entry in entries:
                try:
                    gone = account.remove(entry["path"], entry.get("parent_rev"))
                    results.append({".tag": "success", "metadata": gone})
                except ApiError as exc:
                    results.append({".tag": "failure", "failure": exc.error})
        account.jobs[job][0] = {".tag": "complete", "entries": results}

    account.jobs[job] = [None, account.async_deletes]
    threading.Thread(target=work, daemon=True).start()
    return {".tag": "async_job_id", "async_job_id": job}


@_route("files/delete_batch/check", "rpc", WRITE, "async_job_id")
def _delete_check(account: Account, arg: Json, data: bytes) -> Json:
    job = account.jobs.get(arg["async_job_id"])
    if job is None:
        raise ApiError(tag("invalid_async_job_id"))
    job[1] -= 1
    if job[0] is None or job[1] >= 0:
        return {".tag": "in_progress"}
    return dict(job[0])


@_route("files/move_v2", "rpc", WRITE, "from_path to_path", _MOVED)
def _move(account: Account, arg: Json, data: bytes) -> Json:
    with account.writing():
        moved = account.move(arg["from_path"], arg["to_path"], bool(arg.get("autorename")))
    return {"metadata": moved}


@_route("files/copy_v2", "rpc", WRITE, "from_path to_path", _MOVED)
def _copy(account: Account, arg: Json, data: bytes) -> Json:
    with account.writing():
        made = account.move(
            arg["from_path"], arg["to_path"], bool(arg.get("autorename")), copy=True
        )
    return {"metadata": made}


@_route("files/create_folder_v2", "rpc", WRITE, "path", "autorename")
def _create_folder(account: Account, arg: Json, data: bytes) -> Json:
    with account.writing():
        return {"metadata": account.make_folder(arg["path"], bool(arg.get("autorename")))}


@_route("users/get_space_usage", "rpc", "account_info.read")
def _space(account: Account, arg: Json, data: bytes) -> Json:
    with account.changed:
        allocated = account.quota if account.quota is not None else 2 << 30
        if account.team:
            return {
                "used": account.used,
                "allocation": tag(
                    "team",
                    used=account.used,
                    allocated=allocated * 10,
                    user_within_team_space_allocated=allocated,
                    user_within_team_space_limit_type={".tag": "stop_sync"},
                    user_within_team_space_used_cached=account.used,
                ),
            }
        return {"used": account.used, "allocation": tag("individual", allocated=allocated)}


@_route("users/get_current_account", "rpc", "account_info.read")
def _account(account: Account, arg: Json, data: bytes) -> Json:
    return {
        "account_id": "dbid:AAH4f99T0taONIb-OurWxbNQ6ywGRopQngc",
        "name": {
            "given_name": "Franz",
            "surname": "Ferdinand",
            "familiar_name": "Franz",
            "display_name": "Franz Ferdinand",
            "abbreviated_name": "FF",
        },
        "email": "franz@example.com",
        "email_verified": True,
        "disabled": False,
        "locale": "en",
        "referral_link": "https://db.tt/ZITNuhtI",
        "is_paired": False,
        "account_type": {".tag": "basic"},
        "root_info": {".tag": "user", "root_namespace_id": "1", "home_namespace_id": "1"},
        "country": "US",
    }
