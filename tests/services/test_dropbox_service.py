"""The service of tests/services/dropbox is one: Dropbox's own SDK and rclone think so."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import dropbox
import pytest
from dropbox import files
from dropbox.content_hash import DropboxContentHasher
from dropbox.exceptions import ApiError, AuthError, BadInputError, RateLimitError

from tests.fakes.authority import authority
from tests.services.dropbox.account import content_hash
from tests.services.dropbox.server import CLIENT_ID, DropboxService

Connected = Callable[..., dropbox.Dropbox]
HOSTS = ("api.dropboxapi.com", "content.dropboxapi.com", "notify.dropboxapi.com")
DATA = bytes(range(256)) * 40


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return authority(tmp_path_factory.mktemp("dropbox") / "authority", *HOSTS)


@pytest.fixture
def service(certificates: Path) -> Iterator[DropboxService]:
    with DropboxService(certificates) as running:
        yield running


@pytest.fixture
def connected(service: DropboxService, certificates: Path) -> Iterator[Connected]:
    """connected(**login): an SDK, closed after the test; with a token of its own by default."""
    with ExitStack() as stack:

        def connect(**login: Any) -> dropbox.Dropbox:
            session = dropbox.create_session(ca_certs=str(certificates / "ca.pem"))
            session.trust_env = False  # REQUESTS_CA_BUNDLE would replace ours
            client = dropbox.Dropbox(
                session=session,
                max_retries_on_rate_limit=0,
                max_retries_on_error=0,
                **(login or {"oauth2_access_token": service.token()}),
            )
            # What DROPBOX_API_HOST and its like come to, which the SDK reads when it is imported.
            client._host_map = dict.fromkeys(client._host_map, service.host)
            return stack.enter_context(client)

        yield connect


@pytest.fixture
def sdk(connected: Connected) -> dropbox.Dropbox:
    return connected()


def put(sdk: dropbox.Dropbox, path: str, data: bytes = DATA, **more: Any) -> files.FileMetadata:
    return sdk.files_upload(data, path, **more)


def refusal(call: Any, *args: Any, **options: Any) -> Any:
    with pytest.raises(ApiError) as caught:
        call(*args, **options)
    return caught.value.error


def test_the_sdk_uploads_and_reads(sdk: dropbox.Dropbox) -> None:
    hasher = DropboxContentHasher()
    hasher.update(DATA)
    made = put(sdk, "/Home/Böx/File")
    assert made.size == len(DATA) and made.content_hash == hasher.hexdigest()
    found, reply = sdk.files_download("/home/bÖX/file")
    assert reply.content == DATA and found.rev == made.rev and found.name == "File"
    found, reply = sdk.files_download(made.id, extra_headers={"Range": "bytes=5-8"})
    assert reply.status_code == 206 and reply.content == DATA[5:9]
    assert reply.headers["Content-Range"] == f"bytes 5-8/{len(DATA)}"
    folder = sdk.files_get_metadata("/home")
    assert isinstance(folder, files.FolderMetadata) and folder.path_display == "/Home"
    assert refusal(sdk.files_download, "/home/nothing").get_path().is_not_found()
    assert refusal(sdk.files_get_metadata, "/x").get_path().is_not_found()
    with pytest.raises(BadInputError):
        sdk.files_get_metadata("/")


def test_content_hashes_are_those_of_the_sdk() -> None:
    for size in (0, 1, (4 << 20) - 1, 4 << 20, (4 << 20) + 1, 9 << 20):
        data = os.urandom(size)
        hasher = DropboxContentHasher()
        hasher.update(data)
        assert content_hash(data) == hasher.hexdigest()


def test_each_mode_of_writing(sdk: dropbox.Dropbox) -> None:
    first = put(sdk, "/f", b"one")
    assert put(sdk, "/F", b"one").rev == first.rev  # the same bytes are no conflict
    assert refusal(put, sdk, "/f", b"two").get_path().reason.get_conflict().is_file()
    strict = refusal(put, sdk, "/f", b"one", strict_conflict=True).get_path()
    assert strict.reason.get_conflict().is_file() and strict.upload_session_id
    assert put(sdk, "/f", b"two", autorename=True).name == "f (1)"
    second = put(sdk, "/f", b"two", mode=files.WriteMode.overwrite)
    assert second.id == first.id and second.rev != first.rev
    old = files.WriteMode.update(first.rev)
    assert refusal(put, sdk, "/f", b"x", mode=old).get_path().reason.get_conflict().is_file()
    third = put(sdk, "/f", b"x", mode=files.WriteMode.update(second.rev), strict_conflict=True)
    assert sdk.files_download(f"rev:{third.rev}")[1].content == b"x"
    sdk.files_delete_v2("/f")
    late = files.WriteMode.update(third.rev)
    refused = refusal(put, sdk, "/f", b"y", mode=late, strict_conflict=True)
    assert refused.get_path().reason.get_conflict().is_file()
    sdk.files_create_folder_v2("/d")
    assert refusal(put, sdk, "/d", b"x").get_path().reason.get_conflict().is_folder()
    assert refusal(put, sdk, "/f (1)/x", b"x").get_path().reason.get_conflict().is_file_ancestor()
    mismatch = refusal(put, sdk, "/h", b"x", content_hash=content_hash(b"y"))
    assert mismatch.is_content_hash_mismatch()


def test_upload_sessions(sdk: dropbox.Dropbox) -> None:
    start = sdk.files_upload_session_start(b"abc").session_id
    cursor = files.UploadSessionCursor(start, 3)
    sdk.files_upload_session_append_v2(b"def", cursor)
    # A lost reply, and the same once more.
    again = refusal(sdk.files_upload_session_append_v2, b"def", cursor)
    assert again.is_incorrect_offset() and again.get_incorrect_offset().correct_offset == 6
    cursor.offset = 6
    made = sdk.files_upload_session_finish(b"ghi", cursor, files.CommitInfo("/s"))
    assert made.size == 9
    gone = refusal(sdk.files_upload_session_finish, b"", cursor, files.CommitInfo("/s"))
    assert gone.get_lookup_failed().is_not_found()


def test_many_sessions_are_finished_in_one_write(
    sdk: dropbox.Dropbox, service: DropboxService
) -> None:
    sessions = sdk.files_upload_session_start_batch(2).session_ids
    sessions.append(sdk.files_upload_session_start(b"closed", close=True).session_id)
    for session in sessions[:1]:
        sdk.files_upload_session_append_v2(b"xy", files.UploadSessionCursor(session, 0), close=True)
    before = service.account.writes
    sizes = (2, 0, 6)
    result = sdk.files_upload_session_finish_batch_v2(
        [
            files.UploadSessionFinishArg(
                files.UploadSessionCursor(session, size), files.CommitInfo(f"/b/{i}")
            )
            for i, (session, size) in enumerate(zip(sessions, sizes, strict=True))
        ]
    )
    assert service.account.writes == before + 1
    assert [entry.is_success() for entry in result.entries] == [True, False, True]
    assert result.entries[1].get_failure().get_lookup_failed().is_not_closed()
    assert result.entries[2].get_success().path_display == "/b/2"
    clash = sdk.files_upload_session_start(b"other", close=True).session_id
    (entry,) = sdk.files_upload_session_finish_batch_v2(
        [
            files.UploadSessionFinishArg(
                files.UploadSessionCursor(clash, 5),
                files.CommitInfo("/b/0", strict_conflict=True),
            )
        ]
    ).entries
    assert entry.get_failure().get_path().get_conflict().is_file()


def test_concurrent_sessions(sdk: dropbox.Dropbox) -> None:
    block = 4 << 20
    data = os.urandom(2 * block + 5)
    session = sdk.files_upload_session_start(
        b"", session_type=files.UploadSessionType.concurrent
    ).session_id
    for at in (block, 0):
        cursor = files.UploadSessionCursor(session, at)
        sdk.files_upload_session_append_v2(data[at : at + block], cursor)
    last = files.UploadSessionCursor(session, 2 * block)
    odd = files.UploadSessionCursor(session, 5)
    refused = refusal(sdk.files_upload_session_append_v2, b"x", odd)
    assert refused.is_concurrent_session_invalid_offset()
    sdk.files_upload_session_append_v2(data[2 * block :], last, close=True)
    last.offset = len(data)
    made = sdk.files_upload_session_finish(b"", last, files.CommitInfo("/large"))
    assert made.content_hash == content_hash(data)


def test_listing_goes_on_from_a_cursor(sdk: dropbox.Dropbox, service: DropboxService) -> None:
    for name in ("/a/1", "/a/b/2", "/c"):
        put(sdk, name)
    page = sdk.files_list_folder("/a", recursive=True, limit=2)
    assert [e.path_display for e in page.entries] == ["/a", "/a/1"] and page.has_more
    page = sdk.files_list_folder_continue(page.cursor)
    assert [e.path_display for e in page.entries] == ["/a/b", "/a/b/2"] and not page.has_more
    cursor = page.cursor
    assert sdk.files_list_folder_continue(cursor).entries == []
    put(sdk, "/a/3")
    put(sdk, "/d")
    sdk.files_delete_v2("/a/b")
    news = sdk.files_list_folder_continue(cursor).entries
    assert [(type(e).__name__, e.path_lower) for e in news] == [
        ("FileMetadata", "/a/3"),
        ("DeletedMetadata", "/a/b"),
    ]
    flat = sdk.files_list_folder("").entries
    assert {e.path_lower for e in flat} == {"/a", "/c", "/d"}
    assert refusal(sdk.files_list_folder, "/none").get_path().is_not_found()
    assert refusal(sdk.files_list_folder, "/c").get_path().is_not_folder()
    service.account.forget_cursors()
    assert refusal(sdk.files_list_folder_continue, cursor).is_reset()


def test_a_long_poll_ends_with_the_change(
    sdk: dropbox.Dropbox, connected: Connected, service: DropboxService
) -> None:
    put(sdk, "/a/1")
    cursor = sdk.files_list_folder_get_latest_cursor("/a", recursive=True).cursor
    other = connected()
    changed: list[float] = []

    def poll() -> None:
        assert sdk.files_list_folder_longpoll(cursor, 60).changes
        changed.append(time.monotonic())

    poller = threading.Thread(target=poll)
    poller.start()
    while not service.polls:
        time.sleep(0.005)
    put(other, "/elsewhere")
    put(other, "/a/2")
    poller.join(10)
    assert changed
    service.backoff = 7
    reply = sdk.files_list_folder_longpoll(cursor, 30)
    assert reply.changes and reply.backoff == 7


def test_moving_and_deleting(sdk: dropbox.Dropbox, service: DropboxService) -> None:
    put(sdk, "/a/One", b"1")
    put(sdk, "/a/two", b"2")
    moved = sdk.files_move_v2("/a", "/New").metadata
    assert isinstance(moved, files.FolderMetadata)
    assert service.account.files() == {"/New/One": b"1", "/New/two": b"2"}
    assert refusal(sdk.files_move_v2, "/new/one", "/new/TWO").get_to().get_conflict().is_file()
    launched = sdk.files_delete_batch(
        [files.DeleteArg("/new/one"), files.DeleteArg("/nothing"), files.DeleteArg("/new/two")]
    )
    job = launched.get_async_job_id()
    assert sdk.files_delete_batch_check(job).is_in_progress()
    for _ in range(200):
        status = sdk.files_delete_batch_check(job)
        if status.is_complete():
            break
        time.sleep(0.01)
    results = status.get_complete().entries
    assert [entry.is_success() for entry in results] == [True, False, True]
    assert results[1].get_failure().get_path_lookup().is_not_found()
    assert service.account.files() == {}
    assert refusal(sdk.files_create_folder_v2, "/NEW").get_path().get_conflict().is_folder()


def test_space_is_told_and_runs_out(sdk: dropbox.Dropbox, service: DropboxService) -> None:
    service.account.quota = 1000
    put(sdk, "/f", bytes(600))
    usage = sdk.users_get_space_usage()
    assert usage.used == 600 and usage.allocation.get_individual().allocated == 1000
    refused = refusal(put, sdk, "/g", bytes(500)).get_path()
    assert refused.reason.is_insufficient_space()
    service.account.team = True
    team = sdk.users_get_space_usage().allocation.get_team()
    assert team.user_within_team_space_allocated == 1000


def test_tokens_end_and_are_renewed(
    sdk: dropbox.Dropbox, service: DropboxService, connected: Connected
) -> None:
    service.expire()
    with pytest.raises(AuthError) as caught:
        put(sdk, "/f")
    assert caught.value.error.is_expired_access_token()
    renewing = connected(
        oauth2_refresh_token=service.refresh_token(),
        oauth2_access_token=service.token(-1),
        app_key=CLIENT_ID,
    )
    # The SDK's host for tokens is an argument's default.
    renewing.refresh_access_token(host=service.host)
    put(renewing, "/f")
    assert service.requests["oauth2/token"] == 1
    service.scopes = service.scopes - {"files.content.read"}
    with pytest.raises(AuthError) as caught:
        renewing.files_download("/f")
    assert caught.value.error.get_missing_scope().required_scope == "files.content.read"
    service.revoke()
    with pytest.raises(AuthError) as caught:
        put(renewing, "/f")
    assert caught.value.error.is_invalid_access_token()
    with pytest.raises(AuthError):
        renewing.refresh_access_token(host=service.host)


def test_a_code_is_good_once_and_for_its_verifier(service: DropboxService) -> None:
    verifier = "v" * 43
    challenge = urlsafe_b64encode(sha256(verifier.encode()).digest()).rstrip(b"=").decode()
    form = {"grant_type": "authorization_code", "client_id": CLIENT_ID, "code": "?"}
    assert service.oauth({**form, "code_verifier": verifier}).status == 400
    form["code"] = service.code(challenge)
    assert service.oauth({**form, "code_verifier": "w" * 43}).status == 400
    form["code"] = service.code(challenge)
    answer = service.oauth({**form, "code_verifier": verifier})
    assert answer.status == 200 and b"refresh_token" in answer.body
    assert service.oauth({**form, "code_verifier": verifier}).status == 400


def test_too_many_requests(sdk: dropbox.Dropbox, service: DropboxService) -> None:
    service.rate, service.retry_after = 0, "3"
    with pytest.raises(RateLimitError) as caught:
        put(sdk, "/f")
    assert caught.value.error.reason.is_too_many_requests() and caught.value.backoff == 3


def test_writers_that_contend_are_told_to_wait(
    sdk: dropbox.Dropbox, service: DropboxService, connected: Connected
) -> None:
    service.account.write_seconds, service.account.most_waiting = 0.3, 0
    first = threading.Thread(target=put, args=(sdk, "/f"))
    first.start()
    while not service.account._waiting:
        time.sleep(0.002)
    other = connected()
    with pytest.raises(RateLimitError) as caught:
        put(other, "/g")
    assert caught.value.error.reason.is_too_many_write_operations()
    first.join()
    put(other, "/g")


def test_of_racing_uploads_exactly_one_wins(service: DropboxService, connected: Connected) -> None:
    clients = [connected() for _ in range(6)]
    for round_ in range(15):
        start = threading.Barrier(len(clients))
        won: list[int] = []

        def race(i: int, start: Any = start, won: list[int] = won, round_: int = round_) -> None:
            start.wait()
            try:
                put(clients[i], f"/race/{round_}", b"%d" % i, strict_conflict=True)
            except ApiError:
                return
            won.append(i)

        racers = [threading.Thread(target=race, args=(i,)) for i in range(len(clients))]
        for racer in racers:
            racer.start()
        for racer in racers:
            racer.join()
        assert len(won) == 1
        assert service.account.files()[f"/race/{round_}"] == b"%d" % won[0]


def test_rclone_copies_there_and_back(
    service: DropboxService, certificates: Path, tmp_path: Path
) -> None:
    """Through CONNECT, rclone finds this server under the names of Dropbox's hosts."""
    beside = Path(sys.executable).with_name("rclone")
    program = str(beside) if beside.exists() else shutil.which("rclone")
    assert program is not None
    source, back = tmp_path / "source", tmp_path / "back"
    (source / "Deep" / "er").mkdir(parents=True)
    written = {f"Deep/er/{i}": os.urandom(1000 * i) for i in range(12)}
    written["ü umlaut.txt"] = b"hello"
    for name, data in written.items():
        (source / name).write_bytes(data)
    token = (
        f'{{"access_token":"{service.token()}","token_type":"bearer",'
        f'"refresh_token":"{service.refresh_token()}",'
        f'"expiry":"{datetime.now(UTC).replace(year=2099):%Y-%m-%dT%H:%M:%SZ}"}}'
    )
    environ = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "HTTPS_PROXY": service.url,
        "RCLONE_CONFIG": "/dev/null",
        "RCLONE_CONFIG_DB_TYPE": "dropbox",
        "RCLONE_CONFIG_DB_TOKEN": token,
        "RCLONE_CONFIG_DB_CLIENT_ID": CLIENT_ID,
        "RCLONE_CA_CERT": str(certificates / "ca.pem"),
        "RCLONE_RETRIES": "1",
        "RCLONE_LOW_LEVEL_RETRIES": "1",
    }

    def rclone(*args: str | Path) -> str:
        done = subprocess.run(
            [program, *map(str, args)], env=environ, capture_output=True, text=True, timeout=60,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    rclone("copy", source, "db:backup")
    stored = service.account.files()
    assert {name.removeprefix("/backup/"): data for name, data in stored.items()} == written
    assert service.requests["files/upload_session/finish_batch_v2"] >= 1
    rclone("check", source, "db:backup", "--download")
    rclone("check", source, "db:backup")  # by content hashes
    rclone("copy", "db:backup", back)
    assert {str(p.relative_to(back)): p.read_bytes() for p in back.rglob("*") if p.is_file()} \
        == written  # fmt: skip
    assert sorted(rclone("lsf", "-R", "--files-only", "db:").split("\n")[:-1]) == sorted(
        f"backup/{name}" for name in written
    )
    rclone("moveto", "db:backup/Deep", "db:elsewhere")
    rclone("deletefile", "db:elsewhere/er/3")
    assert len(service.account.files()) == len(written) - 1
    assert re.search(r"Used:\s+\d", rclone("about", "db:"))
    rclone("purge", "db:elsewhere")
    assert list(service.account.files().values()) == [b"hello"]
