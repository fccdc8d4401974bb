"""What went wrong on the wire, as an error of megafs: the one place where it is translated.

Texts name the request without its headers and its query.
"""

from __future__ import annotations

import os
import socket
import ssl
from enum import Enum
from typing import TypeVar

from megafs.errors import BadStore, StoreError, Unavailable
from megafs.stores.http.http1 import AnswersInTls, HungUp
from megafs.stores.http.transport import Request, Timeouts

E = TypeVar("E", bound=BaseException)

# What OpenSSL calls bytes that are no record of TLS.
_NO_TLS = frozenset(
    {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "HTTPS_PROXY_REQUEST", "PACKET_LENGTH_TOO_LONG"}
)


class RequestStep(Enum):
    """How far a request had come."""

    CONNECTING = "connecting"  # nothing of it was sent
    SENDING = "sending"
    RECEIVING = "receiving"


def failure(
    request: Request,
    step: RequestStep,
    exc: BaseException,
    timeouts: Timeouts,
    *,
    late: bool,
    trusted: bool,
    secure: bool,
) -> StoreError:
    """Return the error that *exc* is, raised by a socket, TLS or an HTTP library.

    late: a step took longer than its time in *timeouts*.
    secure: whether TLS was meant to be spoken.
    trusted: the server was trusted before: a certificate that is refused now is a passing trouble.
    """
    if not trusted and (untrusted := _find(exc, ssl.SSLCertVerificationError)):
        return BadStore(
            f"{request.server} is not trusted: {untrusted.verify_message}; for a private"
            " certificate authority give its file with the option ca="
        )
    reason = _late(step, timeouts) if late else _reason(step, exc)
    if not trusted and not late:
        if said := _other_scheme(request.server, exc):
            return BadStore(said)
        if not secure and _find(exc, HungUp):  # as OpenSSL does
            reason += "; does the server speak TLS: is it https://?"
    return unavailable(request, step, reason)


def unavailable(request: Request, step: RequestStep, reason: str) -> Unavailable:
    """Return the error for a request that got no answer."""
    maybe_done = step is not RequestStep.CONNECTING and request.may_change
    return Unavailable(
        f"{request.text}: {reason}", maybe_done=maybe_done, unreached=step is RequestStep.CONNECTING
    )


def unsendable(request: str) -> BadStore:
    """Return the error for what breaks its line.  request: its method and server."""
    return BadStore(f"{request}: cannot be put into a request")


def _other_scheme(server: str, exc: BaseException) -> str:
    """Advice if one side speaks TLS and the other does not; "" if that is not it."""
    broken = _find(exc, ssl.SSLError)
    if broken is not None and broken.reason in _NO_TLS:
        return (
            f"{server} does not speak TLS at this port: write http:// and not https:// in"
            " endpoint=, or is it another port?"
        )
    if _find(exc, AnswersInTls):
        return f"{server} speaks TLS at this port: write https:// in endpoint="
    return ""


def _late(step: RequestStep, timeouts: Timeouts) -> str:
    if step is RequestStep.CONNECTING:
        return f"no connection within {timeouts.connect:g} s"
    if step is RequestStep.SENDING:
        return f"nothing accepted for {timeouts.write:g} s"
    return f"nothing received for {timeouts.read:g} s"


def _reason(step: RequestStep, exc: BaseException) -> str:
    said = _system_error(exc) or str(exc) or type(exc).__name__
    return f"cannot connect: {said[:200]}" if step is RequestStep.CONNECTING else said[:200]


def _system_error(exc: BaseException | None) -> str:
    """The operating system's reason, the innermost cause first; "" if it gave none."""
    if exc is None:
        return ""
    if isinstance(exc, BaseExceptionGroup):  # of the addresses of one name, any failure will do
        return next(filter(None, map(_system_error, exc.exceptions)), "")
    inner = _system_error(exc.__cause__ or exc.__context__)
    if inner or not isinstance(exc, OSError):
        return inner
    if exc.errno and not isinstance(exc, socket.gaierror | ssl.SSLError):
        return os.strerror(exc.errno)  # trio's own text repeats the address
    return exc.strerror or ""


def _find(exc: BaseException | None, kind: type[E]) -> E | None:
    """The first error of *kind* among *exc* and what caused it."""
    while exc is not None:
        if isinstance(exc, kind):
            return exc
        exc = exc.__cause__ or exc.__context__
    return None
