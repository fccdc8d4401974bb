"""Seal and open one byte string: the only authenticated encryption in megafs.

The envelope is C2SP chunked-encryption ("Cobblestone-256", c2sp.org/chunked-encryption), done by
`cryptography.cobblestone`.  A sealed byte string is:

    salt 24 | commitment 32 | segments of 16384 bytes, each followed by its tag of 16 | a last
    segment of 0 to 16383 bytes and its tag

From key, salt and context come, by HKDF-Expand-SHA-512, a fresh AES-256-GCM key, a base nonce and a
commitment to the key.  Segments count up in the nonce, and the last one is always shorter than the
others, so that bytes cut off, moved or repeated are found.  The salt is drawn inside the library
from the system: sealing the same bytes twice gives different results.

`context()` says what is sealed and where it belongs; it is authenticated but not stored.  Bytes
that were sealed for another place, volume or epoch do not open.

Pure but for that salt: no I/O, no clock.
"""

from __future__ import annotations

from io import BytesIO
from typing import Final

from cryptography.cobblestone import Cobblestone256Decryptor, Cobblestone256Encryptor
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.constant_time import bytes_eq
from cryptography.hazmat.primitives.hashes import SHA512
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from megafs.errors import Corrupt

Buffer = bytes | bytearray | memoryview

KEY_SIZE: Final = 32

_SEGMENT: Final = 16384
_TAG: Final = 16
_SALT: Final = 24
_COMMITMENT: Final = 32
_HEADER: Final = _SALT + _COMMITMENT
_NONCE: Final = 12
_LABEL: Final = b"c2sp.org/chunked-encryption@v1+AEAD_AES_256_GCM\0"

#: The bytes at the beginning of what is sealed that a `PartOpener` needs.
HEADER_SIZE: Final = _HEADER
_DOMAIN: Final = b"megafs/1"


