"""Clients that this project did not write take the tests' server for Google Drive.

Google's own for Python, from its description of the API, and rclone.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import googleapiclient
import pytest
from google.oauth2.credentials import Credentials
from googleapiclient.discovery import build_from_document
from googleapiclient.errors import HttpError
from googleapiclient.http import MediaIoBaseDownload, MediaIoBaseUpload

from tests.fakes.authority import authority
from tests.services.gdrive.server import DriveServer, ThreadedDrive, refusal
from tests.services.gdrive.state import FOLDER
from tests.services.tunnel import Tunnel

DATA = bytes(range(256)) * 4096 + b"tail"


@pytest.fixture
def server() -> Iterator[DriveServer]:
    made = DriveServer()
    with ThreadedDrive(made):
        yield made


@pytest.fixture
def google(server: DriveServer) -> Iterator[Any]:
    """Google's client, with a token that has ended and a refresh token."""
    place = Path(str(googleapiclient.__file__)).parent / "discovery_cache/documents/drive.v3.json"
    described = json.loads(place.read_text())
    described["rootUrl"] = described["mtlsRootUrl"] = f"{server.endpoint}/"
    described["baseUrl"] = f"{server.endpoint}/drive/v3/"
    made = build_from_document(
        described,
        credentials=Credentials(  # type: ignore[no-untyped-call]
            "ended",
            refresh_token=server.refresh,
            token_uri=f"{server.endpoint}/token",
            client_id="ours",
            client_secret="no secret",
        ),
    )
    yield made
    made.close()


def _upload(data: bytes, **more: Any) -> MediaIoBaseUpload:
    return MediaIoBaseUpload(io.BytesIO(data), "application/octet-stream", **more)


def _reason(refused: pytest.ExceptionInfo[HttpError]) -> str:
    return str(refused.value.error_details[0]["reason"])


def test_googles_client_creates_with_an_id_once(google: Any, server: DriveServer) -> None:
    files = google.files()
    (file_id,) = files.generateIds(count=1, space="drive").execute()["ids"]
    body = {"id": file_id, "name": "a/b", "appProperties": {"k": "v"}}
    made = files.create(body=body, media_body=_upload(b"hello"), fields="id,size,md5Checksum")
    assert made.execute() == {
        "id": file_id,
        "size": "5",
        "md5Checksum": "5d41402abc4b2a76b9719d911017c592",
    }
    with pytest.raises(HttpError) as refused:
        files.create(body=body, media_body=_upload(b"other")).execute()
    assert refused.value.resp.status == 409
    with pytest.raises(HttpError) as refused:  # ids are the service's to give
        files.create(body={**body, "id": "1" + "x" * 32}).execute()
    assert refused.value.resp.status == 400
    assert files.get_media(fileId=file_id).execute() == b"hello"
    files.update(fileId=file_id, media_body=_upload(b"later")).execute()
    assert files.get_media(fileId=file_id).execute() == b"later"
    files.delete(fileId=file_id).execute()
    with pytest.raises(HttpError) as refused:
        files.get(fileId=file_id).execute()
    assert (refused.value.resp.status, _reason(refused)) == (404, "notFound")
    with pytest.raises(HttpError) as refused:  # nor is an id free again
        files.create(body=body).execute()
    assert refused.value.resp.status == 409


def test_googles_client_resumes_an_upload_and_reads_ranges(
    google: Any, server: DriveServer
) -> None:
    upload = google.files().create(
        body={"name": "large"}, media_body=_upload(DATA, resumable=True, chunksize=512 << 10)
    )
    status, made = upload.next_chunk()
    assert status.resumable_progress == 512 << 10
    server.keeps = 300 << 10  # 256 KiB of the next piece arrive
    with pytest.raises((OSError, HttpError)):
        upload.next_chunk()
    while made is None:
        try:
            _, made = upload.next_chunk()
        except OSError:  # its connection is gone, too
            continue
    out = io.BytesIO()
    download = MediaIoBaseDownload(
        out, google.files().get_media(fileId=made["id"]), chunksize=300_000
    )
    done = False
    while not done:
        _, done = download.next_chunk()
    assert out.getvalue() == DATA


