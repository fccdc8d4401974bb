"""TLS: whom to trust, and a connection's encryption between two buffers."""

from __future__ import annotations

import os
import ssl
from pathlib import Path
from typing import cast

from msgspec import Struct

from megafs.buffers import aligned
from megafs.errors import BadStore


class ClientCertificate(Struct, frozen=True):
    """By what a server knows us, in PEM.  key: None if it is in the same file."""

    certificate: Path
    key: Path | None = None


def client_context(ca: Path | None, client: ClientCertificate | None = None) -> ssl.SSLContext:
    """Return what to trust servers by: the certificates in *ca*, or the system's if it is None.

    client: what to show to servers that ask who we are.
    """
    context = _trusting(ca)
    if client is not None:
        try:
            # An encrypted key would be asked for at the terminal: there may be none.
            context.load_cert_chain(client.certificate, client.key, password="")
        except (OSError, ssl.SSLError) as exc:
            reason = exc.strerror or "not a certificate and its key, without a passphrase, in PEM"
            raise BadStore(f"cannot use the certificate {client.certificate}: {reason}") from exc
    return context


def _trusting(ca: Path | None) -> ssl.SSLContext:
    if ca is not None:
        try:
            context = ssl.create_default_context(cafile=str(ca))
        except (OSError, ssl.SSLError) as exc:
            raise BadStore(f"cannot read certificates from {ca}: {exc}") from exc
        # Python 3.13 wants extensions that hand-made authorities lack; no other program does.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        return context
    paths = ssl.get_default_verify_paths()
    system = paths.cafile or (
        paths.capath and os.path.isdir(paths.capath) and os.listdir(paths.capath)
    )
    if system:  # what the machine's administrator trusts
        return ssl.create_default_context()
    import certifi  # a bare container has none

    return ssl.create_default_context(cafile=certifi.where())


class Tls:
    """TLS between two buffers: bytes of the wire on one side, bytes of HTTP on the other."""

    def __init__(self, context: ssl.SSLContext, host: str) -> None:
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._ssl = context.wrap_bio(self._in, self._out, server_hostname=host)
        #: What has come from the wire, on its way to `feed()`.
        self.scratch = memoryview(aligned(256 << 10))

    def shake_hands(self) -> bool:
        """Go on with the handshake; True when it is done."""
        try:
            self._ssl.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def feed(self, size: int) -> None:
        """Take in *size* bytes of the scratch; none at all is the end of the stream."""
        if size:
            self._in.write(self.scratch[:size])
        else:
            self._in.write_eof()

    def read(self, view: memoryview) -> int | None:
        """Decrypt into *view* what is there; None if more of the wire is needed, 0 at the end."""
        got = 0
        try:
            while got < len(view):  # a record is 16 KiB
                # With a buffer it returns how many bytes it wrote there; typeshed knows only the
                # form without one.
                n = cast(int, self._ssl.read(len(view) - got, view[got:]))
                if not n:
                    break
                got += n
        except ssl.SSLWantReadError:
            return got or None
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            # Whether the end came too early is known by the length of the answer.
            pass
        return got

    def write(self, view: memoryview) -> None:
        """Encrypt *view*; `pending()` then gives what to send."""
        while view:
            view = view[self._ssl.write(view) :]

    def pending(self) -> bytes:
        """The bytes to be sent, b"" if there are none."""
        return self._out.read() if self._out.pending else b""
