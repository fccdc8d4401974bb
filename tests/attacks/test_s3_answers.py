"""Answers of an S3 service that cost too much, or that are no answers.

The server here is a plain one that says what a test tells it to, at once.
"""

from __future__ import annotations

import calendar
import contextvars
import resource
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable
from email.utils import formatdate

import pytest
import trio
from trio.testing import MockClock

from megafs import clock
from megafs.errors import Denied, Missing, StoreError, Unavailable
from megafs.stores import base
from megafs.stores.base import Entry, ObjectStore, Page, list_all
from megafs.stores.driver_errors import store_error
from megafs.stores.http.session import Response
from megafs.stores.memory import MemoryStore
from megafs.stores.retry import Retrying
from megafs.stores.s3 import answers
from megafs.stores.s3.credentials import Chain
from megafs.stores.s3.driver import S3Store
from megafs.stores.s3.options import S3Settings

LIMIT = 4_000_000  # bytes; a page of 1,000 objects may have a little more


Answer = tuple[int, dict[str, str], bytes]


def always(status: int, headers: dict[str, str], body: bytes) -> Callable[[str, str], Answer]:
    return lambda method, target: (status, headers, body)


class Server:
    """Answers every request with what `say(method, target)` gives: status, headers and body."""

    def __init__(self, port: int) -> None:
        self.endpoint = f"http://127.0.0.1:{port}"
        self.say = always(200, {}, b"")
        self.seen: list[tuple[str, str]] = []
        self.signed: list[str] = []

    async def serve(self, stream: trio.SocketStream) -> None:
        async with stream:
            data = b""
            while True:
                while b"\r\n\r\n" not in data:
                    more = await stream.receive_some(65536)
                    if not more:
                        return
                    data += more
                head, _, data = data.partition(b"\r\n\r\n")
                lines = head.decode("latin-1").split("\r\n")
                method, target, _ = lines[0].split()
                headers = {k.lower(): v.strip() for k, _, v in (x.partition(":") for x in lines)}
                length = int(headers.get("content-length", "0"))
                while len(data) < length:
                    data += await stream.receive_some(65536)
                data = data[length:]
                self.seen.append((method, target))
                self.signed.append(headers["x-amz-date"])
                status, said, body = self.say(method, target)
                said = {"date": formatdate(time.time(), usegmt=True), **said}
                said["content-length"] = str(len(body))
                fields = "".join(f"{name}: {value}\r\n" for name, value in said.items())
                await stream.send_all(f"HTTP/1.1 {status} X\r\n{fields}\r\n".encode() + body)


@pytest.fixture
async def server(nursery: trio.Nursery) -> Server:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    made = Server(listeners[0].socket.getsockname()[1])
    nursery.start_soon(trio.serve_listeners, made.serve, listeners)
    return made