def sealed_size(n: int) -> int:
    """Return how many bytes *n* bytes become when sealed: 72 more, and 16 for every 16 KiB."""
    return n + _HEADER + _TAG * (n // _SEGMENT + 1)


def opened_size(n: int) -> int:
    """Return how many bytes were sealed, given the sealed size *n*.

    Raises Corrupt if nothing seals to that size.
    """
    full, rest = divmod(n - _HEADER, _SEGMENT + _TAG)
    if n < _HEADER + _TAG or rest < _TAG:
        raise Corrupt(f"sealed bytes cut short: nothing seals to {n} bytes")
    return full * _SEGMENT + rest - _TAG


def seal(key: bytes, context: bytes, plaintext: Buffer) -> bytes:
    """Return *plaintext* sealed under *key* (32 bytes) for the place that *context* names."""
    sealed = BytesIO(bytes(sealed_size(len(plaintext))))
    with sealed.getbuffer() as out:
        _seal_into(key, context, plaintext, out)
    return sealed.getvalue()


def _seal_into(key: bytes, context: bytes, plaintext: Buffer, out: bytearray | memoryview) -> None:
    sealer = Cobblestone256Encryptor(key, context)
    # update_into and not update(): that one is 4 to 6 times slower from 1 MiB on.
    done = sealer.update_into(plaintext, out)
    out[done:] = sealer.finalize()


def open_sealed(key: bytes, context: bytes, sealed: Buffer, name: str = "") -> bytes:
    """Return the plaintext of *sealed*.

    name: what the error calls these bytes, such as the object's name.

    Raises Corrupt if the bytes, the key or the place are not those of `seal`.
    """
    # getvalue() gives the very bytes that getbuffer() let us fill.  A bytearray and then bytes() of
    # it cost 220 microseconds more at 256 KiB: two such allocations make glibc give the memory
    # back to the kernel each time, and every page is faulted in again.
    opened = BytesIO(bytes(opened_size_of(sealed, name)))
    with opened.getbuffer() as out:
        _open_into(key, context, sealed, out, name)
    return opened.getvalue()


def opened_size_of(sealed: Buffer, name: str = "") -> int:
    """Return how long the plaintext of *sealed* is, before opening it; Corrupt if impossible."""
    try:
        return opened_size(len(sealed))
    except Corrupt as exc:
        if name:
            raise Corrupt(f"{name}: {exc}") from None
        raise


def _open_into(
    key: bytes, context: bytes, sealed: Buffer, out: bytearray | memoryview, name: str
) -> None:
    opener = Cobblestone256Decryptor(key, context)
    try:
        # Segments come out as they verify, and a failing one may leave its bytes behind too:
        # nothing in `out` counts before finalize() has seen the end.
        done = opener.update_into(sealed, out)
        out[done:] = opener.finalize()
    except InvalidTag:
        out[:] = bytes(len(out))
        raise Corrupt(
            f"{name or purpose_of(context)}: {len(sealed)} sealed bytes do not verify: they were "
            "changed, or belong to another place or key"
        ) from None
    except BaseException:
        out[:] = bytes(len(out))
        raise


class PartOpener:
    """Opens single segments of one sealed byte string, which the library's recipe cannot.

    The specification makes segments independent: each has a tag of its own and its number in the
    nonce.  What a part cannot show is where the whole ends; its sealed size must be known from
    elsewhere, and is here: `size`.

    Raises Corrupt if *header* (the first HEADER_SIZE bytes) was not made with this key and context.
    """

    __slots__ = ("_base", "_cipher", "_name", "_size")

    def __init__(
        self, key: bytes, context: bytes, header: Buffer, size: int, name: str = ""
    ) -> None:
        if len(key) != KEY_SIZE:
            raise ValueError(f"a key of {len(key)} bytes")
        opened_size(size)
        self._name = name or purpose_of(context)
        salt, commitment = bytes(header[:_SALT]), bytes(header[_SALT:_HEADER])
        length = KEY_SIZE + _NONCE + _COMMITMENT
        derived = HKDFExpand(SHA512(), length, _LABEL + salt + context).derive(key)
        if not bytes_eq(derived[KEY_SIZE + _NONCE :], commitment):
            raise self._corrupt()
        self._cipher = AESGCM(derived[:KEY_SIZE])
        self._base = int.from_bytes(derived[KEY_SIZE : KEY_SIZE + _NONCE], "big")
        self._size = size

    def sealed_range(self, start: int, end: int) -> tuple[int, int]:
        """The range [from, to) of the sealed bytes that holds the plaintext [start, end).

        0 <= start < end <= the size of the plaintext.
        """
        first, last = start // _SEGMENT, (end - 1) // _SEGMENT
        stop = _HEADER + (last + 1) * (_SEGMENT + _TAG)
        return _HEADER + first * (_SEGMENT + _TAG), min(stop, self._size)

    def open(self, start: int, end: int, sealed: Buffer) -> bytes | memoryview:
        """The plaintext [start, end), given what lies at `sealed_range(start, end)`."""
        at, stop = self.sealed_range(start, end)
        first = start // _SEGMENT
        if len(sealed) != stop - at:
            raise self._corrupt()
        view = memoryview(sealed)
        step = _SEGMENT + _TAG
        try:
            parts = [
                self._cipher.decrypt(
                    (self._base ^ first + n).to_bytes(_NONCE, "big"),
                    view[n * step : (n + 1) * step],
                    None,
                )
                for n in range(-(-len(view) // step))
            ]
        except InvalidTag:
            raise self._corrupt() from None
        plain = parts[0] if len(parts) == 1 else b"".join(parts)
        return memoryview(plain)[start - first * _SEGMENT : end - first * _SEGMENT]

    def _corrupt(self) -> Corrupt:
        return Corrupt(
            f"{self._name}: sealed bytes do not verify: they were changed, or belong to another"
            " place or key"
        )


def context(purpose: str, fsid: bytes, epoch: int, *parts: bytes | int | str) -> bytes:
    """Return the context of bytes of this purpose at the place that *parts* name.

    purpose: "log", "ckpt", "chunk", "slot", ...; decides how many parts there are and of what type.
    fsid: the volume's 16 random bytes.
    parts: the object's own name; numbers from 0 to 2**64-1.
    """
    return encode_fields(purpose, fsid, epoch, *parts)


def encode_fields(*fields: bytes | int | str) -> bytes:
    """Return ``"megafs/1"`` and then each field as its length (u16, big-endian) and its bytes.

    Text is UTF-8, a number 8 bytes big-endian.  Two lists of fields of the same types give the same
    bytes only if they are the same.
    """
    encoded = bytearray(_DOMAIN)
    for item in fields:
        if isinstance(item, int):
            data = item.to_bytes(8, "big")
        elif isinstance(item, str):
            data = item.encode()
        else:
            data = item
        encoded += len(data).to_bytes(2, "big")
        encoded += data
    return bytes(encoded)


def purpose_of(context: bytes) -> str:
    """Return the first field of a context, for messages."""
    start = len(_DOMAIN) + 2
    size = int.from_bytes(context[len(_DOMAIN) : start], "big")
    return context[start : start + size].decode("ascii", "replace") or "sealed bytes"


def padded_size(n: int, outside: int) -> int:
    """Return how many bytes to bring *n* bytes to before sealing, so that the object has a Padmé
    size.

    outside: the object's bytes that are not sealed.
    """
    target = padme(outside + sealed_size(n))
    # One step of padding can push the tags of a further 16 KiB segment over the target; sizes grow
    # with the plaintext, so step until the next Padmé size is met exactly or passed by a tag.
    while (missing := target - outside - sealed_size(n)) > 0:
        n += min(missing, 1 << 20)
        if (excess := outside + sealed_size(n) - target) > 0:
            return n - excess
    return n


def padme(n: int) -> int:
    """Return the Padmé size of *n* bytes: at most 12 % more, and few distinct sizes.

    Sizes keep only their highest bits, as many as the number of their digits needs, so that a size
    tells O(log log n) bits.  Nikitin et al., "Reducing Metadata Leakage from Encrypted Files and
    Communication with PURBs", PETS 2019, section 4.
    """
    if n < 2:
        return n
    exponent = n.bit_length() - 1
    mask = (1 << (exponent - exponent.bit_length())) - 1
    return (n + mask) & ~mask
