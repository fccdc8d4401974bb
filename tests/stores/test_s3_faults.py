"""What the S3 driver makes of a service that fails: a real Ceph behind a proxy that breaks it."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
from msgspec.structs import replace

from megafs.errors import (
    BadStore,
    Denied,
    Exists,
    Full,
    Missing,
    NoStore,
    StoreError,
    Unavailable,
)
from megafs.stores.http.session import Timeouts
from megafs.stores.s3.driver import S3Store
from megafs.stores.s3.sigv4 import Credentials
from tests.engines.ceph import Ceph
from tests.fakes.proxy import (
    Answer,
    Change,
    Cut,
    Fault,
    Hang,
    Proxy,
    Reset,
    Response,
    ShiftDate,
    expired,
    slow_down,
)

pytestmark = pytest.mark.ceph

Connect = Callable[..., S3Store]
DATA = bytes(range(256)) * 1000


@pytest.fixture
async def store(ceph: Ceph, proxy: Proxy, connect: Connect) -> S3Store:
    """A store behind the proxy, with one object in it."""
    made = connect(
        ceph.fresh_name(), "v", endpoint=proxy.endpoint, timeouts=Timeouts(read=1.0, write=1.0)
    )
    await made.create()
    await made.put_new("a", DATA)
    proxy.seen.clear()
    return made


@pytest.mark.parametrize(
    ("answer", "error", "text"),
    [
        (slow_down(), Unavailable, "503 SlowDown"),
        (Answer(429, "TooManyRequests"), Unavailable, "429"),
        (Answer(500, "InternalError"), Unavailable, "500"),
        (Answer(502, body=b"<html>bad gateway</html>"), Unavailable, "502"),
        (Answer(504, body=b""), Unavailable, "504"),
        (Answer(400, "RequestTimeout"), Unavailable, "RequestTimeout"),
        (Answer(403, "QuotaExceeded"), Full, "QuotaExceeded"),
        (Answer(507, body=b""), Full, "507"),
        (Answer(403, "AccessDenied"), Denied, "allow GetObject.*ListBucket"),
        (Answer(403, "SignatureDoesNotMatch"), Denied, "check the access key"),
        (Answer(403, "RequestTimeTooSkewed"), Denied, "clock"),
        (expired(), Denied, "expired: get new ones"),
        (Answer(404, "NoSuchBucket"), NoStore, "no bucket"),
        (Answer(404, body=b"<html>not here</html>"), Unavailable, "not an answer of S3"),
        (Answer(302, headers=(("location", "http://login"),), body=b""), Unavailable, "login page"),
        (
            Answer(301, "PermanentRedirect", (("x-amz-bucket-region", "eu-south-9"),)),
            BadStore,
            "region=eu-south-9",
        ),
        (
            Answer(
                400,
                body=b"<Error><Code>AuthorizationHeaderMalformed</Code>"
                b"<Region>eu-south-9</Region></Error>",
            ),
            BadStore,
            "region=eu-south-9",
        ),
        (Answer(400, "SomethingNew"), StoreError, "400 SomethingNew"),
        (Answer(418, body=b"\xff\x00 not XML"), StoreError, "418"),
        (Answer(403, body=b"<!DOCTYPE a [<!ENTITY b 'c'>]><Error><Code>&b;</Code></Error>"),
         Denied, "answers 403;"),
    ],
)  # fmt: skip
async def test_a_refusal_says_what_to_do(
    store: S3Store, proxy: Proxy, answer: Answer, error: type[StoreError], text: str
) -> None:
    for attempt in (
        lambda: store.get("a", 0, 10),
        lambda: store.put_new("b", b""),
        lambda: store.delete("b"),
        lambda: store.list(""),
    ):
        proxy.next(answer)
        with pytest.raises(error, match=text) as caught:
            await attempt()
        assert type(caught.value) is error

    assert await store.get("a", 0, 10) == DATA[:10]


async def test_the_wait_that_was_asked_for_is_told(store: S3Store, proxy: Proxy) -> None:
    proxy.next(slow_down(7), Answer(429, "TooManyRequests", (("retry-after", "90"),)))
    date, later = (f"Wed, 01 Jan 2025 00:00:{second} GMT" for second in ("00", "20"))
    proxy.next(Answer(503, "SlowDown", (("date", date), ("retry-after", later))))
    proxy.next(Answer(503, "SlowDown", (("retry-after", "soon"),)))
    waits = []
    for _ in range(4):
        with pytest.raises(Unavailable) as caught:
            await store.get("a", 0, 1)
        waits.append(caught.value.retry_after)
    assert waits == [7, 90, 20, None]


@pytest.mark.parametrize(
    ("answer", "busy"),
    [
        (slow_down(), True),
        (Answer(429, body=b""), True),
        (Answer(503, body=b"<html>overloaded</html>"), True),
        (Answer(400, "ThrottlingException"), True),
        (Answer(500, "InternalError"), False),
        (Answer(504, body=b""), False),
    ],
)
async def test_a_store_that_has_too_much_to_do_is_told_from_a_broken_one(
    store: S3Store, proxy: Proxy, answer: Answer, busy: bool
) -> None:
    proxy.next(answer)
    with pytest.raises(Unavailable) as caught:
        await store.get("a", 0, 1)
    assert caught.value.busy is busy


async def test_a_write_that_may_have_happened_is_told(store: S3Store, proxy: Proxy) -> None:
    number = itertools.count(1)

    async def outcome(fault: Fault) -> tuple[bool, bool]:
        """Put a new object through the fault: (may be done, is done)."""
        name = f"maybe/{next(number)}"
        proxy.next(fault, method="PUT")
        with pytest.raises(Unavailable) as caught:
            await store.put_new(name, DATA)
        try:
            done = await store.get(name, 0, len(DATA)) == DATA
        except Missing:
            done = False
        return caught.value.maybe_done, done

    assert await outcome(Reset(after_done=True)) == (True, True)
    assert await outcome(Hang(after_done=True)) == (True, True)
    assert await outcome(Reset()) == (True, False)
    assert await outcome(slow_down()) == (True, False)
    assert await outcome(Answer(429, "TooManyRequests")) == (False, False)
    assert await outcome(Answer(409, "ConditionalRequestConflict")) == (True, False)
    await proxy.refuse()
    with pytest.raises(Unavailable) as caught:
        await store.put_new("b", b"")
    assert not caught.value.maybe_done
    await proxy.accept()
    await store.put_new("b", b"")


@pytest.mark.parametrize("at", [0, 1, 255_999])
async def test_a_body_cut_short_is_no_shorter_object(store: S3Store, proxy: Proxy, at: int) -> None:
    proxy.next(Cut(at))
    with pytest.raises(Unavailable):
        await store.get("a", 0, len(DATA))
    assert await store.get("a", 0, len(DATA)) == DATA


async def test_a_hung_answer_ends_with_the_timeout(store: S3Store, proxy: Proxy) -> None:
    proxy.next(Hang())
    with pytest.raises(Unavailable, match="nothing received for 1 s"):
        await store.get("a", 0, 10)


async def test_a_server_without_ranges_is_understood(store: S3Store, proxy: Proxy) -> None:
    def whole(response: Response) -> None:
        response.status, response.body = 200, DATA
        del response.headers["content-range"]

    proxy.always(Change(whole), method="GET")
    assert await store.get("a", 0, 10) == DATA[:10]
    assert await store.get("a", 200_000, 10) == DATA[200_000:200_010]
    assert await store.get("a", 0, 1 << 30) == DATA


@pytest.mark.parametrize(
    "header",
    ["", "bytes 1-10/256000", "bytes 0-8/256000", "bytes 0-9/9", "bytes 0-10/256000", "bytes */9"],
)
async def test_another_range_than_asked_for_is_refused(
    store: S3Store, proxy: Proxy, header: str
) -> None:
    def other(response: Response) -> None:
        if header:
            response.headers["content-range"] = header
        else:
            del response.headers["content-range"]

    proxy.next(Change(other))
    with pytest.raises(Unavailable, match="another range"):
        await store.get("a", 0, 10)


@pytest.mark.parametrize("size", [9, 11, 100_000])
async def test_more_or_less_than_the_range_says_is_refused(
    store: S3Store, proxy: Proxy, size: int
) -> None:
    def other(response: Response) -> None:
        response.body = DATA[:size]

    proxy.next(Change(other))
    with pytest.raises(Unavailable, match="another range"):
        await store.get("a", 0, 10)


async def test_an_endless_answer_is_left(store: S3Store, proxy: Proxy) -> None:
    def endless(response: Response) -> None:
        response.endless = True
        response.status = 200

    proxy.always(Change(endless))
    assert await store.get("a", 0, 10) == DATA[:10]
    with pytest.raises(StoreError, match="longer than it can be"):
        await store.list("", limit=10)


async def test_a_store_that_cannot_create_if_absent_says_so(store: S3Store, proxy: Proxy) -> None:
    proxy.next(Answer(501, "NotImplemented"))
    with pytest.raises(BadStore, match=r"only if its name is free.*conditional_put=no"):
        await store.put_new("b", b"")


async def test_an_error_dressed_as_success_is_an_error(store: S3Store, proxy: Proxy) -> None:
    proxy.always(Answer(200, "InternalError"))
    for attempt in (lambda: store.put_new("b", b""), lambda: store.list("")):
        with pytest.raises(Unavailable):
            await attempt()
    proxy.heal()
    with pytest.raises(Missing):
        await store.get("b", 0, 1)


@pytest.mark.parametrize(
    "listing",
    [
        b"",
        b"nothing of the kind",
        b"<html></html>",
        b"<!DOCTYPE a [<!ENTITY b 'cccc'>]><ListBucketResult><Name>&b;</Name></ListBucketResult>",
        b"<ListBucketResult><Contents><Key>elsewhere/a</Key><Size>1</Size></Contents></ListBucketResult>",
        b"<ListBucketResult><Contents><Key>v/a</Key><Size>x</Size></Contents></ListBucketResult>",
        b"<ListBucketResult><Contents><Key>v/a</Key></Contents></ListBucketResult>",
        b"<ListBucketResult><Contents><Key>v/a</Key><Size>1</Size>%s</Contents></ListBucketResult>"
        % b"<LastModified>noon</LastModified>",
        b"<ListBucketResult>" + b"<a>" * 100_000,
    ],
)
async def test_a_listing_that_is_none_is_an_error(
    store: S3Store, proxy: Proxy, listing: bytes
) -> None:
    proxy.next(Answer(200, body=listing))
    with pytest.raises(StoreError):
        await store.list("")


async def test_a_listing_that_goes_back_is_refused(store: S3Store, proxy: Proxy) -> None:
    """A store that lists the same page for ever does not keep us busy for ever."""
    entry = (
        b"<Contents><Key>v/%s</Key><Size>1</Size>"
        b"<LastModified>2026-01-01T00:00:00Z</LastModified></Contents>"
    )
    page = b"<ListBucketResult>%s<IsTruncated>true</IsTruncated></ListBucketResult>"
    proxy.always(Answer(200, body=page % (entry % b"b")))
    assert [e.name for e in (await store.list("", "a")).entries] == ["b"]
    with pytest.raises(StoreError, match="not in order"):
        await store.list("", "b")
    proxy.heal()
    proxy.always(Answer(200, body=page % b""))
    assert not (await store.list("", "b")).more
    proxy.heal()
    proxy.always(Answer(200, body=page % (entry % b"b" + entry % b"a")))
    with pytest.raises(StoreError, match="not in order"):
        await store.list("")


# Clocks


@pytest.fixture
def wrong_clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Set this machine's clock off by some seconds."""
    from megafs import clock

    right = clock.now

    def off_by(seconds: float) -> None:
        monkeypatch.setattr(clock, "now", lambda: right() + seconds)

    return off_by