def test_googles_client_searches_and_follows_changes(google: Any, server: DriveServer) -> None:
    files, changes = google.files(), google.changes()
    token = changes.getStartPageToken().execute()["startPageToken"]
    folder = files.create(body={"name": "it's", "mimeType": FOLDER}).execute()["id"]
    inside = [
        files.create(body={"name": n, "parents": [folder], "appProperties": {"v": n}}).execute()
        for n in ("b", "a", "c")
    ]
    asked = {"q": f"'{folder}' in parents and trashed = false", "orderBy": "name", "pageSize": 2}
    page = files.list(**asked).execute()
    assert [f["name"] for f in page["files"]] == ["a", "b"]
    rest = files.list_next(files.list(**asked), page).execute()
    assert [f["name"] for f in rest["files"]] == ["c"]
    for query, found in (
        (r"name = 'it\'s' and mimeType = 'application/vnd.google-apps.folder'", ["it's"]),
        ("'root' in parents", ["it's"]),
        ("appProperties has { key='v' and value='c' }", ["c"]),
        ("not (name = 'a' or name = 'b') and name != 'c'", ["it's"]),
    ):
        names = [f["name"] for f in files.list(q=query).execute()["files"]]
        assert names == found
    with pytest.raises(HttpError) as refused:
        files.list(q="name is 'a'").execute()
    assert refused.value.resp.status == 400
    files.delete(fileId=inside[0]["id"]).execute()
    feed = changes.list(pageToken=token).execute()
    assert {c["fileId"]: c["removed"] for c in feed["changes"]} == {
        folder: False,
        inside[0]["id"]: True,
        inside[1]["id"]: False,
        inside[2]["id"]: False,
    }
    assert changes.list(pageToken=feed["newStartPageToken"]).execute()["changes"] == []
    server.drive.list_lag = server.drive.change_lag = 60.0
    files.create(body={"name": "d", "parents": [folder]}).execute()
    assert files.list(q="name = 'd'").execute()["files"] == []
    assert changes.list(pageToken=feed["newStartPageToken"]).execute()["changes"] == []


def test_googles_client_reads_the_reasons(google: Any, server: DriveServer) -> None:
    about = google.about()
    assert about.get(fields="storageQuota").execute() == {
        "storageQuota": {"usage": "0", "usageInDrive": "0"}
    }
    server.drive.limit = 10
    assert about.get(fields="storageQuota/limit").execute() == {"storageQuota": {"limit": "10"}}
    with pytest.raises(HttpError) as refused:
        google.files().create(body={"name": "x"}, media_body=_upload(bytes(11))).execute()
    assert (refused.value.resp.status, _reason(refused)) == (403, "storageQuotaExceeded")
    server.front.next(refusal(403, "userRateLimitExceeded"), method="GET")
    with pytest.raises(HttpError) as refused:
        about.get(fields="user").execute()
    assert _reason(refused) == "userRateLimitExceeded"
    server.front.next(refusal(403, "userRateLimitExceeded"), method="GET")
    assert about.get(fields="user").execute(num_retries=1)
    server.refresh = "revoked"
    server.new_token()
    with pytest.raises(Exception, match="invalid_grant"):
        about.get(fields="user").execute()


def test_rclone_stores_lists_and_reads(server: DriveServer, tmp_path: Path) -> None:
    ours = authority(tmp_path / "ours", "www.googleapis.com", "oauth2.googleapis.com")
    (tmp_path / "up").mkdir()
    files = {"small": b"hello", "empty": b"", "large": DATA * 9}
    for name, data in files.items():
        (tmp_path / "up" / name).write_bytes(data)
    with Tunnel(server.endpoint, ours / "server.pem") as tunnel:
        config = tmp_path / "rclone.conf"
        ended = {
            "access_token": "ended",
            "token_type": "Bearer",
            "refresh_token": server.refresh,
            "expiry": "2020-01-01T00:00:00Z",
        }
        config.write_text(
            "[d]\ntype = drive\nscope = drive.file\nclient_id = ours\nclient_secret = none\n"
            f"token = {json.dumps(ended)}\n"
        )

        def rclone(*args: str) -> str:
            return subprocess.run(
                ["rclone", "--config", config, "--ca-cert", ours / "ca.pem", "--retries=1", *args],
                env={**os.environ, "HTTPS_PROXY": tunnel.url, "NO_PROXY": ""},
                check=True,
                capture_output=True,
                text=True,
                timeout=60,
            ).stdout

        rclone("copy", str(tmp_path / "up"), "d:volume/in", "--drive-pacer-min-sleep=1ms")
        listed = json.loads(rclone("lsjson", "-R", "--hash", "d:volume"))
        sizes = {entry["Path"]: entry["Size"] for entry in listed if not entry["IsDir"]}
        assert sizes == {f"in/{name}": len(data) for name, data in files.items()}
        rclone("copy", "d:volume", str(tmp_path / "down"))
        for name, data in files.items():
            assert (tmp_path / "down" / "in" / name).read_bytes() == data
        rclone("check", str(tmp_path / "up"), "d:volume/in")  # by MD5
        rclone("delete", "--drive-use-trash=false", "d:volume/in")
        assert "Used" in rclone("about", "d:")
    assert tunnel.hosts == {"www.googleapis.com", "oauth2.googleapis.com"}
    assert [f.name for f in server.drive.files.values() if f.mime != FOLDER] == []
