"""Ask an endpoint of OAuth: for tokens (RFC 6749, 3.2), devices (8628), revocation (7009).

Forms and answers hold secrets.  They travel in bodies only; no error text repeats them, and of a
refusal it says the error's code alone, if that is one (RFC 6749, 5.2: a word, not a sentence).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

from megafs.errors import Denied, StoreError, Unavailable
from megafs.stores.http.retry_after import retry_after
from megafs.stores.http.session import Response, Session, Timeouts
from megafs.stores.login.kinds import check_endpoint

_ANSWER_LIMIT = 64 << 10
_CODE = re.compile(r"[a-z][a-z_]{0,63}\Z")


class TokenRefused(Denied):
    """The service said no.  code: why, as RFC 6749 and 8628 name it, "" if it does not say."""

    def __init__(self, text: str, code: str) -> None:
        super().__init__(text)
        self.code = code


async def ask(
    endpoint: str,
    form: Mapping[str, str],
    *,
    ca: Path | None = None,
    timeouts: Timeouts | None = None,
) -> Mapping[str, Any]:
    """POST *form* to *endpoint* and return the answer's JSON object.

    Raises TokenRefused for 400 and 401, Unavailable for whatever may work later.
    """
    parts = urlsplit(check_endpoint(endpoint))
    session = Session(
        f"{parts.scheme}://{parts.netloc}",
        connections=1,
        timeouts=timeouts or Timeouts(),
        ca=ca,
    )
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    headers = {
        "accept": "application/json",
        "content-type": "application/x-www-form-urlencoded",
    }
    try:
        reply = await session.request(
            "POST", target, headers, urlencode(form).encode("ascii"), limit=_ANSWER_LIMIT
        )
    finally:
        await session.aclose()
    return _read(reply, session.host)


def _read(reply: Response, host: str) -> Mapping[str, Any]:
    said = f"{host} answers {reply.status} to the login"
    values: object = None
    try:
        values = json.loads(reply.body) if reply.body else {}
    except (ValueError, RecursionError):
        pass
    if reply.status == 200 and isinstance(values, dict):
        return values
    code = ""
    if isinstance(values, dict):
        word = values.get("error")
        code = word if isinstance(word, str) and _CODE.match(word) else ""
    if code in ("temporarily_unavailable", "server_error") or reply.status == 429:
        raise Unavailable(said, retry_after=retry_after(reply), busy=True)
    if reply.status in (400, 401, 403, 428) and code:
        raise TokenRefused(f"{said} ({code})", code)
    if reply.status in (400, 401):
        raise TokenRefused(said, "")
    if 300 <= reply.status < 400:
        raise Unavailable(f"{said}; is there a login page on the way, or another address?")
    if reply.status == 404 or reply.status == 405:
        raise StoreError(f"{said}; is it the address of its token endpoint?")
    raise Unavailable(said, retry_after=retry_after(reply), busy=reply.status == 503)