@pytest.mark.parametrize("minutes", [-3000, -20, -10, 10, 20, 3000])
async def test_a_wrong_clock_is_corrected_by_the_servers(
    store: S3Store, proxy: Proxy, wrong_clock: Callable[[float], None], minutes: int
) -> None:
    wrong_clock(minutes * 60)
    for i in range(3):
        await store.put_new(f"b/{i}", b"")
    assert len(proxy.seen) == (4 if abs(minutes) > 15 else 3), "at most one request more"
    assert abs(store.health().details["clock_skew_seconds"] + minutes * 60) < 5

    proxy.seen.clear()
    wrong_clock(0)  # somebody has set it right
    for i in range(3):
        await store.put_new(f"c/{i}", b"")
    assert len(proxy.seen) == (4 if abs(minutes) > 15 else 3)


@pytest.mark.parametrize("minutes", [-10, 10, 20])
async def test_a_server_that_tells_the_wrong_time_is_not_believed_for_long(
    store: S3Store, proxy: Proxy, minutes: int
) -> None:
    proxy.always(ShiftDate(minutes * 60))
    for i in range(5):
        await store.put_new(f"b/{i}", b"")
    assert len(proxy.seen) <= 6


# Credentials


class Rotating:
    """Credentials of which the store accepts the second."""

    def __init__(self, *all_of_them: Credentials) -> None:
        self.left = list(all_of_them)
        self.asked = 0

    async def current(self) -> Credentials:
        return self.left[0]

    async def renewed(self, refused: Credentials) -> bool:
        self.asked += 1
        if len(self.left) > 1 and refused == self.left[0]:
            self.left.pop(0)
            return True
        return False