@pytest.fixture
async def store(server: Server, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[S3Store]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    settings = S3Settings(endpoint=server.endpoint, path_style=True)
    made = S3Store("bucket", "v", Chain("", at_aws=False), settings)
    yield made
    await made.aclose()


def listing(*names: str, more: bool = False, size: str = "1", date: str = "") -> bytes:
    date = date or "2026-01-31T12:00:00.000Z"
    contents = "".join(
        f"<Contents><Key>{name}</Key><Size>{size}</Size><LastModified>{date}</LastModified>"
        "</Contents>"
        for name in names
    )
    return (
        f"<ListBucketResult><IsTruncated>{str(more).lower()}</IsTruncated>{contents}"
        "</ListBucketResult>"
    ).encode()


# Documents that cost more than they are.


def nested() -> bytes:
    depth = LIMIT // 7 - 20
    return b"<ListBucketResult>" + b"<a>" * depth + b"</a>" * depth + b"</ListBucketResult>"


def flat() -> bytes:
    return b"<ListBucketResult>" + b"<a/>" * (LIMIT // 4 - 20) + b"</ListBucketResult>"


def attributes() -> bytes:
    many = b" ".join(b"a%d='>'" % i for i in range(300_000))
    return b"<ListBucketResult " + many + b"></ListBucketResult>"


def lines() -> bytes:
    return b"<ListBucketResult>" + b"\n" * (LIMIT - 100) + b"</ListBucketResult>"


def carriage_returns() -> bytes:
    return b"<ListBucketResult>" + b"\r" * (LIMIT - 100) + b"</ListBucketResult>"


def references() -> bytes:
    return b"<ListBucketResult>" + b"&lt;" * (LIMIT // 4 - 20) + b"</ListBucketResult>"


def comments() -> bytes:
    return b"<ListBucketResult>" + b"<!---->" * (LIMIT // 7 - 20) + b"</ListBucketResult>"


def entities() -> bytes:
    return b'<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa">]><ListBucketResult>&a;</ListBucketResult>'


def wide() -> bytes:
    return '<?xml version="1.0" encoding="utf-16"?><ListBucketResult/>'.encode("utf-16")


@pytest.mark.parametrize(
    "make",
    [nested, flat, attributes, lines, carriage_returns, references, comments, entities, wide],
)
async def test_a_document_that_costs_more_than_it_is(
    store: S3Store, server: Server, make: Callable[[], bytes]
) -> None:
    body = make()
    assert len(body) <= LIMIT + 4096
    server.say = always(200, {}, body)
    tracemalloc.start()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begun = time.process_time()
    try:
        with pytest.raises(StoreError) as raised:
            await store.list("commits/")
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    # Expat's own memory is not traced.
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    assert "\n" not in str(raised.value)
    assert peak < 40 << 20
    assert grown < 64 << 20
    assert time.process_time() - begun < 10


async def test_a_page_of_a_real_service_is_not_too_much(store: S3Store, server: Server) -> None:
    """The most that any of them says of an object, in lines of its own, a thousand times."""
    one = """
  <Contents xmlns:x="http://www.w3.org/2001/XMLSchema-instance">
    <Key>v/commits/{:016d}</Key>
    <LastModified>2026-01-31T12:00:00.000Z</LastModified>
    <ETag>&quot;d41d8cd98f00b204e9800998ecf8427e&quot;</ETag>
    <ChecksumAlgorithm>CRC64NVME</ChecksumAlgorithm>
    <ChecksumType>FULL_OBJECT</ChecksumType>
    <Size>12345</Size>
    <Owner x:type="CanonicalUser">
      <ID>aaaa</ID>
      <DisplayName>&lt;us&gt;</DisplayName>
    </Owner>
    <RestoreStatus>
      <IsRestoreInProgress>false</IsRestoreInProgress>
      <RestoreExpiryDate>2026-01-31T12:00:00.000Z</RestoreExpiryDate>
    </RestoreStatus>
    <StorageClass>STANDARD</StorageClass>
    <Type>Normal</Type>
  </Contents>"""
    for limit in (1, 1000):
        body = (
            '<?xml version="1.0" encoding="UTF-8"?>\n<ListBucketResult xmlns="http://x/">\n'
            "  <Name>bucket</Name><Prefix>v/commits/</Prefix><MaxKeys>1000</MaxKeys>\n"
            + "".join(one.format(i) for i in range(limit))
            + "\n</ListBucketResult>\n"
        ).encode()
        server.say = always(200, {}, body)

        page = await store.list("commits/", limit=limit)

        assert len(page.entries) == limit
        assert page.entries[-1] == Entry(f"commits/{limit - 1:016d}", 12345, 1769860800.0)


# Listings without end.


async def test_a_listing_of_nothing_but_others_objects(store: S3Store, server: Server) -> None:
    count = 0

    def say(method: str, target: str) -> Answer:
        nonlocal count
        count += 1
        return 200, {}, listing(f"v/commits/{count:016d}.jpg", more=True)

    server.say = say
    with trio.fail_after(60), pytest.raises(StoreError) as raised:
        await store.list("commits/")
    assert "\n" not in str(raised.value)
    assert type(raised.value) is StoreError
    assert count <= 1000


class Endless(MemoryStore):
    """A store whose listings never end."""

    def __init__(self, seconds: float = 0.0) -> None:
        super().__init__("endless")
        self.pages = 0
        self._seconds = seconds

    async def list(self, prefix: str, after: str = "", limit: int = 1000) -> Page:
        await trio.sleep(self._seconds)
        self.pages += 1
        return Page([Entry(f"{prefix}{self.pages:016d}-{i:04d}", 1) for i in range(1000)], True)


async def _count(store: ObjectStore, most: int) -> int:
    count = 0
    async for page in list_all(store, "commits/", most=most):
        count += len(page.entries)
    return count


async def test_a_listing_without_end_is_given_up() -> None:
    store = Endless()
    with pytest.raises(StoreError, match=r"memory://endless: .*commits/") as raised:
        await _count(store, 5000)
    assert store.pages == 6
    assert type(raised.value) is StoreError


async def test_a_listing_of_many_slow_pages_is_given_up(
    autojump_clock: MockClock,
) -> None:
    store = Endless(seconds=20)
    begun = trio.current_time()
    with pytest.raises(StoreError, match="commits/"):
        await _count(store, 10**9)
    assert trio.current_time() - begun <= base.LISTING_SECONDS + 20


# Numbers and times.


@pytest.mark.parametrize(
    "said",
    [
        "bytes 0-9/" + "9" * 5000,
        "bytes " + "9" * 5000 + "-9/10",
        "bytes 0-" + "9" * 5000 + "/*",
        "bytes \u0660-9/10".encode().decode("latin-1"),
        "bytes 0-9/-1",
        "",
    ],
)
async def test_a_range_that_is_none(store: S3Store, server: Server, said: str) -> None:
    server.say = always(206, {"content-range": said}, b"0123456789")
    with pytest.raises(Unavailable, match="another range") as raised:
        await store.get("packs/ab/one", 0, 10)
    assert len(str(raised.value)) < 300


@pytest.mark.parametrize("size", ["9" * 5000, "9" * 4000, "-1", str(1 << 63), "x", "", "1.5"])
async def test_a_size_that_is_none(store: S3Store, server: Server, size: str) -> None:
    server.say = always(200, {}, listing("v/commits/1", size=size))
    with pytest.raises(StoreError, match="cannot be read") as raised:
        await store.list("commits/")
    assert len(str(raised.value)) < 300


NO_TIMES = ["tomorrow", "", "0001-01-01", "9" * 5000, "2026-13-01T00:00:00Z", "\u0662026"]


@pytest.mark.parametrize("date", NO_TIMES)
async def test_a_time_that_is_none(store: S3Store, server: Server, date: str) -> None:
    server.say = always(200, {}, listing("v/commits/1", date=date or " "))
    try:
        page = await store.list("commits/")
    except StoreError as exc:
        assert "cannot be read" in str(exc)
    else:
        assert abs(page.entries[0].modified) < 1e12


@pytest.mark.parametrize("stated", NO_TIMES)
async def test_a_server_time_that_is_none(store: S3Store, server: Server, stated: str) -> None:
    body = (
        "<Error><Code>RequestTimeTooSkewed</Code><Message>m</Message>"
        f"<ServerTime>{stated}</ServerTime></Error>"
    ).encode()
    server.say = always(403, {}, body)
    with pytest.raises(Denied, match="clock"):
        await store.get("packs/ab/one", 0, 10)
    assert len(server.seen) <= 2


DAY = 86400.0


def _stamp(seconds: float) -> str:
    return time.strftime("%Y%m%d", time.gmtime(seconds))


@pytest.mark.parametrize("years", [23, -20, 7000])
async def test_a_date_far_away_is_not_signed(store: S3Store, server: Server, years: int) -> None:
    """A signature for 2049 could be used in 2049."""
    far = clock.now() + years * 365 * DAY
    date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(far))
    stated = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(far))
    ours = {_stamp(clock.now()), _stamp(clock.now() + 60)}
    error = f"<Error><Code>RequestTimeTooSkewed</Code><ServerTime>{stated}</ServerTime></Error>"
    for status, body in ((206, b"0123456789"), (403, error.encode()), (403, b"<Error/>")):
        headers = {"date": date, "content-range": "bytes 0-9/10"}
        server.say = always(status, headers, body)
        for _ in range(3):
            try:
                assert await store.get("packs/ab/one", 0, 10) == b"0123456789"
            except Denied as exc:
                assert "allow" in str(exc) or "clock" in str(exc)
    assert {stamp[:8] for stamp in server.signed} <= ours


@pytest.mark.parametrize("hours", [3, -14, 23, 24 * 6])
async def test_a_clock_that_is_off_by_hours_or_days_is_followed(
    store: S3Store, server: Server, hours: int
) -> None:
    date = formatdate(time.time() + hours * 3600, usegmt=True)
    server.say = always(
        206,
        {"date": date, "content-range": "bytes 0-9/10"},
        b"0123456789",
    )
    for _ in range(2):
        await store.get("packs/ab/one", 0, 10)
    then = time.strptime(server.signed[-1], "%Y%m%dT%H%M%SZ")
    assert abs(calendar.timegm(then) - time.time() - hours * 3600) < 60


def test_texts_of_a_document_are_bounded() -> None:
    body = (
        b"<Error><Code>" + b"x" * 50_000 + b"</Code><Message>" + b"y" * 9000 + b"</Message></Error>"
    )
    code, message = answers.error_of(Response(400, {}, body))
    assert len(code) <= 64
    assert len(message) <= 200


async def test_a_region_is_told_without_what_a_terminal_obeys(
    store: S3Store, server: Server
) -> None:
    for header, body in (
        ("eu\x9b2J\x1b[2J", b""),
        ("", b"<Error><Region>eu&#x9b;2J</Region></Error>"),
    ):
        headers = {"x-amz-bucket-region": header} if header else {}
        server.say = always(400, headers, body)
        with pytest.raises(StoreError) as raised:
            await store.get("packs/ab/one", 0, 10)
        assert str(raised.value).isprintable()


@pytest.mark.parametrize(
    "odd",
    [
        ValueError("invalid\nliteral"),
        RecursionError("maximum"),
        KeyError("x"),
        OverflowError("too large"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
        OSError(5, "Input/output error"),
        TypeError("a mistake"),
        ExceptionGroup("of a nursery", [KeyError("x"), ExceptionGroup("", [ValueError("y")])]),
    ],
)
async def test_what_a_driver_did_not_expect_is_a_store_error(odd: Exception) -> None:
    """Above every driver: the tasks of a mount know what to do with a store error, and no other."""

    class Surprised(MemoryStore):
        async def get(self, name: str, start: int, length: int) -> bytes:
            raise odd

        async def list(self, prefix: str, after: str = "", limit: int = 1000) -> Page:
            raise odd

    store = Retrying(Surprised("odd"))
    for call in (lambda: store.get("commits/1", 0, 1), lambda: store.list("")):
        with pytest.raises(StoreError, match="memory://odd") as raised:
            await call()
        assert type(raised.value) is StoreError
        assert "\n" not in str(raised.value)
        assert raised.value.__cause__ is odd


def test_errors_of_no_common_kind_are_store_errors_too() -> None:
    for odd in (AssertionError("of somebody"), Exception("of no kind"), EOFError()):
        # In a context of its own: tests hear of what nobody expected (conftest.py).
        error = contextvars.Context().run(store_error, "s3://b", odd)
        assert type(error) is StoreError
        assert type(odd).__name__ in str(error)


@pytest.mark.parametrize(
    ("errors", "kind"),
    [
        ([Missing("gone"), KeyError("x")], Missing),
        ([Unavailable("later"), Unavailable("later still")], Unavailable),
        ([ExceptionGroup("", [Denied("no")]), OSError(5, "Input/output error")], Denied),
    ],
)
async def test_of_a_group_the_store_error_counts(
    errors: list[Exception], kind: type[StoreError], autojump_clock: MockClock
) -> None:
    """So what may work later is asked again, and what is not there is not there."""
    asked = 0

    class Surprised(MemoryStore):
        async def get(self, name: str, start: int, length: int) -> bytes:
            nonlocal asked
            asked += 1
            raise ExceptionGroup("of a nursery", errors)

    store = Retrying(Surprised("odd"), patience=10)
    with pytest.raises(kind):
        await store.get("commits/1", 0, 1)
    assert (asked > 1) == (kind is Unavailable)


async def test_a_cancellation_beside_an_error_stays_one(autojump_clock: MockClock) -> None:
    class Slow(MemoryStore):
        async def get(self, name: str, start: int, length: int) -> bytes:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever)
                try:
                    await trio.sleep_forever()
                finally:
                    raise KeyError("on the way out")

    store = Retrying(Slow("odd"), patience=10)
    with trio.move_on_after(1) as scope:
        await store.get("commits/1", 0, 1)
    assert scope.cancelled_caught
    with pytest.raises(Unavailable):  # an attempt that the store let wait for too long
        await store.get("commits/1", 0, 1)
