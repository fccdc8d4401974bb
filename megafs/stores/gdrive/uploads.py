"""Uploads: a small object with its metadata in one request, a large one in pieces that resume.

A resumable upload whose connection breaks is asked how far it came, and goes on from there; its
session lives for a week.  https://developers.google.com/workspace/drive/api/guides/manage-uploads
"""

from __future__ import annotations

import re
from urllib.parse import urlencode, urlsplit

import msgspec

from megafs import clock
from megafs.errors import Exists, StoreError, Unavailable
from megafs.stores.base import Buffer
from megafs.stores.gdrive.errors import reason_of
from megafs.stores.gdrive.files import FIELDS, DriveFile, NewFile, read
from megafs.stores.gdrive.service import DriveService
from megafs.stores.http.session import Response

UPLOADS = "/upload/drive/v3/files"
#: The most bytes of an upload in one request, by Google's documentation.
AT_ONCE = 5_000_000
_JSON = "application/json; charset=UTF-8"
_BYTES = "application/octet-stream"
_RANGE = re.compile(r"bytes=0-([0-9]{1,15})\Z")
#: Uploads under way that are remembered; each is some 300 bytes.
_REMEMBERED = 256
# Pieces of one attempt: a service that takes a little each time is not asked for ever.
_PIECES = 1000


class Uploads:
    """Makes files with content."""

    def __init__(self, service: DriveService) -> None:
        self._service = service
        self._sessions: dict[str, str] = {}  # by id: the session's path and query

    async def create(self, file: NewFile, data: Buffer) -> DriveFile:
        """Make the file, whole or not at all.  Exists if its id is taken.

        Called again with the same id and data after a failure, a large upload goes on where it was.
        """
        if len(data) > AT_ONCE:
            made = await self._resumable(file, memoryview(data).cast("B"))
        else:
            made = await self._at_once(file, data)
        if made.size != len(data):
            raise Unavailable(
                f"store {file.name}: {made.size} of {len(data)} bytes are there", maybe_done=True
            )
        return made

    async def replace(self, file_id: str, name: str, data: Buffer) -> DriveFile | None:
        """Give a file other content, of at most AT_ONCE bytes; None if there is no such file."""
        service = self._service
        target = f"{UPLOADS}/{file_id}?{urlencode({'uploadType': 'media', 'fields': FIELDS})}"
        reply = await service.ask("PATCH", target, headers={"content-type": _BYTES}, body=data)
        if reply.status == 404 and reason_of(reply):
            return None
        if reply.status != 200:
            raise service.error(reply, f"store {name}", write=True)
        return read(reply, DriveFile, service.session.host)

    async def _at_once(self, file: NewFile, data: Buffer) -> DriveFile:
        boundary = clock.random_bytes(16).hex()
        mark = f"--{boundary}"
        body = b"".join(
            (
                f"{mark}\r\ncontent-type: {_JSON}\r\n\r\n".encode(),
                msgspec.json.encode(file),
                f"\r\n{mark}\r\ncontent-type: {_BYTES}\r\n\r\n".encode(),
                data,
                f"\r\n{mark}--\r\n".encode(),
            )
        )
        reply = await self._service.ask(
            "POST",
            f"{UPLOADS}?{urlencode({'uploadType': 'multipart', 'fields': FIELDS})}",
            headers={"content-type": f"multipart/related; boundary={boundary}"},
            body=body,
        )
        return self._service.created(reply, file)

    # In pieces

    async def _resumable(self, file: NewFile, data: memoryview) -> DriveFile:
        target = self._sessions.get(file.id)
        offset = 0
        if target is not None:
            found = await self._how_far(target, file, len(data))
            if isinstance(found, DriveFile):
                return self._done(file, found)
            if found is None:
                target = None
            else:
                offset = found
        if target is None:
            target = await self._begin(file, len(data))
        for _ in range(_PIECES):
            reply = await self._send(target, data, offset)
            if reply.status in (200, 201):
                return self._done(file, self._service.created(reply, file))
            if reply.status != 308:
                raise self._failed(reply, file)
            offset = _received(reply, len(data))
        raise Unavailable(f"store {file.name}: the upload does not end")

    async def _begin(self, file: NewFile, size: int) -> str:
        service = self._service
        reply = await service.ask(
            "POST",
            f"{UPLOADS}?{urlencode({'uploadType': 'resumable', 'fields': FIELDS})}",
            headers={
                "content-type": _JSON,
                "x-upload-content-type": _BYTES,
                "x-upload-content-length": str(size),
            },
            body=msgspec.json.encode(file),
        )
        if reply.status != 200:
            service.created(reply, file)  # raises what it means
            raise service.error(reply, f"store {file.name}", write=False)
        parts = urlsplit(reply.headers.get("location", ""))
        if parts.netloc != service.session.host or not parts.path.startswith("/"):
            # A token goes with it, so it goes nowhere else.
            raise Unavailable(f"store {file.name}: {service.session.host} gives no upload address")
        target = f"{parts.path}?{parts.query}"
        while len(self._sessions) >= _REMEMBERED:
            self._sessions.pop(next(iter(self._sessions)))
        self._sessions[file.id] = target
        return target

    async def _how_far(self, target: str, file: NewFile, size: int) -> int | DriveFile | None:
        """How many bytes are there, the file if it is whole, None if the session has ended."""
        headers = {"content-range": f"bytes */{size}"}
        reply = await self._service.ask("PUT", target, headers=headers)
        if reply.status in (200, 201):
            return self._service.created(reply, file)
        if reply.status == 308:
            return _received(reply, size)
        if reply.status in (400, 404, 410):
            self._sessions.pop(file.id, None)
            return None
        raise self._failed(reply, file)

    async def _send(self, target: str, data: memoryview, offset: int) -> Response:
        last = len(data) - 1
        headers = {
            "content-range": f"bytes {offset}-{last}/{len(data)}",
            "content-type": _BYTES,
        }
        return await self._service.ask("PUT", target, headers=headers, body=data[offset:])

    def _done(self, file: NewFile, made: DriveFile) -> DriveFile:
        self._sessions.pop(file.id, None)
        return made

    def _failed(self, reply: Response, file: NewFile) -> StoreError:
        """The error that an answer in the middle is; a session that has ended begins anew."""
        if 400 <= reply.status < 500 and reply.status not in (401, 403, 408, 429):
            self._sessions.pop(file.id, None)
        if reply.status == 409 and reason_of(reply):
            return Exists(f"{file.name}: the name is taken")
        if reply.status in (404, 410):
            return Unavailable(f"store {file.name}: the upload has ended; it begins anew")
        return self._service.error(reply, f"store {file.name}", write=True)


def _received(reply: Response, size: int) -> int:
    """How many bytes an upload that goes on has received."""
    found = _RANGE.match(reply.headers.get("range", ""))
    received = int(found[1]) + 1 if found else 0
    if received >= size:
        raise Unavailable("the service has all of an upload and does not say so", maybe_done=True)
    return received