async def test_refused_credentials_are_read_again_once(ceph: Ceph, connect: Connect) -> None:
    right = Credentials(ceph.access, ceph.secret)
    source = Rotating(replace(right, secret_key="old"), right)
    store = connect(ceph.fresh_name(), credentials=source)
    await store.create()
    assert source.asked == 1

    source = Rotating(replace(right, secret_key="old"), replace(right, secret_key="older"))
    store = connect(ceph.fresh_name(), credentials=source)
    with pytest.raises(Denied):
        await store.create()
    assert source.asked == 1


async def test_expired_credentials_that_come_back_work_again(store: S3Store, proxy: Proxy) -> None:
    proxy.next(expired(), expired())
    for _ in range(2):
        with pytest.raises(Denied, match="expired"):
            await store.get("a", 0, 1)
    assert await store.get("a", 0, 1) == DATA[:1]


# A sick cluster


async def test_a_stalled_cluster_is_waited_for(ceph: Ceph, connect: Connect) -> None:
    """An OSD that hangs makes requests late, not wrong."""
    import trio

    store = connect(ceph.fresh_name())
    await store.create()
    async with trio.open_nursery() as nursery:
        with ceph.suspended("osd.0"):
            nursery.start_soon(store.put_new, "a", DATA)
            await trio.sleep(1.5)
    assert await store.get("a", 0, len(DATA)) == DATA
    with pytest.raises(Exists):
        await store.put_new("a", b"")


async def test_a_gateway_that_dies_loses_nothing(ceph: Ceph, connect: Connect) -> None:
    """Killed while it creates objects, and started again: each is there, whole, and once."""
    import trio

    from megafs.stores.retry import Retrying

    store = Retrying(connect(ceph.fresh_name()), patience=60)
    await store.create()
    under_way = trio.Event()

    async def write(i: int) -> None:
        for j in range(12):
            await store.put_new(f"o/{i}/{j}", f"{i}-{j}".encode() * 1000)
            under_way.set()

    async with trio.open_nursery() as nursery:
        for i in range(8):
            nursery.start_soon(write, i)
        await under_way.wait()
        ceph.stop("rgw")
        await trio.sleep(0.5)
        ceph.restart("rgw")

    for i in range(8):
        for j in range(12):
            assert await store.get(f"o/{i}/{j}", 0, 10_000) == f"{i}-{j}".encode() * 1000
    assert len((await store.list("o/")).entries) == 96
